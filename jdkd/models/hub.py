"""Uploads to the Hugging Face hub."""

import pathlib
import re

from absl import logging


def push(directory: pathlib.Path, repo: str) -> str:
    """Uploads a directory to the Hugging Face hub and creates the repository if it is missing.

    Args:
        directory: The directory, uploaded as a whole.
        repo: `organisation/name`; the token comes from `hf auth login` or `$HF_TOKEN`.

    Returns:
        URL of the commit.

    Raises:
        ValueError: if `repo` is not the name of a repository.
        ConnectionError: if the hub cannot be reached or refuses.
    """
    import huggingface_hub  # Takes a third of a second to import.

    check_repo(repo)
    api = huggingface_hub.HfApi()
    try:
        api.create_repo(repo, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo, folder_path=directory, commit_message='Exported by jdkd'
        )
    except Exception as error:  # Each transport raises its own errors.
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip('.')
        raise ConnectionError(
            f"{directory} is complete, but could not be pushed to '{repo}' ({reason}); check the "
            'network, and that `hf auth login` or HF_TOKEN gives a token that may write there.'
        ) from error
    logging.info('pushed %s to %s', directory, commit.commit_url)
    return commit.commit_url


def check_repo(repo: str) -> None:
    """Checks the name of a repository on the hub.

    Raises:
        ValueError: if it is not of the form `organisation/name`.
    """
    if not re.fullmatch(r'[\w.-]+/[\w.-]+', repo):
        raise ValueError(f"--push_to='{repo}' is no repository; give organisation/name.")
