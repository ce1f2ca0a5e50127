"""Draws a few of the judged queries of a collection in BEIR layout; all passages stay.

python -m benchmarks.sample --source squad --target squad_1k --draw train=1000,dev=500

--rest=dev adds the judged queries of dev that are not drawn to test.
"""

import pathlib
import re
import shutil

import numpy as np
from absl import app, flags

_SOURCE = flags.DEFINE_string('source', None, 'Directory in BEIR layout.', required=True)
_TARGET = flags.DEFINE_string('target', None, 'Directory to make.', required=True)
_DRAW = flags.DEFINE_list(
    'draw', [], 'SPLIT=NUMBER, drawn by the seed; all of the splits that are not named.'
)
_REST = flags.DEFINE_string('rest', None, 'The split whose other queries go to test.')
_SEED = flags.DEFINE_integer('seed', 0, 'Of the draw.')


def sample(lines: list[str], number: int, seed: int) -> list[str]:
    """Judgements of `number` queries, in their order.

    Args:
        lines: Of a split's file, the header first if there is one.
        number: Of queries.
        seed: Of the draw.

    Raises:
        ValueError: if there are fewer queries.
    """
    header = lines[: bool(lines) and not re.search(r'\d\s*$', lines[0])]  # It ends in no grade.
    judgements = lines[len(header) :]
    queries = [line.split('\t' if '\t' in line else None)[0] for line in judgements]
    ids = list(dict.fromkeys(queries))
    if number > len(ids):
        raise ValueError(f'{number} queries are asked for, but only {len(ids)} are judged.')
    drawn = np.random.default_rng(seed).choice(len(ids), number, replace=False)
    kept = {ids[i] for i in drawn}
    return [*header, *(line for q, line in zip(queries, judgements, strict=True) if q in kept)]


def main(_):
    source, target = pathlib.Path(_SOURCE.value), pathlib.Path(_TARGET.value)
    numbers = dict(entry.split('=') for entry in _DRAW.value)
    (target / 'qrels').mkdir(parents=True)
    for name in ('corpus.jsonl', 'queries.jsonl'):
        shutil.copyfile(source / name, target / name)
    paths = sorted((source / 'qrels').glob('*.tsv'))
    lines = ((path.stem, path.read_text().splitlines()) for path in paths)
    judged = {split: [line for line in read if line.strip()] for split, read in lines}
    drawn = judged | {
        split: sample(judged[split], int(number), _SEED.value) for split, number in numbers.items()
    }
    if rest := _REST.value:
        taken = set(drawn[rest])
        drawn['test'] = drawn['test'] + [line for line in judged[rest] if line not in taken]
    for split, lines in drawn.items():
        (target / 'qrels' / f'{split}.tsv').write_text(''.join(f'{line}\n' for line in lines))


if __name__ == '__main__':
    app.run(main)
