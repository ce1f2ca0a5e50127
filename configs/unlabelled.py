"""A student from a corpus and a query log, without a single label.

--config configs/unlabelled.py            Python's documentation, whose train queries are the log
--config configs/unlabelled.py:tiny       the same stages at toy size
--config configs/unlabelled.py:beir=PATH  your own corpus in BEIR layout, or KIND=... of another

The labels of train and D_eval are dropped before anything reads them; test queries are only
measured. BM25 and an off-the-shelf model label the queries that they are sure of, and the model is
fine-tuned on these. The student is aligned with it, then learns the score distributions of that
model and BM25, brought to one spread, on the log and on queries made from passages. Where nothing
is judged, add --config.collection.test_split=None.
"""

import ml_collections

from jdkd.configs import mta4dpr


def get_config(arg: str = '') -> ml_collections.ConfigDict:
    """The config; `arg` is what follows the colon of --config."""
    kind, _, path = arg.partition('=')
    if arg not in ('', 'tiny') and not (kind and path):
        raise ValueError(f"configs/unlabelled.py has no variant '{arg}'; use tiny or beir=PATH.")
    c = mta4dpr.get_config('tiny' if arg == 'tiny' else '')
    c.collection.label_share = 0.0
    c.collection.eval_labels = False
    c.collection.pseudo_queries.count = 2000

    c.rounds = 1  # A second one brings nothing here.

    # The teacher's own ranking is all there is to learn from.
    c.candidates.margin = 0.0
    c.steps_per_round = 240
    c.optimizer.warmup_steps = 24
    c.dark.reinforced = c.dark.noisy = 0
    c.loss.contrastive = c.loss.assistant = c.loss.dark = 0.0

    if path:
        c.collection.source = f'{kind}:{path}'
        if kind in ('beir', 'hf'):  # Queries that no split judges are a log.
            c.collection.options.unjudged = 'train'
    if arg == 'tiny':
        c.collection.pseudo_queries.count = 100
        c.steps_per_round = 10
        c.optimizer.warmup_steps = 2
    return c
