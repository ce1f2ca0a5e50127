"""The command line.

python -m jdkd.main --config configs/mta4dpr.py --config.rounds=3 --workdir runs/a
python -m jdkd.main --config configs/mta4dpr.py --config.rounds=4 --workdir runs/a --update
python -m jdkd.main --mode eval|search --workdir runs/a
python -m jdkd.main --mode eval --config configs/eval.py --config.model=DIR \
    --config.collections=beir:PATH,python_docs --workdir runs/zero_shot
python -m jdkd.main --mode export --workdir runs/a --system=minilm_ft --push_to=org/name
python -m jdkd.main --mode compare --workdir runs/a --with runs/b
python -m jdkd.main --mode plan --topology v5e:2x4
"""

import contextlib
import functools
import logging as stdlib_logging
import pathlib
import shutil
import signal
import sys
import traceback

from absl import app, flags, logging
from ml_collections import config_flags

from jdkd import config as configs
from jdkd import validation
from jdkd.algorithm import iterate
from jdkd.commands import evaluate, export, search, zero_shot
from jdkd.corpus import importing
from jdkd.planning import plan
from jdkd.run import Run
from jdkd.runtime import distributed, files, interrupts, lock
from jdkd.runtime import mesh as meshes

DEFAULT = 'configs/mta4dpr.py'
_NO_SPACE = 2**20  # Bytes, below which a disk counts as full.

_CONFIG = config_flags.DEFINE_config_file(
    'config', DEFAULT, 'Config file, with an argument after a colon.', lock_config=True
)
_WORKDIR = flags.DEFINE_string(
    'workdir', None, 'Where the run is kept; runs/<name of the config> by default.'
)
_MODE = flags.DEFINE_enum(
    'mode', 'train', ['train', 'eval', 'export', 'search', 'compare', 'plan'], 'What to do.'
)
_TOPOLOGY = flags.DEFINE_string(
    'topology', 'v5e:2x4', 'What --mode plan compiles for: a TPU topology, or local devices.'
)
_SYSTEM = flags.DEFINE_string(
    'system', 'student', 'What --mode export exports: the student, or a system of the config.'
)
_OUTPUT = flags.DEFINE_string(
    'output',
    None,
    'Where to; <workdir>/student or <workdir>/exported/<system> by default, and '
    '<workdir>/compared/<name> of --mode compare.',
)
_AGAINST = flags.DEFINE_string(
    'against', None, 'Another workdir or a TREC run file that --mode eval compares with.'
)
_WITH = flags.DEFINE_string(
    'with', None, 'Another finished workdir, whose run --mode compare shows beside this one.'
)
_UPDATE = flags.DEFINE_bool(
    'update',
    False,
    'Go on in a workdir of another config: what the changed fields decide is made anew, the rest '
    'is kept, and what was there moves to <workdir>/replaced.',
)
_PUSH_TO = flags.DEFINE_string(
    'push_to', None, 'Repository on the Hugging Face hub that the export is uploaded to.'
)
_COORDINATOR = flags.DEFINE_string(
    'coordinator', None, 'host:port of process 0, where several processes are started by hand.'
)
_NUM_PROCESSES = flags.DEFINE_integer('num_processes', None, 'How many there are.')
_PROCESS_INDEX = flags.DEFINE_integer('process_index', None, 'Which of them this one is.')
_HANG_SECONDS = flags.DEFINE_float(
    'hang_seconds',
    1800,
    'Of several processes, one stops where a train step takes longer (with compiling); 0: never.',
)


def main(argv):
    if argv[1:]:
        raise ValueError(f"'{argv[1]}' is no flag; see python -m jdkd.main --help.")
    for flag, modes in (
        (_SYSTEM, ('export',)),
        (_OUTPUT, ('export', 'compare')),
        (_PUSH_TO, ('export',)),
        (_AGAINST, ('eval',)),
        (_WITH, ('compare',)),
        (_TOPOLOGY, ('plan',)),
    ):
        if flag.present and _MODE.value not in modes:
            raise ValueError(
                f'--{flag.name} is for --mode {" or ".join(modes)}; add that or leave it out.'
            )
    if _MODE.value == 'compare' and not _WITH.value:
        raise ValueError('--mode compare needs another finished run: add --with=WORKDIR.')
    is_eval = _MODE.value == 'eval' and zero_shot.is_config(_CONFIG.value)
    if _UPDATE.value and not (_MODE.value == 'train' or is_eval):
        raise ValueError('--update is for --mode train and for --mode eval with a --config of it.')
    if zero_shot.is_config(_CONFIG.value) and _MODE.value in ('train', 'plan'):
        raise ValueError(
            f'config {_config_name()} says what to measure; give --mode eval, or a config to '
            f'{_MODE.value} with, for example {DEFAULT}.'
        )
    if _MODE.value == 'plan':
        config = configs.resolve(_CONFIG.value)
        validation.validate(config)
        workdir = pathlib.Path(_WORKDIR.value) if _WORKDIR.value else None
        print(plan.format_plan(plan.make_plan(config, _TOPOLOGY.value, workdir)))
        return
    distributed.start(
        _COORDINATOR.value,
        _NUM_PROCESSES.value,
        _PROCESS_INDEX.value,
        hang_seconds=_HANG_SECONDS.value,
    )
    if not distributed.is_primary() and logging.get_verbosity() == logging.INFO:
        logging.set_verbosity(logging.WARNING)  # What is told once, process 0 tells.
    if _MODE.value == 'search' and distributed.process_count() > 1:
        raise ValueError('--mode search answers one user; start one process.')
    workdir = pathlib.Path(_WORKDIR.value or f'runs/{_config_name()}')
    if _MODE.value == 'train':
        config = configs.resolve(_CONFIG.value)
        # Before the workdir exists.
        distributed.from_primary(lambda: validation.before_start(config, workdir), 'the config')
        with _held(workdir, config):
            run = _run(config, workdir)
            distributed.from_primary(lambda: validation.before_work(run), 'the collection')
            iterate.train(run)
        return
    if is_eval:
        config = configs.resolve(_CONFIG.value)
        zero_shot.validate(config, workdir)
        with _held(workdir, config):
            pass
    config = configs.load(workdir)
    if zero_shot.is_config(config) and _MODE.value != 'eval':
        raise ValueError(f'{workdir} holds measurements, which --mode eval reads and no other.')
    if _MODE.value == 'search':
        search.search(_run(config, workdir))
        return
    with _held(workdir):
        if zero_shot.is_config(config):
            open_run = functools.partial(_run, collect=importing.import_collection)
            zero_shot.evaluate(config, workdir.absolute(), open_run, _AGAINST.value)
        elif _MODE.value == 'compare':
            evaluate.compare(workdir, _WITH.value, _OUTPUT.value)
        elif _MODE.value == 'eval':
            evaluate.evaluate(_run(config, workdir), _AGAINST.value)
        else:
            export.export(_run(config, workdir), _SYSTEM.value, _OUTPUT.value, _PUSH_TO.value)


@contextlib.contextmanager
def _held(workdir: pathlib.Path, config=None):
    """What all that writes into a workdir goes on in: process 0 holds it for all of them.

    Args:
        workdir: Which.
        config: What config.json is to hold; None if it is not looked at.
    """
    with contextlib.ExitStack() as stack:

        def hold():
            stack.enter_context(lock.hold(workdir, update=_UPDATE.value))
            if config is not None:
                configs.save(workdir, config)

        try:
            stack.enter_context(interrupts.handle_signals())
            distributed.from_primary(hold, 'the workdir', writes=[workdir / configs.FILE])
            yield
        except Exception as e:
            # Some libraries only say that writing failed.
            empty = isinstance(e, RuntimeError) and shutil.disk_usage(workdir).free < _NO_SPACE
            if not (empty or files.is_disk_full(e)):
                raise
            raise OSError(
                f'the disk is full ({e}); free some space, and the same command goes on: what is '
                f'finished in {workdir} is kept.'
            ) from e
        distributed.barrier('the end')


def _config_name() -> str:
    """`mta4dpr` of configs/mta4dpr.py, `mta4dpr_tiny` of configs/mta4dpr.py:tiny."""
    file, _, variant = config_flags.get_config_filename(flags.FLAGS['config']).partition(':')
    stem = pathlib.Path(file).stem
    return f'{stem}_{pathlib.Path(variant.partition("=")[2] or variant).name}' if variant else stem


def _run(config, workdir: pathlib.Path, collect=importing.load_collection) -> Run:
    mesh = meshes.make_mesh(config.mesh.data, config.mesh.model)
    workdir = workdir.absolute()
    return Run(config, workdir, mesh, collect(config, workdir))


def _parse(argv):
    try:
        configs.check_overrides(argv[1:], DEFAULT)
    except ValueError as e:
        sys.exit(f'jdkd: {e}')
    return app.parse_flags_with_usage(argv)


def _is_for_users(record) -> bool:
    """Libraries log every file that they touch: their INFO is shown with --verbosity=1 only."""
    ours = pathlib.Path(__file__).parent in pathlib.Path(record.pathname).parents
    return ours or record.levelno >= stdlib_logging.WARNING or logging.get_verbosity() > 0


def cli():
    """Entry point; what a user got wrong is told in one sentence, without a traceback."""
    logging.use_absl_handler()
    logging.set_verbosity(logging.INFO)
    logging.get_absl_handler().addFilter(_is_for_users)
    try:
        app.run(main, flags_parser=_parse)
    except KeyboardInterrupt:
        sys.exit(interrupts.EXIT_CODES[signal.SIGINT])
    except (ValueError, OSError, FloatingPointError, RuntimeError, ImportError) as e:
        logging.debug('where it happened:', exc_info=True)
        _leave(f'{e} (--verbosity=1 shows where)')
    except Exception as e:
        if distributed.process_count() == 1:
            raise
        traceback.print_exc()
        _leave(repr(e))


def _leave(message: str):
    if distributed.process_count() == 1:
        sys.exit(f'jdkd: {message}')
    distributed.exit_now(message)


if __name__ == '__main__':
    cli()
