"""Bytes of files on a server, by HTTP range: resumed where a connection drops, retried with a limit."""

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
"""Statuses, beside those from 500 on, after which another try may succeed."""
_WORTH = 1 << 20
"""Bytes after which a connection that drops has been of use, and the count of failures begins anew."""
_TOLD = 5.0
"""Seconds of waiting from which on the user is told."""
_PROBE = 10.0
"""Seconds for which a server that was given up is not asked again: each of a scan's tensors would wait a minute."""
_BLOCK = 1 << 16
_PATIENT = 20.0
"""Seconds of waiting in which at least _SLOWEST bytes must come: a server that sends one at a time would never end."""
_SLOWEST = 20_000


class FetchError(Exception):
    """What no other try would mend: one sentence."""


@dataclass(frozen=True, slots=True)
class Patience:
    """Seconds to wait before each further try, and the longest that a server may ask for."""

    waits: tuple[float, ...]
    longest: float


OPENING = Patience((0, 1, 2), 10)
READING = Patience((0, 1, 2, 4, 8, 16, 30), 330)
"""The Hub counts requests over 5 minutes, and asks to wait for the rest of them."""


@dataclass(frozen=True, slots=True)
class Watch:
    """Who waits for bytes: is told how many have come, and lines for the user; `cancelled` ends the wait."""

    fetched: Callable[[int], None] = lambda _: None
    note: Callable[[str], None] = lambda _: None
    cancelled: threading.Event = field(default_factory=threading.Event)


UNWATCHED = Watch()


def pause(cancelled: threading.Event, seconds: float) -> None:
    """Wait, or until it is cancelled."""
    cancelled.wait(seconds)


def clock() -> float:
    """Seconds, for waits."""
    return time.monotonic()


class Link:
    """A server, for all files of a checkpoint and all threads: when it may be asked again, and what was given up.

    `headers` go to it and to no other server: they may hold the user's token. `explain` makes a sentence of
    an error of the client.
    """

    def __init__(self, explain: Callable[[Exception], str], headers: Mapping[str, str]) -> None:
        self.explain = explain
        self.headers = headers
        self._lock = threading.Lock()
        self._not_before = self._told_until = 0.0
        self._given_up: dict[str, tuple[float, str]] = {}

    def wait(self, until: float, watch: Watch) -> None:
        """Until a time, and until the server may be asked.

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
        """Let nobody ask for so long; whether that is long, and nobody was told of such a wait that still lasts."""
        with self._lock:
            now = clock()
            self._not_before = max(self._not_before, now + seconds)
            if seconds < _TOLD or now < self._told_until:
                return False
            self._told_until = now + seconds
            return True

    def lost(self, scope: str, error: Exception) -> None:
        """Give up a file, or with "" the server."""
        with self._lock:
            self._given_up[scope] = clock(), self.explain(error)

    def reached(self, scope: str) -> None:
        """A file, and so the server, answers."""
        with self._lock:
            self._given_up.pop(scope, None)
            self._given_up.pop("", None)

    def given_up(self, scope: str) -> bool:
        """Whether the server or the file was given up, and one more try is due.

        Raises:
            FetchError: no try is due.
        """
        with self._lock:
            found = [self._given_up[key] for key in ("", scope) if key in self._given_up]
            for when, sentence in found:
                if clock() - when < _PROBE:
                    raise FetchError(f"cannot fetch {scope}: {sentence}")
        return bool(found)


class Retry:
    """`with retry:` around each try: swallows an error that another try may mend, after which that one waits."""

    def __init__(self, link: Link, scope: str, patience: Patience, watch: Watch) -> None:
        self._link, self._scope, self._patience, self._watch = link, scope, patience, watch
        self._failures = 0
        self._gained = 0
        self._not_before = 0.0

    def gained(self, count: int) -> None:
        """So many bytes have come."""
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
        waits = self._patience.waits[1 if status else 0 :]  # a dropped connection is opened again at once
        asked = retry_after(error)
        has_answered = self._gained or (status and status != 429)  # so that it is the file's trouble, not the server's
        if self._failures >= len(waits) or (asked or 0) > self._patience.longest:
            self._link.lost(self._scope if has_answered else "", error)
            return False
        seconds = max(waits[self._failures], asked or 0)
        self._failures += 1
        self._not_before = clock() + seconds
        if not has_answered and self._link.hold(seconds):
            self._watch.note(f"{self._link.explain(error)}; waiting {seconds:.0f} s")
        return True


@dataclass(frozen=True, slots=True)
class ServerReply:
    """What a server said of a file; etag and time of its last change are "" where it did not say. `sent` is the etag
    of the server that sends the bytes, where one that leads to it has another."""

    size: int
    etag: str
    modified: str
    sent: str


class RemoteFile:
    """A file at a URL, read by ranges. `name` is what messages call it; thread-safe."""

    def __init__(self, link: Link, url: str, name: str, size: int | None = None) -> None:
        self.link = link
        self.name = name
        self.size = size
        self._url = url
        self._location = ""
        self._etag: str | None = None

    @property
    def url(self) -> str:
        """Where it lies: with a key to it where its user named one."""
        return self._url

    def begin(self, count: int, watch: Watch, *, is_small: bool = False) -> tuple[bytes, ServerReply]:
        """The first `count` bytes, or all where it is shorter; a small file may come whole.

        Raises:
            FetchError: no ranges, or an answer that contradicts itself.
            OSError, or the client's error: every try failed.
        """
        retry = Retry(self.link, self.name, OPENING, watch)
        while True:
            with retry, self._get(0, count) as (response, chunks):
                answer = self._answer(response, 0, count, is_small=is_small)
                wanted = min(count, answer.size)
                data = b"".join(self._exactly(chunks, wanted))
                if len(data) < wanted:
                    raise ConnectionResetError(f"{len(data)} of {wanted} bytes arrived")
                self.size = answer.size
                return data, answer

    def pin(self, etag: str) -> None:
        """A file that is not of a commit: from now on it must keep this etag, of the server that sends the bytes."""
        self._etag = etag

    def chunks(self, begin: int, end: int, patience: Patience, watch: Watch) -> Generator[bytes, None, None]:
        """Bytes `begin` to `end` as they come, on one connection for as long as it holds; raises as `begin`."""
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
                    raise ConnectionResetError(f"{end - begin} bytes did not arrive")

    def watched_by(self, watch: Watch) -> RemoteReader:
        """The same file for one reader."""
        return RemoteReader(self, watch)

    @contextmanager
    def _get(self, first: int, end: int) -> Iterator[tuple[Any, Iterator[bytes]]]:
        """An answer that is no refusal, and its body. The address that the server last led to is asked first, as it
        is (no headers of ours: it may be another server's), while it is good: that is one request instead of two,
        and the Hub counts those to itself."""
        from huggingface_hub.utils import hf_raise_for_status  # type: ignore[attr-defined] # documented there

        asked = {"Range": f"bytes={first}-{end - 1}", "Accept-Encoding": "identity"}
        if location := self._location:
            with stream(location, asked) as (response, chunks):
                if response.status_code == 206:
                    yield response, chunks
                    return
            self._location = ""
        with stream(self._url, {**self.link.headers, **asked}) as (response, chunks):
            hf_raise_for_status(response)
            if response.history and urlsplit(str(response.url)).netloc != urlsplit(self._url).netloc:
                self._location = str(response.url)
            yield response, chunks

    def _answer(self, response: Any, first: int, end: int, *, is_small: bool = False) -> ServerReply:
        """The answer's own account of what it sends, checked against what was asked for."""
        headers = response.headers
        if headers.get("Content-Encoding", "identity") != "identity":
            raise FetchError(f"the server sends {self.name} compressed, so not the bytes that were requested")
        found = re.fullmatch(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19})", headers.get("Content-Range", ""))
        if response.status_code == 206 and found:
            start, last, size = (int(number) for number in found.groups())
            if start != first or last >= min(end, size):
                raise FetchError(f"the server sends other bytes of {self.name} than were requested")
        elif is_small and response.status_code == 200 and headers.get("Content-Length", "").isdecimal():
            size = int(headers["Content-Length"])
        else:
            raise FetchError(
                f"the server of {self.name} does not support range requests: download the file and name it here"
            )
        if is_small and size > end:
            raise FetchError(f"{self.name} is {size} bytes long: too long for what it should be")
        original = response.history[0].headers if response.history else headers
        etag = original.get("X-Linked-Etag") or original.get("ETag") or headers.get("ETag") or ""
        sent = headers.get("ETag") or ""
        if (self.size is not None and size != self.size) or (self._etag is not None and sent != self._etag):
            raise FetchError(f"{self.name} changed on the server since it was listed: open the model again")
        return ServerReply(size, etag, headers.get("Last-Modified") or "", sent)

    def _exactly(self, chunks: Iterator[bytes], count: int) -> Iterator[bytes]:
        """The body, which must not be longer than that, nor come a few bytes at a time."""
        for chunk in _lively(chunks):
            count -= len(chunk)
            if count < 0:
                raise FetchError(f"the server sends more of {self.name} than was requested")
            yield chunk


@dataclass(frozen=True, slots=True)
class RemoteReader:
    """A remote file for one reader."""

    file: RemoteFile
    watch: Watch

    @contextmanager
    def reading(self, begin: int, end: int) -> Iterator[Fill]:
        """What fills views with bytes `begin` to `end` of the file, in their order.

        Raises:
            WeightsError: when filling, they cannot be had.
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
    """A GET with the Hub client's session (its proxies, its HF_HUB_OFFLINE), and the body as it comes."""
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
    """The chunks, as long as they come at more than a trickle; the time that they are used for does not count.

    Raises:
        TimeoutError: in _PATIENT seconds fewer than _SLOWEST bytes came.
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
    """What the client raises: httpx or requests, by the version of huggingface_hub, whose own error is one of them."""
    from huggingface_hub.errors import HfHubHTTPError

    return OSError, HfHubHTTPError.__bases__[0]


def status_of(error: Exception) -> int:
    """The status of a refusal, 0 of any other error."""
    response = getattr(error, "response", None)
    return int(response.status_code) if response is not None else 0


def retry_after(error: Exception) -> float | None:
    """Seconds that a refusal asks to wait, None where it does not say: Retry-After, or the Hub's RateLimit."""
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
    """An error of the connection in a few words, without the URL: it may be signed."""
    words = re.sub(r"\S*(?:://|\?\S*=)\S*", "", str(error).partition("\n")[0]).strip()
    return printable(words, 120) or type(error).__name__


def _may_mend(error: Exception) -> bool:
    from huggingface_hub.errors import OfflineModeIsEnabled

    if not isinstance(error, client_errors()) or isinstance(error, OfflineModeIsEnabled):
        return False
    if status := status_of(error):
        return status in TROUBLE or status >= 500
    return type(error).__name__ not in ("TooManyRedirects", "UnsupportedProtocol", "InvalidURL", "InvalidSchema")
