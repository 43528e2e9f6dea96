"""Files: the order of what reaches the disk, sweeping, planning and merging."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from rankscope.engine.atomic import HOST
from rankscope.engine.spectrum import Spectrum
from rankscope.store import layout, segments
from rankscope.store.entry import entry_of
from rankscope.store.spectra import SpectraStore

Make = Callable[..., Spectrum]
Same = Callable[[Spectrum, Spectrum], bool]


def write(folder: Path, spectra: list[Spectrum], kind: str = segments.SEGMENT) -> str:
    folder.mkdir(exist_ok=True)
    image = layout.build([entry_of(s) for s in spectra], [s.values for s in spectra])
    return segments.write(folder, kind, image.data)


def log_calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """A log of every later os call that matters to a power cut, with its arguments."""
    log: list[tuple[str, str]] = []
    handles: dict[int, str] = {}
    real = {name: getattr(os, name) for name in ("open", "write", "fsync", "replace", "unlink", "mkdir")}

    def kind(path: object) -> str:
        name = os.path.basename(os.fspath(path))  # type: ignore[call-overload]  # noqa: PTH119
        return "temporary" if name.startswith(".tmp") else str(name)[:3] if name.endswith(".h5") else str(name)

    def opened(path: object, *args: int, **more: int) -> int:
        handle: int = real["open"](path, *args, **more)
        handles[handle] = kind(path)
        return handle

    def on_handle(name: str) -> Callable[..., object]:
        def call(handle: int, *args: object) -> object:
            log.append((name, handles[handle]))
            return real[name](handle, *args)

        return call

    def on_path(name: str) -> Callable[..., object]:
        def call(path: object, *args: object) -> object:
            log.append((name, kind(args[0] if name == "replace" else path)))
            return real[name](path, *args)

        return call

    monkeypatch.setattr(os, "open", opened)
    for name in ("write", "fsync"):
        monkeypatch.setattr(os, name, on_handle(name))
    for name in ("replace", "unlink", "mkdir"):
        monkeypatch.setattr(os, name, on_path(name))
    return log


def test_a_future_is_done_after_file_folder_and_new_parents_are_synced(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = log_calls(monkeypatch)
    store = SpectraStore(tmp_path / "a" / "b", "m")
    store.put(make(0)).result()
    done = list(log)
    root = tmp_path.name
    assert done == [
        ("mkdir", "a"),
        ("fsync", root),
        ("mkdir", "b"),
        ("fsync", "a"),
        ("mkdir", "m"),
        ("fsync", "b"),
        ("fsync", "b"),
        ("write", "temporary"),
        ("fsync", "temporary"),
        ("replace", "seg"),
        ("fsync", "m"),
    ]
    store.close()


def test_a_merge_unlinks_last(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [write(tmp_path / "m", [make(n)]) for n in range(3)]
    log = log_calls(monkeypatch)
    segments.merge(tmp_path / "m", names)
    assert log == [
        ("write", "temporary"),
        ("fsync", "temporary"),
        ("replace", "vol"),
        ("fsync", "m"),
        *[("unlink", "seg")] * 3,
    ]


def test_a_volume_that_does_not_read_back_costs_nothing(
    make: Make, same: Same, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [write(tmp_path / "m", [make(n)]) for n in range(3)]
    real = Path.replace

    def rot(self: Path, target: Path) -> Path:
        data = bytearray(self.read_bytes())
        data[-9] ^= 4
        self.write_bytes(data)
        return real(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", rot)
        with pytest.raises(segments.DamagedFile):
            segments.merge(tmp_path / "m", names)
    assert set(names) < set(segments.names(tmp_path / "m"))
    store = SpectraStore(tmp_path, "m")
    assert all(same(store.get(make(n).projection.key), make(n)) for n in range(3))


def test_short_writes_are_completed(make: Make, same: Same, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    monkeypatch.setattr(os, "write", lambda handle, data: real(handle, data[:1000]))
    with SpectraStore(tmp_path, "m") as store:
        store.put(make(0)).result()
    assert same(SpectraStore(tmp_path, "m").get(make(0).projection.key), make(0))


def test_sweep_takes_only_files_of_dead_processes_of_this_host(make: Make, tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    mine = f".tmp-{HOST}"
    folder = tmp_path / "m"
    folder.mkdir()
    dead, alive, elsewhere, foreign = (
        folder / name
        for name in (
            f"{mine}-{gone.pid}-0123456789abcdef",
            f"{mine}-{os.getppid()}-0123456789abcdef",
            f".tmp-x{HOST}-{gone.pid}-0123456789abcdef",
            f".tmp-{gone.pid}",
        )
    )
    for path in (dead, alive, elsewhere, foreign):
        path.touch()
    with SpectraStore(tmp_path, "m") as store:
        store.put(make(0)).result()
    assert [path.exists() for path in (dead, alive, elsewhere, foreign)] == [False, True, True, True]


def test_a_listing_is_repeated_until_two_agree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listings = iter([["seg-a"], ["vol-b"], ["vol-b"], ["never asked"]])
    monkeypatch.setattr(segments, "_list", lambda _: next(listings))
    assert segments.names(tmp_path) == ["vol-b"]


def test_plan_takes_every_segment_and_only_small_volumes() -> None:
    mb = 2**20
    sizes = {f"seg-{n}": 3 * mb for n in range(30)} | {"vol-0": 9 * mb, "vol-1": 60 * mb, "vol-2": 64 * mb}
    batches = segments.plan(sizes)
    assert [len(batch) for batch in batches] == [21, 10]
    assert batches[1][-1] == "vol-0"
    assert all(sum(sizes[name] for name in batch) <= segments.VOLUME_BYTES for batch in batches)
    small = {f"seg-{n}": mb // 100 for n in range(32)} | {"vol-0": 30 * mb}
    assert segments.plan(small) == [[name for name in small if name != "vol-0"]]


def test_a_spectrum_is_rewritten_a_few_times_only() -> None:
    volumes: list[int] = []
    rewritten = 0
    for _ in range(200):
        sizes = {f"seg-{n}": 1000 for n in range(32)} | {f"vol-{n}": size for n, size in enumerate(volumes)}
        (batch,) = segments.plan(sizes)
        volumes = [size for n, size in enumerate(volumes) if f"vol-{n}" not in batch]
        volumes.append(sum(sizes[name] for name in batch))
        rewritten += volumes[-1]
    assert len(volumes) < 12
    assert rewritten < 12 * 200 * 32_000


def test_no_volume_is_larger_than_the_limit(
    make: Make, same: Same, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spectra = [make(n, count=200) for n in range(40)]
    spectra[7] = make(7, count=200, tensor="long." * 100)  # makes a column wide
    monkeypatch.setattr(segments, "VOLUME_BYTES", 60_000)
    with SpectraStore(tmp_path, "m") as store:
        for spectrum in spectra:
            store.put(spectrum).result()
        for _ in range(5):
            store.merge()
        sizes = [(store.folder / name).stat().st_size for name in segments.names(store.folder)]
        assert max(sizes) <= 60_000
        assert len(sizes) < 32
        assert all(same(store.get(s.projection.key), s) for s in spectra)


def test_a_merge_leaves_out_what_would_make_the_volume_too_large(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "m"
    wide = write(folder, [make(0, tensor="long" * 5000)])
    many = write(folder, [make(n) for n in range(1, 60)])  # 59 rows of 20 kB, if they were merged
    monkeypatch.setattr(segments, "VOLUME_BYTES", 100_000)
    segments.merge(folder, [wide, many])
    left, volume = segments.names(folder)
    assert (left, volume[:3]) == (many, "vol")
    assert len(SpectraStore(tmp_path, "m").entries()) == 60


def test_what_two_mergers_wrote_twice_becomes_one_again(make: Make, tmp_path: Path) -> None:
    folder = tmp_path / "m"
    spectra = [make(n) for n in range(4)]
    names = [write(folder, spectra, segments.VOLUME), write(folder, spectra[:3], segments.VOLUME)]
    segments.merge(folder, names)
    (name,) = segments.names(folder)
    assert len(segments.load_part(folder / name).entries) == 4


def test_a_merge_keeps_older_spectra_of_a_key(make: Make, tmp_path: Path) -> None:
    folder = tmp_path / "m"
    old, new = make(0), make(0, computed_at="2026-01-01T00:00:00.000000Z")
    segments.merge(folder, [write(folder, [new]), write(folder, [old])])
    (name,) = segments.names(folder)
    assert len(segments.load_part(folder / name).entries) == 2
    assert [entry.computed_at for entry in SpectraStore(tmp_path, "m").entries()] == [new.computed_at]
