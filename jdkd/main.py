"""The command line: flags in, one function a mode.

jdkd train --config mta4dpr:tiny --workdir runs/a
jdkd train --config configs/mta4dpr.py --config.rounds=4 --workdir runs/a --update
jdkd eval --workdir runs/a --against runs/b
jdkd eval --config eval --config.model=DIR --config.collections=beir:PATH --workdir runs/zero_shot
jdkd search --workdir runs/a
jdkd search --workdir runs/a --index_of=minilm_ft
jdkd export --workdir runs/a --system=minilm_ft --push_to=org/name
jdkd index --student runs/a --collection more.jsonl --output my_index
jdkd search my_index "how do I parse a date"
jdkd add my_index more.jsonl
jdkd export my_index --vectors=faiss
jdkd serve my_index --port=8000
jdkd compare --workdir runs/a --with runs/b
jdkd pairs --config mta4dpr:tiny --workdir runs/a
jdkd plan --topology v5e:2x4

`python -m jdkd.main --mode train` is the same as `jdkd train`.
"""

import json
import logging as stdlib_logging
import os
import pathlib
import re
import signal
import sys
import traceback
from collections.abc import Sequence

from absl import app, flags, logging
from ml_collections import config_flags

from jdkd import config as configs
from jdkd.commands import (
    add,
    compare,
    evaluate,
    export,
    index,
    pairs,
    plan,
    search,
    serve,
    setup,
    train,
    zero_shot,
)
from jdkd.config.fields import STORES
from jdkd.indexing import contents, exporting
from jdkd.runtime import bucket, distributed, files, huge_pages, interrupts
from jdkd.runtime.messages import EscapedStream, shown

DEFAULT = 'configs/mta4dpr.py'
_BROKEN_PIPE = 141  # Exit code, as shells report SIGPIPE.
MODES = ('train', 'eval', 'export', 'index', 'add', 'search', 'serve', 'compare', 'pairs', 'plan')
# What may stand on the command line beside flags, as --help names it.
_ARGUMENTS = {
    'search': 'DIR QUESTION',
    'add': 'INDEX COLLECTION',
    'export': 'INDEX',
    'serve': 'DIR',
}
# Flags that not every mode has, and the modes that have them.
_OWNERS = {
    'against': ('eval',),
    'collection': ('index',),
    'host': ('serve',),
    'index_of': ('eval', 'search'),
    'k': ('search',),
    'on_error': ('index', 'add'),
    'onnx': ('export',),
    'options': ('index', 'add'),
    'output': ('export', 'compare', 'pairs', 'index'),
    'port': ('serve',),
    'push_to': ('export',),
    'splits': ('pairs',),
    'store': ('index',),
    'student': ('index',),
    'system': ('export',),
    'topology': ('plan',),
    'vectors': ('export',),
    'with': ('compare',),
}

configs.register_parsers()
flags.FLAGS.set_gnu_getopt()  # Flags may follow arguments.
_CONFIG = config_flags.DEFINE_config_file(
    'config',
    # `expand` gives the default: that of a flag takes the overrides before they are checked.
    None,
    'Config file, which is run as code, or name of a packaged one, such as mta4dpr, with an '
    'argument after a colon.',
    lock_config=True,
)
flags.FLAGS['config'].default_as_str = repr(DEFAULT)
_WORKDIR = flags.DEFINE_string(
    'workdir',
    None,
    'Directory of the run, or its place in a bucket, such as gs://BUCKET/PATH; by default '
    'runs/<config>.',
)
_MODE = flags.DEFINE_enum('mode', 'train', MODES, 'What to do.')
_TOPOLOGY = flags.DEFINE_string(
    'topology', 'v5e:2x4', 'What to plan for: a TPU topology, GPUs such as h100:8, or local.'
)
_SYSTEM = flags.DEFINE_string('system', 'student', 'What export exports: the student or a system.')
_OUTPUT = flags.DEFINE_string(
    'output',
    None,
    'Directory to write; by default <workdir>/student or <workdir>/exported/<system>, for --mode '
    'compare <workdir>/compared/<name>, for vectors <index>/exported. For --mode pairs the file, '
    '<workdir>/pairs.jsonl. --mode index needs it.',
)
_SPLITS = flags.DEFINE_list(
    'splits', ['train', 'eval'], 'What pairs writes: train, eval (D_eval), test.'
)
_AGAINST = flags.DEFINE_string('against', None, 'Workdir or TREC run file that eval compares with.')
_INDEX_OF = flags.DEFINE_string(
    'index_of',
    None,
    "System that the student is aligned with: eval and search send the student's queries to its "
    "index instead of the student's.",
)
_STUDENT = flags.DEFINE_string(
    'student', None, 'What index encodes with: a directory, a hub name, or the workdir of a run.'
)
_COLLECTION = flags.DEFINE_string(
    'collection',
    None,
    'What index reads: a .jsonl, .csv, .tsv or .parquet file of passages, a source such as '
    'beir:PATH, or the workdir of a run.',
)
_STORE = flags.DEFINE_enum('store', 'float32', STORES, 'Precision of an index.')
_ON_ERROR = flags.DEFINE_enum(
    'on_error',
    'stop',
    ['stop', 'skip'],
    'What index and add do with an unusable passage: stop, or skip and count it.',
)
_OPTIONS = flags.DEFINE_string(
    'options', '{}', 'Options of the collection of index and add, as a JSON object.'
)
_VECTORS = flags.DEFINE_enum(
    'vectors', None, list(exporting.KINDS), 'What export writes of an index.'
)
_HOST = flags.DEFINE_string(
    'host', '127.0.0.1', 'Address that serve listens on; 0.0.0.0 for all of the machine.'
)
_PORT = flags.DEFINE_integer('port', 8000, 'Port of serve; 0 for a free one.', 0, 65535)
_K = flags.DEFINE_integer('k', 5, 'Passages that search shows.', lower_bound=1)
_WITH = flags.DEFINE_string('with', None, 'Finished workdir that compare shows beside this one.')
_UPDATE = flags.DEFINE_bool(
    'update',
    False,
    'Continue in a workdir of another config: stages that depend on the changed fields are made '
    'anew, the rest is kept; replaced files move to <workdir>/replaced.',
)
_PUSH_TO = flags.DEFINE_string('push_to', None, 'Hugging Face repository to upload the export to.')
_ONNX = flags.DEFINE_bool(
    'onnx', False, 'Whether export writes ONNX files, float32 and int8, into the folder onnx.'
)
_COORDINATOR = flags.DEFINE_string('coordinator', None, 'host:port of process 0, to start by hand.')
_NUM_PROCESSES = flags.DEFINE_integer('num_processes', None, 'Number of processes.')
_PROCESS_INDEX = flags.DEFINE_integer('process_index', None, 'Index of this process.')
_HANG_SECONDS = flags.DEFINE_float(
    'hang_seconds',
    1800,
    'Seconds for a train step (with compilation) after which one of several processes stops; 0: no '
    'limit.',
)


def main(argv: Sequence[str]) -> None:
    """Runs the command that --mode names."""
    _check_flags(argv)
    mode, is_zero_shot = _MODE.value, 'collections' in _CONFIG.value
    if mode == 'plan':
        workdir = pathlib.Path(_WORKDIR.value) if _WORKDIR.value else None
        plan.plan(setup.resolve_training(_CONFIG.value), _TOPOLOGY.value, workdir)
        return
    if mode in ('train', 'index', 'add'):
        huge_pages.restart_with()
    started_by_hand = _COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_INDEX.value
    distributed.start(*started_by_hand, hang_seconds=_HANG_SECONDS.value)
    if not distributed.is_primary() and logging.get_verbosity() == logging.INFO:
        logging.set_verbosity(logging.WARNING)  # Process 0 logs for all.
    workdir = bucket.open_workdir(_WORKDIR.value or f'runs/{_config_name()}')
    if mode == 'train':
        train.train(setup.resolve_training(_CONFIG.value), workdir, update=_UPDATE.value)
    elif mode == 'eval' and is_zero_shot:
        zero_shot.run(_CONFIG.value, workdir, _AGAINST.value, update=_UPDATE.value)
    elif mode == 'eval':
        evaluate.evaluate(workdir, _AGAINST.value, _INDEX_OF.value)
    elif mode == 'pairs':
        config = setup.resolve_training(_CONFIG.value)
        pairs.pairs(config, workdir, _SPLITS.value, _OUTPUT.value, update=_UPDATE.value)
    elif mode == 'search':
        _search(argv[1:], workdir)
    elif mode == 'index':
        index.index(
            pathlib.Path(str(_OUTPUT.value)),
            str(_STUDENT.value),
            str(_COLLECTION.value),
            store=_STORE.value,
            on_error=_ON_ERROR.value,
            options=_options(),
        )
    elif mode == 'add':
        add.add(pathlib.Path(argv[1]), argv[2], on_error=_ON_ERROR.value, options=_options())
    elif mode == 'serve':
        serve.serve(pathlib.Path(argv[1]) if argv[1:] else workdir, _HOST.value, _PORT.value)
    elif mode == 'export' and argv[1:]:
        export.export_vectors(pathlib.Path(argv[1]), str(_VECTORS.value), _OUTPUT.value)
    elif mode == 'compare':
        compare.compare(workdir, str(_WITH.value), _OUTPUT.value)
    else:
        export.export(workdir, _SYSTEM.value, _OUTPUT.value, _PUSH_TO.value, _ONNX.value)


def _search(words: Sequence[str], workdir: pathlib.Path) -> None:
    """Searches the index or run that `words` begin with, or else the workdir's."""
    directory = pathlib.Path(words[0]) if words else workdir
    question = ' '.join(words[1:]) if words[1:] else None
    is_run = (directory / configs.FILE).is_file() if words else True
    if (directory / contents.FILE).is_file() or not is_run:
        if _INDEX_OF.value:
            raise ValueError(
                f'{directory} is an index, which holds one student; leave --index_of out.'
            )
        search.search_index(directory, question, _K.value)
    else:
        search.search(directory, question, _INDEX_OF.value, _K.value)


def _options() -> dict:
    try:
        options = json.loads(_OPTIONS.value)
    except ValueError as e:
        raise ValueError(f'--options={shown(_OPTIONS.value)} is not JSON ({e}).') from None
    if not isinstance(options, dict):
        raise ValueError(f'--options={shown(_OPTIONS.value)} is no JSON object.')
    return options


def _check_arguments(mode: str, arguments: Sequence[str]) -> None:
    """Raises a ValueError if what stands beside the flags does not fit the mode."""
    names = _ARGUMENTS.get(mode, '').split()
    if arguments and not names:
        raise ValueError(f"'{arguments[0]}' is no flag; see python -m jdkd.main --help.")
    if arguments:
        files.require_local(arguments[0], names[0])
    is_wrong = len(arguments) > len(names) and mode != 'search'  # A question may be many words.
    if is_wrong or (mode == 'add' and len(arguments) < len(names)):
        raise ValueError(f'jdkd {mode} takes {_ARGUMENTS[mode]} and flags; see jdkd --help.')
    if mode == 'export' and bool(arguments) != bool(_VECTORS.value):
        raise ValueError(
            'the vectors of an index are exported by jdkd export INDEX --vectors=faiss (or npy, '
            'parquet), and encoders of a run by jdkd export --workdir DIR.'
        )
    if mode == 'export' and arguments:
        for flag in ('system', 'push_to', 'onnx'):
            if flags.FLAGS[flag].present:
                raise ValueError(f'--{flag} is for encoders of a run; leave it out, or --vectors.')
    if arguments and _WORKDIR.value:
        raise ValueError(f"give jdkd {mode} '{arguments[0]}' or --workdir, not both.")


def _check_flags(argv: Sequence[str]) -> None:
    """Raises a ValueError that names the flag or argument that does not belong to the mode."""
    mode, is_zero_shot = _MODE.value, 'collections' in _CONFIG.value
    _check_arguments(mode, argv[1:])
    for flag in ('output', 'against', 'with', *(['workdir'] if mode == 'plan' else [])):
        files.require_local(flags.FLAGS[flag].value or '', f'--{flag}')
    for flag, modes in _OWNERS.items():
        if flags.FLAGS[flag].present and mode not in modes:
            shown_modes = ' or '.join(modes)
            raise ValueError(f'--{flag} is for --mode {shown_modes}; add that or leave it out.')
    if is_zero_shot and _INDEX_OF.value:
        raise ValueError('--index_of is for the student of a run; leave it out.')
    if mode == 'compare' and not _WITH.value:
        raise ValueError('--mode compare needs another finished run: add --with=WORKDIR.')
    if mode == 'index':
        for flag in ('student', 'collection', 'output'):
            if not flags.FLAGS[flag].value:
                raise ValueError(
                    f'--{flag} is missing; say for example jdkd index --student=runs/a '
                    '--collection=passages.jsonl --output=my_index.'
                )
    if _UPDATE.value and mode not in ('train', 'pairs') and not (mode == 'eval' and is_zero_shot):
        raise ValueError(
            '--update is for --mode train and pairs, and for --mode eval with a --config of it.'
        )
    if is_zero_shot and mode in ('train', 'pairs', 'plan'):
        raise ValueError(
            f'config {_config_name()} says what to measure; give --mode eval, or a config to '
            f'{mode} with, for example {DEFAULT}.'
        )


def _config_name() -> str:
    """`mta4dpr` of configs/mta4dpr.py, `mta4dpr_tiny` of configs/mta4dpr.py:tiny."""
    file, _, variant = config_flags.get_config_filename(flags.FLAGS['config']).partition(':')
    stem = pathlib.Path(file).stem
    return f'{stem}_{pathlib.Path(variant.partition("=")[2] or variant).name}' if variant else stem


def expand(argv: Sequence[str]) -> list[str]:
    """Command line with `jdkd train` as `--mode=train`, and packaged configs by their paths.

    Raises:
        ValueError: if the first argument is no mode, or the mode is given twice.
    """
    program, *args = argv
    command: list[str] = []
    if args and not args[0].startswith('-'):
        mode = args.pop(0)
        if mode not in MODES:
            raise ValueError(f"'{mode}' is no command; use one of {', '.join(MODES)}.")
        if any(re.match('--?mode(=|$)', arg) for arg in args):
            raise ValueError(f"'{mode}' says what to do; leave --mode out.")
        command = [f'--mode={mode}']
    has_config = False
    for i, arg in enumerate(args):
        if match := re.match('(--?config=)(.*)', arg):
            args[i] = match[1] + setup.find_config(match[2])
        elif re.fullmatch('--?config', arg) and i + 1 < len(args):
            args[i + 1] = setup.find_config(args[i + 1])
        has_config |= bool(re.match('--?config(=|$)', arg))
    if not has_config:
        is_here = pathlib.Path(DEFAULT).is_file()
        file = DEFAULT if is_here else setup.find_config(pathlib.Path(DEFAULT).stem)
        args.insert(0, f'--config={file}')
    return [program, *command, *args]


def _is_for_users(record: stdlib_logging.LogRecord) -> bool:
    """Hides the INFO of libraries, which log every file they touch, without --verbosity=1."""
    ours = pathlib.Path(__file__).parent in pathlib.Path(record.pathname).parents
    return ours or record.levelno >= stdlib_logging.WARNING or logging.get_verbosity() > 0


def cli() -> None:
    """Runs `main`; a user's error ends it with one sentence and no traceback."""
    logging.use_absl_handler()  # Removes other handlers of `sys.stderr`.
    # Whatever a file, a library or a traceback says, no control character reaches the terminal.
    sys.stdout, sys.stderr = EscapedStream(sys.stdout), EscapedStream(sys.stderr)
    logging.get_absl_handler().python_handler.setStream(sys.stderr)
    logging.set_verbosity(logging.INFO)
    logging.get_absl_handler().addFilter(_is_for_users)
    try:
        sys.argv[:] = expand(sys.argv)  # From which overrides of the config are read.
        sys.argv[1:] = configs.check_overrides(sys.argv[1:], DEFAULT)
    except ValueError as e:
        sys.exit(f'jdkd: {e}')
    if __name__ != '__main__':  # The console script: --help shows this module's flags.
        sys.modules['__main__'].__doc__ = __doc__
        for flag in flags.FLAGS.get_key_flags_for_module(__name__):
            flags.FLAGS.register_key_flag_for_module(sys.argv[0], flag)
    try:
        app.run(main)
    except KeyboardInterrupt:
        sys.exit(interrupts.EXIT_CODES[signal.SIGINT])
    except (ValueError, OSError, FloatingPointError, RuntimeError, ImportError) as e:
        if isinstance(e, BrokenPipeError) and _MODE.value == 'search':
            # Who reads the answers has enough, such as `head`; else flushing them would fail.
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            sys.exit(_BROKEN_PIPE)
        logging.debug('traceback:', exc_info=True)
        _exit(f'{e} (--verbosity=1 shows where)')
    except Exception as e:
        traceback.print_exc()  # Unlike `raise`, without colours.
        _exit(repr(e))


def _exit(message: str) -> None:
    if distributed.process_count() == 1:
        sys.exit(f'jdkd: {message}')
    distributed.exit_now(message)


if __name__ == '__main__':
    cli()
