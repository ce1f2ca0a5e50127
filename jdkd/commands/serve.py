"""`jdkd serve`: an index, or the systems of a run, over HTTP."""

import pathlib
import signal
import socket

from absl import logging

from jdkd import config as configs
from jdkd.commands.setup import open_trained_run
from jdkd.indexing import contents
from jdkd.indexing.index import open_index
from jdkd.runtime import distributed

_LOCAL = ('127.0.0.1', 'localhost', '::1', '[::1]')


def serve(directory: pathlib.Path, host: str, port: int) -> None:
    """Serves an index or a run until Ctrl-C or SIGTERM.

    Args:
        host: Address to listen on; on one of this machine alone, only requests for it are answered.
        port: 0 for any free one.

    Raises:
        FileNotFoundError: if the directory holds neither.
        OSError: if the address cannot be listened on.
        ImportError: if Starlette or uvicorn is not installed.
    """
    if distributed.process_count() > 1:
        raise ValueError('--mode serve answers from one process; start one.')
    try:
        import uvicorn

        from jdkd.serving import app, service
    except ImportError as error:
        raise ImportError(
            f'{error.name} is not installed; run pip install "jdkd[serve]".'
        ) from None
    try:
        family = socket.AF_INET6 if ':' in host else socket.AF_INET
        listening = socket.create_server((host, port), family=family)
    except OSError as error:
        raise OSError(
            f'cannot listen on {host}:{port} ({error.strerror}); give another --port or --host.'
        ) from None
    with listening:
        if (directory / contents.FILE).is_file():
            served = service.of_index(open_index(directory))
        elif not (directory / configs.FILE).is_file():
            raise FileNotFoundError(
                f'{directory} holds neither an index nor a run; make an index with `jdkd index '
                f'--output {directory}`, or name the --workdir of a run.'
            )
        else:
            served = service.of_run(open_trained_run(directory))
        logging.info('compiling what searches need')
        served.warm_up()
        server = app.Server(served, hosts=_LOCAL if host in _LOCAL else None)
        where = f'[{host}]' if ':' in host else host
        print(
            f'serving {served.passages:,} passages of {directory} on '
            f'http://{where}:{listening.getsockname()[1]}/ (Ctrl-C ends it)',
            flush=True,
        )
        config = uvicorn.Config(
            server.app,
            access_log=False,
            log_level='warning',
            proxy_headers=False,
            server_header=False,
            timeout_graceful_shutdown=5,
        )
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: None)  # To which uvicorn returns at its end.
        uvicorn.Server(config).run(sockets=[listening])
