"""`jdkd export`: an encoder of a finished run for sentence-transformers, and to the hub."""

from jdkd.algorithm import student
from jdkd.models import hub
from jdkd.report import finished, model_card
from jdkd.run import Run
from jdkd.runtime import distributed
from jdkd.systems import fine_tuning


def export(run: Run, name: str, output: str | None = None, push_to: str | None = None) -> None:
    """Writes an encoder of the run for sentence-transformers, and pushes it to the hub.

    Args:
        run: A finished run.
        name: 'student' for the final one, or a system of the config.
        output: The directory; see `publish.write` for the default.
        push_to: Repository on the Hugging Face hub; None to push nowhere.
    """
    if push_to:
        hub.check_repo(push_to)
    found = finished.read_report(run.workdir)
    encoder = (
        student.load(run).final().encoder
        if name == student.NAME
        else fine_tuning.load_trained(run, name)
    )
    directory = model_card.write(run, name, encoder, found, output)
    if not distributed.is_primary():
        return
    print(f'exported to {directory}')
    if push_to:
        print(f'pushed to {hub.push(directory, push_to)}')
