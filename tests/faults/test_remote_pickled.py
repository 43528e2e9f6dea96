"""PyTorch files that are not downloaded: listed from their two ends, tensors by range, Meta's parts joined."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hub_server import Answer, HubServer, Odd
from remote_models import END, FIRST, NAME, QUERY, SECOND, Clock, read, scan
from remote_pickles import ONE_FILE, SHARDED, WHOLE, line, places, saved, served, spans

from rankscope.engine.catalogue.tree import build_tree
from rankscope.engine.checkpoint.hub import Access
from rankscope.engine.checkpoint.open import open_checkpoint
from rankscope.engine.errors import WeightsError
from rankscope.engine.formats.torch_pickle import Unpickler
from rankscope.store.listings import FileListings

pytestmark = pytest.mark.usefixtures("short_ends")
FINE = Odd()


# A model


@pytest.mark.parametrize("shards", [1, 2])
def test_a_model_opens_from_the_ends_of_its_files(hub: HubServer, shards: int) -> None:
    files = ONE_FILE if shards == 1 else SHARDED
    commit = hub.push(NAME, {**files, "README.md": b"# tiny"})
    opened = open_checkpoint(NAME)
    assert (opened.name, opened.commit, opened.location, opened.is_remote) == (NAME, commit, None, True)
    assert {t.name: t.shape for t in opened.tensors} == {n: a.shape for n, a in (FIRST | SECOND).items()}
    weights = [name for name in files if name.endswith(".bin")]
    assert len(weights) == shards
    for name in weights:
        assert spans(hub, name) == [(0, END), (len(files[name]) - END, len(files[name]))]
    assert len(hub.requests) == 1 + len(files) + shards  # one more a file than safetensors, with its one header
    hub.requests.clear()
    hub.sent.clear()
    np.testing.assert_array_equal(read(opened), FIRST[QUERY])
    tensor = next(t for t in opened.tensors if t.name == QUERY)
    assert [(r.file, r.range) for r in hub.requests] == [(weights[0], f"bytes={tensor.begin}-{tensor.end - 1}")]
    assert hub.sent == {weights[0]: FIRST[QUERY].nbytes}


def test_spectra_and_keys_are_those_of_the_downloaded_file(hub: HubServer) -> None:
    hub.push(NAME, SHARDED)
    far = open_checkpoint(NAME)
    there = scan(far, build_tree(far).scanned())
    assert (len(there.accepted), there.failed) == (14, {})
    assert there.progress.fetched == there.progress.to_fetch == far.bytes
    near = open_checkpoint(NAME, Access.DOWNLOAD)
    assert build_tree(near).projections == build_tree(far).projections
    assert scan(near, build_tree(near).scanned(), there.sink).accepted == []  # nothing is computed again
    for spectrum in there.sink.kept.values():
        exact = np.linalg.svd({**FIRST, **SECOND}[spectrum.projection.tensor].astype(np.float64), compute_uv=False)
        np.testing.assert_allclose(spectrum.values, exact, rtol=1e-9)


def test_a_kept_listing_needs_no_pickle_there_nor_here(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listings = FileListings(tmp_path / "store")
    hub.push(NAME, SHARDED)
    first = open_checkpoint(NAME, listings=listings)
    monkeypatch.setattr(Unpickler, "load", None)
    assert open_checkpoint(NAME, listings=listings).tensors == first.tensors
    assert places(open_checkpoint(NAME, Access.DOWNLOAD, listings=listings)) == places(first)


def test_no_listing_is_kept_of_a_file_that_nothing_tells_from_another(hub: HubServer, tmp_path: Path) -> None:
    url = served(hub, WHOLE)
    open_checkpoint(url, listings=FileListings(tmp_path / "told"))
    assert len(list((tmp_path / "told" / ".listings").iterdir())) == 1
    hub.odd["/m.pt"] = [Odd(lambda s, b, headers: (s, b, {k: v for k, v in headers.items() if k != "ETag"}))]
    assert len(open_checkpoint(url, listings=FileListings(tmp_path / "untold")).tensors) == 14
    assert not (tmp_path / "untold").exists()


# Files that are no model


def test_what_trainers_save_is_no_model(hub: HubServer) -> None:
    url = served(hub, WHOLE, "optimizer.pt")
    assert "holds the state of a trainer or optimiser" in line(url)
    assert len(spans(hub, "optimizer.pt")) == 1


def test_a_part_of_a_tensor_parallel_model_is_named(hub: HubServer) -> None:
    zero = "zero_pp_rank_0_mp_rank_00_model_states.pt"
    hub.push(
        NAME,
        {f"tp/mp_rank_0{n}/model.pt": WHOLE for n in (0, 1)}
        | {f"layer_01-model_0{n}-model_states.pt": WHOLE for n in (0, 1)},
    )
    assert "saved by GPT-NeoX" in line(f"{hub.url}/{NAME}/resolve/main/layer_01-model_00-model_states.pt")
    assert "saved by Megatron" in line(f"{hub.url}/{NAME}/resolve/main/tp/mp_rank_00/model.pt")
    assert "over which DeepSpeed's ZeRO-3 spreads a model" in line(served(hub, WHOLE, zero))


# Servers


def other_etag(status: int, body: bytes, headers: dict[str, str]) -> Answer:
    return status, body, headers | {"ETag": '"another"'}


WRONG = {
    "does not support range requests": Odd(lambda _, body, headers: (200, body, headers)),
    "m.pt changed on the server since it was listed": Odd(other_etag),
    "on the server since it was listed": Odd(lambda s, b, h: (s, b, h | {"Content-Range": h["Content-Range"] + "0"})),
    "answered 404 for m.pt: no such file": Odd(lambda _, __, ___: (404, b"", {})),
    "cannot reach localhost": Odd(after=10),
}


@pytest.mark.usefixtures("clock")
def test_what_goes_wrong_at_the_second_end_or_later(hub: HubServer) -> None:
    url = served(hub, WHOLE)
    for said, odd in WRONG.items():
        hub.odd["/m.pt"] = [FINE, odd]
        assert said in line(url)
        hub.odd.clear()
        opened = open_checkpoint(url)
        hub.odd["/m.pt"] = [odd]
        with pytest.raises(WeightsError, match=said):
            read(opened)


def test_an_answer_that_is_cut_off_goes_on_where_it_was(hub: HubServer, clock: Clock) -> None:
    url = served(hub, WHOLE)
    hub.odd["/m.pt"] = [FINE, Odd(after=1000), FINE]
    assert len(open_checkpoint(url).tensors) == 14
    begin, end = spans(hub, "m.pt")[1]
    assert spans(hub, "m.pt")[2:] == [(begin + 1000, end)]
    assert clock.waits == []


# Meta's own files

PARAMS = {"dim": 64, "n_heads": 4, "n_kv_heads": 4, "vocab_size": 32, "hidden_dim": 96}


@pytest.fixture(scope="module")
def native() -> tuple[dict[str, torch.Tensor], dict[str, bytes]]:
    """Matrices, and the two parts of each in Meta's files."""
    random = torch.Generator().manual_seed(3)
    shapes = {
        "attention.wq": (64, 64),
        "attention.wo": (64, 64),
        "feed_forward.w1": (96, 64),
        "feed_forward.w2": (64, 96),
    }
    whole = {f"layers.0.{name}.weight": torch.randn(shape, generator=random) for name, shape in shapes.items()}
    parts = {name: matrix.chunk(2, int(name[-8] in "o2")) for name, matrix in whole.items()}
    files = {
        f"original/consolidated.0{n}.pth": saved({name: cut[n].clone() for name, cut in parts.items()}) for n in (0, 1)
    }
    return whole, {"original/params.json": json.dumps(PARAMS).encode(), **files}


@pytest.mark.parametrize("named", ["folder", "URL of the Hub"])
def test_parts_of_meta_are_joined(
    hub: HubServer, native: tuple[dict[str, torch.Tensor], dict[str, bytes]], named: str
) -> None:
    whole, files = native
    hub.push(NAME, files)
    url = f"{hub.url}/{NAME}/resolve/main/original/consolidated.01.pth"
    opened = open_checkpoint(f"{NAME}/original" if named == "folder" else url)
    assert {t.name: t.shape for t in opened.tensors} == {name: tuple(matrix.shape) for name, matrix in whole.items()}
    for name, matrix in whole.items():
        np.testing.assert_array_equal(read(opened, name), matrix.numpy())


def test_a_part_of_meta_alone_is_no_model(
    hub: HubServer, native: tuple[dict[str, torch.Tensor], dict[str, bytes]]
) -> None:
    _, files = native
    hub.static |= {f"/{name}": data for name, data in files.items()}
    url = f"http://localhost:{hub.port}/original/consolidated.0"
    assert "consolidated.00.pth is missing" in line(f"{url}1.pth")
    assert "is part 1 of 2 of a tensor-parallel model by what params.json says" in line(f"{url}0.pth")
