"""Models on the Hub: looked up in the local cache without a request, else downloaded, or read in part by `remote`."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from enum import Enum
from functools import cache, partial
from glob import escape
from pathlib import Path
from typing import NamedTuple

from ..errors import InputError, printable
from ..formats import registry
from ..formats.format import TELLING
from ..formats.guarded import nearest, no_such
from ..quantised.settings import OWN_FILES
from .model_files import choose, folders_with_weights, listed_folders, of_models, read_weight_map, weight_files
from .native import PARAMS
from .ranges import RemoteFile
from .retries import UNWATCHED, FetchError, Link, Watch, client_errors, retry_after, short_message, status_of
from .tensor_parallel import refuse_ranks

_PART = r"[A-Za-z0-9](?:[\w.-]{0,94}\w)?"
_ID = re.compile(rf"(?!.*(?:--|\.\.)|.*\.git$){_PART}(?:/{_PART})?", re.ASCII)
_FOLDER = re.compile(r"[^/\\@]+(?:/[^/\\@]+)*")
_COMMIT = re.compile(r"[0-9a-f]{40}")
SCHEME = "hf://"
_IN_REPO = re.compile(
    rf"(?P<repo>{_PART}/{_PART})(?:@(?P<revision>refs/[^/]+/[^/]+|[^/]+))?/(?P<file>[^/]+(?:/[^/]+)*)", re.ASCII
)
CONFIG, ADAPTER_CONFIG = "config.json", "adapter_config.json"
_MAX_HEADS = 32


class Access(Enum):
    """How much may be fetched from the Hub for a model that is not complete in the local cache."""

    CACHE = "nothing"
    RANGES = "headers at once, and the tensors that are computed when they are"
    DOWNLOAD = "the whole of it, into the cache"


class HubPlace(NamedTuple):
    """A model on the Hub: a repo at a revision, and a folder in it, "" for the repo itself."""

    repo: str
    revision: str = "main"
    folder: str = ""

    @property
    def name(self) -> str:
        """The name without the revision, under which its spectra are stored."""
        return f"{self.repo}/{self.folder}" if self.folder else self.repo

    def inside(self, file: str) -> str:
        """The path in the repo of a file of the folder."""
        return f"{self.folder}/{file}" if self.folder else file

    def held(self, files: Iterable[str]) -> list[str]:
        """The paths of those files of a repo that are in the folder or below it, relative to the folder, sorted."""
        prefix = self.inside("")
        return sorted(file.removeprefix(prefix) for file in files if file.startswith(prefix))


def parse(model: str) -> HubPlace:
    """Parse `[hf://]org/name[/folder][@revision]`; the revision is "main" if none is given.

    Raises:
        InputError: no file, no folder and no possible Hub id.
    """
    kind = model.removeprefix(SCHEME).partition("/")[0]
    if model.startswith(SCHEME) and kind in ("datasets", "spaces", "buckets"):
        raise InputError(f"hf://{kind}/ holds no models: name a model as org/name or org/name@revision")
    path, at, revision = model.removeprefix(SCHEME).partition("@")
    org, _, rest = path.partition("/")
    base, slash, folder = rest.partition("/")
    name = f"{org}/{base}" if rest else path
    outside = revision.startswith("/") or ".." in revision
    if (
        not _ID.fullmatch(name)
        or (slash and not _is_folder(folder.removesuffix("/")))
        or (at and not revision)
        or outside
        or not revision.isprintable()
    ):
        near = nearest(model, ("demo",))
        cure = f"did you mean {printable(near)}?" if near else "name a path, org/name or org/name@revision"
        raise InputError(f"{printable(model)!r} is not a file, a folder or a Hub id: {cure}")
    return HubPlace(name, revision or "main", folder.removesuffix("/"))


def file_of(text: str) -> Path:
    """A file that is no model, named `[hf://]org/name[@revision]/file`, from the local cache or else downloaded into
    it.

    Raises:
        InputError: there is no such file, or it cannot be fetched, with the reason.
    """
    found = _IN_REPO.fullmatch(text.removeprefix(SCHEME))
    if found is None or not text.isprintable() or {".", ".."} & set(text.split("/")):
        raise no_such("file", text, "name one that is here, or one on the Hub as org/name/file")
    file, place = found["file"], HubPlace(found["repo"], found["revision"] or "main")
    snapshot = cached(place.repo, place.revision)
    if snapshot is not None and (snapshot / file).is_file():
        return snapshot / file
    with explained(place, f"no such file: {printable(text)}, and it is not in the local Hub cache"):
        from huggingface_hub import errors, hf_hub_download

        try:
            return Path(hf_hub_download(place.repo, file, revision=place.revision))
        except errors.LocalEntryNotFoundError:  # not reached
            raise
        except errors.EntryNotFoundError:
            where = f"https://huggingface.co/{place.repo}/tree/{printable(place.revision)}"
            raise InputError(f"{place.repo} has no file {printable(file)}: see {where}") from None


def whole(place: HubPlace) -> tuple[Path | None, str]:
    """The snapshot folder of a model that is complete in the cache, found without a request; else None and what the
    cache lacks, "" if it has nothing of the model.
    """
    snapshot = cached(place.repo, place.revision)
    if snapshot is None:
        return None, ""
    try:
        if place.folder and not (snapshot / place.folder).is_dir():
            files = [str(path.relative_to(snapshot)) for path in snapshot.rglob("*")]
            raise InputError(_no_folder(place, files, "in the local Hub cache"))
        weight_files(snapshot / place.folder)
    except InputError as error:
        return None, str(error)
    return snapshot, ""


def download(place: HubPlace, incomplete: str) -> Path:
    """Download a model's weight files and config.json into the cache, and return the snapshot folder.

    huggingface_hub shows progress bars on stderr. `incomplete` says what the cache lacked.

    Raises:
        InputError: it cannot be downloaded, with the reason.
    """
    with explained(place, incomplete):
        return _download(place)


def cache_folder() -> Path:
    """The folder in which huggingface_hub keeps models (HF_HUB_CACHE, HF_HOME)."""
    from huggingface_hub import constants  # 6 ms; the client itself costs 0.24 s

    return Path(constants.HF_HUB_CACHE)


def cached_models() -> list[str]:
    """The ids of models with weights in the local cache, sorted."""
    found, suffixes = [], registry.suffixes()
    for folder in sorted(cache_folder().glob("models--*")):
        if any(path.name.lower().endswith(suffixes) for path in folder.glob("snapshots/*/*")):
            found.append(folder.name.removeprefix("models--").replace("--", "/", 1))
    return found


def repo_folder(name: str) -> Path:
    """The folder of a model in the cache: blobs, refs and snapshots."""
    return cache_folder() / f"models--{name.replace('/', '--')}"


def cached(name: str, revision: str) -> Path | None:
    """The cached snapshot, None if there is none; by the cache's documented layout, refs/<revision> ->
    snapshots/<commit>."""
    return snapshot_in(repo_folder(name), revision)


def cached_id(folder: Path) -> str:
    """The Hub id of the model that a folder of a Hub cache belongs to, "" for any other folder."""
    kind, dashes, name = folder.name.partition("--")
    return name.replace("--", "/", 1) if kind == "models" and dashes and (folder / "snapshots").is_dir() else ""


def snapshot_in(folder: Path, revision: str) -> Path | None:
    """The snapshot in a model's folder of any Hub cache, None if there is none."""
    commit = revision
    if not _COMMIT.fullmatch(revision):
        try:
            commit = (folder / "refs" / revision).read_text().strip()
        except (OSError, UnicodeDecodeError):
            return None
    snapshot = folder / "snapshots" / commit
    return snapshot if _COMMIT.fullmatch(commit) and snapshot.is_dir() else None


def _is_folder(folder: str) -> bool:
    """True if this may be a folder of a repo; a name with a suffix of weights is a file's."""
    dots = {".", ".."} & set(folder.split("/"))
    is_file = folder.lower().endswith(registry.suffixes())
    return _FOLDER.fullmatch(folder) is not None and folder.isprintable() and not dots and not is_file


def _download(place: HubPlace) -> Path:
    from huggingface_hub import HfApi, constants, hf_hub_download, snapshot_download

    # Without a timeout, model_info waits for ever on a server that never answers.
    info = HfApi().model_info(place.repo, revision=place.revision, timeout=constants.HF_HUB_ETAG_TIMEOUT)
    files = {s.rfilename for s in info.siblings or []}
    link = Link(partial(explain, place=place), request_headers())
    weights = set(chosen(place, files, partial(heads, place, link, UNWATCHED)))
    for index in [name for name in weights if registry.is_index(name)]:
        named = read_weight_map(Path(hf_hub_download(place.repo, index, revision=place.revision)))
        weights |= {place.inside(shard) for shard in named.values()}
        if absent := sorted(weights - files):
            raise InputError(f"{place.name} names shard {printable(absent[0])} in its index but does not hold it")
    settings = {CONFIG, ADAPTER_CONFIG, PARAMS, *OWN_FILES}
    wanted = sorted(weights | (settings | {place.inside(name) for name in settings}) & files)
    allowed = [escape(file) for file in wanted]
    return Path(snapshot_download(place.repo, revision=place.revision, allow_patterns=allowed))


def request_headers() -> dict[str, str]:
    """The headers of a request to the Hub, with the user's token if there is one."""
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined] # documented there

    headers: dict[str, str] = build_hf_headers()
    return headers


def heads(place: HubPlace, link: Link, watch: Watch, files: Collection[str]) -> dict[str, bytes]:
    """The first TELLING bytes of files of a repo; {} if there are more files than can be requested in little time."""
    from huggingface_hub import hf_hub_url

    def begin(file: str) -> bytes:
        url = hf_hub_url(place.repo, file, revision=place.revision)
        return RemoteFile(link, url, printable(file)).begin(TELLING, watch)[0]

    if len(files) > _MAX_HEADS:
        return {}
    with ThreadPoolExecutor(_MAX_HEADS) as pool:
        return dict(zip(files, pool.map(begin, files), strict=True))


def chosen(
    place: HubPlace,
    files: Iterable[str],
    heads: Callable[[Collection[str]], Mapping[str, bytes]],
    size: Callable[[str], int] = lambda _: 0,
) -> list[str]:
    """The files of a repo that are the weights of the model in `place`, or their index.

    `heads` fetches the first bytes of files of the repo. `size`: see choose.

    Raises:
        InputError: there are none, or several models, or a part of one.
    """
    files = sorted(files)
    held = place.held(files)
    if not held and place.folder:
        raise InputError(_no_folder(place, files, "on the Hub"))
    check_folder(place, files)
    names = [file for file in held if "/" not in file]
    alone = [place.inside(file) for file in names if registry.stands_alone(file)]
    begun = cache(lambda: heads(alone))
    models = of_models(names, lambda file: begun().get(place.inside(file), b""))
    at = f"@{place.revision}" if place.revision != "main" else ""
    weights = choose(
        models, place.name, lambda file: size(place.inside(file)), lambda file: f"{SCHEME}{place.name}/{file}{at}"
    )
    if not weights:
        below = folders_with_weights(held)
        example = f"{place.name}/{printable(below[0], 80)}" if below else ""
        cure = f" except in its folders ({listed_folders(below)}): name one of them, as {example}" if below else ""
        others = registry.unread(held)
        instead = f" (it holds {', '.join(others)})" if others else ""
        cure = cure or ": choose a repo that has them"
        raise InputError(f"{place.name} has no weights on the Hub that can be read{instead}{cure}")
    return [place.inside(file) for file in weights]


def _no_folder(place: HubPlace, files: Iterable[str], where: str) -> str:
    """The message that a repo has no such folder among these files."""
    below = folders_with_weights(files)
    cure = f"its folders with weights are {listed_folders(below)}" if below else f"name the model as {place.repo}"
    return f"{place.repo} has no folder {printable(place.folder)} {where}: {cure}"


def check_folder(place: HubPlace, files: Iterable[str]) -> None:
    """Refuse a part of a Megatron model, or a folder that holds such parts, as refuse_ranks does."""
    parent, _, last = place.folder.rpartition("/")
    for within, named in ((HubPlace(place.repo, folder=parent), last), (place, "")):
        held = within.held(files)
        if named or not any("/" not in file and registry.holds_weights([file]) for file in held):
            refuse_ranks({file.partition("/")[0] for file in held if "/" in file}, f"{within.name}/", named)


def not_here(name: str) -> str:
    """The first words of the error about a model that is not here, with a name that is here and nearly the same."""
    near = nearest(name, ("demo",))
    return f"{name} is neither a file nor a folder here{f' (did you mean {printable(near)}?)' if near else ''}"


@contextmanager
def explained(place: HubPlace, incomplete: str = "") -> Iterator[None]:
    """Turn huggingface_hub's errors into one line each; `incomplete` says what the cache lacks."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # noqa: BLE001 - httpx or requests, by the version of huggingface_hub
        lacking = incomplete or f"{not_here(place.name)}, nor is it in the local cache"
        raise InputError(explain(error, place, f"{lacking}; ")) from None


def explain(error: Exception, place: HubPlace, lacking: str = "") -> str:
    """Say in one sentence why the Hub did not answer as it should, without URL or token.

    If the Hub cannot be reached, the sentence begins with `lacking`, and says then what to check.
    """
    from huggingface_hub import constants, errors

    name = place.repo
    page = f"https://huggingface.co/{name}"
    cure = ": check the name and the connection" if lacking else ""
    match error:
        case FetchError():
            return str(error)
        case errors.GatedRepoError():
            return f"{name} is gated: ask for access at {page}, then log in with  hf auth login  or set HF_TOKEN"
        case errors.RevisionNotFoundError():
            return f"{name} has no revision {printable(place.revision)}: see {page}/commits/main"
        case errors.RepositoryNotFoundError():
            here = f"no such file or folder: {printable(place.name)}, and " if place.folder else ""
            login = "check the name; if it is private, run  hf auth login"
            return f"{here}no model {name} on the Hub, or it is private: {login}"
        case errors.OfflineModeIsEnabled() | errors.LocalEntryNotFoundError():
            if isinstance(error.__cause__, errors.HfHubHTTPError):
                return _refused(name, error.__cause__)
            if constants.HF_HUB_OFFLINE:
                return f"{lacking}HF_HUB_OFFLINE is set{': check the name, or unset it' if lacking else ''}"
            return f"{lacking}the Hub cannot be reached{cure}"
        case errors.HfHubHTTPError():
            return _refused(name, error)
        case OSError() if error.errno and not isinstance(error, (ConnectionError, *client_errors()[1:])):
            where = printable(str(error.filename or cache_folder()))
            return f"cannot write {where}: {error.strerror}: make room there, or set HF_HOME to another folder"
    return f"{lacking}cannot reach the Hub ({short_message(error)}){cure}"


def _refused(name: str, error: Exception) -> str:
    status = status_of(error)
    if status in (401, 403):
        return f"the Hub refused access to {name} ({status}): check HF_TOKEN, or run  hf auth login"
    if status == 429:
        seconds = retry_after(error)
        return f"the Hub answered 429 (too many requests): try again {f'in {seconds:.0f} s' if seconds else 'later'}"
    return f"the Hub answered {status or 'no'} for {name}: try again later"
