"""Hub ids: the local cache first, without a request; else a download through huggingface_hub."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from glob import escape
from pathlib import Path
from typing import Any

from .errors import InputError, printable
from .files import INDEX, OTHER_WEIGHTS, SUFFIXES, TORCH_INDEX, choose, read_weight_map, weight_files

_PART = r"[A-Za-z0-9](?:[\w.-]{0,94}\w)?"
_ID = re.compile(rf"(?!.*(?:--|\.\.)|.*\.git$){_PART}(?:/{_PART})?", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")


def parse(model: str) -> tuple[str, str]:
    """`org/name[@revision]` -> (id, revision); the revision is "main" where none is given.

    Raises:
        InputError: no file, no folder and no possible Hub id.
    """
    name, at, revision = model.partition("@")
    outside = revision.startswith("/") or ".." in revision
    if not _ID.fullmatch(name) or (at and not revision) or outside or not revision.isprintable():
        raise InputError(
            f"{printable(model)!r} is no file, no folder and no Hub id: name a path, org/name or org/name@revision"
        )
    return name, revision or "main"


def resolve(model: str, *, download: bool = True) -> tuple[Path, str]:
    """The snapshot folder of a Hub id and its 40-hex commit.

    A cached model that is whole is used as it is, with no request. Else config.json and the
    top-level weight files are downloaded, with huggingface_hub's progress bars on stderr.

    Raises:
        InputError: not cached and not downloadable, with the reason.
    """
    name, revision = parse(model)
    snapshot = _cached(name, revision)
    incomplete = ""
    if snapshot is not None:
        try:
            weight_files(snapshot)
        except InputError as error:
            incomplete = str(error)
        else:
            return snapshot, snapshot.name
    if not download:
        raise InputError(incomplete or f"{printable(model)} is not in the local Hub cache")
    with _explained(name, revision, incomplete):
        snapshot = _download(name, revision)
    return snapshot, snapshot.name


def cache_folder() -> Path:
    """Where huggingface_hub keeps models (HF_HUB_CACHE, HF_HOME)."""
    from huggingface_hub import constants  # 6 ms; the client itself costs 0.24 s

    return Path(constants.HF_HUB_CACHE)


def cached_models() -> list[str]:
    """The ids of models with weights in the local cache, sorted."""
    found = []
    for folder in sorted(cache_folder().glob("models--*")):
        if any(path.suffix in SUFFIXES for path in folder.glob("snapshots/*/*")):
            found.append(folder.name.removeprefix("models--").replace("--", "/", 1))
    return found


def _cached(name: str, revision: str) -> Path | None:
    """The cached snapshot, read off the cache's documented layout: refs/<revision> -> snapshots/<commit>."""
    folder = cache_folder() / f"models--{name.replace('/', '--')}"
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
    weights = set(_weights(name, files))
    for index in weights & {INDEX, TORCH_INDEX}:
        weights |= set(read_weight_map(Path(hf_hub_download(name, index, revision=revision))).values())
        if absent := sorted(weights - files):
            raise InputError(f"{name} names shard {printable(absent[0])} in its index but does not hold it")
    wanted = sorted(weights | ({"config.json"} & files))
    return Path(snapshot_download(name, revision=revision, allow_patterns=[escape(file) for file in wanted]))


def _weights(name: str, files: Iterable[str]) -> list[str]:
    weights = choose({f for f in files if "/" not in f}, name)
    if not weights:
        kinds = sorted({Path(f).suffix for f in files} & OTHER_WEIGHTS)
        held = f" (it holds {', '.join(kinds)})" if kinds else ""
        raise InputError(f"{name} has no weights on the Hub that can be read{held}: choose a repo that has them")
    return weights


@contextmanager
def _explained(name: str, revision: str, incomplete: str) -> Iterator[None]:
    """huggingface_hub's errors as one line each."""
    from huggingface_hub import constants, errors

    cached = incomplete or f"{name} is neither a file or folder here nor in the local cache"
    page = f"https://huggingface.co/{name}"
    try:
        yield
    except InputError:
        raise
    except errors.GatedRepoError:
        raise InputError(
            f"{name} is gated: ask for access at {page}, then log in with  hf auth login  or set HF_TOKEN"
        ) from None
    except errors.RevisionNotFoundError:
        raise InputError(f"{name} has no revision {printable(revision)}: see {page}/commits/main") from None
    except errors.RepositoryNotFoundError:
        raise InputError(
            f"no model {name} on the Hub, or it is private: check the name; if it is private, run  hf auth login"
        ) from None
    except (errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError) as error:
        if isinstance(error.__cause__, errors.HfHubHTTPError):
            raise InputError(_refused(name, error.__cause__.response)) from None
        reason = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "the Hub cannot be reached"
        raise InputError(f"{cached}; {reason}") from None
    except errors.HfHubHTTPError as error:
        raise InputError(_refused(name, error.response)) from None
    except Exception as error:  # noqa: BLE001 - httpx or requests, by the version of huggingface_hub
        if isinstance(error, OSError) and error.errno and not isinstance(error, ConnectionError):
            where = printable(str(error.filename or cache_folder()))
            raise InputError(f"cannot write {where}: {error.strerror}") from None
        what = printable(str(error).splitlines()[0] if str(error) else type(error).__name__, 120)
        raise InputError(f"{cached}; cannot reach the Hub ({what})") from None


def _refused(name: str, response: Any) -> str:
    status = response.status_code if response is not None else "no"
    if status in (401, 403):
        return f"the Hub refused access to {name} ({status}): check HF_TOKEN, or run  hf auth login"
    return f"the Hub answered {status} for {name}: try again later"
