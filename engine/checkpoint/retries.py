"""When to send the next request to a server, and when to give it up: waits, retries, and errors of the HTTP client."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from types import TracebackType

from ..errors import printable

_TROUBLE = (408, 429)
"""Statuses, besides those from 500 on, after which another try may succeed."""
_WORTH = 1 << 20
"""A connection that sent this many bytes before it dropped was useful: the count of failures starts again."""
_TOLD = 5.0
"""The user is told about waits from this many seconds on."""
_PROBE = 10.0
"""Seconds without requests to a server after giving it up; else each tensor of a scan would wait for a minute."""


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
        """Let nobody send requests for some seconds. Returns True if the wait is long and the user was not told yet."""
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
        if not isinstance(error, Exception) or not _is_temporary(error):
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


def short_message(error: Exception) -> str:
    """A connection error in a few words, without the URL, which may be signed."""
    words = re.sub(r"\S*(?:://|\?\S*=)\S*", "", str(error).partition("\n")[0]).strip()
    return printable(words, 120) or type(error).__name__


def _is_temporary(error: Exception) -> bool:
    from huggingface_hub.errors import OfflineModeIsEnabled

    if not isinstance(error, client_errors()) or isinstance(error, OfflineModeIsEnabled):
        return False
    if status := status_of(error):
        return status in _TROUBLE or status >= 500
    return type(error).__name__ not in ("TooManyRedirects", "UnsupportedProtocol", "InvalidURL", "InvalidSchema")
