"""Weights that lie one level down, under another suffix, or deeper in a file than usual."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hub_server import HubServer
from opening import DOWN, QUERY, index, refusal, refused, weights

from rankscope.engine.checkpoint.hub import Access, cached_models
from rankscope.engine.checkpoint.open import open_checkpoint


def fill(folder: Path, **files: bytes) -> Path:
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def names(model: Path) -> list[str]:
    return [t.name for t in open_checkpoint(str(model)).tensors]


def test_the_folders_that_hold_weights_are_named(tmp_path: Path) -> None:
    fill(
        tmp_path,
        **{"config.json": b"{}", "odd/model.safetensors": weights(QUERY), "empty/notes.txt": b"", "z.d/m.gguf": b""},
    )
    fill(tmp_path, **{"state/optimizer.pt": b""})
    assert refusal(tmp_path) == f"no weights in {tmp_path} itself, only in its folders (odd, z.d): name one of them"
    fill(tmp_path, **{f"checkpoint-{n}/pytorch_model.bin": b"" for n in range(9)})
    assert "(checkpoint-0, checkpoint-1, checkpoint-2, checkpoint-3, checkpoint-4, ...)" in refusal(tmp_path)


def test_the_folders_of_a_repo_are_named(hub: HubServer) -> None:
    hub.push(
        "org/pipe",
        {
            "model_index.json": b"{}",
            "unet/a.safetensors": weights(QUERY),
            "vae/b.bin": b"",
            "run/optimizer.bin": b"",
            "x/y/z.bin": b"",
        },
    )
    for access in (Access.RANGES, Access.DOWNLOAD):
        line = refused("org/pipe", access)
        folders = "in its folders (unet, vae, x/y): name one of them, as org/pipe/unet"
        assert line == f"org/pipe has no weights on the Hub that can be read except {folders}"


def test_a_models_folder_of_a_hub_cache(tmp_path: Path) -> None:
    folder = tmp_path / "models--some-org--a--b"
    snapshot = f"snapshots/{'c' * 40}"
    fill(folder, **{f"{snapshot}/model.safetensors": weights(QUERY), "refs/main": b"c" * 40, f"blobs/{'a' * 64}": b""})
    opened = open_checkpoint(f"{folder}/")
    assert (opened.name, opened.commit, opened.location) == ("some-org/a--b", "c" * 40, None)
    assert [t.name for t in opened.tensors] == [QUERY]
    (folder / "refs" / "main").unlink()
    assert refusal(folder).endswith("holds no snapshot of main: fetch some-org/a--b again")


@pytest.mark.parametrize("name", ["MODEL.SAFETENSORS", "Odd.SafeTensors", "model-00001-of-00001.SAFETENSORS"])
def test_suffixes_in_capitals(tmp_path: Path, name: str) -> None:
    fill(tmp_path, **{name: weights(QUERY)})
    assert names(tmp_path) == names(tmp_path / name) == [QUERY]


@pytest.mark.parametrize("name", ["last.ckpt", "EPOCH=3.CKPT", "model.PT"])
def test_pytorch_files_under_other_suffixes(tmp_path: Path, name: str) -> None:
    torch.save({"state_dict": {QUERY: torch.ones(4, 8)}, "epoch": 3}, tmp_path / name)
    assert names(tmp_path) == names(tmp_path / name) == [QUERY]


T = torch.ones(4, 8)
OPTIMISER = {"state": {0: {"exp_avg": T}}, "param_groups": [{"lr": 0.1}]}


@pytest.mark.parametrize(
    ("held", "named"),
    [
        ({"params": {QUERY: T}}, [QUERY]),
        ({"weights": {QUERY: T}, "epoch": 3}, [QUERY]),
        ({"model": {"net": {QUERY: T}}, "optimizer": OPTIMISER}, [QUERY]),
        ({"odd": {"deeper": {"still": {QUERY: T, DOWN: T}}}, "optim": OPTIMISER}, [QUERY, DOWN]),
        ({"model": {"language_model": {"encoder": {"layers.0.mlp.w": T}}}}, ["layers.0.mlp.w"]),
        (
            {"model": {"language_model": {"encoder": {"layers.0.mlp.w": T}, "embedding": {"words": {"weight": T}}}}},
            ["encoder.layers.0.mlp.w", "embedding.weight"],
        ),
    ],
)
def test_state_dicts_deeper_in_a_file(tmp_path: Path, held: Any, named: list[str]) -> None:
    torch.save(held, tmp_path / "odd.pt")
    assert names(tmp_path / "odd.pt") == named


def test_a_file_with_nothing_but_the_state_of_an_optimiser(tmp_path: Path) -> None:
    torch.save({"optimizer": OPTIMISER, "step": 3}, tmp_path / "odd.pt")
    assert "holds no state dict (its keys are optimizer, step)" in refusal(tmp_path / "odd.pt")


def test_the_files_that_olmo_saves(tmp_path: Path) -> None:
    for name, held in (("model.pt", {QUERY: T}), ("optim.pt", OPTIMISER), ("train.pt", {"epoch": 1})):
        torch.save(held, tmp_path / name)
    assert names(tmp_path) == [QUERY]


CAPITALS = "MODEL-00001-of-00002.SAFETENSORS", "MODEL-00002-of-00002.SafeTensors"


@pytest.mark.parametrize("index_name", ["model.safetensors.index.json", "MODEL.SAFETENSORS.INDEX.JSON"])
def test_an_index_that_names_suffixes_in_capitals(tmp_path: Path, hub: HubServer, index_name: str) -> None:
    files = {index_name: index({QUERY: CAPITALS[0], DOWN: CAPITALS[1]})}
    files |= {CAPITALS[0]: weights(QUERY), CAPITALS[1]: weights(DOWN)}
    fill(tmp_path / "here", **files)
    assert names(tmp_path / "here") == [QUERY, DOWN]
    hub.push("org/capitals", files)
    for access in (Access.RANGES, Access.DOWNLOAD):
        assert [t.name for t in open_checkpoint("org/capitals", access).tensors] == [QUERY, DOWN]
    assert cached_models() == ["org/capitals"]


def test_a_url_whose_suffix_is_in_capitals(hub: HubServer) -> None:
    hub.push("org/capitals", {"Odd.SAFETENSORS": weights(QUERY)})
    opened = open_checkpoint(f"{hub.url}/org/capitals/resolve/main/Odd.SAFETENSORS")
    assert (opened.name, [t.name for t in opened.tensors]) == ("org/capitals", [QUERY])
    hub.static["/Odd.SAFETENSORS"] = weights(DOWN)
    assert [t.name for t in open_checkpoint(f"http://localhost:{hub.port}/Odd.SAFETENSORS").tensors] == [DOWN]


@pytest.mark.parametrize("suffix", ["PTH", "Pt", "BIN"])
def test_an_index_of_pytorch_files_and_parts_in_capitals(tmp_path: Path, suffix: str) -> None:
    torch.save({QUERY: T}, tmp_path / f"odd.{suffix}")
    fill(tmp_path, **{"pytorch_model.bin.index.json": index({QUERY: f"odd.{suffix}"})})
    assert names(tmp_path) == [QUERY]
    for rank in range(2):
        torch.save({QUERY: T}, fill(tmp_path / "parts") / f"mp_rank_0{rank}_model_states.{suffix}")
    assert "is part 1 of 2 of a tensor-parallel model" in refusal(tmp_path / "parts")
