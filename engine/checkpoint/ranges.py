"""Bytes of files on a server, by HTTP range: resumed when a connection drops, retried a limited number of times."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

from ..errors import WeightsError, printable
from ..landing import Fill

TROUBLE = (408, 429)
"""Statuses, besides those from 500 on, after which another try may succeed."""
_WORTH = 1 << 20
"""A connection that sent this many bytes before it dropped was useful: the count of failures starts again."""
_TOLD = 5.0
"""The user is told about waits from this many seconds on."""
_PROBE = 10.0
"""Seconds without requests to a server after giving it up; else each tensor of a scan would wait for a minute."""
_BLOCK = 1 << 16
_PATIENT = 20.0
"""Seconds of waiting in which at least _SLOWEST bytes must come: a server could send single bytes for ever."""
_SLOWEST = 20_000


class FetchError(Exception):
    """A failure that another try would not mend; the message is one sentence."""


@dataclass(frozen=True, slots=True)
class Patience:
    """Seconds to wait before each further try, and the longest wait that a server may ask for."""

    waits: tuple[float, ...]
    longest: float


OPENING = Patience((0, 1, 2), 10)
READING = Patience((0, 1, 2, 4, 8, 16, 30), 330)
"""The Hub counts requests over 5 minutes, and asks clients to wait for the rest of them."""


@dataclass(frozen=True, slots=True)
class Watch:
    """Callbacks of whoever waits for bytes: how many have come, and lines for the user; `cancelled` ends the wait."""

    fetched: Callable[[int], None] = lambda _: None
    note: Callable[[str], None] = lambda _: None
    cancelled: threading.Event = field(default_factory=threading.Event)


UNWATCHED = Watch()


def pause(cancelled: threading.Event, seconds: float) -> None:
    """Wait for some seconds, or until `cancelled` is set."""
    cancelled.wait(seconds)


def clock() -> float:
    """The time in seconds, for measuring waits."""
    return time.monotonic()


class Link:
    """A server, shared by all files of a checkpoint and all threads: when to send the next request, what was given up.

    `headers` are sent to this server only: they may hold the user's token. `explain` turns an error of
    the client into a sentence.
    """

    def __init__(self, explain: Callable[[Exception], str], headers: Mapping[str, str]) -> None:
        self.explain = explain
        self.headers = headers
        self._lock = threading.Lock()
        self._not_before = self._told_until = 0.0
        self._given_up: dict[str, tuple[float, str]] = {}

    def wait(self, until: float, watch: Watch) -> None:
        """Wait until a time, and until requests may be sent to the server.

        Raises:
            FetchError: cancelled.
        """
        with self._lock:
            left = max(until, self._not_before) - clock()
        if left > 0:
            pause(watch.cancelled, left)
        if watch.cancelled.is_set():
            raise FetchError("stopped")

    def hold(self, seconds: float) -> bool:
        """Let nobody send requests for some seconds; return whether to tell the user, who was not told of a long
        wait."""
        with self._lock:
            now = clock()
            self._not_before = max(self._not_before, now + seconds)
            if seconds < _TOLD or now < self._told_until:
                return False
            self._told_until = now + seconds
            return True

    def lost(self, scope: str, error: Exception) -> None:
        """Give up a file; with scope "" the server."""
        with self._lock:
            self._given_up[scope] = clock(), self.explain(error)

    def reached(self, scope: str) -> None:
        """Note that a file, and so the server, answers."""
        with self._lock:
            self._given_up.pop(scope, None)
            self._given_up.pop("", None)

    def given_up(self, scope: str) -> bool:
        """True if the server or the file was given up, and one more try is due.

        Raises:
            FetchError: no try is due yet.
        """
        with self._lock:
            found = [self._given_up[key] for key in ("", scope) if key in self._given_up]
            for when, sentence in found:
                if clock() - when < _PROBE:
                    raise FetchError(f"cannot fetch {scope}: {sentence}")
        return bool(found)


class Retry:
    """`with retry:` around each try: swallows an error that another try may mend; the next try then waits first."""

    def __init__(self, link: Link, scope: str, patience: Patience, watch: Watch) -> None:
        self._link, self._scope, self._patience, self._watch = link, scope, patience, watch
        self._failures = 0
        self._gained = 0
        self._not_before = 0.0

    def gained(self, count: int) -> None:
        """Count bytes that have come."""
        self._gained += count
        self._watch.fetched(count)

    def __enter__(self) -> None:
        self._gained = 0
        if self._link.given_up(self._scope):
            self._failures = len(self._patience.waits)
        self._link.wait(self._not_before, self._watch)

    def __exit__(self, _: object, error: BaseException | None, __: TracebackType | None) -> bool:
        if error is None:
            self._link.reached(self._scope)
            return False
        if not isinstance(error, Exception) or not _may_mend(error):
            return False
        if self._gained >= _WORTH:
            self._failures = 0
        status = status_of(error)
        waits = self._patience.waits[1 if status else 0 :]  # only a dropped connection is opened again at once
        requested = retry_after(error)
        has_answered = self._gained or (status and status != 429)  # then the file is at fault, not the server
        if self._failures >= len(waits) or (requested or 0) > self._patience.longest:
            self._link.lost(self._scope if has_answered else "", error)
            return False
        seconds = max(waits[self._failures], requested or 0)
        self._failures += 1
        self._not_before = clock() + seconds
        if not has_answered and self._link.hold(seconds):
            self._watch.note(f"{self._link.explain(error)}; waiting {seconds:.0f} s")
        return True


@dataclass(frozen=True, slots=True)
class ServerReply:
    """A server's statement about a file; etag and time of last change are "" if it sent none. `sent` is the etag from
    the server that sends the bytes, which differs if another server redirected to it."""

    size: int
    etag: str
    modified: str
    sent: str


class RemoteFile:
    """A file at a URL, read by ranges; messages call it `name`. Safe to use from several threads."""

    def __init__(self, link: Link, url: str, name: str, size: int | None = None) -> None:
        self.link = link
        self.name = name
        self.size = size
        self._url = url
        self._location = ""
        self._etag: str | None = None

    @property
    def url(self) -> str:
        """Its address, including a key to it if the user's URL has one."""
        return self._url

    def begin(self, count: int, watch: Watch, *, is_small: bool = False) -> tuple[bytes, ServerReply]:
        """The first `count` bytes, or all if the file is shorter; a small file may be sent without ranges.

        Raises:
            FetchError: the server has no ranges, or its answer contradicts itself.
            OSError, or the client's error: every try failed.
        """
        retry = Retry(self.link, self.name, OPENING, watch)
        while True:
            with retry, self._get(0, count) as (response, chunks):
                answer = self._answer(response, 0, count, is_small=is_small)
                wanted = min(count, answer.size)
                data = b"".join(self._exactly(chunks, wanted))
                if len(data) < wanted:
                    raise ConnectionResetError(f"{len(data)} of {wanted} bytes came")
                self.size = answer.size
                return data, answer

    def pin(self, etag: str) -> None:
        """From now on require this etag of the server that sends the bytes, for a file that belongs to no commit."""
        self._etag = etag

    def chunks(self, begin: int, end: int, patience: Patience, watch: Watch) -> Generator[bytes, None, None]:
        """Bytes `begin` to `end` as they come, on one connection as long as it lasts; raises as `begin` does."""
        retry = Retry(self.link, self.name, patience, watch)
        while begin < end:
            with retry, self._get(begin, end) as (response, chunks):
                self._answer(response, begin, end)
                for chunk in self._exactly(chunks, end - begin):
                    begin += len(chunk)
                    retry.gained(len(chunk))
                    if watch.cancelled.is_set():
                        raise FetchError("stopped")
                    yield chunk
                if begin < end:
                    raise ConnectionResetError(f"{end - begin} bytes did not come")

    def watched_by(self, watch: Watch) -> RemoteReader:
        """This file for one reader."""
        return RemoteReader(self, watch)

    @contextmanager
    def _get(self, first: int, end: int) -> Iterator[tuple[Any, Iterator[bytes]]]:
        """A successful response and its body. The address that the server redirected to last is tried first, while it
        works: one request instead of two, and the Hub counts requests to itself. It gets no headers of ours, as it may
        belong to another server."""
        from huggingface_hub.utils import hf_raise_for_status  # type: ignore[attr-defined] # documented there

        byte_range = {"Range": f"bytes={first}-{end - 1}", "Accept-Encoding": "identity"}
        if location := self._location:
            with stream(location, byte_range) as (response, chunks):
                if response.status_code == 206:
                    yield response, chunks
                    return
            self._location = ""
        with stream(self._url, {**self.link.headers, **byte_range}) as (response, chunks):
            hf_raise_for_status(response)
            if response.history and urlsplit(str(response.url)).netloc != urlsplit(self._url).netloc:
                self._location = str(response.url)
            yield response, chunks

    def _answer(self, response: Any, first: int, end: int, *, is_small: bool = False) -> ServerReply:
        """Check the response's headers against the request, and return what they state."""
        headers = response.headers
        if headers.get("Content-Encoding", "identity") != "identity":
            raise FetchError(f"the server sends {self.name} compressed, and so not the bytes that were asked for")
        found = re.fullmatch(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19})", headers.get("Content-Range", ""))
        if response.status_code == 206 and found:
            start, last, size = (int(number) for number in found.groups())
            if start != first or last >= min(end, size):
                raise FetchError(f"the server sends other bytes of {self.name} than were asked for")
        elif is_small and response.status_code == 200 and headers.get("Content-Length", "").isdecimal():
            size = int(headers["Content-Length"])
        else:
            raise FetchError(f"the server of {self.name} sends no ranges: download the file and name it here")
        if is_small and size > end:
            raise FetchError(f"{self.name} is {size} bytes long: too long for what it should be")
        original = response.history[0].headers if response.history else headers
        etag = original.get("X-Linked-Etag") or original.get("ETag") or headers.get("ETag") or ""
        sent = headers.get("ETag") or ""
        if (self.size is not None and size != self.size) or (self._etag is not None and sent != self._etag):
            raise FetchError(f"{self.name} is not on the server as it was listed: open the model again")
        return ServerReply(size, etag, headers.get("Last-Modified") or "", sent)

    def _exactly(self, chunks: Iterator[bytes], count: int) -> Iterator[bytes]:
        """The body, which must neither be longer than `count` bytes nor arrive a few bytes at a time."""
        for chunk in _lively(chunks):
            count -= len(chunk)
            if count < 0:
                raise FetchError(f"the server sends more of {self.name} than was asked for")
            yield chunk


@dataclass(frozen=True, slots=True)
class RemoteReader:
    """A remote file with the Watch of one reader."""

    file: RemoteFile
    watch: Watch

    @contextmanager
    def reading(self, begin: int, end: int) -> Iterator[Fill]:
        """A function that fills views with bytes `begin` to `end` of the file, in order.

        Raises:
            WeightsError: when filling, if the bytes cannot be fetched.
        """
        rest = memoryview(b"")

        def fill(view: memoryview, _: int) -> None:
            nonlocal rest
            while view:
                rest = rest or memoryview(self._next(chunks))
                count = min(len(rest), len(view))
                view[:count] = rest[:count]
                view, rest = view[count:], rest[count:]

        with closing(self.file.chunks(begin, end, READING, self.watch)) as chunks:
            yield fill

    def _next(self, chunks: Iterator[bytes]) -> bytes:
        try:
            return next(chunks)
        except FetchError as error:
            raise WeightsError(str(error)) from None
        except client_errors() as error:
            raise WeightsError(f"cannot fetch {self.file.name}: {self.file.link.explain(error)}") from None


@contextmanager
def stream(url: str, headers: Mapping[str, str]) -> Iterator[tuple[Any, Iterator[bytes]]]:
    """GET a URL in the Hub client's session (with its proxies and HF_HUB_OFFLINE): the response, and its body."""
    from huggingface_hub import constants, get_session

    session: Any = get_session()
    timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
    if callable(session.stream):
        with session.stream("GET", url, headers=headers, timeout=timeout) as response:
            yield response, response.iter_raw()
    else:  # requests: huggingface_hub below 1.0
        with session.get(url, headers=headers, timeout=timeout, stream=True) as response:
            yield response, response.iter_content(_BLOCK)


def _lively(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """The chunks, as long as they come at more than a trickle; only time spent waiting for them counts.

    Raises:
        TimeoutError: fewer than _SLOWEST bytes came in _PATIENT seconds.
    """
    waited, came = 0.0, 0
    begun = clock()
    for chunk in chunks:
        waited += clock() - begun
        came += len(chunk)
        yield chunk
        if waited >= _PATIENT:
            if came < _SLOWEST:
                raise TimeoutError(f"{came} bytes came in {waited:.0f} s")
            waited, came = 0.0, 0
        begun = clock()


def client_errors() -> tuple[type[Exception], ...]:
    """The errors of the HTTP client: httpx or requests, depending on the version of huggingface_hub."""
    from huggingface_hub.errors import HfHubHTTPError

    return OSError, HfHubHTTPError.__bases__[0]


def status_of(error: Exception) -> int:
    """The HTTP status of a refused request, 0 for any other error."""
    response = getattr(error, "response", None)
    return int(response.status_code) if response is not None else 0


def retry_after(error: Exception) -> float | None:
    """Seconds that a refusal asks to wait, from Retry-After or the Hub's RateLimit; None if it does not say."""
    headers = getattr(getattr(error, "response", None), "headers", {})
    stated = headers.get("Retry-After", "")
    if stated.isdecimal():
        return float(stated[:9])
    if limit := re.search(r"\br=0;\s*t=(\d{1,9})", headers.get("RateLimit", "")):
        return float(limit[1])
    try:
        return max(0.0, (parsedate_to_datetime(stated) - datetime.now(UTC)).total_seconds())
    except (TypeError, ValueError):
        return None


def said(error: Exception) -> str:
    """A connection error in a few words, without the URL, which may be signed."""
    words = re.sub(r"\S*(?:://|\?\S*=)\S*", "", str(error).partition("\n")[0]).strip()
    return printable(words, 120) or type(error).__name__


def _may_mend(error: Exception) -> bool:
    from huggingface_hub.errors import OfflineModeIsEnabled

    if not isinstance(error, client_errors()) or isinstance(error, OfflineModeIsEnabled):
        return False
    if status := status_of(error):
        return status in TROUBLE or status >= 500
    return type(error).__name__ not in ("TooManyRedirects", "UnsupportedProtocol", "InvalidURL", "InvalidSchema")
