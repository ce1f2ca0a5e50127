"""Exports encoders of a run with a model card."""

import functools
import json
import pathlib
import re
import textwrap
from collections.abc import Mapping

from jdkd.models import export, weights
from jdkd.report import costs, tables
from jdkd.run import STUDENT, Run
from jdkd.runtime import distributed, lock
from jdkd.systems import loading
from jdkd.systems.encoders import Encoder


def write(
    run: Run,
    name: str,
    encoder: Encoder,
    report: Mapping,
    directory: str | pathlib.Path | None = None,
) -> pathlib.Path:
    """Exports an encoder of a run, on process 0; see `export.export_sentence_transformer`.

    Args:
        run: The run.
        name: 'student' or the name of a system.
        encoder: Has its trained parameters.
        report: The run's report, whose table goes into the model card.
        directory: Target; None for `<workdir>/student` or `<workdir>/exported/<name>`, which are
            moved to `replaced/` if files in them were changed or added.

    Returns:
        The directory.
    """
    default = run.workdir / (STUDENT if name == STUDENT else f'exported/{name}')
    directory = pathlib.Path(directory or default)
    if not distributed.is_primary():
        return directory
    spec = encoder.spec
    lengths = {'query_length': spec.query_length, 'passage_length': spec.passage_length}
    export.export_sentence_transformer(
        directory,
        model=encoder.model,
        params=encoder.params,
        tokenizer_dir=encoder.tokenizer.directory,
        max_length=loading.check_lengths(spec, encoder.model.transformer),
        model_card=model_card(run, name, encoder, report),
        **({} if spec.kind == 'cross_encoder' else lengths),
        query_prompt=spec.query_prefix or '',
        passage_prompt=spec.passage_prefix or '',
        passage_format=spec.passage_format or 'joined',
        set_aside=functools.partial(lock.set_aside, directory) if directory == default else None,
    )
    return directory


def model_card(run: Run, name: str, encoder: Encoder, report: Mapping) -> str:
    """README.md of an export: the model, its measures, how to load it."""
    spec = encoder.spec
    is_pairs = spec.kind == 'cross_encoder'
    meta = {
        'library_name': 'sentence-transformers',
        'pipeline_tag': 'text-ranking' if is_pairs else 'sentence-similarity',
        'tags': ['sentence-transformers', 'cross-encoder' if is_pairs else 'dual-encoder', 'jdkd'],
        'base_model': spec.weights if _is_on_hub(spec.weights) else None,
        'license': encoder.source.license,
    }
    # JSON is YAML, and its quoting keeps each value one value.
    front = '\n'.join(f'{key}: {json.dumps(value)}' for key, value in meta.items() if value)
    prefixes = _FORMATS[spec.passage_format or 'joined']
    if spec.query_prefix or spec.passage_prefix:
        prefixes += (
            f'\nQueries begin with the prompt {_code(repr(spec.query_prefix))}, passages with '
            f'{_code(repr(spec.passage_prefix))}'
        )
        prefixes += ': add them.\n' if is_pairs else '; the calls above add them.\n'
    return f"""---
{front}
---

# {'Re-ranker' if is_pairs else 'Dense retriever'} trained with jdkd

{_fill(_description(run, name, encoder, report))}

```python
{_CROSS_USAGE if is_pairs else _DUAL_USAGE}
```
{prefixes}
{_measured(run, name, report)}
{_costs(report) if name == STUDENT and 'costs' in report else ''}
- config sha256: {report['config_sha256']}
- collection sha256: {report['collection']['sha256']}
"""


def _description(run: Run, name: str, encoder: Encoder, report: Mapping) -> str:
    """A sentence on the model, its start, its training and its lengths."""
    spec, transformer = encoder.spec, encoder.model.transformer
    is_pairs = spec.kind == 'cross_encoder'
    start = f'layers {", ".join(map(str, spec.layers))} of' if spec.layers else 'all layers of'
    if spec.hidden_size is not None:
        start = 'random weights, with family and vocabulary of'
    if not is_pairs and encoder.source.query is not None:
        start = f'two towers, for queries and for passages, each {start}'
    begun = _code(spec.weights) if _is_on_hub(spec.weights) else 'a checkpoint on disk'
    terms = _code(run.collection.license) if run.collection.license else 'not stated'
    return (
        f'`{name}`, a {"cross-encoder" if is_pairs else "dual-encoder"} of '
        f'{transformer.num_layers} layers and {transformer.hidden_size} hidden units, begun as '
        f'{start} {begun}, {_training(run, name, spec, report)} on '
        f'{_code(run.collection.name)} (terms of the texts: {terms}), with queries of up to '
        f'{spec.query_length} and passages of up to {spec.passage_length} tokens.'
    )


def _measured(run: Run, name: str, report: Mapping) -> str:
    """What the test queries say, if there are any."""
    test, counts = report['test'], report['collection']['queries']
    if not test or run.test.split not in counts:
        return _fill('There were no test queries, so it was not measured how good this model is.')
    about = (
        f'Measured on {counts[run.test.split]} test queries over '
        f'{report["collection"]["passages"]} passages, times 100'
    )
    if 'teacher_rerank' in test:
        about += (
            f'. `teacher_rerank` is the teacher, {" + ".join(run.config.teacher.members)}, '
            f're-ranking the top passages of {run.config.first_stage}'
        )
    rows = {
        f'**{system}**' if system == name else system: {m: values[m] for m in run.config.measures}
        for system, values in test.items()
    }
    return f'{_fill(about)}:\n\n{tables.markdown(tables.percents(rows), "system")}'


def _costs(report: Mapping) -> str:
    """What quality costs: of systems, and of the student at each width and precision."""
    found = report['costs']
    parts = [
        f'## {costs.heading(report["test"])}',
        _fill(costs.conditions(found)),
        tables.markdown(costs.speed_rows(found['systems'], report['test']), 'system'),
    ]
    if found['sizes']:
        sizes = costs.size_rows(found['sizes'])
        parts.append(tables.markdown(sizes, "the student's embeddings"))
    return '\n' + '\n\n'.join(parts) + '\n'


def _is_on_hub(name: str) -> bool:
    """Whether weights are a model on the hub; cards are published, and local paths are private."""
    try:
        return weights.local(name) is None
    except FileNotFoundError:
        return False


def _fill(text: str) -> str:
    """Wraps text; inline code is not broken, since its rest could begin a line as markup."""
    parts = re.split('(`.*?`)', text)
    parts[1::2] = [code.replace(' ', '\0') for code in parts[1::2]]
    text = textwrap.fill(''.join(parts), 100, break_long_words=False, break_on_hyphens=False)
    return text.replace('\0', ' ')


def _code(text: str) -> str:
    """Foreign text as inline code, in which neither HTML nor markup is active."""
    return '`' + ''.join(c if c.isprintable() else ' ' for c in text).replace('`', "'") + '`'


_DUAL_USAGE = """# pip install "sentence-transformers>=6"
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("path/to/this/directory")
queries = model.encode_query(["How do I parse a date?"])
passages = model.encode_document(["Parse a string as a date.", "Sort a list."])
scores = model.similarity(queries, passages)"""

_FORMATS = {
    'joined': '',
    'colon': """
Passages are read as `title: text`, with the title `-` where there is none: write them so.
""",
    'pair': """
Passages are pairs of title and text, with the title `-` where there is none: give
`encode_document` pairs, `[("-", "Sort a list.")]`. `jdkd.load` takes texts as well.
""",
}

_CROSS_USAGE = """from sentence_transformers import CrossEncoder

model = CrossEncoder("path/to/this/directory")
# Raw logits: no sigmoid, no bounds.
logits = model.predict([("How do I parse a date?", "Parse a string as a date.")])"""


def _training(run: Run, name: str, spec, report: Mapping) -> str:
    config = run.config
    if name == STUDENT:
        last = report['final'].removeprefix(f'{STUDENT}_')
        if not last.isdigit():  # No round brought a better one.
            aligned = last == 'aligned'
            return f'aligned with {" + ".join(config.align.to)}' if aligned else 'not trained'
        rounds = 0
        while last.isdigit():  # Rounds that were taken back are no part of it.
            i = int(last)
            entered = report['rounds'][i].get('entered', f'{STUDENT}_{i - 1:02d}')  # Of old runs.
            rounds, last = rounds + 1, entered.removeprefix(f'{STUDENT}_')
        return (
            f'distilled over {rounds} round{"s"[: rounds > 1]} of {config.steps_per_round} steps '
            f'each from teacher {" + ".join(config.teacher.members)} and assistants '
            f"{', '.join(config.assistants) or 'none'} (Algorithm 1 of MTA4DPR with ADAM's dark "
            f'examples; passages cut to {config.train_passage_length} tokens in training)'
        )
    if spec.train.steps:
        return (
            f'fine-tuned for {spec.train.steps} steps on the labels, with hard negatives of '
            f'{spec.train.negatives_from},'
        )
    return 'not trained further, and measured'
