"""Answers of disks and network file systems: a folder that cannot be synced, stale files, wrong bytes."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rankscope.engine.spectrum import Spectrum
from rankscope.store import layout, regular_files, segments
from rankscope.store.entry import entry_of
from rankscope.store.spectra import SpectraStore

Make = Callable[..., Spectrum]
Same = Callable[[Spectrum, Spectrum], bool]


def key(spectrum: Spectrum) -> str:
    return spectrum.projection.key


def segment(folder: Path, *spectra: Spectrum) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    image = layout.build([entry_of(s) for s in spectra], [s.values for s in spectra])
    return segments.write(folder, segments.SEGMENT, image.data)


def failing(code: int, real: Callable[..., Any], is_hit: Callable[..., bool]) -> Callable[..., Any]:
    """A call that fails for arguments for which `is_hit` is true."""

    def call(*args: Any) -> Any:
        if is_hit(*args):
            raise OSError(code, os.strerror(code))
        return real(*args)

    return call


def is_folder(handle: int) -> bool:
    return stat.S_ISDIR(os.fstat(handle).st_mode)


def test_where_a_folder_cannot_be_synced_nothing_counts_as_saved(
    make: Make, same: Same, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with SpectraStore(tmp_path, "m") as store:
        store.put(make(0)).result()
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", failing(errno.EIO, os.fsync, is_folder))
            assert getattr(store.put(make(1)).exception(), "errno", None) == errno.EIO
        store.put(make(1)).result()
        assert all(same(store.get(key(make(n))), make(n)) for n in (0, 1))


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP])
def test_a_file_system_that_syncs_no_folders_serves(
    make: Make, same: Same, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    monkeypatch.setattr(os, "fsync", failing(code, os.fsync, is_folder))
    with SpectraStore(tmp_path / "new", "m") as store:
        store.put(make(0)).result()
    assert same(SpectraStore(tmp_path / "new", "m").get(key(make(0))), make(0))


@pytest.mark.parametrize("call", ["pread", "read_bytes"])
def test_a_stale_file_was_merged_by_another_host(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    names = [segment(tmp_path / "m", make(n)) for n in range(3)]
    reader = SpectraStore(tmp_path, "m")
    stale = reader.folder / names[0]
    if call == "pread":  # its index was read before
        assert len(reader.entries()) == 3
    real = getattr(os if call == "pread" else regular_files, call)

    def is_stale(what: int | Path, *_: object) -> bool:
        path = Path(f"/proc/self/fd/{what}").readlink() if isinstance(what, int) else what
        if path != stale:
            return False
        monkeypatch.undo()
        segments.merge(reader.folder, names)
        return True

    monkeypatch.setattr(os if call == "pread" else regular_files, call, failing(errno.ESTALE, real, is_stale))
    found = reader.values(key(make(n)) for n in range(3))
    assert [found[key(make(n))].tobytes() for n in range(3)] == [make(n).values.tobytes() for n in range(3)]
    assert reader.damaged == []
    assert not stale.exists()


@pytest.mark.parametrize("kind", ["values", "lost row", "other key"])
def test_a_merge_that_reads_back_as_something_else_costs_nothing(
    make: Make, same: Same, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    names = [segment(tmp_path / "m", make(n)) for n in range(3)]
    real = layout.build

    def wrong(entries: list[Any], values: list[Any]) -> layout.Image:
        """A whole file, under the name that its bytes have, but not the one that was to be written."""
        promised = real(entries, values).part
        if kind == "values":
            values = [values[0] + 1, *values[1:]]
        elif kind == "lost row":
            entries, values = entries[1:], values[1:]
        else:
            entries = [replace(entries[0], projection=replace(entries[0].projection, key="other")), *entries[1:]]
        return replace(real(entries, values), part=promised)

    with monkeypatch.context() as patch:
        patch.setattr(segments, "build", wrong)
        with pytest.raises(OSError, match="reads as something else"):
            segments.merge(tmp_path / "m", names)
    assert sorted(path.name for path in (tmp_path / "m").iterdir()) == sorted(names)
    store = SpectraStore(tmp_path, "m")
    assert all(same(store.get(key(make(n))), make(n)) for n in range(3))


@pytest.mark.parametrize("kind", [segments.SEGMENT, segments.VOLUME])
@pytest.mark.parametrize("whole", [False, True])
def test_a_bad_sector_costs_the_spectra_in_it(
    make: Make, same: Same, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, whole: bool
) -> None:
    kept = [make(n) for n in range(4)]
    image = layout.build([entry_of(s) for s in kept], [s.values for s in kept])
    (tmp_path / "m").mkdir()
    name = segments.write(tmp_path / "m", kind, image.data)
    bad = image.part.place(2).start + 40
    real = regular_files.read_bytes
    hit = failing(errno.EIO, os.pread, lambda _, count, start: start <= bad < start + count)
    with monkeypatch.context() as patch:
        patch.setattr(os, "pread", hit)
        patch.setattr(regular_files, "read_bytes", failing(errno.EIO, real, lambda path: path.suffix == ".h5"))
        store = SpectraStore(tmp_path, "m")
        if whole:
            store.verify()
        assert len(store.values(map(key, kept))) == 3
        assert [store.has(key(s)) for s in kept] == [True, True, False, True]
        assert all(same(store.get(key(s)), s) for s in kept if s is not kept[2])
        ((path, sentence),) = store.damaged
        assert path == store.folder / name
        assert sentence.startswith("layers.2.attention.key cannot be read (Input/output error)")
    assert SpectraStore(tmp_path, "m").values([key(kept[2])]).keys() == {key(kept[2])}  # as with another cable


def test_a_disk_that_gives_nothing_back_is_an_error_and_no_damage(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = segment(tmp_path / "m", make(0), make(1))
    store = SpectraStore(tmp_path, "m")
    assert len(store.entries()) == 2
    with monkeypatch.context() as patch:
        patch.setattr(os, "pread", failing(errno.EIO, os.pread, lambda *_: True))
        with pytest.raises(OSError, match="Input/output"):
            store.values([key(make(0))])
    assert len(store.values([key(make(0)), key(make(1))])) == 2
    assert segments.names(store.folder) == [name]
