"""Kills a small run at many moments; it must end as one that was left alone.

python -m tests.kills --kills 50

Kills are SIGKILLs: at random times, and, so that no stage is missed, at the first touch of given
paths, which an audit hook in the process sees (opened, renamed, made or removed). What is compared
is compared bit for bit, see `outcome`.
"""

import argparse
import collections
import dataclasses
import json
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time

from tests.helpers import compilation, processes, toy

ROOT = pathlib.Path(__file__).parents[1]

# What is done at what path of a workdir that is being written; the first that fits.
KINDS = {
    'mid-checkpoint': r'/checkpoints/',
    'tokenise': r'^tokens/',
    'train': r'/train\.tmp',
    'import': r'^collection',
    'encode': r'/embeddings-',
    'index': r'/index',
    'retrieve': r'/ranking-',
    'mine': r'/(runs|candidates)',
    'score': r'/(scores|fitted|stand_ins)',
    'write': r'/dataset',
    'compare': r'/(teacher_)?eval',
    'test': r'^(test|costs)',
    'report': r'^(report|pictures|run\.trec)',
    'export': r'^\.?student',
}
# Paths at whose n-th touch to kill, in the order of a run.
MOMENTS = (
    ('collection.tmp/passages.arrow', 1),
    ('collection.tmp/manifest.json', 1),
    ('systems/bm25/index.tmp/counts', 2),
    ('systems/bm25/index.tmp/data.npy', 2),
    ('systems/tuned/dataset.tmp', 6),
    ('tokens/passages', 9),
    ('systems/tuned/train.tmp/checkpoints/2', 3),
    ('systems/dense/embeddings-passages.tmp', 6),
    ('systems/dense/index.tmp', 8),
    ('systems/dense/ranking-train.tmp', 4),
    ('rounds/00/runs.tmp', 5),
    ('rounds/00/fitted.tmp', 2),
    ('rounds/00/stand_ins.tmp', 3),
    ('rounds/00/candidates.tmp', 4),
    ('rounds/00/scores.tmp', 5),
    ('rounds/00/dataset.tmp', 9),
    ('rounds/00/train.tmp/checkpoints/2', 30),
    ('rounds/00/train.tmp/checkpoints/4', 20),
    ('rounds/00/train.tmp/manifest.json', 1),
    ('rounds/00/train/', 2),
    ('systems/student_00/embeddings-passages.tmp', 9),
    ('rounds/00/eval.tmp', 5),
    ('rounds/01/train.tmp/checkpoints/6', 40),
    ('test.tmp', 4),
    ('run.trec', 1),
    ('report.json', 2),
    ('report.html', 1),
    ('pictures/loss.png', 1),
    ('.student.tmp', 10),
    ('.student.tmp', 24),
)
_EVENTS = ('open', 'os.rename', 'os.mkdir', 'os.remove', 'os.rmdir')


@dataclasses.dataclass(frozen=True)
class Kill:
    """When a process kills itself.

    Attributes:
        seconds: After its start; or
        path: at a touch of a path that begins so, relative to the workdir, or any if ''.
        count: Which touch.
        signal: What it sends itself then.
    """

    seconds: float | None = None
    path: str = ''
    count: int = 0
    signal: int = signal.SIGKILL


def command(home: pathlib.Path, workdir: pathlib.Path, *more: str) -> list[str]:
    config = ROOT / f'tests/helpers/tiny.py:{home}'
    return ['--config', str(config), '--workdir', str(workdir), *more]


def _kill_at(kill: Kill, workdir: pathlib.Path) -> None:
    left = kill.count

    def hook(event, args):
        nonlocal left
        if event not in _EVENTS or not isinstance(args[0], str | os.PathLike):
            return
        path = os.fspath(args[0])
        if isinstance(path, str) and path.startswith(f'{workdir}/{kill.path}'):
            left -= 1
            if not left:
                print('killed at', os.path.relpath(path, workdir), file=sys.stderr, flush=True)
                os.kill(os.getpid(), kill.signal)

    sys.addaudithook(hook)


def _jdkd(kill: Kill | None, *argv: str) -> None:
    """In a process of its own."""
    if kill and kill.count:
        _kill_at(kill, pathlib.Path(argv[argv.index('--workdir') + 1]))
    processes.jdkd(*argv)


def start(argv: list[str], log: pathlib.Path, kill: Kill | None = None) -> processes.Process:
    return processes.Process(_jdkd, kill, *argv, stdout=log, env=processes.environment())


def run(argv: list[str], log: pathlib.Path, kill: Kill | None = None) -> int:
    """Runs the command line to its end, or to its kill; returns the exit code."""
    process = start(argv, log, kill)
    try:
        return process.wait(kill and kill.seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.returncode


def flip(path: pathlib.Path) -> None:
    """Changes one bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(path: pathlib.Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def outcome(workdir: pathlib.Path) -> dict[str, object]:
    """All that a run ends with, less what clocks say."""
    report = json.loads((workdir / 'report.json').read_text())
    page = (workdir / 'report.html').read_text()
    untimed = {'wall_seconds': sorted, 'costs': lambda costs: costs['sizes']}
    drawn = sorted((workdir / 'pictures').iterdir())
    lines = map(json.loads, (workdir / 'metrics.jsonl').read_text().splitlines())
    return {
        'parameters': (workdir / 'student/model.safetensors').read_bytes(),
        'student': {
            str(p.relative_to(workdir)): _without_speeds(p.read_bytes())
            for p in sorted((workdir / 'student').rglob('*'))
            if p.is_file()
        },
        'report': {k: untimed.get(k, lambda v: v)(v) for k, v in report.items()},
        'page': page[: page.index('Seconds by stage')],
        'pictures': {p.name: p.read_bytes() for p in drawn if p.stem != 'costs'},
        'run': (workdir / 'run.trec').read_text(),
        'metrics': [{k: v for k, v in r.items() if k not in toy.TIMES} for r in lines],
    }


def _without_speeds(content: bytes) -> bytes:
    """A file of the student without the measured speeds that a model card has, and its checksum."""
    content = re.sub(rb'("README\.md": ")[0-9a-f]{64}', rb'\1', content)
    return re.sub(
        rb'(## Quality against cost\n).*?(\n\| the student)', rb'\1\2', content, flags=re.DOTALL
    )


def where(log: pathlib.Path, workdir: pathlib.Path) -> str:
    """What a killed process was at, by its log and what it was writing."""
    text = log.read_text()
    if at := re.search(r'killed at (.*)', text):
        path = at[1]
    else:
        built = re.findall(rf'(?:building|resuming) {re.escape(str(workdir))}/(\S+)', text)
        path = next((p for p in reversed(built) if (workdir / f'{p}.tmp').exists()), 'between')
        if (workdir / path).name == 'train':
            path += '.tmp'
    return next((kind for kind, pattern in KINDS.items() if re.search(pattern, path)), 'between')


def survive(
    home: pathlib.Path, workdir: pathlib.Path, kills: list[Kill], expected: dict[str, object]
) -> tuple[collections.Counter, int]:
    """Starts a run again and again until all kills are used up; then, or when it ends, compares.

    A run that ends before its kill is compared, and begun anew for the next kill.

    Returns:
        How often each kind of work was hit, and how many ends were compared.

    Raises:
        AssertionError: if an end differs, or a process ends otherwise than by its kill.
    """
    hit, ends = collections.Counter(), 0
    log = workdir.with_suffix('.log')
    for kill in [*kills, None]:
        code = run(command(home, workdir), log, kill)
        if code == -signal.SIGKILL:
            hit[where(log, workdir)] += 1
            continue
        assert code == 0, f'{kill} ended with {code}:\n{log.read_text()[-3000:]}'
        found = outcome(workdir)
        for name, value in expected.items():
            assert found[name] == value, f'{name} differs after {kill}'
        left = [p for p in workdir.rglob('*.tmp') if p.is_dir()]
        assert not left and not (workdir / 'replaced').exists(), left
        ends += 1
        shutil.rmtree(workdir)
    return hit, ends


def main() -> None:
    from tests.helpers import tiny

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--kills', type=int, default=50)
    parser.add_argument('--seed', type=int, default=0)
    args = parser.parse_args()
    rng = random.Random(args.seed)
    compilation.share_cache()
    with tempfile.TemporaryDirectory() as scratch:
        home = pathlib.Path(scratch)
        tiny.write(home)
        for name in ('warm', 'alone'):  # The first one fills the cache.
            begun = time.monotonic()
            assert run(command(home, home / name), home / 'log') == 0, (home / 'log').read_text()
            seconds = time.monotonic() - begun
        expected = outcome(home / 'alone')
        kills = [Kill(path=path, count=count) for path, count in MOMENTS]
        while len(kills) < args.kills:
            if rng.random() < 0.5:
                kills.append(Kill(seconds=rng.uniform(0.2, seconds)))
            else:
                kills.append(Kill(count=rng.randrange(1, 1500)))
        hit, ends = survive(home, home / 'killed', kills[: args.kills], expected)
    print(f'{"killed while":16}{"times":>6}')
    for kind in (*KINDS, 'between'):
        print(f'{kind:16}{hit[kind]:6}')
    print(f'{"in all":16}{sum(hit.values()):6}; {ends} ends, each bit for bit as if left alone')


if __name__ == '__main__':
    main()
