"""A checkpoint measured over several collections it was not trained on: a table as BEIR's.

python -m jdkd.main --mode eval --config configs/eval.py --config.model=DIR \
    --config.collections=beir:PATH,beir:PATH,python_docs --workdir runs/zero_shot
"""

import ml_collections
from ml_collections import config_dict

from configs import common


def get_config() -> ml_collections.ConfigDict:
    """The config."""
    base = common.get_config()
    c = ml_collections.ConfigDict()
    c.model = ''  # directory of a dual-encoder or a cross-encoder, or its name on the hub
    c.collections = ''  # sources, with commas between them: python_docs, beir:PATH
    c.options = ml_collections.ConfigDict()  # {collection, as in the table: options of its source}
    c.on_error = base.collection.on_error
    c.splits = ('test', 'dev')  # the first that a collection has is measured

    c.encoder = common.encoder('')  # overrides of what the checkpoint says
    for field in ('weights', 'train', 'scale', 'dropout', 'remat'):  # weights is model above
        del c.encoder[field]
    c.encoder.kind = config_dict.placeholder(str)  # None: as the checkpoint is
    # Tokens; None: the checkpoint's max_seq_length, at most 512. A cross-encoder shares it out,
    # a quarter for the query.
    c.encoder.query_length = config_dict.placeholder(int)
    c.encoder.passage_length = config_dict.placeholder(int)

    c.systems = ml_collections.ConfigDict()
    c.systems.bm25 = common.bm25()  # measured beside; a cross-encoder re-ranks its passages
    c.measures = ('nDCG@10', 'R@100')
    for field in ('depth', 'ignore_identical_ids', 'index', 'mesh', 'seed'):
        c[field] = base[field]
    return c
