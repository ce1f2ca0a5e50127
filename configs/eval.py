"""A checkpoint measured over several collections it was not trained on: a table as BEIR's.

python -m jdkd.main --mode eval --config configs/eval.py --config.model=DIR \
    --config.collections=beir:PATH,beir:PATH,python_docs --workdir runs/zero_shot
"""

import ml_collections

from jdkd.configs import common


def get_config() -> ml_collections.ConfigDict:
    """The config."""
    return common.get_eval_config()
