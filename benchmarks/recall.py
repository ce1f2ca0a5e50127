"""Measures ScaNN's recall against its speed over the embeddings of an index of your own.

python -m benchmarks.recall --index=my_index --queries=queries.txt --picture=recall.png

`queries.txt` has a question a line. The embeddings are those that `jdkd index` stored. Exact search
is timed in the same run, before and after; recall is the share of its hundred best passages.
"""

import operator
import pathlib
import tempfile
import time

from absl import app, flags

from benchmarks import measure
from jdkd import open_index
from jdkd.config import IndexConfig
from jdkd.report import drawing
from jdkd.retrieval import approximate
from jdkd.retrieval.exact import ExactIndex

_INDEX = flags.DEFINE_string('index', None, 'Of `jdkd index`.', required=True)
_QUERIES = flags.DEFINE_string('queries', None, 'File of questions, one a line.', required=True)
_PASSAGES = flags.DEFINE_integer('passages', None, 'Only so many of the first; by default all.')
_SHARD = flags.DEFINE_integer('shard', IndexConfig().shard, 'Passages of one ScaNN index.')
_LEAVES = flags.DEFINE_list('leaves', ['0.02', '0.05', '0.1', '0.2'], 'Shares searched.')
_REORDER = flags.DEFINE_list('reorder', ['200', '400', '800'], 'Candidates rescored.')
_PICTURE = flags.DEFINE_string('picture', None, 'PNG of the curves.')
_NAME = flags.DEFINE_string('name', 'recall', 'Of the file of results.')
_DEPTH, _EXACT = 100, 512  # Passages a query; queries of exact search.


def draw(result: dict) -> bytes:
    """A curve for each number of candidates."""
    figure, (axes,) = drawing.new_figure()
    for i, reorder in enumerate(map(int, _REORDER.value)):
        points = [p for p in result['points'] if p['reorder'] == reorder]
        speeds = [p['queries_per_second'] for p in points]
        axes.plot(
            speeds,
            [p['recall_at_100'] for p in points],
            marker=drawing.MARKERS[i % len(drawing.MARKERS)],
            label=f'{reorder} candidates',
        )
    axes.axvline(result['exact_queries_per_second'], color='black', ls='--', label='exact search')
    drawing.log_x(axes)
    axes.set_xlabel('queries per second')
    axes.set_ylabel('recall@100')
    drawing.legend(axes)
    return drawing.render(figure, 'recall', '', '', '').png


def main(_):
    opened = open_index(_INDEX.value)
    passages = opened.vectors
    if _PASSAGES.value is not None:
        passages = passages[: _PASSAGES.value]
    lines = pathlib.Path(_QUERIES.value).read_text('utf-8').splitlines()
    queries = opened.retriever.encode(lines, kind='query')
    sample = queries[:_EXACT]

    def search_exactly(passages):
        return ExactIndex(passages).search(sample, _DEPTH)

    search_exactly(passages[: 2 * 65_536])  # Compiles.

    def timed(search, *arguments):
        start = time.perf_counter()
        found = search(*arguments)
        return found, time.perf_counter() - start

    exact, before = timed(search_exactly, passages)
    with tempfile.TemporaryDirectory() as temporary:
        directory = pathlib.Path(temporary)
        config = IndexConfig(shard=_SHARD.value)
        _, building = timed(approximate.build, directory, passages, config)
        points = []
        for reorder in map(int, _REORDER.value):
            for leaves in map(float, _LEAVES.value):
                config = config.replace(reorder=reorder, leaves=leaves)
                arguments = queries, passages, _DEPTH, config, directory
                runs = [timed(approximate.search, *arguments) for _ in range(3)]
                found, seconds = min(runs, key=operator.itemgetter(1))
                point = {
                    'reorder': reorder,
                    'leaves': leaves,
                    'queries_per_second': round(len(queries) / seconds, 1),
                    'recall_at_100': round(found.of(slice(_EXACT)).recall(exact), 4),
                }
                points.append(point)
                print(point, flush=True)
    _, after = timed(search_exactly, passages)
    result = {
        'passages': len(passages),
        'dim': passages.shape[1],
        'queries': len(queries),
        'shard': _SHARD.value,
        'build_seconds': round(building, 1),
        'exact_queries_per_second': round(len(sample) / min(before, after), 1),
        'points': points,
    }
    measure.write(_NAME.value, result)
    if _PICTURE.value:
        pathlib.Path(_PICTURE.value).write_bytes(draw(result))


if __name__ == '__main__':
    app.run(main)
