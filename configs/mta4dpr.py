"""MTA4DPR with ADAM's dark examples: Algorithm 1 with everything on.

--config configs/mta4dpr.py            Python's documentation; 15 minutes on 2 cores, MRR@10 65.5
--config configs/mta4dpr.py:tiny       the same stages at toy size; 3 minutes on 2 cores
--config configs/mta4dpr.py:msmarco    MS MARCO passages, on accelerators
--config configs/mta4dpr.py:nq         Natural Questions, on accelerators
--config configs/mta4dpr.py:beir=PATH  your own corpus in BEIR layout, or KIND=... of another
"""

import ml_collections

from jdkd.configs import common, full_scale

MINILM = 'sentence-transformers/all-MiniLM-L6-v2'
REVISION = 'c9745ed1d9f207416be6d2e6f8de32d1f16199bf'


def get_config(arg: str = '') -> ml_collections.ConfigDict:
    """The config; `arg` is what follows the colon of --config."""
    if (recipe := full_scale.get_config(arg)) is not None:
        return recipe
    if arg not in ('', 'tiny'):
        raise ValueError(
            f"configs/mta4dpr.py has no variant '{arg}'; use tiny, msmarco, nq or beir=PATH."
        )
    c = common.get_config()
    lengths = {'query_length': 0, 'passage_length': 0}  # As long as the collection needs.

    c.systems.bm25 = common.bm25()
    c.systems.minilm = common.encoder(MINILM, REVISION, **lengths)
    c.systems.minilm_ft = common.encoder(MINILM, REVISION, **lengths)
    c.systems.minilm_ft.train.steps = 100
    c.systems.minilm_ft.train.batch_size = 24
    c.systems.minilm_ft.train.learning_rate = 1e-4
    c.systems.minilm_ft.train.warmup_steps = 10
    # Unused by default: on a laptop, fine-tuning a cross-encoder takes too long. Add it to the
    # teacher with --config.teacher.members=bm25,minilm_ft,cross
    c.systems.cross = common.encoder(MINILM, REVISION, kind='cross_encoder', **lengths)
    c.systems.cross.train.steps = 150
    c.systems.cross.train.batch_size = 8
    c.systems.cross.train.hard_negatives = 7

    c.pseudo_labels.systems = ('bm25', 'minilm')  # Where train queries have no label.
    c.teacher.members = ('bm25', 'minilm_ft')
    c.assistants = ('minilm_ft', 'bm25')
    # The best of nine triples of layers before training.
    c.student = common.student(MINILM, REVISION, layers=(0, 4, 5), scale=20.0, **lengths)

    c.align.to, c.align.epochs = ('minilm_ft',), 2.0
    c.align.min_steps, c.align.max_steps = 225, 600  # The first run takes 225.

    c.batch_size = 24
    # Lists of what the teacher ranks highest: there it has something to say.
    c.candidates.stand_ins = 30
    c.candidates.hard_negatives = 5
    c.candidates.hardest, c.candidates.margin = 12, 0.5
    c.dark.reinforced, c.dark.noisy = 1, 1
    c.steps_per_round = 120
    c.train_passage_length = 0  # As the student's.
    c.optimizer.learning_rate = 1e-4
    c.backtrack = 0.25  # Too fast where train queries are of another domain than D_eval's.
    c.optimizer.warmup_steps = 12
    c.loss.teacher, c.loss.assistant, c.loss.dark = 1.0, 0.25, 0.25
    c.loss.in_batch = 1.0

    if arg == 'tiny':
        c.collection.options.packages = ('stdlib',)
        c.collection.options.max_passages = 600
        for entry in (*c.systems.values(), c.student):
            if 'passage_length' in entry:
                entry.query_length, entry.passage_length = 16, 32
        c.systems.minilm_ft.train.steps = 5
        c.systems.minilm_ft.train.batch_size = 8
        c.systems.minilm_ft.train.warmup_steps = 1
        c.train_passage_length = 32
        c.student.layers = (0, 5)
        c.align.epochs, c.align.batch_size, c.align.warmup_steps = 0.5, 32, 2
        c.align.min_steps = 0
        # Ten steps teach little of the teacher: short lists, close to the aligned start.
        c.candidates.hard_negatives, c.candidates.hardest = 2, 6
        c.loss.teacher, c.loss.embedding = 0.5, 1.0
        c.steps_per_round = 10
        c.batch_size = 8
        c.candidates.eval_lists = 16
        c.optimizer.warmup_steps = 2
        c.log_every = 2
        c.checkpoint_every = 4
    return c
