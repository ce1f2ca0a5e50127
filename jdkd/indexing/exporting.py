"""Writes the embeddings of an index for other tools: npy, parquet and FAISS."""

import pathlib
from collections.abc import Callable

import pyarrow as pa
import pyarrow.parquet as pq

from jdkd.indexing.index import Index
from jdkd.runtime import files
from jdkd.runtime.parts import join_rows

IDS = 'ids.txt'
_ROWS = 16_384  # In memory at once.


def export(index: Index, kind: str, directory: pathlib.Path) -> list[pathlib.Path]:
    """Writes an index's embeddings, read back as float32 from its precision; returns the files.

    Each file appears once it is complete, in place of one of that name.

    Args:
        kind: One of `KINDS`:
            'npy': `vectors.npy`, `[n, dim]`, with `ids.txt`, an id a line.
            'parquet': `passages.parquet` with the columns `_id`, `title`, `text`, `embedding`.
            'faiss': `vectors.faiss`, an `IndexFlatIP`, whose labels are lines of `ids.txt` from 0.
        directory: Made if it is missing.

    Raises:
        ValueError: if there is no such kind.
        ImportError: if FAISS is not installed.
    """
    if kind not in KINDS:
        raise ValueError(f"'{kind}' is no format of vectors; use one of {', '.join(KINDS)}.")
    name, write, has_ids = KINDS[kind]
    directory.mkdir(parents=True, exist_ok=True)
    paths = [directory / name]
    if has_ids:  # First: the vectors complete an export.
        paths.append(directory / IDS)
        with files.atomic_write(paths[1]) as file:
            file.write(_ids(index))
    temporary = directory / f'{name}.tmp'
    try:
        write(index, temporary)
        temporary.replace(paths[0])
    finally:
        temporary.unlink(missing_ok=True)
    return paths


def check_output(index: Index, kind: str, directory: pathlib.Path) -> None:
    """Raises a FileExistsError if `export` would replace a file."""
    if directory.exists() and not directory.is_dir():
        raise FileExistsError(f'{directory} is no directory; give another --output.')
    name, _, has_ids = KINDS[kind]
    files.check_output(directory / name, lambda _: False, 'exists already')
    if has_ids:

        def has_same(path):
            return path.is_file() and path.read_bytes() == _ids(index).encode()

        files.check_output(directory / IDS, has_same, 'exists already, with other ids')


def _ids(index: Index) -> str:
    return ''.join(f'{passage_id}\n' for passage_id in index.ids)


def _write_npy(index: Index, path: pathlib.Path) -> None:
    starts = range(0, len(index), _ROWS)
    join_rows(path, (index.vectors[start : start + _ROWS] for start in starts), len(index))


def _write_parquet(index: Index, path: pathlib.Path) -> None:
    width = index.vectors.shape[1]
    schema = pa.schema(
        [
            ('_id', pa.string()),
            ('title', pa.string()),
            ('text', pa.string()),
            ('embedding', pa.list_(pa.float32(), width)),
        ]
    )
    with pq.ParquetWriter(path, schema) as writer:
        for start in range(0, len(index), _ROWS):
            rows = slice(start, start + _ROWS)
            flat = pa.array(index.vectors[rows].ravel())
            embeddings = pa.FixedSizeListArray.from_arrays(flat, width)
            texts = [index.ids[rows], index.titles[rows], index.texts[rows]]
            arrays = [*(pa.array(column, pa.string()) for column in texts), embeddings]
            writer.write_table(pa.table(arrays, schema=schema))


def _write_faiss(index: Index, path: pathlib.Path) -> None:
    try:
        import faiss  # Optional, and slow to import.
    except ImportError:
        raise ImportError('FAISS is not installed; run pip install "jdkd[faiss]".') from None
    flat = faiss.IndexFlatIP(index.vectors.shape[1])
    for start in range(0, len(index), _ROWS):
        flat.add(index.vectors[start : start + _ROWS])
    faiss.write_index(flat, str(path))


# {kind: (file, its writer, whether ids lie beside)}
KINDS: dict[str, tuple[str, Callable[[Index, pathlib.Path], None], bool]] = {
    'npy': ('vectors.npy', _write_npy, True),
    'parquet': ('passages.parquet', _write_parquet, False),
    'faiss': ('vectors.faiss', _write_faiss, True),
}
