"""Errors in our code: the traceback goes to a file, and the user gets a sentence."""

from __future__ import annotations

import logging
import threading
from importlib.metadata import version
from logging.handlers import RotatingFileHandler
from pathlib import Path

from platformdirs import user_log_path

from rankscope.engine.errors import InputError, printable

_BYTES = 256 * 1024
_LOCK = threading.Lock()


class _File(RotatingFileHandler):
    def handleError(self, record: logging.LogRecord) -> None:  # noqa: ARG002, N802 - the base class's
        raise  # the base class would print a traceback to stderr, onto the user's screen


def log_path() -> Path:
    """The path of the file with tracebacks."""
    return user_log_path("rankscope") / "rankscope.log"


def report(error: Exception, doing: str) -> str:
    """Write the traceback and return what to tell the user: `<doing> failed: <why>; details in <path>`.

    An error that the user can mend has a sentence already and is not logged. May be called from any thread.
    """
    if isinstance(error, InputError):
        return printable(str(error), 500)
    what = printable(f"{doing} failed: {type(error).__name__}: {error}", 300)
    try:
        with _LOCK:
            _write(what, error)
    except OSError:  # a full disk, a home that cannot be written
        return what
    return f"{what}; details in {printable(str(log_path()), 300)}"


def _write(what: str, error: Exception) -> None:
    """Open the file, write one entry and close it: without errors no file is made or kept open."""
    path = log_path()
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = _File(path, maxBytes=_BYTES, backupCount=1, encoding="utf-8", errors="backslashreplace")
    try:
        handler.setFormatter(logging.Formatter(f"%(asctime)s rankscope-tui {version('rankscope-tui')}: %(message)s"))
        trace = (type(error), error, error.__traceback__)
        handler.handle(logging.LogRecord("rankscope", logging.ERROR, __file__, 0, what, None, trace))
    finally:
        handler.close()
