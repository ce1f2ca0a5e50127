"""Indexes of toy passages."""

import json

import numpy as np

from jdkd.indexing import building
from jdkd.models.dual_encoder import DualEncoder
from jdkd.runtime import lock
from tests.helpers import toy


def write_student(directory, **kwargs):
    """A student that cuts passages, with prompts; returns its directory."""
    kwargs = {'max_length': 6, 'query_prompt': 'red ', 'passage_prompt': 'blue ', **kwargs}
    toy.write_model(directory, DualEncoder(toy.TRANSFORMER, 'mean', True), **kwargs)
    return directory


def passages(start, stop, *, seed=0):
    """Records of passages p<start> to p<stop - 1>, some with titles; not two are alike."""
    words, rows = np.array(toy.WORDS), []
    for i in range(start, stop):
        rng = np.random.default_rng((seed, i))
        title = ' '.join(rng.choice(words, 2)) if i % 3 == 0 else ''
        text = ' '.join(rng.choice(words, rng.integers(2, 9)))
        rows.append({'_id': f'p{i}', 'title': title, 'text': text})
    return rows


def write(path, rows):
    """Rows as JSON lines; returns the path."""
    path.write_text(''.join(f'{json.dumps(row)}\n' for row in rows))
    return path


def create(directory, student, collection, **kwargs):
    with lock.hold(directory):
        return building.create(directory, str(student), str(collection), **kwargs)


def add(directory, collection, **kwargs):
    with lock.hold(directory):
        return building.add(directory, str(collection), **kwargs)


def tree(directory):
    """{relative path: content} of all files that an index keeps, but the times in manifests."""
    contents = {}
    for path in sorted(directory.rglob('*')):
        name = path.relative_to(directory).as_posix()
        if path.name == 'manifest.json':
            manifest = json.loads(path.read_text())
            contents[name] = [manifest[key] for key in ('inputs', 'outputs', 'result')]
        elif path.is_file() and name not in ('lock', 'lock.pid'):
            contents[name] = path.read_bytes()
        elif path.is_dir():
            contents[name] = None
    return contents
