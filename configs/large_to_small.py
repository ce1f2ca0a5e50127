"""Large to small: all-mpnet-base-v2 and BM25 teach a student of a fifth of its parameters.

--config configs/large_to_small.py            Python's documentation
--config configs/large_to_small.py:beir=PATH  your own corpus in BEIR layout, or KIND=... of another

As configs/mta4dpr.py, with a model of twelve layers and 768 dimensions as teacher, assistant and
target of alignment, and all six layers of MiniLM, of 384 dimensions, as student. With
--config.student.projection=768 the student shares the large model's space, so that its queries
search the index that the large model made.
"""

import ml_collections

from jdkd.configs import common, mta4dpr

MPNET = 'sentence-transformers/all-mpnet-base-v2'
REVISION = 'e8c3b32edf5434bc2275fc9bab85f82640a19130'


def get_config(arg: str = '') -> ml_collections.ConfigDict:
    """The config; `arg` is what follows the colon of --config."""
    kind, _, path = arg.partition('=')
    if arg and not (kind and path):
        raise ValueError(f"configs/large_to_small.py has no variant '{arg}'; use beir=PATH.")
    c = mta4dpr.get_config()
    train = c.systems.minilm_ft.train
    for name in ('minilm', 'minilm_ft', 'cross'):
        del c.systems[name]
    c.systems.mpnet = common.encoder(MPNET, REVISION, query_length=0, passage_length=0)
    c.systems.mpnet_ft = common.encoder(MPNET, REVISION, query_length=0, passage_length=0)
    c.systems.mpnet_ft.train = train
    c.systems.mpnet_ft.train.learning_rate = 5e-5

    c.pseudo_labels.systems = ('bm25', 'mpnet')
    c.teacher.members = ('bm25', 'mpnet_ft')
    c.assistants = ('mpnet_ft', 'bm25')
    c.align.to = ('mpnet_ft',)
    c.student.layers = ()
    if path:
        c.collection.source = f'{kind}:{path}'
    return c
