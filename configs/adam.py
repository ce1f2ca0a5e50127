"""ADAM: one teacher, dark examples, self-pacing; no assistants, one round.

Takes the variants of configs/mta4dpr.py.
"""

import ml_collections

from jdkd.configs import mta4dpr


def get_config(arg: str = '') -> ml_collections.ConfigDict:
    """The config; `arg` is what follows the colon of --config."""
    c = mta4dpr.get_config(arg)
    if arg in ('', 'tiny'):
        c.optimizer.learning_rate = 2e-4  # Without alignment there is less to keep.
    else:
        c.candidates.retrievers = c.assistants  # they still mine hard negatives
    if arg == 'msmarco':
        c.loss.contrastive = 0.4  # SimLM's 0.2 for each of the two divergences that are left.
    c.assistants = ()
    c.align.epochs = c.loss.embedding = 0.0
    c.steps_per_round = c.rounds * c.steps_per_round  # the same steps in all
    c.rounds = 1
    return c
