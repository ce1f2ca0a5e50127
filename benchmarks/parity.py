"""Measures how far jdkd is from transformers: the largest deviation of small models, by family.

    python -m benchmarks.parity [VARIANT ...]

Needs PyTorch. tests/helpers/reference.py builds models and comparisons.
"""

import sys
import tempfile

import numpy as np

from tests.helpers import reference

LENGTHS = (130, 60, 2, 17, 9, 40, 3, 25)
COLUMNS = ('hidden', 'logit', 'embedding', 'gradient')


def deviations(variant: str) -> dict[str, float]:
    """Largest absolute deviation of each of `COLUMNS`, in float32."""
    model = reference.build(variant)
    with tempfile.TemporaryDirectory() as directory:
        read = reference.read_live(model, directory)
    tokens, types = reference.rows(LENGTHS, pad_id=read.config.pad_id)
    mask = tokens != read.config.pad_id
    states, logits = reference.ours(read, tokens, types)
    expected, expected_logits = (x.detach().numpy() for x in reference.theirs(model, tokens, types))
    target = np.random.default_rng(1).dirichlet(np.ones(4), 2).astype(np.float32)
    pairs = reference.gradients(model, read, tokens, types, target)
    return {
        'hidden': np.abs(states[mask] - expected[mask]).max(),
        'logit': np.abs(logits - expected_logits).max(),
        'embedding': np.abs(
            reference.embeddings(states, mask) - reference.embeddings(expected, mask)
        ).max(),
        'gradient': max(np.abs(ours - theirs).max() for ours, theirs in pairs.values()),
    }


def main(variants: list[str]) -> None:
    print(f'{"family":20}', *(f'{column:>10}' for column in COLUMNS))
    for variant in variants or reference.VARIANTS:
        largest = deviations(variant)
        print(f'{variant:20}', *(f'{largest[column]:10.1e}' for column in COLUMNS), flush=True)


if __name__ == '__main__':
    main(sys.argv[1:])
