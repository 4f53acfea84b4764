"""Exchange exported encoders with the Hugging Face hub or a folder: safetensors, JSON and a card alone."""

from __future__ import annotations

import re
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ldae.core.errors import CheckpointError, ConfigError, StorageError
from ldae.core.files import publish_folder
from ldae.export.timm import CARD, CONFIG, WEIGHTS

HF, FILE = "hf://", "file://"
ABOUT = "export.json"
SHARED = (WEIGHTS, CONFIG, ABOUT, CARD)  # files that are uploaded and downloaded; none of them can run code
SAFE = "formats that may run code are not uploaded"
REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")
Remote = str  # USER/NAME, hf://USER/NAME[@REVISION] or file:///FOLDER


def is_remote(source: object) -> bool:
    """Return whether a source of an encoder is one that `download` reads."""
    return isinstance(source, str) and source.startswith((HF, FILE))


def check_remote(key: str, remote: Remote) -> None:
    """Check that a remote can be written to, before any work.

    Raises:
        ConfigError: it has no such name, huggingface_hub is not installed, or there is no token.
    """
    if remote.startswith(FILE):
        if not Path(remote.removeprefix(FILE)).is_absolute():
            raise ConfigError(key, remote, "must name an absolute folder, e.g. file:///data/encoders/NAME")
        return
    if not REPOSITORY.fullmatch(remote.removeprefix(HF)) or "@" in remote:
        raise ConfigError(key, remote, "must be USER/NAME of the Hugging Face hub, or file:///FOLDER")
    if not find_spec("huggingface_hub"):
        raise ConfigError(key, remote, "needs huggingface_hub; pip install 'ldae[hub]'")
    from huggingface_hub import get_token

    if not get_token():
        raise ConfigError(key, remote, "needs a token of the Hugging Face hub that may write; run `hf auth login`")


def check_export(folder: Path) -> None:
    """Check that a folder holds an encoder that `ldae export` wrote.

    Raises:
        CheckpointError: it does not.
    """
    missing = [name for name in (WEIGHTS, CONFIG) if not (folder / name).is_file()]
    if missing:
        raise CheckpointError(f"{folder} has no {missing[0]}; give a folder that ldae export wrote with format=[timm]")


def upload(folder: Path, remote: Remote, private: bool = False) -> str:
    """Upload an exported encoder, and return its address.

    Args:
        folder: folder of the export.
        remote: repository of the Hugging Face hub, which is made if there is none, or file:///FOLDER.
        private: make a new repository private.

    Raises:
        CheckpointError: the folder holds no export.
        ConfigError: the remote cannot be written to, as of `check_remote`.
        StorageError: the hub cannot be reached, or refuses.
    """
    check_export(folder)
    check_remote("push", remote)
    files = [name for name in SHARED if (folder / name).is_file()]
    if remote.startswith(FILE):
        target = Path(remote.removeprefix(FILE))
        if target.exists() and any(path.name not in SHARED for path in target.iterdir()):
            raise ConfigError("push", remote, "holds other files than an encoder; give another folder")
        with publish_folder(target) as new:
            for name in files:
                shutil.copyfile(folder / name, new / name)
        return remote
    from huggingface_hub import HfApi

    name, api = remote.removeprefix(HF), HfApi(library_name="ldae")
    try:
        api.create_repo(name, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=name, folder_path=folder, allow_patterns=files, commit_message="Upload an encoder by ldae"
        )
    except Exception as error:  # the package raises many types, of its own and of its HTTP client
        raise StorageError(f"push={remote} failed ({_reason(error)}); run the same command again") from None
    return f"{HF}{name}"


def download(source: Remote) -> Path:
    """Return the local folder of an encoder of the hub, downloaded or in the user's cache, or of a folder.

    Without a connection the copy in the cache is used.

    Args:
        source: hf://USER/NAME, with @REVISION for a branch, tag or commit, or file:///FOLDER.

    Raises:
        CheckpointError: there is no such encoder, or it cannot be reached and is not in the cache.
    """
    if source.startswith(FILE):
        folder = Path(source.removeprefix(FILE))
        check_export(folder)
        return folder
    name, _, revision = source.removeprefix(HF).partition("@")
    if not REPOSITORY.fullmatch(name):
        raise CheckpointError(f"{source} is no address of an encoder; give hf://USER/NAME")
    if not find_spec("huggingface_hub"):
        raise CheckpointError(f"{source} needs huggingface_hub; pip install 'ldae[hub]'")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        folder = Path(snapshot_download(name, revision=revision or None, allow_patterns=list(SHARED)))
    except RepositoryNotFoundError:
        message = "does not exist on the hub, or is private and your token may not read it; run `hf auth login`"
        raise CheckpointError(f"{source} {message}") from None
    except RevisionNotFoundError:
        raise CheckpointError(f"{source} has no revision {revision}") from None
    except LocalEntryNotFoundError:
        message = "cannot be reached, and the cache has no copy of it; load it once with a connection"
        raise CheckpointError(f"{source} {message}") from None
    except Exception as error:  # the package raises many types, of its own and of its HTTP client
        raise CheckpointError(f"{source} cannot be downloaded ({_reason(error)})") from None
    try:
        check_export(folder)
    except CheckpointError:
        raise CheckpointError(
            f"{source} holds no encoder that ldae export wrote: {WEIGHTS} or {CONFIG} is missing"
        ) from None
    return folder


def _reason(error: Any) -> str:
    """Return the first line of an error."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
