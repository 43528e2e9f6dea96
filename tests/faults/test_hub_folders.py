"""Models in a folder of a repo, `org/name/folder`: opened from the Hub and from the cache, stored under that name."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hub_server import HubServer
from opening import CONFIG, DOWN, KEY, QUERY, index, refused, weights

from rankscope.engine.catalogue.tree import build_tree
from rankscope.engine.checkpoint.hub import Access
from rankscope.engine.checkpoint.open import Checkpoint, open_checkpoint
from rankscope.engine.checkpoint.urls import stored_name
from rankscope.engine.formats.safetensors import INDEX
from rankscope.tui.cli.main import main

REPO = "org/pipe"
SHARDS = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
OWN = CONFIG | {"hidden_size": 16}
FILES = {
    "config.json": json.dumps(CONFIG).encode(),
    "model.safetensors": weights("root.weight"),
    "unet/config.json": json.dumps(OWN).encode(),
    f"unet/{INDEX}": index({QUERY: SHARDS[0], KEY: f"./{SHARDS[1]}"}),
    f"unet/{SHARDS[0]}": weights(QUERY),
    f"unet/{SHARDS[1]}": weights(KEY, seed=1),
    "unet/deeper/model.safetensors": weights(DOWN, seed=2),
}
BOTH = pytest.mark.parametrize("access", [Access.RANGES, Access.DOWNLOAD])


def names(checkpoint: Checkpoint) -> set[str]:
    return {t.name for t in checkpoint.tensors}


@BOTH
@pytest.mark.parametrize("prefix", ["", "hf://"])
def test_a_folder_opens_with_its_own_config(hub: HubServer, access: Access, prefix: str) -> None:
    commit = hub.push(REPO, FILES)
    opened = open_checkpoint(f"{prefix}{REPO}/unet", access)
    assert (opened.name, opened.commit, opened.config, opened.location) == (f"{REPO}/unet", commit, OWN, None)
    assert names(opened) == {QUERY, KEY}
    assert opened.warnings == ()
    np.testing.assert_array_equal(opened.read(opened.tensors[0])[0], only(FILES[f"unet/{SHARDS[0]}"]))
    assert not [file for file in hub.files() if "deeper" in file or file == "model.safetensors"]


def only(data: bytes) -> np.ndarray:
    """The only tensor of a file."""
    from safetensors.numpy import load

    (found,) = load(data).values()
    return found


@BOTH
def test_a_folder_without_a_config_has_that_of_the_repo(hub: HubServer, access: Access) -> None:
    hub.push(REPO, FILES)
    hub.push(REPO, {"unet/deeper/quantize_config.json": b'{"bits": 4}', "hf_quant_config.json": b'{"a": 1}'})
    opened = open_checkpoint(f"{REPO}/unet/deeper/", access)
    assert (opened.name, names(opened)) == (f"{REPO}/unet/deeper", {DOWN})
    assert opened.config == CONFIG | {"quantization_config": {"quant_method": "modelopt", "a": 1}}


@BOTH
def test_a_revision_of_a_folder(hub: HubServer, access: Access) -> None:
    hub.push(REPO, FILES)
    other = hub.push(REPO, {"vae/model.safetensors": weights(DOWN)}, ref="refs/pr/1")
    assert open_checkpoint(f"{REPO}/vae@refs/pr/1", access).commit == other
    assert f"{REPO} has no folder vae on the Hub" in refused(f"{REPO}/vae", access)
    assert f"{REPO} has no revision v9" in refused(f"{REPO}/unet@v9", access)


@BOTH
@pytest.mark.parametrize(("folder", "files"), [("nothing", FILES), ("une", FILES), ("unet/deep", FILES)])
def test_a_folder_that_is_not_there(hub: HubServer, access: Access, folder: str, files: dict[str, bytes]) -> None:
    hub.push(REPO, files)
    line = refused(f"{REPO}/{folder}", access)
    assert line == f"{REPO} has no folder {folder} on the Hub: its folders with weights are unet, unet/deeper"
    hub.push("org/flat", {"model.safetensors": weights(QUERY)})
    assert refused("org/flat/x", access) == "org/flat has no folder x on the Hub: name the model as org/flat"


@BOTH
def test_a_folder_without_weights_names_those_below(hub: HubServer, access: Access) -> None:
    hub.push(REPO, {"a/b/c/model.safetensors": weights(QUERY), "a/tf_model.h5": b""})
    line = refused(f"{REPO}/a", access)
    held = "it holds tf_model.h5 of TensorFlow or Keras"
    assert line == (
        f"{REPO}/a has no weights on the Hub that can be read ({held}) except in its folders (b/c): "
        f"name one of them, as {REPO}/a/b/c"
    )


@BOTH
def test_a_shard_that_a_folder_lacks(hub: HubServer, access: Access) -> None:
    hub.push(REPO, {**FILES, f"unet/{SHARDS[1]}": None})  # type: ignore[dict-item] # None deletes
    line = refused(f"{REPO}/unet", access)
    assert f"{REPO}/unet" in line
    assert f"unet/{SHARDS[1]}" in line


@BOTH
def test_a_repo_that_is_not_there_may_have_been_meant_as_a_path(hub: HubServer, access: Access) -> None:
    line = refused("models/llama/run", access)
    assert line.startswith("no such file or folder: models/llama/run, and no model models/llama on the Hub, or it is ")
    hub.requests.clear()
    Path("models/llama").mkdir(parents=True)
    for path in ("models/llama/run", "models/run/odd.safetensors"):
        cure = "name one that is here, org/name on the Hub, or demo"
        assert refused(path, access) == f"no such file or folder: {path}: {cure}"
    assert hub.requests == []
    Path("models/llama/run").mkdir()
    Path("models/llama/run/model.safetensors").write_bytes(weights(QUERY))
    assert open_checkpoint("models/llama/run", access).location == Path("models/llama/run")


def test_a_cached_folder_opens_without_a_request(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.push(REPO, FILES)
    first = open_checkpoint(f"{REPO}/unet", Access.DOWNLOAD)
    deeper = open_checkpoint(f"{REPO}/unet/deeper", Access.DOWNLOAD)
    hub.requests.clear()
    assert open_checkpoint(f"{REPO}/unet", Access.CACHE) == first
    assert open_checkpoint(f"{REPO}/unet/deeper@{first.commit}") == deeper
    assert deeper.config == CONFIG
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    lacking = f"{REPO} has no folder vae in the local Hub cache: its folders with weights are unet, unet/deeper"
    assert refused(f"{REPO}/vae", Access.CACHE) == lacking
    assert refused(f"{REPO}/vae", Access.RANGES) == f"{lacking}; HF_HUB_OFFLINE is set: check the name, or unset it"
    assert "not in the local Hub cache" in refused("org/other/unet", Access.CACHE)
    assert hub.requests == []


def test_a_download_keeps_the_keys_of_what_was_read_by_range(hub: HubServer) -> None:
    hub.push(REPO, FILES)
    by_range = {p.address: p.key for p in build_tree(open_checkpoint(f"{REPO}/unet")).projections}
    downloaded = build_tree(open_checkpoint(f"{REPO}/unet", Access.DOWNLOAD)).projections
    assert {p.address: p.key for p in downloaded} == by_range


def test_a_folder_is_stored_under_its_name(hub: HubServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hub.push(REPO, FILES)
    model, store = f"{REPO}/unet", ["--store", str(tmp_path / "store")]
    assert stored_name(f"hf://{model}/@main") == model
    assert main(["scan", model, "--device", "cpu", *store]) == 0
    assert (tmp_path / "store" / "org--pipe--unet").is_dir()
    hub.stop()
    capsys.readouterr()
    assert main(["ls", *store]) == 0
    assert model in capsys.readouterr().out
    for named in (model, f"hf://{model}@main", f"{model}/"):
        assert main(["show", named, "--view", "table", *store]) == 0
        assert "attention.query" in capsys.readouterr().out
    assert main(["rm", model, *store]) == 0
    assert main(["show", model, *store]) == 2


@BOTH
@pytest.mark.parametrize("model", ["org/ranks", "org/ranks/mp_rank_00", "org/ranks/mp_rank_01"])
def test_a_part_of_megatrons_in_a_repo_is_no_model(hub: HubServer, access: Access, model: str) -> None:
    hub.push("org/ranks", {f"mp_rank_{rank:02}/model_optim_rng.pt": b"" for rank in range(2)})
    number = 2 if model.endswith("1") else 1
    assert refused(model, access).startswith(
        f"org/ranks/mp_rank_0{number - 1} is part {number} of 2 of a tensor-parallel model saved by Megatron"
    )
