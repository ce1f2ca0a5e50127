"""Uploads to the Hugging Face hub."""

import pathlib
import re

from absl import logging


def push(directory: pathlib.Path, repo: str) -> str:
    """Uploads an exported directory to the Hugging Face hub, into a repository made if need be.

    Args:
        directory: What is uploaded, all of it.
        repo: `organisation/name`; the token is the one of `hf auth login` or `$HF_TOKEN`.

    Returns:
        The address of the upload's commit.

    Raises:
        ValueError: if `repo` is no name of a repository.
        ConnectionError: if the hub cannot be reached or refuses.
    """
    import huggingface_hub  # Here, because it takes a third of a second.

    check_repo(repo)
    api = huggingface_hub.HfApi()
    try:
        api.create_repo(repo, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo, folder_path=directory, commit_message='Exported by jdkd'
        )
    except Exception as error:  # Each transport has errors of its own.
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip('.')
        raise ConnectionError(
            f"{directory} is complete, but could not be pushed to '{repo}' ({reason}); check the "
            'network, and that `hf auth login` or HF_TOKEN gives a token that may write there.'
        ) from error
    logging.info('pushed %s to %s', directory, commit.commit_url)
    return commit.commit_url


def check_repo(repo: str) -> None:
    """Before anything is exported for it.

    Raises:
        ValueError: if `repo` is no name of a repository.
    """
    if not re.fullmatch(r'[\w.-]+/[\w.-]+', repo):
        raise ValueError(f"--push_to='{repo}' is no repository; give organisation/name.")
