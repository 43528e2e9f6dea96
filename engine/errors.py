"""The errors that a user caused and can mend."""

from __future__ import annotations

import re
import shlex
import sys

_URL_SECRETS = re.compile(r"(?<=://)[^/\s@'\"]*@|(?<=://)([^\s?#'\"]*)[?#][^\s'\"]*")


class InputError(Exception):
    """Wrong input. The message says in one sentence what is wrong and what to do; exit code 2, no traceback."""


class WeightsError(Exception):
    """The weights of one projection cannot be used. The message is one sentence; the others are still computed."""


class UnseenError(WeightsError):
    """No token of a calibration reached a matrix, so nothing is known of its input."""

    @classmethod
    def of(cls, shown: str) -> UnseenError:
        """The error about a matrix that the user knows as `shown`."""
        return cls(f"{shown} is unseen: no token of the calibration reached it")


def install_line(extra: str) -> str:
    """The command that installs an extra of this package into the running Python; it works for clones too."""
    return f"{shlex.quote(sys.executable)} -m pip install 'rankscope-tui[{extra}]'"


def without_secrets(text: str) -> str:
    """The text with user, password, query and fragment removed from URLs: a signed URL's query is a key to the file."""
    if "://" not in text:
        return text
    return _URL_SECRETS.sub(lambda found: found[1] or "", _URL_SECRETS.sub(lambda found: found[1] or "", text))


def printable(text: str, limit: int = 200) -> str:
    """Make untrusted text safe for terminals and logs: escape control and invisible characters, remove secrets from
    URLs, and cut it to `limit` characters."""
    text = without_secrets(text)
    if len(text) <= limit and text.isprintable():  # true for nearly all text, and 20 times faster
        return text
    shown = escaped(text[: limit + 1])
    return shown if len(shown) <= limit else shown[: limit - 3] + "..."


def escaped(text: str) -> str:
    """The text with its control and invisible characters written as escapes."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
