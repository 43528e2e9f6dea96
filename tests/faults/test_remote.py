"""Models that are not downloaded: headers first, tensors by range, the same spectra and the same keys."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from factor_files import peft
from hub_server import HubServer, Odd, etag
from remote_models import (
    FIRST,
    INDEX,
    NAME,
    ONE_FILE,
    PATIENCE,
    QUERY,
    SECOND,
    SHARD_1,
    SHARD_2,
    SHARDED,
    read,
    scan,
)
from safetensors.numpy import save

from rankscope.engine.catalogue.tree import build_tree
from rankscope.engine.checkpoint.hub import Access
from rankscope.engine.checkpoint.open import open_checkpoint
from rankscope.engine.checkpoint.ranges import RemoteFile
from rankscope.engine.compute import devices
from rankscope.engine.derive.flip import flipped
from rankscope.engine.solvers import batch
from rankscope.store.spectra import SpectraStore

pytestmark = pytest.mark.usefixtures("short_first_range")


@pytest.mark.parametrize("files", [SHARDED, ONE_FILE], ids=["sharded", "one file"])
def test_a_model_opens_from_its_headers(hub: HubServer, files: dict[str, bytes], tmp_path: Path) -> None:
    commit = hub.push(NAME, {**files, "pytorch_model.bin": b"x" * 100_000, "README.md": b"# tiny"})
    opened = open_checkpoint(NAME)
    assert (opened.name, opened.commit, opened.location) == (NAME, commit, None)
    assert {t.name for t in opened.tensors} == FIRST.keys() | SECOND.keys()
    assert {t.shape for t in opened.tensors if "down" in t.name} == {(64, 96)}
    assert opened.config["model_type"] == "llama"
    assert opened.is_remote
    headers = {f: 8 + int.from_bytes(data[:8], "little") for f, data in files.items() if f.endswith(".safetensors")}
    long = [name for name, length in headers.items() if length > 1000]
    assert len(hub.requests) == 1 + len(files) + len(long)
    assert {name: hub.sent[name] for name in headers} == {name: max(1000, n) for name, n in headers.items()}
    assert not (tmp_path / "hf").exists()  # nothing is kept


def test_only_the_range_of_a_tensor_is_fetched(hub: HubServer) -> None:
    hub.push(NAME, SHARDED)
    opened = open_checkpoint(NAME)
    hub.requests.clear()
    hub.sent.clear()
    np.testing.assert_array_equal(read(opened), FIRST[QUERY])
    tensor = next(t for t in opened.tensors if t.name == QUERY)
    assert [(r.file, r.range) for r in hub.requests] == [(SHARD_1, f"bytes={tensor.begin}-{tensor.end - 1}")]
    assert hub.sent == {SHARD_1: FIRST[QUERY].nbytes}


def test_spectra_are_those_of_a_local_scan_and_a_downloaded_model_has_them(hub: HubServer) -> None:
    hub.push(NAME, SHARDED)
    far = open_checkpoint(NAME)
    there = scan(far, build_tree(far).scanned())
    assert (len(there.accepted), there.failed) == (14, {})
    assert there.progress.fetched == there.progress.to_fetch == far.bytes == far.bytes_to_fetch(FIRST | SECOND)
    near = open_checkpoint(NAME, Access.DOWNLOAD)
    assert not near.is_remote
    assert near.bytes_to_fetch(FIRST | SECOND) == 0
    assert build_tree(near).projections == build_tree(far).projections
    assert scan(near, build_tree(near).scanned(), there.sink).accepted == []  # nothing is computed again
    here = scan(near, build_tree(near).scanned())
    assert here.sink.kept.keys() == there.sink.kept.keys()
    for key, spectrum in here.sink.kept.items():
        np.testing.assert_array_equal(spectrum.values, there.sink.kept[key].values)
        assert there.sink.kept[key].weights_digests == spectrum.weights_digests != ("",)
        exact = np.linalg.svd({**FIRST, **SECOND}[spectrum.projection.tensor].astype(np.float64), compute_uv=False)
        np.testing.assert_allclose(spectrum.values, exact, rtol=1e-9)


def test_bytes_that_a_server_changed_are_found_out_when_they_are_read_again(hub: HubServer, tmp_path: Path) -> None:
    hub.push(NAME, SHARDED)
    far = open_checkpoint(NAME)
    query = next(p for p in build_tree(far).scanned() if p.tensor == QUERY)
    hub.odd[SHARD_1] = [Odd(lambda status, body, headers: (status, bytes(len(body)), headers))]
    with SpectraStore(tmp_path, "m") as store:
        scan(far, [query], store)
        assert store.get(query.key).values[0] == 0
        hub.odd.clear()
        near = open_checkpoint(NAME, Access.DOWNLOAD)
        scan(near, [flipped(query)], store)
        assert not store.has(query.key)
        assert scan(near, [query], store).accepted == [query]
        exact = np.linalg.svd(FIRST[QUERY].astype(np.float64), compute_uv=False)
        np.testing.assert_allclose(store.get(query.key).values, exact, rtol=1e-9)


def test_what_is_in_the_cache_is_read_there(hub: HubServer) -> None:
    hub.push(NAME, SHARDED)
    whole = open_checkpoint(NAME, Access.DOWNLOAD)
    lost = next(file for file in whole.stamps if file.name == SHARD_2)
    lost.resolve().unlink()
    lost.unlink()
    hub.requests.clear()
    opened = open_checkpoint(NAME)
    assert {file.name: isinstance(stored, RemoteFile) for file, stored in opened.stamps.items()} == {
        SHARD_1: False,
        SHARD_2: True,
    }
    assert opened.bytes_to_fetch(FIRST | SECOND) == sum(t.nbytes for t in SECOND.values())
    assert set(hub.files()) == {SHARD_2}
    assert {t.source for t in opened.tensors} == {t.source for t in whole.tensors}
    hub.push(NAME, {"README.md": b"a new commit of the same weights"})
    assert {file.name for file, s in open_checkpoint(NAME).stamps.items() if isinstance(s, RemoteFile)} == {SHARD_2}


def test_a_revision_that_moves_is_read_where_it_was(hub: HubServer) -> None:
    old = hub.push(NAME, SHARDED)
    opened = open_checkpoint(NAME)
    new = hub.push(NAME, {SHARD_1: save({name: 2 * tensor for name, tensor in FIRST.items()})})
    np.testing.assert_array_equal(read(opened), FIRST[QUERY])
    again = open_checkpoint(NAME)
    assert (opened.commit, again.commit) == (old, new)
    np.testing.assert_array_equal(read(again), 2 * FIRST[QUERY])
    keys = [{p.address: p.key for p in build_tree(each).projections} for each in (opened, again)]
    assert {address for address in keys[0] if keys[0][address] != keys[1][address]} == {
        address for address in keys[0] if address.startswith("layers.0.")
    }
    np.testing.assert_array_equal(read(open_checkpoint(f"hf://{NAME}@{old}")), FIRST[QUERY])


def test_large_files_are_asked_of_the_other_host_itself_and_without_the_token(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    hub.gated[NAME] = "hf_secret"
    hub.cdn = "localhost"
    hub.push(NAME, ONE_FILE)
    opened = open_checkpoint(NAME)
    (source,) = {t.source for t in opened.tensors}
    assert (source.identity, source.content_addressed) == (
        etag("model.safetensors", ONE_FILE["model.safetensors"]),
        True,
    )
    hub.requests.clear()
    for name in (QUERY, *SECOND):
        np.testing.assert_array_equal(read(opened, name), {**FIRST, **SECOND}[name])
    assert {r.path.split("/")[1] for r in hub.requests} == {"cdn"}  # the Hub limits requests to its own host
    assert len(hub.requests) == 8
    hub.odd["/cdn/"] = [replaced(403), Odd()]  # the signed address has expired
    np.testing.assert_array_equal(read(opened), FIRST[QUERY])
    assert [r.path.split("/")[1] for r in hub.requests[8:]] == ["cdn", "org", "cdn"]
    assert {bool(r.token) for r in hub.requests if r.path.startswith("/cdn")} == {False}
    assert not any("localhost" in r.host and r.token for r in hub.requests)


def test_a_renamed_repo_says_so_and_keeps_its_stored_name(hub: HubServer) -> None:
    hub.push("neworg/newname", SHARDED)
    hub.renamed[NAME] = "neworg/newname"
    opened = open_checkpoint(NAME)
    assert opened.name == NAME
    assert opened.warnings == (f"{NAME} was renamed on the Hub: neworg/newname",)
    hub.requests.clear()
    np.testing.assert_array_equal(read(opened), FIRST[QUERY])
    assert len(hub.requests) == 1  # not by way of the old name


def replaced(status: int) -> Odd:
    return Odd(lambda _, body, headers: (status, body, headers))


def test_what_is_solved_again_is_fetched_again_and_counted(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The weights are not kept; the CPU plays the GPU, in batches by the two-stage solver's twins."""
    monkeypatch.setattr(devices, "is_gpu", lambda _name: True)
    monkeypatch.setattr(devices, "workers", lambda *_: (1, 1))
    monkeypatch.setattr(batch, "limits", lambda _device: lambda _side: 8)
    monkeypatch.setattr(batch, "faster_together", lambda _device, _small: True)
    left, sigma, right = np.linalg.svd(FIRST[QUERY].astype(np.float64))
    ill = (left * np.append(sigma[:-1], 1e-9)) @ right
    hub.push(NAME, {**ONE_FILE, "model.safetensors": save(FIRST | SECOND | {QUERY: ill})})
    far = open_checkpoint(NAME)
    done = scan(far, build_tree(far).scanned())
    assert (done.failed, done.progress.again.found, done.progress.again.solved) == ({}, 1, 1)
    assert done.progress.fetched == done.progress.to_fetch == far.bytes + ill.nbytes


def test_many_headers_are_fetched_side_by_side(hub: HubServer) -> None:
    """Each answer waits until several requests are open, which would never happen with one at a time."""
    shards = [f"model-{n:05}-of-00040.safetensors" for n in range(1, 41)]
    names = {f"model.layers.{n}.mlp.up_proj.weight": shard for n, shard in enumerate(shards)}
    files = {shard: save({name: np.ones((2, 3), np.float32)}) for name, shard in names.items()}
    hub.push(NAME, {INDEX: json.dumps({"weight_map": names}).encode(), **files})
    beside = threading.Barrier(8)

    def together(status: int, body: bytes, headers: dict[str, str]) -> tuple[int, bytes, dict[str, str]]:
        beside.wait(PATIENCE)
        return status, body, headers

    hub.odd["-of-00040"] = [Odd(together)]
    opened = open_checkpoint(NAME)
    assert len(opened.tensors) == 40
    assert len(hub.requests) == 42


def test_opening_imports_no_torch(hub: HubServer, tmp_path: Path) -> None:
    hub.push(NAME, SHARDED)
    program = (
        "import sys\nfrom rankscope.engine.checkpoint.open import open_checkpoint\n"
        f"opened = open_checkpoint('{NAME}')\nprint(len(opened.tensors), 'torch' in sys.modules)"
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))}
    environment |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path), "NO_PROXY": "127.0.0.1"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["14", "False"]


def test_an_adapter_on_the_hub_is_scaled_as_its_config_says(hub: HubServer, tmp_path: Path) -> None:
    files = peft()
    folder = files.write(tmp_path)
    hub.push(NAME, {path.name: path.read_bytes() for path in folder.iterdir()})
    far = open_checkpoint(NAME)
    found = scan(far, build_tree(far).scanned())
    assert found.failed == {}
    assert found.progress.to_fetch == found.progress.fetched == far.bytes
    values = {s.projection.address: s.values for s in found.sink.kept.values()}
    for address, product in files.meant.items():
        wanted = np.linalg.svd(product, compute_uv=False)[: len(values[address])]
        np.testing.assert_allclose(values[address], wanted, rtol=0, atol=1e-10 * wanted[0])
    near = open_checkpoint(NAME, Access.DOWNLOAD)
    assert build_tree(near).projections == build_tree(far).projections
