"""Checks the configs and tokenizers of checkpoints against the specs that use them."""

from collections.abc import Iterator, Mapping

from jdkd.config import EncoderSpec, StudentSpec
from jdkd.models import pretrained, weights
from jdkd.models.config import pick_layers
from jdkd.retrieval import encode
from jdkd.systems import loading, tokenizer_checks
from jdkd.tokens.tokenizer import load_tokenizer
from jdkd.validation.errors import catch


def errors(specs: Mapping[str, EncoderSpec], *, store: str, fetch: bool) -> Iterator[str]:
    """Errors of the checkpoints of encoders, whose specs are given by config field.

    Reads no weights. `store` is `index.store`. With `fetch`, fetches checkpoints from the hub;
    otherwise skips them.
    """
    for field, spec in specs.items():
        towers = {field: (spec.weights, spec.revision)}
        if spec.query_weights is not None:
            towers[f'{field}.query_weights'] = loading.query_checkpoint(spec)
        for prefix, (name, revision) in towers.items():
            try:
                directory = weights.local(name)
                if directory is None and fetch:
                    directory = weights.find_weights(name, revision)
                sketches = pretrained.read_architectures(directory) if directory else ()
            except (ValueError, OSError) as error:
                yield f'{prefix}: {error}'
                continue
            for sketch in sketches:
                yield from _sketch_errors(prefix, spec, sketch, store)
            is_one = len(towers) == len(sketches) == 1
            if is_one and isinstance(spec, StudentSpec) and spec.freeze != 'none':
                yield (
                    f'{field}.freeze={spec.freeze!r} needs two towers, and the checkpoint has one '
                    f'for queries and passages; set {field}.query_weights, to the same weights if '
                    'they are to begin equal.'
                )


def _sketch_errors(
    prefix: str, spec: EncoderSpec, sketch: pretrained.Architecture, store: str
) -> Iterator[str]:
    config = sketch.config
    yield from catch(pick_layers, config, spec.layers or None, prefix=prefix)
    yield from catch(loading.check_similarity, spec, sketch, prefix=prefix)
    if spec.kind == 'cross_encoder':
        yield from catch(loading.head_of, spec, sketch, prefix=prefix)
    if spec.query_length is not None and spec.passage_length is not None:
        yield from catch(loading.check_lengths, spec, config, prefix=prefix)
    if spec.hidden_size is not None:
        yield from catch(loading.of_size, config, spec.hidden_size, prefix=prefix)
    hidden = spec.hidden_size or config.hidden_size
    own = sketch.projection if spec.hidden_size is None else None
    yield from catch(loading.projection_of, spec, hidden, own, prefix=prefix)
    width = spec.projection or (own.out_dim if own else hidden)
    if store == 'binary' and (spec.kind or sketch.kind) == 'dual_encoder':
        normalize = sketch.normalize if spec.normalize is None else spec.normalize
        yield from catch(encode.check_binary, width, normalize=normalize, prefix=prefix)
    if isinstance(spec, StudentSpec) and spec.dims:
        if max(spec.dims) > width:
            yield (
                f'{prefix}: dims={spec.dims} asks for more than its {width} dimensions; give '
                'widths of at most that.'
            )
    yield from catch(
        lambda: tokenizer_checks.check_tokenizer(
            spec, config, load_tokenizer(sketch.tokenizer_dir)
        ),
        prefix=prefix,
    )
