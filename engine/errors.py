"""The errors that a user caused and can mend."""

from __future__ import annotations

import errno
import re
import shlex
import sys
from pathlib import Path

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


_CURES = {
    errno.EACCES: "ask its owner for access, or run  chmod u+rX  on it",
    errno.EPERM: "ask its owner for access",
    errno.EISDIR: "name a file in it",
    errno.ENOENT: "check the name",
    errno.ENOTDIR: "check the name",
    errno.ELOOP: "its link leads back to itself, name the file itself",
    errno.ENAMETOOLONG: "check the name",
    errno.EINVAL: "name a file",
    errno.EMFILE: "raise the limit with  ulimit -n 4096",
    errno.ENOSPC: "make room there, or name another place",
    errno.EDQUOT: "make room there, or name another place",
    errno.EROFS: "name another place",
}


def cure_of(error: OSError) -> str:
    """What a user can do about an error of the system."""
    return _CURES.get(error.errno or 0, "check the disk, or name another place")


def cannot_read(named: str | Path, error: OSError) -> InputError:
    """The error about a file or folder that the system does not let us read, with what to do about it."""
    reason = error.strerror or type(error).__name__
    return InputError(f"cannot read {printable(str(named))}: {reason}: {cure_of(error)}")


def cannot_write(named: str | Path, error: OSError) -> InputError:
    """The error about a file that cannot be written there, with what to do about it."""
    refused = error.errno in (errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENOTDIR, errno.EISDIR)
    cure = "name another" if refused else cure_of(error)
    return InputError(f"cannot write {printable(str(named))}: {error.strerror or error}: {cure}")


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
