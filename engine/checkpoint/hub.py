"""Hub ids: the local cache first, without a request; else a download, or what `remote` reads, from the Hub."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from enum import Enum
from glob import escape
from pathlib import Path

from ..errors import InputError, printable
from ..formats import registry
from .files import choose, read_weight_map, weight_files
from .native import PARAMS
from .ranges import FetchError, client_errors, retry_after, said, status_of

_PART = r"[A-Za-z0-9](?:[\w.-]{0,94}\w)?"
_ID = re.compile(rf"(?!.*(?:--|\.\.)|.*\.git$){_PART}(?:/{_PART})?", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")
SCHEME = "hf://"


class Access(Enum):
    """What a model that is not whole in the local cache may take from the Hub."""

    CACHE = "nothing"
    RANGES = "headers at once, and the tensors that are computed when they are"
    DOWNLOAD = "the whole of it, into the cache"


def parse(model: str) -> tuple[str, str]:
    """`[hf://]org/name[@revision]` -> (id, revision); the revision is "main" where none is given.

    Raises:
        InputError: no file, no folder and no possible Hub id.
    """
    kind = model.removeprefix(SCHEME).partition("/")[0]
    if model.startswith(SCHEME) and kind in ("datasets", "spaces", "buckets"):
        raise InputError(f"hf://{kind}/ holds no models: name a model as org/name or org/name@revision")
    name, at, revision = model.removeprefix(SCHEME).partition("@")
    outside = revision.startswith("/") or ".." in revision
    if not _ID.fullmatch(name) or (at and not revision) or outside or not revision.isprintable():
        raise InputError(
            f"{printable(model)!r} is no file, no folder and no Hub id: name a path, org/name or org/name@revision"
        )
    return name, revision or "main"


def whole(name: str, revision: str) -> tuple[Path | None, str]:
    """The snapshot folder of a cached model that is whole, found without a request; else what the cache lacks of it,
    "" where it has nothing.
    """
    snapshot = cached(name, revision)
    if snapshot is None:
        return None, ""
    try:
        weight_files(snapshot)
    except InputError as error:
        return None, str(error)
    return snapshot, ""


def download(name: str, revision: str, incomplete: str) -> Path:
    """The snapshot folder of a model, whose config.json and top-level weight files are now in the cache.

    huggingface_hub shows progress bars on stderr. `incomplete` says what the cache lacked.

    Raises:
        InputError: not downloadable, with the reason.
    """
    with explained(name, revision, incomplete):
        return _download(name, revision)


def cache_folder() -> Path:
    """Where huggingface_hub keeps models (HF_HUB_CACHE, HF_HOME)."""
    from huggingface_hub import constants  # 6 ms; the client itself costs 0.24 s

    return Path(constants.HF_HUB_CACHE)


def cached_models() -> list[str]:
    """The ids of models with weights in the local cache, sorted."""
    found, suffixes = [], registry.suffixes()
    for folder in sorted(cache_folder().glob("models--*")):
        if any(path.name.endswith(suffixes) for path in folder.glob("snapshots/*/*")):
            found.append(folder.name.removeprefix("models--").replace("--", "/", 1))
    return found


def repo_folder(name: str) -> Path:
    """Where the cache keeps a model: blobs, refs and snapshots."""
    return cache_folder() / f"models--{name.replace('/', '--')}"


def cached(name: str, revision: str) -> Path | None:
    """The cached snapshot, read off the cache's documented layout: refs/<revision> -> snapshots/<commit>."""
    return snapshot_in(repo_folder(name), revision)


def cached_id(folder: Path) -> str:
    """The id of the model whose folder of a Hub cache this is, "" for any other folder."""
    kind, dashes, name = folder.name.partition("--")
    return name.replace("--", "/", 1) if kind == "models" and dashes and (folder / "snapshots").is_dir() else ""


def snapshot_in(folder: Path, revision: str) -> Path | None:
    """`cached` in a model's folder of any Hub cache."""
    commit = revision
    if not _COMMIT.fullmatch(revision):
        try:
            commit = (folder / "refs" / revision).read_text().strip()
        except (OSError, UnicodeDecodeError):
            return None
    snapshot = folder / "snapshots" / commit
    return snapshot if _COMMIT.fullmatch(commit) and snapshot.is_dir() else None


def _download(name: str, revision: str) -> Path:
    from huggingface_hub import HfApi, constants, hf_hub_download, snapshot_download

    # Without a timeout, model_info waits for ever on a server that never answers.
    info = HfApi().model_info(name, revision=revision, timeout=constants.HF_HUB_ETAG_TIMEOUT)
    files = {s.rfilename for s in info.siblings or []}
    weights = set(chosen(name, files))
    for index in [name for name in weights if registry.is_index(name)]:
        weights |= set(read_weight_map(Path(hf_hub_download(name, index, revision=revision))).values())
        if absent := sorted(weights - files):
            raise InputError(f"{name} names shard {printable(absent[0])} in its index but does not hold it")
    wanted = sorted(weights | ({"config.json", PARAMS} & files))
    return Path(snapshot_download(name, revision=revision, allow_patterns=[escape(file) for file in wanted]))


def chosen(name: str, files: Iterable[str], size: Callable[[str], int] = lambda _: 0) -> list[str]:
    """Which of a repo's files are the model's weights, or their index. `size`: see choose.

    Raises:
        InputError: none, or several models.
    """
    files = sorted(files)
    weights = choose({f for f in files if "/" not in f}, name, size)
    if not weights:
        inside = [f.split("/") for f in files if f.count("/") == 1]
        below = sorted({f for f, held in inside if any(kind.candidates([held]) for kind in registry.FORMATS)})
        shown = ", ".join(printable(folder, 80) for folder in below[:5]) + ", ..." * (len(below) > 5)
        cure = (
            f" but in folders of it ({shown}): download one and name it" if below else ": choose a repo that has them"
        )
        others = registry.unread(files)
        held = f" (it holds {', '.join(others)})" if others else ""
        raise InputError(f"{name} has no weights on the Hub that can be read{held}{cure}")
    return weights


@contextmanager
def explained(name: str, revision: str, incomplete: str = "") -> Iterator[None]:
    """huggingface_hub's errors as one line each; `incomplete` says what the cache lacks."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # noqa: BLE001 - httpx or requests, by the version of huggingface_hub
        lacking = incomplete or f"{name} is neither a file or folder here nor in the local cache"
        raise InputError(explain(error, name, revision, f"{lacking}; ")) from None


def explain(error: Exception, name: str, revision: str, lacking: str = "") -> str:
    """Why the Hub did not answer as it should: one sentence, without URL or token.

    Where it cannot be reached, `lacking` stands before that.
    """
    from huggingface_hub import constants, errors

    page = f"https://huggingface.co/{name}"
    match error:
        case FetchError():
            return str(error)
        case errors.GatedRepoError():
            return f"{name} is gated: ask for access at {page}, then log in with  hf auth login  or set HF_TOKEN"
        case errors.RevisionNotFoundError():
            return f"{name} has no revision {printable(revision)}: see {page}/commits/main"
        case errors.RepositoryNotFoundError():
            return f"no model {name} on the Hub, or it is private: check the name; if it is private, run  hf auth login"
        case errors.OfflineModeIsEnabled() | errors.LocalEntryNotFoundError():
            if isinstance(error.__cause__, errors.HfHubHTTPError):
                return _refused(name, error.__cause__)
            reason = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "the Hub cannot be reached"
            return f"{lacking}{reason}"
        case errors.HfHubHTTPError():
            return _refused(name, error)
        case OSError() if error.errno and not isinstance(error, (ConnectionError, *client_errors()[1:])):
            return f"cannot write {printable(str(error.filename or cache_folder()))}: {error.strerror}"
    return f"{lacking}cannot reach the Hub ({said(error)})"


def _refused(name: str, error: Exception) -> str:
    status = status_of(error)
    if status in (401, 403):
        return f"the Hub refused access to {name} ({status}): check HF_TOKEN, or run  hf auth login"
    if status == 429:
        seconds = retry_after(error)
        return f"the Hub answered 429 (too many requests): try again {f'in {seconds:.0f} s' if seconds else 'later'}"
    return f"the Hub answered {status or 'no'} for {name}: try again later"
