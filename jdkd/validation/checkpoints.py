"""What the configs and tokenizers of checkpoints say of the entries that use them."""

from collections.abc import Iterator, Mapping

import ml_collections

from jdkd.models import pretrained, weights
from jdkd.models.config import pick_layers
from jdkd.systems import loading
from jdkd.systems.roles import encoders
from jdkd.tokens.tokenizer import load_tokenizer
from jdkd.validation.faults import caught


def faults(config: ml_collections.FrozenConfigDict, *, fetch: bool) -> Iterator[str]:
    """What is wrong with the checkpoints of a run; no weights are read.

    Args:
        config: Of the run.
        fetch: Whether those of the hub are fetched; else they are left out.
    """
    yield from entry_faults(encoders(config), fetch=fetch)


def entry_faults(
    named: Mapping[str, ml_collections.FrozenConfigDict], *, fetch: bool
) -> Iterator[str]:
    """The same for entries by their field."""
    for field, entry in named.items():
        for key in ('weights', 'query_weights'):
            if entry[key] is None:
                continue
            revision = entry['revision' if key == 'weights' else 'query_revision']
            of = field if key == 'weights' else f'{field}.{key}'
            try:
                directory = weights.local(entry[key])
                if directory is None and fetch:
                    directory = weights.find_weights(entry[key], revision)
                sketches = pretrained.read_sketches(directory) if directory else ()
            except (ValueError, OSError) as error:
                yield f'{of}: {error}'
                continue
            for sketch in sketches:
                yield from _sketch_faults(of, entry, sketch)


def _sketch_faults(
    of: str, entry: ml_collections.FrozenConfigDict, sketch: pretrained.Sketch
) -> Iterator[str]:
    config = sketch.config
    yield from caught(pick_layers, config, entry.layers or None, of=of)
    if entry.query_length is not None and entry.passage_length is not None:
        yield from caught(loading.check_lengths, entry, config, of=of)
    if entry.hidden_size is not None:
        yield from caught(loading.of_size, config, entry.hidden_size, of=of)
    yield from caught(
        lambda: loading.check_tokenizer(entry, config, load_tokenizer(sketch.tokenizer_dir)), of=of
    )
