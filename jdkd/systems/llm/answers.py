"""The answers of a language model, kept in the workdir by the digest of what was asked."""

import json
import os
import pathlib
import threading
from collections.abc import Iterator, Mapping
from typing import Any

from absl import logging

from jdkd.runtime import distributed, files, stages

SUFFIX = '.jsonl'


def key_of(question: Any) -> str:
    """The key of an answer: a digest of all that decides it, but for the endpoint's address."""
    return stages.digest(question)[:32]


def home(workdir: pathlib.Path, name: str) -> pathlib.Path:
    """Directory of the answers of a system."""
    return workdir / 'systems' / name / 'answers'


def has_any(workdir: pathlib.Path, name: str) -> bool:
    """Whether some answer of a system is kept."""
    return any(path.stat().st_size for path in home(workdir, name).glob(f'*{SUFFIX}'))


class Answers:
    """Answers by key, appended to a file of this process as they arrive, and never changed.

    A line that a kill cut off is skipped, and its question asked again. Processes of one run read
    each other's files. Threads may share an object.

    Args:
        directory: Made when the first answer is kept.
    """

    def __init__(self, directory: pathlib.Path):
        self._directory = directory
        self._own = directory / f'{distributed.process_index():05d}{SUFFIX}'
        self._lock = threading.Lock()
        self._by_key: dict[str, Any] = {}
        self._read: dict[pathlib.Path, int] = {}  # Bytes of each file that were read.
        self._has_added = False
        self.pairs = 0  # That were asked for, of all answers.
        self.refresh()

    def __len__(self) -> int:
        return len(self._by_key)

    def __contains__(self, key: str) -> bool:
        return key in self._by_key

    def __getitem__(self, key: str) -> Any:
        return self._by_key[key]

    def refresh(self) -> None:
        """Reads what other processes have added."""
        with self._lock:
            for path in sorted(self._directory.glob(f'*{SUFFIX}')):
                if path == self._own and path in self._read:
                    continue
                for record in self._new_records(path):
                    self._add(record)

    def add(self, key: str, answer: Any, *, pairs: int, tokens: tuple[int, int]) -> None:
        """Keeps the answer of a question about some pairs; `tokens` are of prompt and answer."""
        record = {'key': key, 'answer': answer, 'pairs': pairs, 'tokens': tokens}
        line = json.dumps(record, ensure_ascii=True).encode() + b'\n'
        with self._lock:
            self._directory.mkdir(parents=True, exist_ok=True)
            if not self._has_added:
                files.detach(self._own)
            with self._own.open('ab') as f:
                if not self._has_added and f.tell() and not _ends_line(self._own):
                    line = b'\n' + line
                f.write(line)
            self._has_added = True
            self._add(record)

    def sync(self) -> None:
        """Makes sure that what this process has added survives a power cut."""
        if self._own.exists():
            with self._own.open('rb') as f:
                os.fsync(f.fileno())

    def _new_records(self, path: pathlib.Path) -> Iterator[dict[str, Any]]:
        with path.open('rb') as f:
            f.seek(self._read.get(path, 0))
            content = f.read()
        whole = content[: content.rfind(b'\n') + 1]  # The last line may still be written.
        self._read[path] = self._read.get(path, 0) + len(whole)
        damaged = 0
        for line in whole.splitlines():
            try:
                record = json.loads(line)
                if not {'key', 'answer', 'pairs'} <= record.keys():
                    raise ValueError
                yield record
            except (ValueError, AttributeError):
                damaged += bool(line)
        if damaged:
            logging.warning(
                '%s has %d damaged lines; what they answered is asked again', path, damaged
            )

    def _add(self, record: Mapping[str, Any]) -> None:
        if record['key'] not in self._by_key:  # Two processes may have asked the same.
            self.pairs += record['pairs']
            self._by_key[record['key']] = record['answer']


def _ends_line(path: pathlib.Path) -> bool:
    with path.open('rb') as f:
        f.seek(-1, os.SEEK_END)
        return f.read(1) == b'\n'
