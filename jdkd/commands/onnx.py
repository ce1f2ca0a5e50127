"""`jdkd export --onnx`: ONNX files beside an export, and what they lose on the test queries."""

import pathlib
import time

from absl import logging

from jdkd.models import onnx_export
from jdkd.models.export import add_to_card
from jdkd.report import tables
from jdkd.retrieval.exact import ExactIndex
from jdkd.run import STUDENT, Run
from jdkd.runtime import distributed
from jdkd.systems import measuring
from jdkd.systems.encoders import Encoder
from jdkd.systems.ranking import checked_ranking

_MOST = 100_000  # Passages of a collection on which ONNX files are measured.


def check(encoder: Encoder) -> None:
    """Checks that ONNX can hold how an encoder reads texts, and that one process writes it.

    Raises:
        ValueError: if not.
    """
    if distributed.process_count() > 1:
        raise ValueError('--onnx writes and measures on one process; start one.')
    if encoder.spec.kind == 'cross_encoder':
        raise ValueError('only dual-encoders are exported to ONNX; leave --onnx out.')
    if encoder.spec.passage_format == 'pair':
        raise ValueError(
            "a dual-encoder with passage_format='pair' cannot be exported to ONNX, whose users "
            'have one text a passage; leave --onnx out.'
        )


def export(run: Run, encoder: Encoder, directory: pathlib.Path) -> None:
    """Writes the ONNX files of an export and prints their sizes, speeds and test measures.

    The measures are of exact search over the whole collection, up to 100,000 passages. The table
    is also added to the model card.
    """
    folder = onnx_export.export(directory)
    if len(run.collection) > _MOST:
        logging.info('%s is not measured: the collection has over %d passages', folder, _MOST)
        return
    if not len(run.test):
        logging.info('%s is not measured: there are no test queries', folder)
        return
    rows = {}
    for name in (onnx_export.MODEL, onnx_export.QUANTISED):
        towers = {t: folder / part / name for t, part in _folders(encoder).items()}
        query, passage = (onnx_export.OnnxEncoder(towers[t]) for t in ('query', 'passage'))
        tokens, begun = encoder.passage_tokens(run), time.perf_counter()
        passages = passage.embed(tokens)
        speed = len(tokens) / (time.perf_counter() - begun)
        queries, index = query.embed(encoder.query_tokens(run, run.test)), ExactIndex(passages)

        def search(part, depth, queries=queries, index=index):
            return index.search(queries[part], depth)

        ranking = checked_ranking(run, STUDENT, run.test, search)
        size = sum(path.stat().st_size for path in set(towers.values()))
        rows[name] = {
            'megabytes': f'{size / 1e6:.1f}',
            'passages/s': f'{speed:.0f}',
            **tables.percents({name: measuring.measure(run, ranking, run.test).means})[name],
        }
    print(tables.table(rows))
    text = tables.markdown({f'`onnx/{name}`': cells for name, cells in rows.items()})
    add_to_card(directory, 'ONNX', f'{text}\n')


def _folders(encoder: Encoder) -> dict[str, str]:
    """Folder of each tower under `onnx`."""
    untied = 'transformer' not in encoder.params
    return {'query': 'query' * untied, 'passage': 'document' * untied}
