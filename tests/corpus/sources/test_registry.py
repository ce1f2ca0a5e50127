"""Sources by name."""

import pytest

from jdkd.corpus.sources import registry


@pytest.mark.parametrize('source', ['wiki', 'beir', 'beir:', 'python_docs:x', ''])
def test_names_the_known_sources(source):
    with pytest.raises(ValueError, match='use one of python_docs, beir:PATH'):
        registry.open_source(source)


def test_names_the_known_options():
    with pytest.raises(ValueError, match="no option 'size': it has packages, max_passages"):
        registry.open_source('python_docs', size=3)
    with pytest.raises(ValueError, match="no option 'path': it has unjudged, name, license"):
        registry.open_source('beir:x', path='y')
