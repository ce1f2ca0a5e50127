"""Uploads to the Hugging Face hub."""

import pathlib
import re

from absl import logging

from jdkd.runtime.messages import escape, shown


def push(directory: pathlib.Path, repo: str) -> str:
    """Uploads a directory, creates `repo` if it is missing, and returns the URL of the commit.

    The token comes from `hf auth login` or `$HF_TOKEN`.

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
        reason = escape((str(error).strip() or type(error).__name__).splitlines()[0]).rstrip('.')
        raise ConnectionError(
            f"{directory} is complete, but could not be pushed to '{repo}' ({reason}); check the "
            'network, and that `hf auth login` or HF_TOKEN gives a token that may write there.'
        ) from error
    logging.info('pushed %s to %s', directory, commit.commit_url)
    return commit.commit_url


def check_repo(repo: str) -> None:
    """Raises a ValueError if the name of a repository is not of the form `organisation/name`."""
    if not re.fullmatch(r'[\w.-]+/[\w.-]+', repo):
        raise ValueError(f'--push_to={shown(repo)} is no repository; give organisation/name.')
