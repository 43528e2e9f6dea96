"""Bytes of files on a server, by HTTP range: resumed when a connection drops, retried a limited number of times."""

from __future__ import annotations

import re
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from ..errors import WeightsError
from ..landing import Fill
from . import retries
from .retries import OPENING, READING, FetchError, Link, Patience, Retry, Watch, client_errors

_BLOCK = 1 << 16
_PATIENT = 20.0
"""Seconds of waiting in which at least _SLOWEST bytes must come: a server could send single bytes for ever."""
_SLOWEST = 20_000


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
                    raise ConnectionResetError(f"{len(data)} of {wanted} bytes arrived")
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
                    raise ConnectionResetError(f"{end - begin} bytes did not arrive")

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
            raise FetchError(
                f"the server sends {self.name} compressed, so not the bytes that were requested: download the "
                "file and name it here"
            )
        size = self._stated_size(response, first, end, is_small=is_small)
        original = response.history[0].headers if response.history else headers
        etag = original.get("X-Linked-Etag") or original.get("ETag") or headers.get("ETag") or ""
        sent = headers.get("ETag") or ""
        if (self.size is not None and size != self.size) or (self._etag is not None and sent != self._etag):
            raise FetchError(f"{self.name} changed on the server since it was listed: open the model again")
        return ServerReply(size, etag, headers.get("Last-Modified") or "", sent)

    def _stated_size(self, response: Any, first: int, end: int, *, is_small: bool) -> int:
        """The size of the file by a response that sends the requested range, or, for a small file, all of it."""
        headers = response.headers
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
            raise FetchError(f"{self.name} is {size} bytes long, too long for what it should be: check the name")
        return size

    def _exactly(self, chunks: Iterator[bytes], count: int) -> Iterator[bytes]:
        """The body, which must neither be longer than `count` bytes nor arrive a few bytes at a time."""
        for chunk in _at_a_steady_pace(chunks):
            count -= len(chunk)
            if count < 0:
                raise FetchError(f"the server sends more of {self.name} than was requested")
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


def _at_a_steady_pace(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """The chunks, as long as they come at more than a trickle; only time spent waiting for them counts.

    Raises:
        TimeoutError: fewer than _SLOWEST bytes came in _PATIENT seconds.
    """
    waited, came = 0.0, 0
    begun = retries.clock()
    for chunk in chunks:
        waited += retries.clock() - begun
        came += len(chunk)
        yield chunk
        if waited >= _PATIENT:
            if came < _SLOWEST:
                raise TimeoutError(f"{came} bytes came in {waited:.0f} s")
            waited, came = 0.0, 0
        begun = retries.clock()
