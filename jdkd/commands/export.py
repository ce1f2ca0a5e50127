"""`jdkd export`: encoders of a run for sentence-transformers, vectors of an index for others."""

import pathlib

from jdkd.algorithm import final, student
from jdkd.commands import onnx
from jdkd.commands.setup import hold_workdir, load_config, open_trained_run
from jdkd.indexing import exporting
from jdkd.indexing.index import open_index
from jdkd.models import hub
from jdkd.report import finished, model_card
from jdkd.run import STUDENT
from jdkd.runtime import distributed
from jdkd.systems import fine_tuning


def export(
    workdir: pathlib.Path,
    name: str,
    output: str | None = None,
    push_to: str | None = None,
    with_onnx: bool = False,
) -> None:
    """Exports an encoder of a run as a sentence-transformers directory.

    Args:
        name: 'student' for the final one, or a system of the config.
        output: The directory; see `model_card.write` for the default.
        push_to: Repository on the Hugging Face hub to upload to; None for none.
        with_onnx: Whether to write ONNX files, too; see `onnx.export`.
    """
    load_config(workdir)  # Nothing is made where there is no run.
    with hold_workdir(workdir):
        run = open_trained_run(workdir)
        if push_to:
            hub.check_repo(push_to)
        report = finished.read_report(run.workdir)
        if name == STUDENT:
            encoder = final.load(student.load(run)).encoder
        else:
            encoder = fine_tuning.load_trained(run, name)
        if with_onnx:
            onnx.check(encoder)
        directory = model_card.write(run, name, encoder, report, output)
        if distributed.is_primary():
            if with_onnx:
                onnx.export(run, encoder, directory)
            print(f'exported to {directory}')
            if push_to:
                print(f'pushed to {hub.push(directory, push_to)}')


def export_vectors(directory: pathlib.Path, kind: str, output: str | None = None) -> None:
    """Writes the embeddings of an index to `output`, or to `exported` in it; see `exporting`."""
    target = pathlib.Path(output) if output else directory / 'exported'
    index = open_index(directory)
    if output:
        exporting.check_output(index, kind, target)
    for path in exporting.export(index, kind, target):
        print(f'wrote {path}')
