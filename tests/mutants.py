"""Breaks the code in one place at a time and counts how often the tests notice.

pip install cosmic-ray coverage
python -m tests.mutants --count=300 --seed=0

`tests/helpers/mutation.py` says what is changed; positions are drawn at random. A mutant runs in a
child forked where all libraries are imported: first the fast tests of the room's files that import
its module, which catch most. For the others a pass notes which tests run which lines, and they run
the tests of their line, cheapest first. Survivors are shown as diffs; those that stand, with a
reason, in equivalent_mutants.json change nothing that anyone could see.
"""

import argparse
import ast
import collections
import contextlib
import dataclasses
import functools
import gc
import hashlib
import importlib
import json
import os
import pathlib
import resource
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence

from tests.helpers import compilation, mutation
from tests.helpers.mutation import Mutant

ROOT = pathlib.Path(__file__).parents[1]
ROOMS = ('algorithm', 'distillation', 'lists', 'systems')
# Of the slow tests, these alone.
SLOW = (
    'tests/algorithm/',
    'tests/distillation/test_nonfinite.py',
    'tests/distillation/test_step.py',
    'tests/distillation/test_terms.py',
)
EQUIVALENT = pathlib.Path(__file__).with_name('equivalent_mutants.json')
KEPT = ROOT / '.pytest_cache/mutants'
_LIBRARIES = """
_hypothesis_pytestplugin _pytest.doctest absl.testing array_record.python.array_record_module
beartype cosmic_ray.ast datasets flax.linen flax.training.train_state grain hypothesis
ir_datasets ir_measures jax jax.experimental.pallas jaxtyping matplotlib.pyplot ml_collections
optax orbax.checkpoint pyarrow.parquet pytest safetensors.numpy scann scipy.optimize
scipy.special scipy.stats sentence_transformers tensorboardX tensorstore tokenizers torch
transformers xdist.plugin transformers.models.auto.tokenization_auto
transformers.models.bert.tokenization_bert transformers.models.bert.modeling_bert
"""  # Not bm25s: its import starts JAX's threads.
_SECONDS = 60  # Of CPU that a mutant may take beyond four times what its tests took.


def _copy(target: pathlib.Path) -> pathlib.Path:
    """What tests need, for a child to change."""
    target.mkdir(exist_ok=True)
    for name in ('jdkd', 'tests'):
        shutil.copytree(ROOT / name, target / name, ignore=shutil.ignore_patterns('__pycache__'))
    shutil.copy(ROOT / 'pyproject.toml', target)
    return target


def _fork(function, home: pathlib.Path, log: pathlib.Path, cpu: float) -> int:
    """Runs a function in a child whose packages are those of `home`; its exit code is returned."""
    pid = os.fork()
    if pid:
        return pid
    code = 70
    try:
        os.setpgid(0, 0)
        resource.setrlimit(resource.RLIMIT_CPU, (int(cpu), int(cpu) + 5))
        signal.alarm(int(cpu * 10) + 60)  # Where it waits for ever.
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(out, 1), os.dup2(out, 2)
        os.chdir(home)
        sys.path[:] = [str(home), *(p for p in sys.path if p not in ('', str(ROOT)))]
        for name in [m for m in sys.modules if m.partition('.')[0] in ('jdkd', 'tests')]:
            del sys.modules[name]
        code = function()
    except BaseException as error:
        print(repr(error), flush=True)
    finally:
        sys.stdout.flush()
        os._exit(int(code))


def _pytest(tests: Sequence[str], *plugins: object, marked: str = '') -> int:
    import pytest

    flags = '-x -n0 -p no:cacheprovider -p no:anyio --tb=line -W ignore --basetemp=temporary'
    return pytest.main([*flags.split(), '-m', marked, *tests], plugins=plugins)


class _Recorder:
    """Notes the lines that each test runs: those of its fixtures too."""

    def __init__(self, cov):
        self.cov, self.seconds, self.fixtures, self.failed = cov, {}, {}, []

    def pytest_collection_modifyitems(self, items):
        def is_kept(item):
            slow = item.get_closest_marker('slow') and not item.nodeid.startswith(SLOW)
            return not (slow or item.get_closest_marker('processes'))

        items[:] = filter(is_kept, items)

    def pytest_runtest_logreport(self, report):
        self.failed += [report.nodeid] if report.failed else []

    def hooks(self):
        import jax
        import pytest

        @pytest.hookimpl(wrapper=True)
        def pytest_runtest_protocol(item):
            jax.clear_caches()  # What an earlier test has traced runs no line again.
            self.cov.switch_context(item.nodeid)
            self.fixtures[item.nodeid] = list(getattr(item, 'fixturenames', ()))
            before = time.process_time()
            yield_value = yield
            self.seconds[item.nodeid] = time.process_time() - before
            return yield_value

        @pytest.hookimpl(wrapper=True)
        def pytest_fixture_setup(fixturedef, request):
            if fixturedef.scope == 'function':
                return (yield)
            self.cov.switch_context(f'fixture {fixturedef.argname}')
            result = yield
            self.cov.switch_context(request.node.nodeid or 'fixture')
            return result

        self.pytest_runtest_protocol = pytest_runtest_protocol
        self.pytest_fixture_setup = pytest_fixture_setup
        return self


def _record(home: pathlib.Path, test: str, output: pathlib.Path) -> int:
    """Runs the tests of a file; writes {test: {seconds, lines: {path: [line]}}}."""
    import coverage

    cov = coverage.Coverage(
        data_file=None, config_file=False, source=[str(home / 'jdkd' / r) for r in ROOMS]
    )
    cov.start()
    recorder = _Recorder(cov).hooks()
    code = _pytest([test], recorder)
    cov.stop()
    if code not in (0, 5):
        return code
    data, lines = cov.get_data(), collections.defaultdict(dict)
    for file in data.measured_files():
        path = str(pathlib.Path(file).relative_to(home))
        for line, contexts in data.contexts_by_lineno(file).items():
            for context in contexts:
                lines[context].setdefault(path, []).append(line)
    found = {}
    for name, seconds in recorder.seconds.items():
        own = collections.defaultdict(set)
        for context in (name, *(f'fixture {f}' for f in recorder.fixtures[name])):
            for path, numbers in lines.get(context, {}).items():
                own[path] |= set(numbers)
        found[name] = {'seconds': seconds, 'lines': {p: sorted(n) for p, n in own.items()}}
    output.write_text(json.dumps(found))
    return 0


def _digest(*paths: pathlib.Path) -> str:
    files = sorted(f for p in paths for f in ([p] if p.is_file() else p.rglob('*.py')))
    return hashlib.sha256(b'\0'.join(f.read_bytes() for f in files)).hexdigest()[:16]


def record(home: pathlib.Path, rooms: Sequence[str]) -> dict[str, dict]:
    """What the rooms' tests and examples run; of files as before, as it was recorded then."""
    found = {}
    tests = [f for room in rooms for f in sorted((ROOT / 'tests' / room).rglob('test_*.py'))]
    modules = [f for room in rooms for f in sorted((ROOT / 'jdkd' / room).rglob('*.py'))]
    for file in [*tests, *(f for f in modules if '>>> ' in f.read_text())]:
        own = _digest(file, ROOT / 'jdkd', ROOT / 'tests/helpers')
        test, output = str(file.relative_to(ROOT)), KEPT / f'{own}.json'
        if not output.exists():
            log = KEPT / 'record.log'
            pid = _fork(lambda t=test, o=output: _record(home, t, o), home, log, 600)
            _, status = os.waitpid(pid, 0)
            if status:
                raise RuntimeError(f'{test} fails as it is:\n{log.read_text()[-3000:]}')
            print(f'recorded {test}', flush=True)
        if output.exists():
            found |= json.loads(output.read_text())
    return found


def importing(path: str, source: str) -> list[str]:
    """Test files of a module's room that import it, its mirror first, and the examples in it."""
    room, stem = pathlib.Path(path).parts[1:]
    module, mirror = f'jdkd.{room}.{stem}'.removesuffix('.py'), f'test_{stem}'
    files = [f for f in (ROOT / 'tests' / room).rglob('test_*.py') if module in _imports(f)]
    files.sort(key=lambda f: (f.name != mirror, f))
    return [str(f.relative_to(ROOT)) for f in files] + [path] * ('>>> ' in source)


@functools.cache
def _imports(file: pathlib.Path) -> set[str]:
    """Modules, and what is imported from them."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom):
            names |= {str(node.module), *(f'{node.module}.{a.name}' for a in node.names)}
        elif isinstance(node, ast.Import):
            names |= {a.name for a in node.names}
    return names


def run_fast(tests: Sequence[str]) -> int:
    """Runs the fast ones of some test files."""
    code = _pytest(tests, marked='not slow and not processes')
    return 0 if code == 5 else code  # A file may have none.


def check(home: pathlib.Path, files: Sequence[str]) -> None:
    """Raises an error if test files fail without any change."""
    log = KEPT / 'check.log'
    pid = _fork(lambda: run_fast(files), home, log, 600)
    if os.waitpid(pid, 0)[1]:
        raise RuntimeError(f'tests fail as they are:\n{log.read_text()[-3000:]}')


def covering(mutant: Mutant, source: str, recorded: dict[str, dict]) -> dict[str, float]:
    """{test: seconds} of the tests that run a mutant, cheapest files first."""
    lines = {*mutation.statement_lines(source, mutant.line)}
    lines |= {mutant.line + i for i in range(len(mutant.old))}
    own = {test: r['lines'].get(mutant.path, ()) for test, r in recorded.items()}
    tests = [test for test, numbers in own.items() if lines & set(numbers)]
    # Without any, it runs while it is imported, or never.
    tests, cost = tests or [test for test, numbers in own.items() if numbers], collections.Counter()
    for test in tests:
        cost[test.split('::')[0]] += recorded[test]['seconds']

    def rank(test):
        file = test.split('::')[0]
        return cost[file], file, recorded[test]['seconds']

    return {test: recorded[test]['seconds'] for test in sorted(tests, key=rank)}


class _Order:
    def __init__(self, tests):
        self.order = {test: i for i, test in enumerate(tests)}

    def pytest_collection_modifyitems(self, items):
        items.sort(key=lambda item: self.order.get(item.nodeid, 0))


# Of a mutant and its source: what to run, and the seconds of CPU that it takes without a change;
# None without tests.
Prepare = Callable[[Mutant, str], tuple[Callable[[], int], float] | None]


def run_all(mutants: list[Mutant], prepare: Prepare, jobs: int, scratch: pathlib.Path):
    """Yields (mutant, outcome, CPU seconds), as they end."""
    homes = [_copy(pathlib.Path(tempfile.mkdtemp(dir=scratch))) for _ in range(jobs)]
    running, waiting = {}, list(mutants)
    while waiting or running:
        while homes and waiting:
            mutant, home = waiting.pop(0), homes.pop()
            source = (ROOT / mutant.path).read_text()
            changed, prepared = mutant.apply(source), prepare(mutant, source)
            if changed is None or prepared is None:
                homes.append(home)
                yield mutant, 'gone' if changed is None else 'not covered', 0.0
                continue
            (home / mutant.path).write_text(changed)
            test, seconds = prepared
            log = KEPT / f'{home.name}.log'
            running[_fork(test, home, log, _SECONDS + 4 * seconds)] = mutant, home
        if running:
            pid, status, usage = os.wait3(0)
            mutant, home = running.pop(pid)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
            shutil.copy2(ROOT / mutant.path, home / mutant.path)
            homes.append(home)
            code = os.waitstatus_to_exitcode(status)
            late = code in (-signal.SIGXCPU, -signal.SIGALRM, -signal.SIGKILL)
            outcome = 'survived' if code == 0 else 'timeout' if late else 'killed'
            log = KEPT / f'{home.name}.log'
            if code in (5, 70):
                raise RuntimeError(f'{mutant.diff()}\n{log.read_text()}')
            yield mutant, outcome, usage.ru_utime + usage.ru_stime
    for home in homes:
        (KEPT / f'{home.name}.log').unlink(missing_ok=True)


def table(outcomes: dict[Mutant, str]) -> str:
    """The outcomes by room."""
    kinds = ('killed', 'timeout', 'survived', 'not covered', 'equivalent')
    lines = [f'{"room":14}{"mutants":>8}{"".join(f"{k:>13}" for k in kinds)}{"score":>8}']
    for room in (*ROOMS, 'all'):
        counts = collections.Counter(o for m, o in outcomes.items() if room in ('all', m.room))
        caught, of = counts['killed'] + counts['timeout'], counts.total() - counts['equivalent']
        own = ''.join(f'{counts[k]:13}' for k in kinds)
        lines.append(f'{room:14}{counts.total():8}{own}{100 * caught / max(of, 1):7.1f}%')
    return '\n'.join(lines)


def _warm() -> None:
    """Imports what children need, so that no JAX backend and no thread is there yet."""
    os.environ['JAX_PLATFORMS'] = 'cpu'
    os.environ |= {f'{x}_NUM_THREADS': '1' for x in ('OMP', 'OPENBLAS', 'MKL', 'TOKENIZERS_RAYON')}
    compilation.share_cache()
    for name in _LIBRARIES.split():
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    assert threading.active_count() == 1, threading.enumerate()
    gc.freeze()  # Children need not look through it.


def run_passes(mutants: list[Mutant], args: argparse.Namespace, home: pathlib.Path):
    """Yields as `run_all`: those that fast tests leave come again with all tests."""

    def prepare_importing(mutant, source):
        tests = importing(mutant.path, source)
        return (lambda: run_fast(tests), 0.0) if tests else None

    def prepare_covering(mutant, source):
        tests = covering(mutant, source, recorded)
        return (lambda: _pytest([*tests], _Order(tests)), sum(tests.values())) if tests else None

    files = {t for p in {m.path for m in mutants} for t in importing(p, (ROOT / p).read_text())}
    if files:
        check(home, sorted(files))
    left = []
    for mutant, outcome, cpu in run_all(mutants, prepare_importing, args.jobs, home.parent):
        left += [mutant] if outcome in ('survived', 'not covered') else []
        yield mutant, outcome, cpu
    if left and not args.fast:
        recorded = record(home, args.rooms)
        yield from run_all(left, prepare_covering, args.jobs, home.parent)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--count', type=int, default=300)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--rooms', nargs='+', default=ROOMS, choices=ROOMS)
    parser.add_argument('--jobs', type=int, default=2)
    parser.add_argument('--fast', action='store_true', help='fast tests of importing files alone')
    parser.add_argument('--again', type=pathlib.Path, help='outcomes whose survivors to run again')
    args = parser.parse_args()
    KEPT.mkdir(parents=True, exist_ok=True)
    _warm()
    files = sorted(f for room in args.rooms for f in (ROOT / 'jdkd' / room).glob('*.py'))
    sources = {str(f.relative_to(ROOT)): f.read_text() for f in files}
    equivalent = {Mutant.read(e).key for e in json.loads(EQUIVALENT.read_text())}
    outcomes: dict[Mutant, str] = {}
    if args.again:
        earlier = {Mutant.read(r): r['outcome'] for r in map(json.loads, args.again.open())}
        left = [m for m, o in earlier.items() if o in ('survived', 'not covered')]
        outcomes |= {m: o for m, o in earlier.items() if m not in left}
    else:
        left = mutation.draw(sources, args.count, args.seed)
    outcomes |= {m: 'equivalent' for m in left if m.key in equivalent}
    left = [m for m in left if m.key not in equivalent]
    stem = f'{args.again.stem}-again' if args.again else f'seed-{args.seed}'
    output, total = KEPT / f'{stem}.jsonl', 0.0
    with tempfile.TemporaryDirectory() as scratch:
        home = _copy(pathlib.Path(scratch, 'unchanged'))
        for mutant, outcome, cpu in run_passes(left, args, home):
            outcomes[mutant], total = outcome, total + cpu
            seen = f'{len(outcomes):4} {outcome:12}{cpu:6.1f} s'
            print(f'{seen}  {mutant.path}:{mutant.line}', flush=True)
            with output.open('w') as f:
                for m, o in outcomes.items():
                    print(json.dumps({**dataclasses.asdict(m), 'outcome': o}), file=f)
    for mutant, outcome in outcomes.items():
        if outcome in ('survived', 'not covered'):
            print(f'\n{outcome}: {mutant.diff()}')
    print(f'\n{table(outcomes)}\n{total:.0f} CPU seconds; {output}')


if __name__ == '__main__':
    main()
