"""Models that are not on this machine, opened by reading only their files' headers: Hub ids, and URLs of one file."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from glob import escape
from hashlib import blake2b
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, TypeVar
from urllib.parse import unquote, urljoin, urlsplit

from ..errors import InputError, printable
from ..formats import registry
from ..formats.format import Listings, Origin, Ranged
from ..formats.guarded import parse_json, read_json
from ..formats.parts import siblings
from ..quantised import settings
from ..spectrum import Source, digest
from . import hub, native
from .contents import CheckpointParts, RemoteListing
from .descriptions import with_descriptions
from .model_files import left_out, weight_map_of
from .ranges import RemoteFile, ServerReply
from .retries import OPENING, FetchError, Link, Retry, Watch, client_errors
from .tensor_parallel import check_name
from .urls import HubFile, checked, explain, files_of, hub_file, stored_name

FIRST = 100_000
"""Bytes of the first request: the headers of 97 % of the Hub's files are shorter (huggingface_hub's figure)."""
CONNECTIONS = 32
"""Requests at a time: 160 headers at 0.2 s each come within a second."""
_MAX_JSON = 100_000_000

T = TypeVar("T")


class _ListedFile(NamedTuple):
    """The path of one file of a model, its listing, and the configuration in its header."""

    path: Path
    listing: RemoteListing
    config: Mapping[str, Any] | None


@dataclass(frozen=True, slots=True)
class _Blob:
    """A file as the Hub lists it: its name among the cache's blobs ("" if it is not stated) and its size."""

    etag: str
    size: int | None


def open_repo(
    place: hub.HubPlace, lacking: str = "", only: HubFile | None = None, listings: Listings | None = None
) -> CheckpointParts:
    """Open a model on the Hub at the commit of a revision; `only` limits it to the model in one file (or its parts).
    `lacking` says what the cache lacks of it; `listings`: see Origin.

    One request lists the files, index and config.json take one each, the header of a shard one or two. Files in the
    cache, found by the digest of their content, take none.

    Raises:
        InputError: it cannot be opened, with the reason.
    """
    link = Link(partial(hub.explain, place=place), hub.request_headers())
    with hub.explained(place, lacking), ThreadPoolExecutor(CONNECTIONS) as pool, _Watched() as watch:
        repo = _Repo.found(place, link, watch)
        files, named, left_out = repo.held(only) if only else repo.weights(watch)
        kind = _ranged(files[0], place.name)
        folder = only.file.rpartition("/")[0] if only else place.folder
        beside = None if kind.stands_alone else pool.submit(repo.config, folder, watch)
        about = pool.submit(repo.adapter, files[0], kind, watch)
        origin = Origin(only.name if only else place.name, repo.commit, len(files), listings)
        found = list(pool.map(partial(repo.listing, kind=kind, origin=origin, watch=watch), files))
        listed = with_descriptions({each.path: each.listing for each in found}, pool, watch)
        config = beside.result() if beside else _first_config(found)
        adapter = about.result()
        if native.belonging(PurePosixPath(files[0]).name, [PurePosixPath(file).name for file in files]):
            params = partial(repo.params, files[0], watch)
            listed = native.join([each.path for each in found], listed, params)
    renamed = f"{place.repo} was renamed on the Hub: {printable(repo.name)}" if repo.name != place.repo else ""
    warnings = tuple(filter(None, (renamed, left_out)))
    return CheckpointParts(origin.repo, repo.commit, config, kind, listed, named, warnings, adapter)


def open_url(url: str, listings: Listings | None = None) -> CheckpointParts:
    """Open the model in a file at a URL, of a format that can be read in part, with the other parts beside it if it is
    one of several. A URL of the Hub is opened as a file of its repo, with the user's token, which no other server gets.

    Raises:
        InputError: another kind of URL, or it cannot be opened.
    """
    if (found := hub_file(url)) is not None:
        return open_repo(hub.parse(f"{found.repo}@{found.revision}"), only=found, listings=listings)
    parts = checked(url, printable(url))
    name = unquote(PurePosixPath(parts.path).name)
    check_name(printable(name), name, ())
    kind = _ranged(name, printable(url))
    urls = files_of(url)
    with ThreadPoolExecutor(CONNECTIONS) as pool, _Watched() as watch:
        beside = None if kind.stands_alone else pool.submit(_json_beside, url, watch)
        origin = Origin(printable(urls[0]), "", len(urls), listings)
        listed = list(pool.map(partial(_listed_at, kind=kind, origin=origin, watch=watch), urls))
        config = beside.result() if beside else _first_config(listed)
        with _as_input_errors(_link(url)):
            whole = with_descriptions({each.path: each.listing for each in listed}, pool, watch)
        if native.belonging(listed[0].path.name, [listed[0].path.name]):
            whole = native.join([listed[0].path], whole, lambda: _json_beside(url, watch, native.PARAMS) or None)
    return CheckpointParts(stored_name(url), "", config, kind, whole, {})


def _listed_at(url: str, kind: Ranged, origin: Origin, watch: Watch) -> _ListedFile:
    """The listing of the file at a URL."""
    file, link = Path(unquote(PurePosixPath(urlsplit(url).path).name)), _link(url)
    remote = RemoteFile(link, url, printable(file.name))
    with _as_input_errors(link):
        header, answer = _header(remote, file, kind, watch, is_of_commit=False)
    version: Any = (answer.etag, answer.modified)
    if not any(version):  # nothing tells later whether the file has changed
        version, origin = uuid.uuid4().hex, replace(origin, listings=None)
    identity = digest(printable(url), version, answer.size, blake2b(header, digest_size=16).digest())
    source = Source(origin.repo, "", file.name, identity, answer.size, False)
    tensors, config = kind.parse(header, file, answer.size, source, origin)
    return _ListedFile(file, (tensors, remote), config)


def _link(url: str) -> Link:
    """The server of a URL that is not the Hub's, for requests of that file."""
    parts = urlsplit(url)
    file = printable(unquote(PurePosixPath(parts.path).name))
    return Link(partial(explain, host=parts.netloc, file=file), {})


@contextmanager
def _as_input_errors(link: Link) -> Iterator[None]:
    """Turn errors of a server that is not the Hub into one line."""
    try:
        yield
    except FetchError as error:
        raise InputError(str(error)) from None
    except client_errors() as error:
        raise InputError(link.explain(error)) from None


def _first_config(found: Iterable[_ListedFile]) -> Mapping[str, Any]:
    """The configuration from the first file whose header has one."""
    return next((each.config for each in found if each.config), {})


class _Watched:
    """Ends the requests of all threads when opening is aborted, as by ctrl+c."""

    def __enter__(self) -> Watch:
        self._watch = Watch()
        return self._watch

    def __exit__(self, *_: object) -> None:
        self._watch.cancelled.set()


@dataclass(frozen=True, slots=True)
class _Repo:
    """A repo at one commit, some of whose files may be in the cache."""

    name: str
    place: hub.HubPlace
    commit: str
    files: Mapping[str, _Blob]
    link: Link

    @classmethod
    def found(cls, place: hub.HubPlace, link: Link, watch: Watch) -> _Repo:
        """Request the repo's list of files from the Hub."""
        from huggingface_hub import HfApi, constants

        info = _retried(
            lambda: HfApi().model_info(
                place.repo, revision=place.revision, files_metadata=True, timeout=constants.HF_HUB_ETAG_TIMEOUT
            ),
            link,
            watch,
        )
        if not re.fullmatch("[0-9a-f]{40}", info.sha or ""):
            raise InputError(f"the Hub names no commit of {place.repo}: see that HF_ENDPOINT is a Hub, or unset it")
        files = {
            s.rfilename: _Blob((s.lfs.sha256 if s.lfs else s.blob_id) or "", s.lfs.size if s.lfs else s.size)
            for s in info.siblings or []
        }
        return cls(info.id or place.repo, place, str(info.sha), files, link)

    def weights(self, watch: Watch) -> tuple[list[str], Mapping[str, str], str]:
        """The files that make up the model, in which file its index places each tensor, and a line on unused files."""
        place = self.place
        at_commit = hub.HubPlace(self.name, self.commit)
        heads = partial(hub.heads, at_commit, self.link, watch)
        chosen = hub.chosen(place, self.files, heads, lambda file: self.files[file].size or 0)
        _ranged(chosen[0], place.name)
        if registry.is_index(chosen[0]):
            named: Mapping[str, str] = weight_map_of(self.json(chosen[0], watch), Path(chosen[0]))
            files = {place.inside(shard) for shard in named.values()}
            absent = files - self.files.keys()
        else:
            files, named = set(chosen), {}
            absent = {name for file in files for name in siblings(file)} - self.files.keys()
        if absent:
            shard = printable(min(absent))
            raise InputError(
                f"{place.name} does not hold shard {shard}, which its index or another shard names: name another "
                "revision, as org/name@revision"
            )
        beside = [file for file in place.held(self.files) if "/" not in file]
        return sorted(files), named, left_out(beside, place.held(files))

    def held(self, only: HubFile) -> tuple[list[str], Mapping[str, str], str]:
        """The files of the model in one file or its parts, as `weights` returns those of a whole folder."""
        absent = [part for part in only.parts if part not in self.files]
        if absent and only.file in self.files:
            raise InputError(
                f"{self.place.name} does not hold shard {printable(absent[0])}, which another shard names: name "
                "another "
                "revision, as org/name@revision"
            )
        folder, slash, name = only.file.rpartition("/")
        place = hub.HubPlace(self.name, folder=folder)
        hub.check_folder(place, self.files)
        beside = [file for file in place.held(self.files) if "/" not in file]
        check_name(only.file, name, beside)
        return [f"{folder}{slash}{part}" for part in native.belonging(name, beside)] or only.parts, {}, ""

    def config(self, folder: str, watch: Watch) -> Mapping[str, Any]:
        """config.json of a folder, else that of the repo; see settings.completed."""
        within = folder if f"{folder}/{hub.CONFIG}" in self.files else ""
        read = partial(self.json, watch=watch)
        place = hub.HubPlace(self.name, folder=within)
        return settings.completed(read(place.inside(hub.CONFIG)), lambda name: read(place.inside(name)))

    def params(self, file: str, watch: Watch) -> Mapping[str, Any] | None:
        """params.json beside a file of Meta's, None if there is none."""
        beside = str(PurePosixPath(file).with_name(native.PARAMS))
        return self.json(beside, watch) if beside in self.files else None

    def adapter(self, file: str, kind: Ranged, watch: Watch) -> Mapping[str, Any]:
        """adapter_config.json beside an adapter's file; {} if there is none, and for anything else."""
        path = PurePosixPath(file)
        if not kind.goes_along(path.name, bytes):
            return {}
        return self.json(str(path.with_name(hub.ADAPTER_CONFIG)), watch)

    def json(self, file: str, watch: Watch) -> dict[str, Any]:
        """A small JSON file; {} if there is none."""
        if file not in self.files:
            return {}
        if (local := self._local(file)) is not None:
            return read_json(local)
        data, _ = self._remote(file).begin(_MAX_JSON, watch, is_small=True)
        return parse_json(data, Path(file))

    def listing(self, file: str, kind: Ranged, origin: Origin, watch: Watch) -> _ListedFile:
        """The listing of one file, in the cache or on the Hub."""
        if file not in self.files:
            where = f"https://huggingface.co/{self.place.repo}/tree/{printable(self.commit)}"
            raise InputError(f"{self.place.repo} has no {printable(file)}: see {where}")
        if (local := self._local(file)) is not None:
            held, stamp, config = kind.list_tensors(local, origin)
            return _ListedFile(local, (held, stamp), config)
        remote = self._remote(file)
        header, answer = _header(remote, Path(file), kind, watch)
        identity = self.files[file].etag or answer.etag.removeprefix("W/").strip('"')
        addressed = re.fullmatch("[0-9a-f]{40}|[0-9a-f]{64}", identity) is not None
        if not addressed:
            identity = digest(self.name, self.commit, file)
        source = Source(origin.repo, self.commit, Path(file).name, identity, answer.size, addressed)
        tensors, config = kind.parse(header, Path(file), answer.size, source, origin)
        return _ListedFile(Path(file), (tensors, remote), config)

    def _remote(self, file: str) -> RemoteFile:
        from huggingface_hub import hf_hub_url

        url = hf_hub_url(self.name, file, revision=self.commit)
        return RemoteFile(self.link, url, printable(file), self.files[file].size)

    def _local(self, file: str) -> Path | None:
        """The path of a file in the cache, of this commit or of another with the same content; None if it is not
        there."""
        for name in dict.fromkeys((self.place.repo, self.name)):
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


def _ranged(name: str, model: str) -> Ranged:
    """The format of a file or of an index of files.

    Raises:
        InputError: it cannot be read in part.
    """
    kind = registry.format_of_index(name)
    if not isinstance(kind, Ranged):
        suffix = kind.suffixes[0] if registry.is_index(name) else Path(name).suffix
        raise InputError(f"{model} has {suffix} weights, which cannot be read in part: use --download")
    return kind


def _header(
    file: RemoteFile, shown: Path, kind: Ranged, watch: Watch, *, is_of_commit: bool = True
) -> tuple[bytes, ServerReply]:
    """The header of a file, in as few requests as its format needs. A file of no commit must not change from then
    on."""
    begun, answer = file.begin(FIRST, watch)
    if not is_of_commit:
        file.pin(answer.sent)
    return kind.header(_Ends(file, answer.size, begun, watch), answer.size, shown), answer


class _Ends:
    """See formats.format.Ends. No byte is fetched twice."""

    def __init__(self, file: RemoteFile, size: int, begun: bytes, watch: Watch) -> None:
        self._file, self._size, self._watch = file, size, watch
        self._first, self._last = begun, b""

    def first(self, count: int) -> bytes:
        """See Ends."""
        held, wanted = len(self._first), min(count, self._size)
        if wanted > held:
            behind = self._size - len(self._last)
            self._first += self._fetched(held, min(wanted, behind))
            self._first += self._last[max(held - behind, 0) : max(wanted - behind, 0)]
        return self._first

    def last(self, count: int) -> bytes:
        """See Ends."""
        wanted, held = max(self._size - count, 0), self._size - len(self._last)
        if wanted < held:
            before = len(self._first)
            self._last = self._fetched(max(wanted, before), held) + self._last
            self._last = self._first[wanted:held] + self._last
        return self._last

    def _fetched(self, begin: int, end: int) -> bytes:
        return b"".join(self._file.chunks(begin, end, OPENING, self._watch))


def _json_beside(url: str, watch: Watch, name: str = hub.CONFIG) -> dict[str, Any]:
    """A small JSON file beside the file at a URL, {} if there is none."""
    beside = urljoin(url, name)
    file = RemoteFile(_link(beside), beside, name)
    try:
        return parse_json(file.begin(_MAX_JSON, watch, is_small=True)[0], Path(name))
    except (FetchError, InputError):
        return {}
    except client_errors():
        return {}
