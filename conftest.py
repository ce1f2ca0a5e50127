"""Names that doctests use."""

import pytest


@pytest.fixture(autouse=True)
def _doctest_names(request, doctest_namespace, tmp_path_factory):
    if request.node.name.startswith(('jdkd.retriever', 'jdkd.indexing')):
        import jdkd
        from tests.helpers import indexes

        home = tmp_path_factory.mktemp('doctest')
        directory, index = home / 'student', home / 'index'
        indexes.write_student(directory, max_length=24, query_prompt='', passage_prompt='')
        if 'index' in request.node.name:
            rows = [{'_id': f'p{i}', 'text': t} for i, t in enumerate(['dog', 'red cat', 'cat'])]
            indexes.create(index, directory, indexes.write(home / 'passages.jsonl', rows))
        doctest_namespace |= {'jdkd': jdkd, 'directory': directory, 'index_directory': index}
