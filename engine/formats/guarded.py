"""Opening untrusted files: no FIFO, no link out of the folder, no JSON that fills the memory."""

from __future__ import annotations

import errno
import json
import re
import stat
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import InputError, cannot_read, printable
from . import foreign

MAX_CONFIG = 8 << 20  # the largest config.json name 21,843 labels twice: 2 MB
_ALWAYS_HELD = 1 << 20
_MOST_TIMES = 10
_AT_ONCE = 4096  # strings that are counted together
_FOUR_BYTES = re.compile(rb"[\xf0-\xf7]")  # the first byte of a character of four bytes, in UTF-8 and in Python
_TEXT = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)  # possessive: backtracking would take memory


class _Links:
    """The user's choice, for the whole process, to follow links out of a model's folder."""

    followed = False


LINKS = _Links()
_MOST_NAMES = 10_000
_ALIKE = 0.75


def open_regular(file: Path) -> BinaryIO:
    """Open a regular file for reading; a FIFO would wait for a writer, and a device may never end.

    Raises:
        OSError: it cannot be opened, or is not a regular file.
    """
    mode = file.stat().st_mode
    if stat.S_ISDIR(mode):
        raise OSError(errno.EISDIR, "it is a folder")
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "not a regular file")
    return open(file, "rb")


def no_such(what: str, text: str, cure: str) -> InputError:
    """The error about a file (`what`) that is not here: a name that is here and nearly the same, or else the cure."""
    near = nearest(text)
    return InputError(f"no such {what}: {printable(text)}: {f'did you mean {printable(near)}?' if near else cure}")


def nearest(text: str, also: Iterable[str] = ()) -> str:
    """The path that is most like the one that a user typed, as far as it exists, or one of these other names; "" if
    none is like it."""
    from difflib import get_close_matches

    try:
        folder, lost = Path(text).expanduser(), list[str]()
        while not folder.is_dir() and folder.name:
            folder, lost = folder.parent, [folder.name, *lost]
        names = {path.name.lower(): path for path in islice(folder.iterdir(), _MOST_NAMES)}
        near = get_close_matches(lost[0].lower(), [*names, *also], 1, _ALIKE) if lost else []
        if not near:
            return ""
        found = names.get(near[0], Path(near[0]))
        return str(found.joinpath(*lost[1:]) if found.joinpath(*lost[1:]).exists() else found)
    except (OSError, ValueError, RuntimeError):  # no access, too long, a null character, ~nobody
        return ""


def head_of(file: Path, count: int) -> bytes:
    """The first `count` bytes of a file; b"" if it cannot be read, which listing it will report."""
    try:
        with open_regular(file) as handle:
            return handle.read(count)
    except OSError:
        return b""


def check_inside(file: Path, within: Path | None = None) -> None:
    """Refuse a link out of its folder, or out of `within`: a downloaded model must not make us read other files.

    The Hub cache is made of links, from snapshots/<commit> to the blobs of the same model, and older downloads to
    a folder are links to such blobs.

    Raises:
        InputError: `file` is such a link.
    """
    folder, real = (within or file.parent).resolve(), file.resolve()
    is_blob = real.parent.name == "blobs" and real.parent.parent.name.startswith("models--")
    if not real.is_relative_to(folder) and not is_blob and not LINKS.followed:
        where = printable(str(real))
        raise InputError(
            f"{printable(str(file))} is a link out of its folder: name the folder of {where}, or add --follow-links"
        )


def read_json(file: Path, limit: int = MAX_CONFIG) -> dict[str, Any]:
    """Read a JSON object from a file of at most `limit` bytes.

    Raises:
        InputError: unreadable, too large, not JSON, or not an object.
    """
    try:
        if file.stat().st_size > limit:
            raise InputError(
                f"{printable(str(file))} is larger than {limit} bytes: too large for a file of a model, fetch it again"
            )
        return parse_json(file.read_bytes(), file)
    except OSError as error:
        raise cannot_read(file, error) from None


def parse_json(data: bytes, file: Path) -> dict[str, Any]:
    """Parse the content of a file as a JSON object.

    Raises:
        InputError: not JSON, or not an object.
    """
    shown = printable(str(file))
    try:
        check_dense(data)
        found = json.loads(data)
    except json.JSONDecodeError as error:
        if known := foreign.signature(data[: foreign.HEAD]):
            raise InputError(f"{shown} {known}") from None
        if not error.doc.lstrip("\ufeff \t\r\n").startswith(("{", "[", "//", "/*", "#")):
            instead = foreign.content(data[: foreign.HEAD], "JSON") or "is not valid JSON: fetch it again"
            raise InputError(f"{shown} {instead}") from None
        place = f"line {error.lineno}, column {error.colno}: {_describe_fault(error)}"
        raise InputError(f"{shown} is not valid JSON, {place}; mend it or fetch it again") from None
    except UnicodeDecodeError as error:
        if known := foreign.signature(data[: foreign.HEAD]):
            raise InputError(f"{shown} {known}") from None
        place = f"byte {error.start + 1} is not {error.encoding.upper()}"
        raise InputError(f"{shown} is not valid JSON: {place}; save it as UTF-8") from None
    except (ValueError, RecursionError):
        raise InputError(f"{shown} is not valid JSON: fetch it again") from None
    if not isinstance(found, dict):
        raise InputError(f"{shown} is not a JSON object, {{...}}: fetch it again, or name another file")
    if foreign.answer_of_a_server(found):
        raise InputError(f"{shown} {foreign.content(data[: foreign.HEAD], 'what its name says')}")
    return found


def _describe_fault(error: json.JSONDecodeError) -> str:
    """Describe the error at its place, if it is a common one, such as syntax that Python allows and JSON does not."""
    before, rest = error.doc[: error.pos].rstrip(), error.doc[error.pos :]
    if rest.startswith(("//", "/*", "#")):
        return "JSON has no comments"
    if (rest[:1] in "}]" and before.endswith(",")) or error.msg.startswith("Illegal trailing comma"):
        return "a comma before the closing bracket"
    if rest.startswith("'"):
        return "single quotes where JSON has double ones"
    return printable(error.msg[:1].lower() + error.msg[1:], 80)


def check_dense(data: bytes) -> None:
    """Refuse large JSON whose values are so small that Python would need 20 to 60 times its size to hold them.

    Accepted JSON takes 2 to 8 times its size, at most 17: see check_memory.
    The densest entry of a safetensors header has 50 bytes: 3 brackets, 4 colons, 5 commas. Characters within strings do
    not count; strings are only removed if the counts of the whole text are too high.

    Raises:
        ValueError: it is denser than that.
    """
    if len(data) <= _ALWAYS_HELD or max(needed := _least_bytes(data)) <= len(data):
        return
    for texts in _texts(data):
        needed = [all_ - within for all_, within in zip(needed, _least_bytes(texts), strict=True)]
    if max(needed) > len(data):
        raise ValueError("it holds too many values for its size")


def _least_bytes(data: bytes) -> list[int]:
    """The least number of bytes that JSON with as many brackets, colons and commas takes."""
    return [16 * (data.count(b"[") + data.count(b"{")), 12 * data.count(b":"), 5 * data.count(b",")]


def check_memory(data: bytes, size: int) -> None:
    """Refuse large JSON that Python may need more than ten times `size`, the size of its file, to hold.

    A file with weights is much larger than its header; one without consists only of names and values. Characters within
    strings do not count as values; strings are only removed if the counts of the whole text are too high.

    Raises:
        ValueError: it may need more.
    """
    room = _MOST_TIMES * size - _bytes_of_text(data)
    if len(data) <= _ALWAYS_HELD or (needed := _bytes_of_values(data)) <= room:
        return
    if needed - sum(map(_bytes_of_values, _texts(data))) > room:
        raise ValueError("it holds too many values for its size")


def _texts(data: bytes) -> Iterator[bytes]:
    """The strings in JSON as they are written, some thousands together: counting in each alone takes far longer."""
    found = (text[0] for text in _TEXT.finditer(data))
    while texts := b"".join(islice(found, _AT_ONCE)):
        yield texts


def _bytes_of_values(data: bytes) -> int:
    """The most memory that objects (and what is made of them), lists, names and values take, without their text."""
    return 500 * data.count(b"{") + 100 * data.count(b"[") + 200 * data.count(b":") + 45 * data.count(b",")


def _bytes_of_text(data: bytes) -> int:
    """The most memory that the bytes, the text decoded from them, and the strings in it take.

    One wide character makes a whole text wide, and a text with escapes is put together from pieces.
    """
    wide = 1 if data.isascii() else 4 if _FOUR_BYTES.search(data) else 2
    pieces = wide if b"\\" in data else 0
    return len(data) * (1 + wide + (4 if b"\\u" in data else wide) + pieces)
