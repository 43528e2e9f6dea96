"""Files that somebody else has put into a store, with the right name and digest."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from rankscope.engine.spectrum import DIRECTIONS, Derived, Spectrum
from rankscope.store import layout, regular_files, segments
from rankscope.store.entry import entry_of
from rankscope.store.models import stored_models
from rankscope.store.spectra import SpectraStore
from rankscope.tui.cli.main import main

Make = Callable[..., Spectrum]
CHILD = Path(__file__).with_name("hostile_files.py")
MUTATED = 3000
NOT_OURS = "It cannot be read as a file of spectra"


def image(kept: list[Spectrum]) -> bytes:
    return layout.build([entry_of(s) for s in kept], [s.values for s in kept]).data


def bases(make: Make, folder: Path) -> None:
    """A file of each format version, and an empty one."""
    plain = [make(n) for n in range(4)]
    parents = tuple(make(n).projection for n in range(2))
    weighed = Derived("weigh_diagonal", 1, "under norm", False, parents[:1], (), "norm")
    stack = Derived("stack", 1, "stacked", True, parents)
    derived = [
        make(10, derived=weighed, weights_digests=("d1",)),
        make(11, derived=stack, weights_digests=("d1", "d2")),
    ]
    leading = replace(make(12).projection, derived=Derived(DIRECTIONS, 1, "leading", True, parents[:1]))
    numbers = np.linspace(9, 1, leading.stored_count, dtype="<f4")
    directions = [replace(make(12), projection=leading, values=numbers, weights_digests=("d1",))]  # type: ignore[arg-type]
    folder.mkdir()
    for number, kept in enumerate((plain, derived, directions, [])):
        (folder / f"{number}.h5").write_bytes(image(kept))


def read_mutated(make: Make, tmp_path: Path, numbers: list[int]) -> list[int]:
    """Have a process read these mutated files; those that it refused."""
    bases(make, tmp_path / "bases")
    root, secret = tmp_path / "store", tmp_path / "secret"
    secret.write_text("secret")
    words = [sys.executable, str(CHILD), str(tmp_path / "bases"), str(root), str(secret), *map(str, numbers)]
    ran = subprocess.run(
        words,
        env=os.environ | {"RANKSCOPE_STORE": str(root), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=60 + len(numbers),  # a process that hangs is killed, and fails the test with the file's number
        check=False,
    )
    assert ran.stdout.splitlines()[-1:] == ["done"], (ran.stdout[-20:], ran.stderr[-4000:])
    refused: list[int] = json.loads((root / "refused").read_text())
    return refused


def test_no_mutated_file_crashes_hangs_or_shows_another(
    make: Make, tmp_path: Path, every: Callable[[Iterable[int], int], list[int]]
) -> None:
    numbers = every(range(MUTATED), 200)
    refused = read_mutated(make, tmp_path, numbers)
    assert len(numbers) / 10 < len(refused) < len(numbers)


def external_storage(file: Any, secret: Path) -> None:
    found = file["sources"]
    dtype, shape = found.dtype, found.shape
    del file["sources"]
    file.create_dataset("sources", shape, dtype, external=[(str(secret), 0, h5py.h5f.UNLIMITED)])


def virtual_dataset(file: Any, secret: Path) -> None:
    dtype, shape = file["sources"].dtype, file["sources"].shape
    del file["sources"]
    virtual = h5py.VirtualLayout(shape, dtype)
    virtual[:] = h5py.VirtualSource(str(secret), "sources", shape)
    file.create_virtual_dataset("sources", virtual)


def external_link(file: Any, secret: Path) -> None:
    del file["sources"]
    file["sources"] = h5py.ExternalLink(str(secret), "/sources")


def soft_link(file: Any, _: Path) -> None:
    file["twice"] = h5py.SoftLink("/sources")


def filters(file: Any, _: Path) -> None:
    table = file["runs"][()]
    del file["runs"]
    file.create_dataset("runs", data=table, compression="gzip")


def huge_shape(file: Any, _: Path) -> None:
    dtype = file["runs"].dtype
    del file["runs"]
    file.create_dataset("runs", (2**50,), dtype)


def huge_values(file: Any, _: Path) -> None:
    del file["values"]
    file.create_dataset("values", (2**50,), "<f8")


def a_cell(column: str, value: float) -> Callable[[Any, Path], None]:
    """The first row of the index says another number there."""

    def change(file: Any, _: Path) -> None:
        index = file["index"][()]
        index[column][0] = value
        file["index"][...] = index

    change.__name__ = f"{column} {value}"
    return change


def a_variable_text(file: Any, _: Path) -> None:
    del file["runs"]
    file.create_dataset("runs", data=["a", "b"], dtype=h5py.string_dtype())


TRICKS = [
    *(external_storage, virtual_dataset, external_link, soft_link, filters, huge_shape, huge_values, a_variable_text),
    *(a_cell("count", 2**60), a_cell("offset", -1), a_cell("offset", 2**60), a_cell("offset", 25), a_cell("count", -1)),
    *(a_cell("rows", 2**60), a_cell("cols", -3), a_cell("source_id", 7), a_cell("run_id", 2**31)),
    a_cell("sigma_max", np.inf),
]


@pytest.mark.parametrize("trick", TRICKS, ids=lambda trick: trick.__name__)
@pytest.mark.parametrize("kind", [segments.SEGMENT, segments.VOLUME])
def test_a_trick_is_refused_and_the_others_are_served(
    make: Make, tmp_path: Path, kind: str, trick: Callable[[Any, Path], None]
) -> None:
    root, secret = tmp_path / "store", tmp_path / "secret.h5"
    secret.write_bytes(image([make(9)]).replace(b"org/model", b"a-secret!"))
    with SpectraStore(root, "m") as store:
        store.put(make(5)).result()
    changed = tmp_path / "changed.h5"
    changed.write_bytes(image([make(n) for n in range(3)]))
    with h5py.File(changed, "r+") as file:
        trick(file, secret)
    name = segments.write(root / "m", kind, changed.read_bytes())
    (model,) = stored_models(root)
    assert (model.name, model.spectra) == ("org/model", 1)
    ((path, sentence),) = model.damaged
    assert path.name == name
    assert sentence.startswith(NOT_OURS)
    assert "secret" not in repr(model)


ESCAPE = "\x1b]0;hostile\x07\x9b31m"


def test_no_escape_of_a_file_reaches_the_terminal_or_a_csv(
    make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANKSCOPE_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    changes = {name: f"{name}{ESCAPE}" for name in ("tensor", "tower", "role", "dtype", "solver", "device")}
    source = replace(make(0).projection.source, repo=f"org/m{ESCAPE}", file=f"f{ESCAPE}")
    kept = [make(n, address=f"layers.{n}.{ESCAPE}", source=source, **changes) for n in range(3)]
    kept.append(make(3, address=f"layers.3.{ESCAPE}", block=ESCAPE))
    folder = tmp_path / "store" / "org--m"
    folder.mkdir(parents=True)
    segments.write(folder, segments.SEGMENT, image(kept))
    where = tmp_path / "a.csv"
    csv = ("export", "org--m", "-o", str(where))
    views = [("show", "org--m", "--view", view) for view in ("heatmap", "table", "spectrum")]
    for words in (("ls",), ("doctor",), ("show", "org--m", "--csv"), csv, *views):
        assert main(list(words)) == 0
        said = "".join(capsys.readouterr())
        assert all(c.isprintable() or c == "\n" for c in said), words
    rows = where.read_text()
    assert all(c.isprintable() or c == "\n" for c in rows)
    assert rows.count("hostile") > 3 * len(kept)


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -1.0])
def test_numbers_that_are_no_singular_values_are_not_served(make: Make, tmp_path: Path, wrong: float) -> None:
    (tmp_path / "m").mkdir()
    data = layout.build([entry_of(make(n)) for n in range(2)], [np.full(12, wrong), make(1).values]).data
    segments.write(tmp_path / "m", segments.SEGMENT, data)
    store = SpectraStore(tmp_path, "m")
    assert store.values([make(n).projection.key for n in range(2)]).keys() == {make(1).projection.key}


def within_ten_seconds(look: Callable[[], object]) -> object:
    """What a thread gives; one that waits for a pipe fails the test."""
    found: list[object] = []
    thread = threading.Thread(target=lambda: found.append(look()), daemon=True)
    thread.start()
    thread.join(10)
    assert found, "it hangs"
    return found[0]


@pytest.mark.parametrize("suffix", ["", ".damaged"])
@pytest.mark.parametrize("kind", [segments.SEGMENT, segments.VOLUME])
def test_a_pipe_is_not_waited_for(make: Make, tmp_path: Path, kind: str, suffix: str) -> None:
    with SpectraStore(tmp_path, "m") as store:
        store.put(make(5)).result()
    os.mkfifo(tmp_path / "m" / f"{kind}-{'0' * 32}.h5{suffix}")
    ((model,),) = (within_ten_seconds(lambda: stored_models(tmp_path)),)  # type: ignore[misc]
    assert model.spectra == 1
    ((path, sentence),) = model.damaged
    assert path.name.startswith(f"{kind}-0000")
    assert suffix or sentence == "It cannot be read (it is not a regular file)."


def test_no_device_and_no_file_without_an_end_is_read(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / f"seg-{'0' * 32}.h5").symlink_to("/dev/zero")
    sparse = tmp_path / "m" / f"seg-{'1' * 32}.h5"
    with sparse.open("wb") as file:
        file.truncate(regular_files.MOST_BYTES + 1)
    store = SpectraStore(tmp_path, "m")
    assert store.entries() == []
    assert [sentence for _, sentence in store.damaged] == [
        "It cannot be read (it is not a regular file).",
        "It cannot be read (it is larger than any file of a store).",
    ]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_a_link_of_another_user_is_not_followed_to_files_of_a_third(make: Make, tmp_path: Path) -> None:
    theirs = tmp_path / segments.write(tmp_path, segments.SEGMENT, image([make(0)]))
    (tmp_path / "m").mkdir()
    link = tmp_path / "m" / theirs.name
    link.symlink_to(theirs)
    assert len(SpectraStore(tmp_path, "m").entries()) == 1
    os.chown(link, 12345, 12345, follow_symlinks=False)
    store = SpectraStore(tmp_path, "m")
    assert store.entries() == []
    ((_, sentence),) = store.damaged
    assert "a link of another user" in sentence
    os.chown(theirs, 12345, 12345)
    assert len(SpectraStore(tmp_path, "m").entries()) == 1


def test_memory_that_is_not_there_is_a_file_that_cannot_be_read(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "m").mkdir()
    segments.write(tmp_path / "m", segments.SEGMENT, image([make(0)]))
    monkeypatch.setattr(layout, "check", lambda *_, **__: np.empty(2**60, "u1"))
    store = SpectraStore(tmp_path, "m")
    assert store.entries() == []
    assert store.damaged[0][1].startswith(NOT_OURS)
