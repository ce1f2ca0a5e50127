"""Zero-shot evaluation of a checkpoint over several collections, as BEIR does.

python -m jdkd.main --mode eval --config configs/eval.py --config.model=DIR \
    --config.collections=beir:PATH,beir:PATH,python_docs --workdir runs/zero_shot
"""

import ml_collections

from jdkd.configs import common


def get_config() -> ml_collections.ConfigDict:
    """A zero-shot evaluation; set `model` and `collections`."""
    return common.get_eval_config()
