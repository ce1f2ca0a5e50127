"""Names that doctests use."""

import pytest


@pytest.fixture(autouse=True)
def _doctest_names(request, doctest_namespace, tmp_path_factory):
    if request.node.name.startswith('jdkd.retriever'):
        import jdkd
        from jdkd.models.dual_encoder import DualEncoder
        from tests.helpers import toy

        directory = tmp_path_factory.mktemp('doctest') / 'student'
        toy.write_model(directory, DualEncoder(toy.TRANSFORMER, 'mean', True))
        doctest_namespace |= {'jdkd': jdkd, 'directory': directory}
