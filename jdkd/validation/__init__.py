"""Checks a run before its work starts and reports all errors together.

An error that hides another, such as a missing file its contents, is reported first.
"""

import pathlib

from absl import logging

from jdkd.config import Config, LLMSpec, schema
from jdkd.corpus import importing
from jdkd.planning import corpus_size, requests
from jdkd.run import Run
from jdkd.runtime import tracking
from jdkd.systems.roles import encoders, used
from jdkd.validation import checkpoints, fields, resources, roles
from jdkd.validation.errors import catch, raise_all


def validate(config: Config) -> None:
    """Checks a resolved config by itself, without reading files.

    Raises:
        ValueError: naming every field that cannot work and how to fix it.
    """
    raise_all(schema.type_errors(config))
    raise_all(_config_errors(config))


def _config_errors(config: Config) -> list[str]:
    return [*fields.errors(config), *roles.errors(config)]


def before_start(config: Config, workdir: pathlib.Path, *, needs_scores: bool = True) -> None:
    """Checks a config and the devices, files and local checkpoints that it names.

    Reads no weights; `before_work` checks the checkpoints of the hub. The workdir need not exist,
    nor, without `needs_scores`, the files of imported scores.

    Raises:
        ValueError: naming everything that is wrong.
    """
    raise_all(schema.type_errors(config))
    raise_all(
        [
            *_config_errors(config),
            *resources.device_errors(config),
            *resources.llm_errors(config),
            *catch(tracking.names),
            *catch(importing.check_source, config.collection, workdir / 'collection'),
            *(resources.score_file_errors(config, workdir) if needs_scores else ()),
            *checkpoints.errors(encoders(config), store=config.index.store, fetch=False),
        ]
    )


def before_work(run: Run) -> None:
    """Checks a config against the imported collection, and fetches and checks hub checkpoints.

    Logs what language models will be asked for.

    Raises:
        ValueError: naming everything that is wrong.
    """
    errors = [
        *roles.size_errors(run.config),  # Its lengths are those of the collection now.
        *resources.collection_errors(run),
        *checkpoints.errors(encoders(run.config), store=run.config.index.store, fetch=True),
        *resources.endpoint_errors(run),
    ]
    raise_all(errors or resources.disk_errors(run))  # The disk estimate reads the checkpoints.
    if any(isinstance(run.config.systems[name], LLMSpec) for name in used(run.config)):
        for request in requests.list_requests(run.config, corpus_size.of_run(run)):
            logging.info('%s', request)
