"""Fetching a model from the Hugging Face hub, in a process of its own so that it can be stopped.

    python -m workers.hub ORG/NAME[@REVISION] MODEL.json

The revision is first resolved to a commit, and that commit is fetched: what is measured can be named for ever. Only
data is fetched (configuration, safetensors, tokenizer), no pickles and no code. `HF_ENDPOINT` is honored.
MODEL.json gets a `ModelFiles`; standard output ends with a line `finished` or `failed`.
"""

import errno
import sys
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

from service.contracts.progress import Failed, Finished
from service.contracts.request import ModelFiles

FILES = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja")
_FOR_EVER = (GatedRepoError, HFValidationError, RepositoryNotFoundError, RevisionNotFoundError)


def commit_of(name: str) -> str:
    """Return the commit that `org/name` or `org/name@revision` means, without a download.

    Passes on what huggingface_hub raises.
    """
    repository, _, revision = name.partition("@")
    commit = HfApi().model_info(repository, revision=revision or None).sha
    if commit is None:
        raise OSError(f"the hub names no commit for {name!r}")
    return commit


def fetch(name: str) -> ModelFiles:
    """Return where the files of `org/name` or `org/name@revision` lie on this machine, fetched if need be.

    Passes on what huggingface_hub raises.
    """
    commit = commit_of(name)
    path = snapshot_download(
        name.partition("@")[0], revision=commit, allow_patterns=list(FILES), ignore_patterns=["*/*"]
    )
    return ModelFiles(path=Path(path), source=name, revision=commit)


def main(arguments: Sequence[str]) -> int:
    """Run the program; returns the exit status: 0 done, 2 bad input, 1 anything else."""
    name, target = arguments
    try:
        Path(target).write_text(fetch(name).model_dump_json())
    except Exception as error:  # whatever it is, the one who waits must hear of it
        failed = failed_to_fetch(name, error)
        print(failed.model_dump_json(), flush=True)
        return 2 if failed.bad_input else 1
    print(Finished().model_dump_json(), flush=True)
    return 0


def failed_to_fetch(name: str, error: Exception) -> Failed:
    """Return why a model could not be had from the hub; bad input where asking again cannot help."""
    reason = str(error).strip().partition("\n")[0] or type(error).__name__
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return Failed(code="disk-full", message=f"model {name!r} could not be fetched: {reason}", bad_input=False)
    message = f"model: {name!r} could not be fetched from the hub: {reason}"
    return Failed(code="bad-model", message=message, bad_input=isinstance(error, _FOR_EVER))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
