"""The config that `benchmarks.ablation` varies: Algorithm 1 with everything on, for two cores.

--config configs/ablation.py             Python's documentation
--config configs/ablation.py:beir=PATH   a collection of paragraphs, such as SQuAD's
"""

import ml_collections

from jdkd.configs import mta4dpr


def get_config(arg: str = '') -> ml_collections.ConfigDict:
    """The config; `arg` is what follows the colon of --config, as for configs/mta4dpr.py."""
    c = mta4dpr.get_config()
    c.student.layers = (0, 5)  # Far behind the pool, as a small student of large models is.
    c.assistants = ('minilm_ft', 'minilm', 'bm25')  # `single_assistant` keeps the first.
    c.batch_size = 32
    c.steps_per_round = 30
    c.optimizer.warmup_steps = 6
    c.optimizer.learning_rate = 2e-4  # Some variants have no alignment to keep.
    c.backtrack = 0.0  # Or some variants would learn at another rate.
    c.index.kind = 'exact'  # Variants differ by their training, not by their index.
    kind, _, path = arg.partition('=')
    if kind and path:
        c.collection.source = f'{kind}:{path}'
        for entry in (*c.systems.values(), c.student):
            if 'passage_length' in entry:
                entry.passage_length = 96
        c.train_passage_length = 96
        c.batch_size = 24
        c.steps_per_round = 40
        c.optimizer.warmup_steps = 8
        # Without fine-tuning: labels are few.
        c.teacher.members = ('bm25', 'minilm')
        c.assistants = ('minilm', 'bm25')
    elif arg:
        raise ValueError(f"configs/ablation.py has no variant '{arg}'; use beir=PATH.")
    # The same systems mine hard negatives, whatever the pool.
    c.candidates.retrievers = tuple(dict.fromkeys((*c.teacher.members, *c.assistants)))
    return c
