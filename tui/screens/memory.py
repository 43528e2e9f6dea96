"""Keeps how each model was looked at last, and which commands were given, in the user's state folder.

There is a file for each model, named by its content, so that it is found under another name of the model. The store
is not used for it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from platformdirs import user_state_path

from rankscope.engine.atomic import sweep, write_atomically
from rankscope.engine.errors import printable
from rankscope.engine.formats.guarded import head_of
from rankscope.engine.spectrum import digest

from ..data.model import Model
from ..data.remembered import Remembered, UnreadableError, read

_LARGEST = 64 * 1024
"""Bytes of a file that are read: none of ours has more."""
_MOST = 500
"""Models that are remembered; those that were not opened for longest are forgotten first."""
COMMANDS = 200
"""Commands that are remembered."""


class Memory:
    """How one model was looked at, until it is opened again.

    `last` is the state in which it was left, None if nothing is remembered; `said` is a line that says why, "" for no
    problem. Several explorers may keep theirs; the last one wins.
    """

    def __init__(self, model: Model, *, fresh: bool = False) -> None:
        """`fresh`: ignore what was kept before."""
        identities = sorted({p.source.identity for p in model.tree.projections})
        self._path = _folder() / f"{digest(*identities)}.json"
        self._about = {"name": model.name, "folder": model.folder}
        self._written: Remembered | None = None
        self._may_write = True
        self.last: Remembered | None = None
        self.said = ""
        with suppress(OSError):  # a folder that cannot be read
            self._read(fresh)

    def _read(self, fresh: bool) -> None:
        if not os.path.lexists(self._path):
            return
        try:
            found = read(head_of(self._path, _LARGEST))
        except UnreadableError as error:
            self._may_write = not error.is_newer
            self.said = f"the view you left it in cannot be restored: {printable(str(self._path), 300)} {error}"
            return
        if not fresh:
            self.last = found

    def keep(self, now: Remembered) -> str:
        """Keep the state if it has changed. Return why that failed, "" if it worked."""
        if now == self._written or not self._may_write:
            return ""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            if not self._path.exists():
                sweep(self._path.parent)
                _forget_oldest(self._path.parent)
            write_atomically(self._path, now.written(**self._about))
        except OSError as error:
            self._may_write = False
            why = f"the view you leave it in cannot be kept: {printable(str(self._path.parent), 300)}: {error.strerror}"
            return "" if self.said else why  # one line is enough
        self._written = now
        return ""


def last_used() -> Mapping[str, float]:
    """When models were last looked at, in seconds since 1970, by their folders in the store."""
    found: dict[str, float] = {}
    with suppress(OSError):
        for path in _folder().glob("*.json"):
            with suppress(OSError, ValueError, RecursionError, AttributeError):
                folder = json.loads(head_of(path, _LARGEST)).get("folder")
                if isinstance(folder, str):
                    found[folder] = max(found.get(folder, 0.0), path.stat().st_mtime)
    return found


class Commands:
    """The commands that were given to the explorer, the newest last, in one file for all models."""

    def __init__(self, *, kept: bool = True) -> None:
        """`kept`: read from and written to the file; otherwise only in memory."""
        self._kept = kept
        self.lines: list[str] = _read_commands() if kept else []

    def add(self, text: str) -> None:
        """Remember one more. If it cannot be written, it is remembered until the explorer ends."""
        if not text.strip() or text in self.lines[-1:]:
            return
        self.lines = [*self.lines, text][-COMMANDS:]
        if not self._kept:
            return
        with suppress(OSError):
            _commands_path().parent.mkdir(parents=True, exist_ok=True)
            flags = os.O_APPEND | os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC | os.O_NONBLOCK
            handle = os.open(_commands_path(), flags, 0o600)
            try:
                os.write(handle, f"{text}\n".encode(errors="replace"))  # one call a line: others may write too
            finally:
                os.close(handle)


def _read_commands() -> list[str]:
    path = _commands_path()
    data = head_of(path, 4 * _LARGEST)
    lines = [line for line in data.decode(errors="replace").split("\n") if line.strip() and line.isprintable()]
    if len(data) > _LARGEST:
        with suppress(OSError):
            write_atomically(path, "".join(f"{line}\n" for line in lines[-COMMANDS:]).encode())
    return lines[-COMMANDS:]


def _folder() -> Path:
    return user_state_path("rankscope") / "models"


def _commands_path() -> Path:
    return user_state_path("rankscope") / "commands"


def _forget_oldest(folder: Path) -> None:
    """Make room for one more."""
    files = sorted(folder.glob("*.json"), key=lambda path: path.stat().st_mtime)
    for path in files[: max(0, len(files) + 1 - _MOST)]:
        path.unlink(missing_ok=True)
