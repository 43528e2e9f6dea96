"""The places of spectra: folder names, the default root, what is listed and what is removed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from platformdirs import user_data_path

from rankscope.engine.atomic import HOST
from rankscope.engine.spectrum import FLIPPED, Source, Spectrum
from rankscope.store import segments
from rankscope.store.folders import default_root, model_folder
from rankscope.store.models import remove_model, stored_models
from rankscope.store.spectra import SpectraStore

Make = Callable[..., Spectrum]
LOCAL = Source("/models/a", "", "a.safetensors", "identity", 10, False)


def test_folder_names(tmp_path: Path) -> None:
    assert model_folder("meta-llama/Llama-3.1-8B") == "meta-llama--Llama-3.1-8B"
    assert model_folder("gpt2") == "gpt2"
    for wild in ("..", ".", "", ".hidden/x", "a b\\c:d\n", "../../etc"):
        name = model_folder(wild)
        assert Path(name).name == name
        assert not name.startswith(".")
        assert not set(name) & set(' \\/:\n"')
    one, two = tmp_path / "x" / "model one", tmp_path / "y" / "model one"
    for path in (one, two):
        path.mkdir(parents=True)
    assert model_folder(one).rsplit("--", 1)[0] == "model_one"
    assert len(model_folder(one).rsplit("--", 1)[1]) == 8
    assert model_folder(one) != model_folder(two)
    link = tmp_path / "link"
    link.symlink_to(one)
    assert model_folder(link) == model_folder(one) == model_folder(tmp_path / "x" / ".." / "x" / "model one")
    assert len(os.fsencode(model_folder(tmp_path / ("n" * 250)))) < 200


def test_default_root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RANKSCOPE_STORE", str(tmp_path / "s"))
    assert default_root() == tmp_path / "s"
    monkeypatch.delenv("RANKSCOPE_STORE")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    assert default_root() == user_data_path("rankscope")
    assert not default_root().exists()


def test_stored_models(make: Make, tmp_path: Path) -> None:
    assert stored_models(tmp_path / "none") == []
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("mine")
    with SpectraStore(tmp_path, "org--model") as store:
        store.put(make(1)).result()
        store.put(make(3)).result()
    with SpectraStore(tmp_path, "a--12345678") as store:
        store.put(make(2, source=LOCAL)).result()
    local, hub = stored_models(tmp_path)
    assert (local.folder, local.name, local.spectra) == ("a--12345678", "/models/a", 1)
    assert (hub.folder, hub.name, hub.spectra) == ("org--model", "org/model", 2)
    assert hub.computed_at == make(3).computed_at
    assert hub.size == sum(path.stat().st_size for path in (tmp_path / "org--model").iterdir())


def test_twins_are_not_counted_among_the_spectra_of_a_model(make: Make, tmp_path: Path) -> None:
    twin = make(1, derived=FLIPPED, key="k", computed_at="2026-01-01T00:00:00.000000Z")
    with SpectraStore(tmp_path, "m") as store:
        for spectrum in (make(1), make(2), twin):
            store.put(spectrum).result()
        assert len(store.entries()) == 3
    (model,) = stored_models(tmp_path)
    assert (model.spectra, model.computed_at) == (2, twin.computed_at)


def test_remove_model_deletes_what_the_store_wrote_and_nothing_else(make: Make, tmp_path: Path) -> None:
    root = tmp_path / "root"
    for model in ("one", "two", "three"):
        with SpectraStore(root, model) as store:
            store.put(make(0)).result()
    name = segments.names(root / "one")[0]
    (root / "one" / f"{name}.damaged").touch()
    (root / "one" / f".tmp-{HOST}-1-0123456789abcdef").touch()
    remove_model(root, "one")
    assert not (root / "one").exists()
    (root / "two" / "notes.h5").write_text("mine")
    remove_model(root, "two")
    assert [path.name for path in (root / "two").iterdir()] == ["notes.h5"]

    outside = tmp_path / "outside"
    shutil.copytree(root / "three", outside)
    (root / "link").symlink_to(outside)
    for escaping in ("../outside", "..", ".", "", str(outside), "three/../three", "three/", "link"):
        with pytest.raises(ValueError, match="not the name"):
            remove_model(root, escaping)
    assert segments.names(outside) == segments.names(root / "three") != []
    with pytest.raises(FileNotFoundError):
        remove_model(root, "absent")
