"""Collections in BEIR layout (https://github.com/beir-cellar/beir).

    corpus.jsonl       {"_id": ..., "title": ..., "text": ...} a line; the title may be missing
    queries.jsonl      {"_id": ..., "text": ...} a line
    qrels/SPLIT.tsv    a header row, then: query id, passage id, grade

Each file may be gzipped (`.gz` after its name); where both are there the plain one is read.
"""

import array
import gzip
import json
import pathlib
import re
import zlib
from collections.abc import Iterator

from tqdm import tqdm

from jdkd.data import collection as collection_lib


def load(
    path: str, *, name: str | None = None, license: str | None = None
) -> collection_lib.Collection:
    """Reads a directory in BEIR layout; a split is a file of judgements.

    A query belongs to the splits that judge it; one that none judges is not read in. Ids that are
    JSON integers become strings.

    Args:
      path: the directory.
      name: what reports call the collection; the directory's name by default.
      license: the terms of the texts; the layout has no place for them.

    Raises:
      FileNotFoundError: the directory or one of its files is missing.
      ValueError: a line is bad; the message names file and line.
    """
    root = pathlib.Path(path).expanduser().resolve()
    corpus, questions = _find(root, 'corpus.jsonl'), _find(root, 'queries.jsonl')
    splits = _qrels_files(root)

    ids, titles, texts = [], [], []
    lines = array.array('q')  # of each passage; blank lines shift them
    for line, entry in tqdm(_json_lines(corpus), desc=corpus.name, unit=' lines', disable=None):
        ids.append(_id(corpus, line, entry))
        titles.append(_text(corpus, line, entry, 'title'))
        texts.append(_text(corpus, line, entry, 'text'))
        lines.append(line)

    all_queries: dict[str, str] = {}
    query_lines: dict[str, int] = {}
    for line, entry in _json_lines(questions):
        query = _id(questions, line, entry)
        if query in all_queries:
            raise ValueError(
                f'{questions}:{line}: query id {query!r} is already on line {query_lines[query]}; '
                'remove one of the two or rename it.'
            )
        all_queries[query] = _text(questions, line, entry, 'text')
        query_lines[query] = line

    qrels = {split: _read_qrels(file) for split, file in splits.items()}
    queries = {
        # In the order of queries.jsonl: qrels files may be sorted in several ways.
        split: {q: text for q, text in all_queries.items() if q in qrels[split]}
        for split in splits
    }

    def where(kind: str, key) -> str:
        if kind == 'passage':
            return f'{corpus}:{lines[key]}'
        if kind == 'query':
            return f'{questions}:{query_lines[key]}'
        if kind == 'split':
            return str(splits[key])
        split, query, passage = key
        rows = _qrels_rows(splits[split])
        line = next(n for n, q, p, _ in rows if (q, p) == (query, passage))
        return f'{splits[split]}:{line}'

    return collection_lib.validate(
        collection_lib.Collection(
            name=name or root.name,
            passage_ids=ids,
            titles=titles,
            texts=texts,
            queries=queries,
            qrels=qrels,
            license=license,
        ),
        where,
    )


def save(collection: collection_lib.Collection, directory: pathlib.Path) -> None:
    """Writes a collection in BEIR layout into an empty directory, so that `load` reads it back."""

    def write_lines(name, entries):
        with (directory / name).open('w', encoding='utf-8') as f:
            f.writelines(json.dumps(entry, ensure_ascii=False) + '\n' for entry in entries)

    passages = zip(collection.passage_ids, collection.titles, collection.texts, strict=True)
    write_lines('corpus.jsonl', ({'_id': i, 'title': ti, 'text': te} for i, ti, te in passages))
    queries = {i: text for split in collection.queries.values() for i, text in split.items()}
    write_lines('queries.jsonl', ({'_id': i, 'text': text} for i, text in queries.items()))
    (directory / 'qrels').mkdir()
    for split, qrels in collection.qrels.items():
        with (directory / 'qrels' / f'{split}.tsv').open('w', encoding='utf-8') as f:
            f.write('query-id\tcorpus-id\tscore\n')
            for query, grades in qrels.items():
                f.writelines(f'{query}\t{passage}\t{g}\n' for passage, g in grades.items())


def _find(root: pathlib.Path, name: str) -> pathlib.Path:
    for file in (root / name, root / f'{name}.gz'):
        if file.is_file():
            return file
    raise FileNotFoundError(
        f'{root / name} is missing: a collection in BEIR layout has corpus.jsonl, queries.jsonl '
        'and qrels/SPLIT.tsv (or the same with .gz).'
    )


def _qrels_files(root: pathlib.Path) -> dict[str, pathlib.Path]:
    names = {f.name.removesuffix('.gz') for f in (root / 'qrels').glob('*.tsv*')}
    splits = sorted(n.removesuffix('.tsv') for n in names if n.endswith('.tsv'))
    if not splits:
        raise FileNotFoundError(
            f'{root / "qrels"} has no .tsv file: put the judgements of each split there, as '
            'train.tsv, dev.tsv or test.tsv (or the same with .gz).'
        )
    return {split: _find(root, f'qrels/{split}.tsv') for split in splits}


def _lines(file: pathlib.Path) -> Iterator[tuple[int, str]]:
    """Yields the number and text of each line that is not blank."""
    number = 0
    try:
        with (gzip.open if file.suffix == '.gz' else open)(file, 'rb') as f:
            for number, raw in enumerate(f, 1):  # noqa: B007 (read below)
                line = raw.decode('utf-8-sig' if number == 1 else 'utf-8').rstrip('\r\n')
                if line.strip():
                    yield number, line
    except UnicodeDecodeError:
        raise ValueError(f'{file}:{number}: not UTF-8; save the file as UTF-8.') from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(
            f'{file}:{number + 1}: the gzip data is cut short or damaged ({error}); '
            'fetch the file again.'
        ) from None


def _json_lines(file: pathlib.Path) -> Iterator[tuple[int, dict]]:
    for number, line in _lines(file):
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(
                f'{file}:{number}: not JSON ({error}); write one object a line.'
            ) from None
        if not isinstance(entry, dict):
            raise ValueError(
                f'{file}:{number}: expected a JSON object, found {type(entry).__name__}; '
                'write {"_id": ..., "text": ...}.'
            )
        yield number, entry


def _id(file: pathlib.Path, line: int, entry: dict) -> str:
    value = entry.get('_id')
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        found = repr(value) if '_id' in entry else 'nothing'
        raise ValueError(f"{file}:{line}: field '_id' must be a string, found {found}.")
    return value


def _text(file: pathlib.Path, line: int, entry: dict, field: str) -> str:
    value = entry.get(field)
    if value is None and field == 'title':  # corpora without titles write null or leave it out
        return ''
    if not isinstance(value, str):
        found = repr(value) if field in entry else 'nothing'
        raise ValueError(f'{file}:{line}: field {field!r} must be a string, found {found}.')
    return value


def _qrels_rows(file: pathlib.Path) -> Iterator[tuple[int, str, str, int]]:
    lines = _lines(file)
    for row, (number, line) in enumerate(lines):
        fields = [field.strip() for field in line.split('\t')]
        if len(fields) != 3:
            raise ValueError(
                f'{file}:{number}: expected query id, passage id and grade with tabs between '
                f'them, found {len(fields)} field(s).'
            )
        is_grade = re.fullmatch(r'[+-]?[0-9]+', fields[2])
        if row == 0:
            if is_grade:
                raise ValueError(
                    f'{file}:{number}: the first row is a judgement; put a header row '
                    '(query-id, corpus-id, score) before it.'
                )
            continue
        if not is_grade:
            raise ValueError(f'{file}:{number}: grade {fields[2]!r} must be an integer.')
        yield number, fields[0], fields[1], int(fields[2])


def _read_qrels(file: pathlib.Path) -> dict[str, dict[str, int]]:
    qrels: dict[str, dict[str, int]] = {}
    for number, query, passage, grade in _qrels_rows(file):
        grades = qrels.setdefault(query, {})
        if grades.setdefault(passage, grade) != grade:
            raise ValueError(
                f'{file}:{number}: query {query!r} and passage {passage!r} have grade {grade} '
                f'here and {grades[passage]} above; keep one.'
            )
    return qrels
