"""Examining a damaged file, writing its intact spectra to a new one, and describing what is lost.

A flipped bit costs one spectrum: every spectrum has a checksum, and the first bytes hold a digest of the rest of the
file. So the intact spectra are known, and are written to a new file before the damaged one is set aside.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from rankscope.engine.spectrum import Values

from . import segments
from .entry import Entry
from .layout import FileContents, UnknownFormatError, build, parse, parse_damaged, parse_volume
from .segments import DamagedFile

_MOST_NAMED = 20
"""The most addresses in a sentence."""
_CAUSE = "(a fault of the disk, or an edit)"


@dataclass(frozen=True, slots=True)
class Damage:
    """The result of reading a whole file: its rows, None unless the damage is confined to values; the rows whose values
    are lost; and the intact spectra with their values."""

    part: FileContents | None
    lost: frozenset[int]
    intact: Sequence[tuple[Entry, Values]]
    is_whole: bool


@dataclass(frozen=True, slots=True)
class Renewed:
    """The path of a damaged file that was set aside, and the new file with its intact spectra: name and rows, or
    None."""

    aside: Path
    name: str
    part: FileContents | None


def examine(path: Path) -> Damage:
    """Read a file that seemed damaged again, as a whole.

    Raises:
        layout.UnknownFormatError: it has another format version.
        FileNotFoundError: it is gone: list the folder again.
        OSError: it cannot be read.
    """
    data = segments.read(path)
    is_whole = segments.is_whole(path, data)
    part = parse(data) if is_whole else parse_damaged(data)
    if part is None:
        return Damage(None, frozenset(), (), is_whole=False)
    found = list(segments.spectra_in(data, part))
    lost = frozenset(row for row, one in enumerate(found) if one.values is None)
    intact = [(one.entry, one.values) for one in found if one.values is not None]
    return Damage(part, lost, intact, is_whole and not lost)


def renew(path: Path, damage: Damage) -> Renewed | None:
    """Write the intact spectra into a new file, then set the damaged one aside.

    Returns None if that is impossible (a read-only folder, a full disk): the damaged file stays as it was.
    """
    folder, kind = path.parent, path.name[:3]
    name, part = "", None
    try:
        if damage.intact:
            image = build(*zip(*damage.intact, strict=True))
            name, part = segments.write_verified(folder, kind, image), image.part
        return Renewed(segments.set_aside(path), name, part)
    except FileNotFoundError:  # another process was faster; its file has the same spectra
        return Renewed(path, name, part)
    except DamagedFile as damaged:
        _unlink(damaged.path)
    except OSError:
        if name:
            _unlink(folder / name)
    return None


def load_aside(path: Path) -> FileContents | None:
    """The rows of a file that was set aside; None if they cannot be read."""
    try:
        return parse_volume(path)
    except (OSError, UnknownFormatError):
        return None


def sentence(part: FileContents | None, lost: Sequence[Entry]) -> str:
    """A sentence for the user on what is lost in a file that was just found damaged."""
    if part is None:
        return f"Its bytes are not those that were written {_CAUSE}; all its spectra count as not computed."
    if not lost:
        return f"Its bytes are not those that were written {_CAUSE}; nothing is lost, other files have all of it."
    kept = len(part.entries) - len(lost)
    rest = f"; of the {len(part.entries)} spectra in the file no other is lost" if kept else ""
    verb = "is" if len(lost) == 1 else "are"
    return f"{_named(lost)} {verb} damaged and {_counts(lost)} as not computed{rest} {_CAUSE}."


def sentence_unread(lost: Sequence[Entry], error: OSError) -> str:
    """A sentence for the user on a file that can only be read in part."""
    return f"{_named(lost)} cannot be read ({error.strerror}) and {_counts(lost)} as not computed; the others can."


def sentence_aside(part: FileContents | None, lost: Sequence[Entry]) -> str:
    """A sentence for the user on what is still lost in a file that was set aside before."""
    if part is None:
        return "It was found damaged and set aside; what it held cannot be told any more."
    if not lost:
        return "It was found damaged and set aside; all that it held is stored again, and it can be deleted."
    return f"It was found damaged and set aside; of its spectra these are not computed again yet: {_named(lost)}."


def _counts(lost: Sequence[Entry]) -> str:
    return "counts" if len(lost) == 1 else "count"


def _named(lost: Sequence[Entry]) -> str:
    labels = sorted(entry.projection.label for entry in lost)
    more = [f"{len(labels) - _MOST_NAMED} more"] if len(labels) > _MOST_NAMED else []
    return ", ".join([*labels[:_MOST_NAMED], *more])


def _unlink(path: Path) -> None:
    with suppress(OSError):
        path.unlink()
