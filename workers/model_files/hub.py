"""Fetches a model from the Hugging Face hub, in a process of its own so that it can be stopped.

    python -m workers.model_files.hub [--bytes=N [--small=N]] ORG/NAME[@REVISION] MODEL.json

The revision is first resolved to a commit, and that commit is fetched: what is measured keeps its name. Only
data is fetched (configuration, safetensors, tokenizer), no pickles and no code. The sizes in the hub's list of files
are added up before the first byte is fetched, and compared with N of --bytes, those of the weights with N of --small.
`HF_ENDPOINT` is honored.
MODEL.json gets a `ModelFiles`; standard output ends with a line `finished` or `failed`.
"""

import errno
import resource
import sys
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.hf_api import RepoFile

from service.contracts.progress import Failed, Finished
from service.contracts.request import ModelFiles
from workers.failures import LARGE_MODEL

FILES = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja")
_OWN_BYTES = 1 << 20
"""A file that this program or a library writes for itself is smaller."""
_PERMANENT = (GatedRepoError, HFValidationError, RepositoryNotFoundError, RevisionNotFoundError)


class TooLarge(Exception):
    """The model's files have more bytes than are allowed."""


class NotSmall(Exception):
    """The model's weights have more bytes than this worker takes."""


def commit_of(name: str) -> str:
    """Return the commit that `org/name` or `org/name@revision` means, without a download.

    Passes on what huggingface_hub raises.
    """
    repository, _, revision = name.partition("@")
    commit = HfApi().model_info(repository, revision=revision or None).sha
    if commit is None:
        raise OSError(f"the hub names no commit for {name!r}")
    return commit


def fetch(name: str, most: int | None = None, small: int | None = None) -> ModelFiles:
    """Return where the files of `org/name` or `org/name@revision` lie on this machine, fetched if need be.

    Raises TooLarge if they have more than `most` bytes, NotSmall if the weights have more than `small`, and passes
    on what huggingface_hub raises.
    """
    commit = commit_of(name)
    repository = name.partition("@")[0]
    if most is not None:
        _check_size(repository, commit, most, small)
    path = snapshot_download(repository, revision=commit, allow_patterns=list(FILES), ignore_patterns=["*/*"])
    return ModelFiles(path=Path(path), source=name, revision=commit)


def _check_size(repository: str, commit: str, most: int, small: int | None) -> None:
    listed = HfApi().list_repo_tree(repository, revision=commit)
    wanted = (file for file in listed if isinstance(file, RepoFile) and "/" not in file.path)
    sizes = {file.path: file.size for file in wanted if any(fnmatch(file.path, pattern) for pattern in FILES)}
    total, weights = sum(sizes.values()), sum(size for path, size in sizes.items() if path.endswith(".safetensors"))
    if total > most:
        raise TooLarge(
            f"its {len(sizes)} files have {total} bytes; allowed: {most} (HEADROOM_MODEL_BYTES of the worker)"
        )
    if small is not None and weights > small:
        raise NotSmall(f"{weights} bytes of weights; this worker takes {small} at most")
    _limit_files(max(most, _OWN_BYTES))


def _limit_files(longest: int) -> None:
    """Have the system end a file at a size, in bytes, should the hub send more than its list says."""
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (longest if hard == resource.RLIM_INFINITY else min(longest, hard), hard))


def main(arguments: Sequence[str]) -> int:
    """Run the program; returns the exit status: 0 done, 2 bad input, 1 anything else."""
    *options, name, target = arguments
    limits = {option.partition("=")[0]: int(option.partition("=")[2]) for option in options}
    try:
        fetched = fetch(name, limits.get("--bytes"), limits.get("--small"))
        Path(target).write_text(fetched.model_dump_json())
    except BaseException as error:  # the process that waits needs the reason, whatever it is
        failed = failed_to_fetch(name, error)
        print(failed.model_dump_json(), flush=True)
        return 2 if failed.bad_input else 1
    print(Finished().model_dump_json(), flush=True)
    return 0


def failed_to_fetch(name: str, error: BaseException) -> Failed:
    """Return the failure of fetching a model from the hub; it is bad input where another try cannot succeed.

    | code              | meaning                                                        |
    |-------------------|----------------------------------------------------------------|
    | `model-too-large` | its files have more bytes than HEADROOM_MODEL_BYTES            |
    | `large-model`     | its weights have more bytes than this worker takes             |
    | `bad-model`       | the hub does not have it, or not for this worker's token       |
    | `disk-full`       | this machine's disk has no room for it                         |
    | `hub-unreachable` | the hub does not answer, or fails; another try may succeed     |
    """
    reason = str(error).strip().partition("\n")[0] or type(error).__name__
    if isinstance(error, TooLarge):
        return Failed(code="model-too-large", message=f"model: {name!r} is too large: {reason}", bad_input=True)
    if isinstance(error, NotSmall):
        return Failed(code=LARGE_MODEL, message=reason, bad_input=False)
    number = error.errno if isinstance(error, OSError) else None
    if number in (errno.ENOSPC, errno.EDQUOT):
        return Failed(code="disk-full", message=f"model {name!r} could not be fetched: {reason}", bad_input=False)
    if number == errno.EFBIG:
        reason = f"{reason}: a file is larger than the hub's list of files says"
    message = f"model: {name!r} could not be fetched from the hub: {reason}"
    if isinstance(error, _PERMANENT):
        return Failed(code="bad-model", message=message, bad_input=True)
    return Failed(code="hub-unreachable", message=message, bad_input=False)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
