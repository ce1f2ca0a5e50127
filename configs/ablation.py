"""What benchmarks/ablation.py varies: Algorithm 1 with everything on, at a size for two cores.

--config configs/ablation.py             the documentation of your Python
--config configs/ablation.py:beir=PATH   a collection of paragraphs, such as SQuAD's
"""

import ml_collections

from jdkd.configs import mta4dpr


def get_config(arg: str = '') -> ml_collections.ConfigDict:
    """The config; `arg` is what follows the colon of --config, as for configs/mta4dpr.py."""
    c = mta4dpr.get_config()
    c.student.layers = (0, 5)  # Far behind the pool, as small students of large models are.
    c.assistants = ('minilm_ft', 'minilm', 'bm25')  # The first: where there is only one.
    c.batch_size = 32
    c.steps_per_round = 30
    c.optimizer.warmup_steps = 6
    c.index.kind = 'exact'  # Differences between variants are the training's, not the index's.
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
        # As they are: neither has seen the collection, whose labels are few.
        c.teacher.members = ('bm25', 'minilm')
        c.assistants = ('minilm', 'bm25')
    elif arg:
        raise ValueError(f"configs/ablation.py has no variant '{arg}'; use beir=PATH.")
    # Whoever is in the pool, hard negatives are mined by the same systems.
    c.candidates.retrievers = tuple(dict.fromkeys((*c.teacher.members, *c.assistants)))
    return c
