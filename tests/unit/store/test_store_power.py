"""Power cuts: after each call of the operating system only synced bytes and synced names are sure to be there."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from rankscope.engine.spectrum import Spectrum
from rankscope.store import spectra
from rankscope.store.spectra import SpectraStore

Make = Callable[..., Spectrum]
Same = Callable[[Spectrum, Spectrum], bool]
Every = Callable[[Iterable[int], int], list[int]]
Disk = dict[str, bytes | None]
"""Bytes by path; None: a folder."""


class File:
    """A file or a folder: the bytes written, and those of them that are synced."""

    def __init__(self, is_folder: bool) -> None:
        self.is_folder = is_folder
        self.data = self.synced = b""


class Machine:
    """Follows the calls that change a disk, and keeps after each the states that a power cut may leave."""

    def __init__(self, root: Path, patch: pytest.MonkeyPatch) -> None:
        self._root = str(root)
        self._names: dict[str, File] = {}
        self._sure: dict[str, File] = {}
        self._handles: dict[int, str | File] = {}
        self.saved: list[int] = []
        self.cuts: list[tuple[Disk, Disk, list[int]]] = []
        for name in ("open", "write", "fsync", "replace", "rename", "unlink", "mkdir"):
            patch.setattr(os, name, self._followed(getattr(os, name), getattr(self, f"_{name}")))

    def _followed(self, real: Callable[..., object], follow: Callable[..., None]) -> Callable[..., object]:
        def call(*args: object, **more: object) -> object:
            result = real(*args, **more)
            follow(result, *args)
            self.cut()
            return result

        return call

    def cut(self) -> None:
        """Keep the states that a power cut may leave now: with the synced names only, and with all names."""
        self.cuts.append((self._left(self._sure), self._left(self._names), list(self.saved)))

    def _left(self, names: dict[str, File]) -> Disk:
        """The disk with these names; for bytes that were not synced only their number."""
        found: Disk = {}
        for path, file in sorted(names.items()):
            parent = os.path.dirname(path)  # noqa: PTH120
            if parent == self._root or parent in found:
                rest = bytes(len(file.data) - len(file.synced))
                found[path] = None if file.is_folder else file.synced + rest
        return found

    def _open(self, handle: int, path: os.PathLike[str], flags: int, *_: object) -> None:
        name = os.fspath(path)
        self._handles[handle] = name
        if flags & os.O_CREAT:
            self._handles[handle] = self._names[name] = File(is_folder=False)

    def _write(self, count: int, handle: int, data: bytes) -> None:
        file = self._handles[handle]
        assert isinstance(file, File)
        file.data += bytes(data[:count])

    def _fsync(self, _: None, handle: int) -> None:
        file = self._handles[handle]
        if isinstance(file, File):
            file.synced = file.data
            return
        for names in (self._sure, self._names):
            inside = {path for path in names if os.path.dirname(path) == file}  # noqa: PTH120
            if names is self._sure:
                self._sure = {path: held for path, held in self._sure.items() if path not in inside}
            else:
                self._sure |= {path: self._names[path] for path in inside}

    def _replace(self, _: None, old: os.PathLike[str], new: os.PathLike[str]) -> None:
        self._names[os.fspath(new)] = self._names.pop(os.fspath(old))

    _rename = _replace

    def _unlink(self, _: None, path: os.PathLike[str]) -> None:
        del self._names[os.fspath(path)]

    def _mkdir(self, _: None, path: os.PathLike[str], *__: object) -> None:
        self._names[os.fspath(path)] = File(is_folder=True)


def lay(disk: Disk, old: Path, new: Path) -> None:
    """Write what is left of the folder `old` into a new folder `new`."""
    new.mkdir()
    for path, data in disk.items():
        there = new / Path(path).relative_to(old)
        if data is None:
            there.mkdir()
        else:
            there.write_bytes(data)


def test_a_power_cut_after_any_call_loses_nothing_that_was_reported(
    make: Make, same: Same, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every: Every
) -> None:
    monkeypatch.setattr(spectra, "_MERGE_AT", 3)
    disk = tmp_path / "disk"
    disk.mkdir()
    with monkeypatch.context() as patch:
        machine = Machine(disk, patch)
        with SpectraStore(disk / "root", "m") as store:
            for n in range(5):
                store.put(make(n)).result()
                machine.saved.append(n)
                machine.cut()
                store.merge()
    assert len(machine.cuts) > 40
    assert machine.saved == list(range(5))
    for place in every(range(len(machine.cuts)), 16):
        *left, saved = machine.cuts[place]
        for kind, found in enumerate(left):
            lay(found, disk, tmp_path / f"{place}-{kind}")
            again = SpectraStore(tmp_path / f"{place}-{kind}" / "root", "m")
            assert all(same(again.get(make(n).projection.key), make(n)) for n in saved)
