"""The errors that a user caused and can mend."""

from __future__ import annotations

import re
import shlex
import sys

_URL_SECRETS = re.compile(r"(?<=://)[^/\s@'\"]*@|(?<=://)([^\s?#'\"]*)[?#][^\s'\"]*")


class InputError(Exception):
    """Wrong input: one sentence that says what is wrong and what to do. Exit code 2, no traceback."""


class WeightsError(Exception):
    """The weights of one projection cannot be used: one sentence. The others go on."""


class UnseenError(WeightsError):
    """No token of a calibration reached a matrix, so nothing is known of its input."""

    @classmethod
    def of(cls, shown: str) -> UnseenError:
        """The error on what is called so."""
        return cls(f"{shown} is unseen: no token of the calibration reached it")


def install_line(extra: str) -> str:
    """The command that adds an extra of this package to the Python that runs it, whether it came from an index or a
    clone."""
    return f"{shlex.quote(sys.executable)} -m pip install 'rankscope-tui[{extra}]'"


def without_secrets(text: str) -> str:
    """Text whose URLs have no user, password, query or fragment: the query of a signed URL is a key to the file."""
    if "://" not in text:
        return text
    return _URL_SECRETS.sub(lambda found: found[1] or "", _URL_SECRETS.sub(lambda found: found[1] or "", text))


def printable(text: str, limit: int = 200) -> str:
    """Untrusted text made safe for a terminal and for logs: control and invisible characters shown as escapes,
    URLs without what should stay secret."""
    text = without_secrets(text)
    if len(text) <= limit and text.isprintable():  # nearly all text, at a twentieth of the time
        return text
    shown = escaped(text[: limit + 1])
    return shown if len(shown) <= limit else shown[: limit - 3] + "..."


def escaped(text: str) -> str:
    """Text whose control and invisible characters are shown as escapes."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
