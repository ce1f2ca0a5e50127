"""ADAM: one teacher, dark examples, self-pacing; no assistants, one round.

Variants after the colon are those of configs/mta4dpr.py.
"""

import ml_collections

from jdkd.configs import mta4dpr


def get_config(arg: str = '') -> ml_collections.ConfigDict:
    """The config; `arg` is what follows the colon of --config."""
    c = mta4dpr.get_config(arg)
    if arg not in ('', 'tiny'):
        c.candidates.retrievers = c.assistants  # hard negatives of several systems all the same
    c.assistants = ()
    c.steps_per_round = c.rounds * c.steps_per_round  # as many steps in all
    c.rounds = 1
    return c
