"""Models that several tests of checkpoints share."""

import pytest


@pytest.fixture(scope='session')
def bert(tmp_path_factory):
    """Directories `BertModel` and `BertForSequenceClassification`, as transformers writes them."""
    for module in ('torch', 'transformers', 'sentence_transformers'):
        pytest.importorskip(module)
    from tests.helpers import sentence

    home = tmp_path_factory.mktemp('bert')
    sentence.write_bert(home)
    return home
