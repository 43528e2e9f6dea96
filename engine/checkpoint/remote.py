"""Models that are not on this machine, opened from their files' headers alone: Hub ids, and URLs of one file."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from glob import escape
from hashlib import blake2b
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar
from urllib.parse import SplitResult, unquote, urljoin, urlsplit

from ..errors import InputError, printable
from ..formats import registry
from ..formats.format import Format, Origin, Ranged
from ..formats.guarded import parse_json, read_json
from ..formats.parts import siblings
from ..formats.tensor import FileStamp, Tensor
from ..quantised import settings
from ..spectrum import Source, digest
from . import hub
from .files import left_out, weight_map_of
from .ranges import OPENING, Answer, FetchError, Link, RemoteFile, Retry, Watch, client_errors, said, status_of

FIRST = 100_000
"""Bytes asked for at once: the headers of 97 % of the Hub's files are shorter (huggingface_hub's figure)."""
CONNECTIONS = 32
"""160 headers at 0.2 s each are there in a second."""
_MAX_JSON = 100_000_000
_HUB_HOSTS = ("huggingface.co", "www.huggingface.co", "hf.co")
_FILE = re.compile(r"/(?P<repo>[^/]+/[^/]+|[^/]+)/(?:resolve|blob)/(?P<revision>[^/]+)/(?P<file>.+)")

Listing = tuple[list[Tensor], FileStamp | RemoteFile]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Opened:
    """What a Checkpoint is made of; `named` says in which file an index places each tensor."""

    name: str
    commit: str
    config: Mapping[str, Any]
    format: Format
    listed: Mapping[Path, Listing]
    named: Mapping[str, str]
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Blob:
    """What the Hub says of a file: its name in the cache's blobs ("" where it does not say) and its size."""

    etag: str
    size: int | None


def is_url(model: str) -> bool:
    """Whether a name is a URL, other than hf://."""
    return re.match(r"[A-Za-z][\w+.-]*://", model) is not None and not model.startswith(hub.SCHEME)


def stored_name(model: str) -> str:
    """The name under which what is computed of a Hub id or URL is stored."""
    if not is_url(model):
        return model.removeprefix(hub.SCHEME).partition("@")[0].removesuffix("/")
    if (found := _hub_file(model)) is not None:
        return found[0]
    if (parts := _split(model)) is None:
        return model
    name = f"{parts.hostname}{f':{parts.port}' if parts.port else ''}{parts.path}"
    return name if len(name) <= 150 else f"{parts.hostname}/{digest(name)[:8]}/{PurePosixPath(name).name[-60:]}"


def open_repo(place: hub.Place, lacking: str = "", only: str = "") -> Opened:
    """A model on the Hub at the commit that a revision names now; `only` one of its files, where that is given.
    `lacking` says what the cache has not of it.

    One request for the list of files, one each for index and config.json, one a shard for its header; none
    for what is in the cache, where files are looked for by the digest of their content.

    Raises:
        InputError: it cannot be opened, with the reason.
    """
    link = Link(partial(hub.explain, place=place), hub.request_headers())
    with hub.explained(place, lacking), _Watched() as watch:
        repo = _Repo.found(place, link, watch)
        with ThreadPoolExecutor(CONNECTIONS) as pool:
            files, named, left_out = ([only], {}, "") if only else repo.weights(watch)
            kind = _ranged(files[0], place.name)
            folder = only.rpartition("/")[0] if only else place.folder
            config = pool.submit(repo.config, folder, watch)
            listed = dict(pool.map(partial(repo.listing, kind=kind, watch=watch), files))
            found_config = config.result()
    renamed = f"{place.repo} has another name on the Hub now: {printable(repo.name)}" if repo.name != place.repo else ""
    warnings = tuple(filter(None, (renamed, left_out)))
    return Opened(place.name, repo.commit, found_config, kind, listed, named, warnings)


def open_url(url: str) -> Opened:
    """A file at a URL, of a format that is read in part. One of the Hub's is opened as a file of its repo, with the
    user's token; no other server is sent a token.

    Raises:
        InputError: another kind of URL, or it cannot be opened.
    """
    shown = printable(url)
    if (found := _hub_file(url)) is not None:
        return open_repo(hub.parse(f"{found[0]}@{found[1]}"), only=found[2])
    parts = _checked(url, shown)
    file = Path(unquote(PurePosixPath(parts.path).name))
    kind = _ranged(file.name, shown)
    link = Link(partial(_explain, host=parts.netloc, file=printable(file.name)), {})
    remote = RemoteFile(link, url, printable(file.name))
    with _Watched() as watch:
        try:
            header, answer = _header(remote, file, kind, watch)
            config = _beside(link, url, watch)
        except FetchError as error:
            raise InputError(str(error)) from None
        except client_errors() as error:
            raise InputError(link.explain(error)) from None
    remote.pin(answer.sent)
    # Of a file without etag and time nobody can say later whether it is the same.
    version = (answer.etag, answer.modified) if answer.etag or answer.modified else uuid.uuid4().hex
    identity = digest(shown, version, answer.size, blake2b(header, digest_size=16).digest())
    source = Source(shown, "", file.name, identity, answer.size, False)
    listed = {file: (kind.parse(header, file, answer.size, source), remote)}
    return Opened(stored_name(url), "", config, kind, listed, {})


class _Watched:
    """Ends the requests of all threads when opening is left early, as by ctrl+c."""

    def __enter__(self) -> Watch:
        self._watch = Watch()
        return self._watch

    def __exit__(self, *_: object) -> None:
        self._watch.cancelled.set()


@dataclass(frozen=True, slots=True)
class _Repo:
    """A repo at one commit, and what of it is in the cache."""

    name: str
    asked: hub.Place
    commit: str
    files: Mapping[str, _Blob]
    link: Link

    @classmethod
    def found(cls, place: hub.Place, link: Link, watch: Watch) -> _Repo:
        """Ask the Hub."""
        from huggingface_hub import HfApi, constants

        info = _retried(
            lambda: HfApi().model_info(
                place.repo, revision=place.revision, files_metadata=True, timeout=constants.HF_HUB_ETAG_TIMEOUT
            ),
            link,
            watch,
        )
        if not re.fullmatch("[0-9a-f]{40}", info.sha or ""):
            raise InputError(f"the Hub names no commit of {place.repo}: is HF_ENDPOINT a Hub?")
        files = {
            s.rfilename: _Blob((s.lfs.sha256 if s.lfs else s.blob_id) or "", s.lfs.size if s.lfs else s.size)
            for s in info.siblings or []
        }
        return cls(info.id or place.repo, place, str(info.sha), files, link)

    def weights(self, watch: Watch) -> tuple[list[str], Mapping[str, str], str]:
        """The files that make up the model, where its index places each tensor, and the line on what is left out."""
        asked = self.asked
        at_commit = hub.Place(self.name, self.commit)
        heads = partial(hub.heads, at_commit, self.link, watch)
        chosen = hub.chosen(asked, self.files, heads, lambda file: self.files[file].size or 0)
        _ranged(chosen[0], asked.name)
        if registry.is_index(chosen[0]):
            named: Mapping[str, str] = weight_map_of(self.json(chosen[0], watch), Path(chosen[0]))
            files = {asked.inside(shard) for shard in named.values()}
            absent = files - self.files.keys()
        else:
            files, named = set(chosen), {}
            absent = {name for file in files for name in siblings(file)} - self.files.keys()
        if absent:
            shard = printable(min(absent))
            raise InputError(f"{asked.name} does not hold shard {shard}, which its index or another shard names")
        beside = [file for file in asked.held(self.files) if "/" not in file]
        return sorted(files), named, left_out(beside, asked.held(files))

    def config(self, folder: str, watch: Watch) -> Mapping[str, Any]:
        """What config.json of a folder says, else that of the repo; see settings.completed."""
        within = folder if f"{folder}/{hub.CONFIG}" in self.files else ""
        read = partial(self.json, watch=watch)
        place = hub.Place(self.name, folder=within)
        return settings.completed(read(place.inside(hub.CONFIG)), lambda name: read(place.inside(name)))

    def json(self, file: str, watch: Watch) -> dict[str, Any]:
        """A small file; {} where there is none."""
        if file not in self.files:
            return {}
        if (local := self._local(file)) is not None:
            return read_json(local)
        data, _ = self._remote(file).begin(_MAX_JSON, watch, is_small=True)
        return parse_json(data, Path(file))

    def listing(self, file: str, kind: Ranged, watch: Watch) -> tuple[Path, Listing]:
        """Where one file is, here or on the Hub, and its tensors."""
        if file not in self.files:
            raise InputError(f"{self.asked.repo} has no {printable(file)}")
        if (local := self._local(file)) is not None:
            tensors, stamp, _ = kind.list_tensors(local, Origin(self.asked.name, self.commit))
            return local, (tensors, stamp)
        remote = self._remote(file)
        header, answer = _header(remote, Path(file), kind, watch)
        identity = self.files[file].etag or answer.etag.removeprefix("W/").strip('"')
        addressed = re.fullmatch("[0-9a-f]{40}|[0-9a-f]{64}", identity) is not None
        if not addressed:
            identity = digest(self.name, self.commit, file)
        source = Source(self.asked.name, self.commit, Path(file).name, identity, answer.size, addressed)
        return Path(file), (kind.parse(header, Path(file), answer.size, source), remote)

    def _remote(self, file: str) -> RemoteFile:
        from huggingface_hub import hf_hub_url

        url = hf_hub_url(self.name, file, revision=self.commit)
        return RemoteFile(self.link, url, printable(file), self.files[file].size)

    def _local(self, file: str) -> Path | None:
        """Where a file is in the cache: of this commit, or of another with the same content."""
        for name in dict.fromkeys((self.asked.repo, self.name)):
            snapshots = hub.repo_folder(name) / "snapshots"
            if (snapshot := snapshots / self.commit / file).is_file():
                return snapshot
            for other in sorted(snapshots.glob(f"*/{escape(file)}")):
                if other.is_file() and other.resolve().name == self.files[file].etag:
                    return other
        return None


def _retried(work: Callable[[], T], link: Link, watch: Watch) -> T:
    retry = Retry(link, "", OPENING, watch)
    while True:
        with retry:
            return work()


def _ranged(name: str, asked: str) -> Ranged:
    """The format of a file or of an index of files.

    Raises:
        InputError: it cannot be read in part.
    """
    kind = registry.format_of_index(name)
    if not isinstance(kind, Ranged):
        suffix = kind.suffixes[0] if registry.is_index(name) else Path(name).suffix
        raise InputError(f"{asked} has {suffix} weights, which cannot be read in part: use --download")
    return kind


def _header(file: RemoteFile, shown: Path, kind: Ranged, watch: Watch) -> tuple[bytes, Answer]:
    """The header of a file, in one request or two."""
    data, answer = file.begin(FIRST, watch)
    begin, end = kind.header_span(data, answer.size, shown)
    return b"".join((data[begin:end], *file.chunks(len(data), end, OPENING, watch))), answer


def _hub_file(url: str) -> tuple[str, str, str] | None:
    """(id, revision, file) of a URL of a file on the Hub, or on what HF_ENDPOINT names; None for any other."""
    from huggingface_hub import constants

    endpoint = urlsplit(constants.ENDPOINT)
    parts = _split(url)
    if parts is None or parts.netloc not in (endpoint.netloc, *_HUB_HOSTS):
        return None
    found = _FILE.fullmatch(parts.path.removeprefix(endpoint.path.rstrip("/")))
    if found is None or not found["file"].lower().endswith(registry.ranged_suffixes()):
        return None
    return unquote(found["repo"]), unquote(found["revision"]), unquote(found["file"])


def _split(url: str) -> SplitResult | None:
    """The parts of a URL, None where it has none."""
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018 - raises where it is no number
    except ValueError:
        return None
    return parts


def _checked(url: str, shown: str) -> SplitResult:
    """The parts of a URL that may be read."""
    parts = _split(url)
    if parts is None:
        raise InputError(f"{shown} is not a URL")
    if parts.username is not None:
        raise InputError(f"{shown}: a URL must not hold a user or password")
    suffixes = registry.ranged_suffixes()
    kinds = " or ".join(suffixes)
    if parts.scheme.lower() not in ("http", "https") or not parts.hostname or not url.isprintable():
        raise InputError(f"{shown} is no https:// URL of a {kinds} file")
    if not parts.path.lower().endswith(suffixes):
        raise InputError(f"{shown} is no URL of a {kinds} file: name a model on the Hub as org/name")
    return parts


def _beside(link: Link, url: str, watch: Watch) -> dict[str, Any]:
    """The config.json beside a file, {} where there is none."""
    file = RemoteFile(link, urljoin(url, "config.json"), "config.json")
    try:
        return parse_json(file.begin(_MAX_JSON, watch, is_small=True)[0], Path("config.json"))
    except (FetchError, InputError):
        return {}
    except client_errors():
        return {}


def _explain(error: Exception, host: str, file: str) -> str:
    """Why a server that is not the Hub did not send a file: one sentence."""
    from huggingface_hub import constants

    status = status_of(error)
    if constants.HF_HUB_OFFLINE:
        return f"{file} is on {host}; HF_HUB_OFFLINE is set"
    if status:
        why = {401: ": access refused", 403: ": access refused", 404: ": no such file", 429: ": too many requests"}
        return f"{host} answered {status} for {file}{why.get(status, ': try again later')}"
    return f"cannot reach {host} ({said(error)})"
