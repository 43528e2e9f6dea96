"""The same tensors in two files: which of them count, and that the rest is named."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hub_server import HubServer
from opening import DOWN, KEY, QUERY, index, refusal, weights

from rankscope.engine.checkpoint.hub import Access
from rankscope.engine.checkpoint.open import Checkpoint, open_checkpoint
from rankscope.engine.formats.safetensors import INDEX

SHARDS = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


def fill(folder: Path, **files: bytes) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def held(model: Path) -> dict[str, str]:
    return {t.name: t.file.name for t in open_checkpoint(str(model)).tensors}


def warned(model: Path) -> str:
    (line,) = open_checkpoint(str(model)).warnings
    return line


def test_the_index_says_which_of_two_shards_counts(tmp_path: Path) -> None:
    files = {SHARDS[0]: weights(QUERY, KEY), SHARDS[1]: weights(KEY, DOWN, seed=1)}
    for counts in SHARDS:
        fill(tmp_path, **files, **{INDEX: index({QUERY: SHARDS[0], KEY: counts, DOWN: SHARDS[1]})})
        assert held(tmp_path) == {QUERY: SHARDS[0], KEY: counts, DOWN: SHARDS[1]}
        assert warned(tmp_path) == f"1 tensor in two files, of which the index names one: e.g. {KEY}"
    (tmp_path / INDEX).unlink()
    line = refusal(tmp_path)
    assert line.endswith(
        "no index says which counts: name one of the files, or move what is not the model's out of the folder"
    )
    assert all(name in line for name in (KEY, *SHARDS))


def test_what_an_index_does_not_name_is_left_out(tmp_path: Path) -> None:
    fill(
        tmp_path,
        **{SHARDS[0]: weights(QUERY, "stale"), "old.safetensors": weights(QUERY), INDEX: index({QUERY: SHARDS[0]})},
    )
    assert held(tmp_path) == {QUERY: SHARDS[0]}
    assert open_checkpoint(str(tmp_path)).warnings == (
        "files beside the model that are not read: old.safetensors",
        "1 tensor that the index does not name, e.g. stale: left out",
    )


def test_an_index_that_names_the_wrong_shards_hides_nothing(tmp_path: Path) -> None:
    fill(tmp_path, **{SHARDS[0]: weights(QUERY), SHARDS[1]: weights(DOWN)})
    fill(tmp_path, **{INDEX: index({QUERY: SHARDS[1], DOWN: SHARDS[0]})})
    assert held(tmp_path) == {QUERY: SHARDS[0], DOWN: SHARDS[1]}
    fill(tmp_path, **{INDEX: index({f"model.{QUERY}": SHARDS[0], f"model.{DOWN}": SHARDS[1]})})
    assert held(tmp_path) == {QUERY: SHARDS[0], DOWN: SHARDS[1]}
    assert warned(tmp_path).startswith("the index names 2 tensors that no shard holds")


@pytest.mark.parametrize("prefix", ["./", "parts/", "parts/./deeper/"])
def test_shards_in_a_folder_of_the_models_own(tmp_path: Path, prefix: str) -> None:
    fill(tmp_path, **{f"{prefix}{SHARDS[0]}": weights(QUERY), INDEX: index({QUERY: f"{prefix}{SHARDS[0]}"})})
    assert held(tmp_path) == {QUERY: SHARDS[0]}


def test_a_folder_of_shards_that_is_a_link_elsewhere(tmp_path: Path) -> None:
    fill(tmp_path / "elsewhere", **{SHARDS[0]: weights(QUERY)})
    folder = fill(tmp_path / "model", **{INDEX: index({QUERY: f"parts/{SHARDS[0]}"})})
    (folder / "parts").symlink_to(tmp_path / "elsewhere")
    assert "is a link out of its folder" in refusal(folder)


@pytest.mark.parametrize("word", ["fp16", "bf16", "non_ema", "q8"])
@pytest.mark.parametrize("stem", ["diffusion_pytorch_model", "model", "odd"])
def test_the_plain_file_comes_before_its_variant(tmp_path: Path, stem: str, word: str) -> None:
    plain, variant = f"{stem}.safetensors", f"{stem}.{word}.safetensors"
    fill(tmp_path, **{variant: weights(QUERY, seed=3)})
    assert held(tmp_path) == {QUERY: variant}
    fill(tmp_path, **{plain: weights(QUERY)})
    assert held(tmp_path) == {QUERY: plain}
    assert warned(tmp_path) == f"files beside the model that are not read: {variant}"


@pytest.mark.parametrize(
    "spelling", ["model-0000{}-of-00002.fp16.safetensors", "model.fp16-0000{}-of-00002.safetensors"]
)
@pytest.mark.parametrize("indexed", [True, False])
def test_plain_shards_come_before_those_of_a_variant(tmp_path: Path, spelling: str, indexed: bool) -> None:
    fill(tmp_path, **{SHARDS[0]: weights(QUERY), SHARDS[1]: weights(DOWN)})
    fill(tmp_path, **{spelling.format(1): weights(QUERY, seed=1), spelling.format(2): weights(DOWN, seed=2)})
    if indexed:
        fill(tmp_path, **{INDEX: index({QUERY: SHARDS[0], DOWN: SHARDS[1]})})
        fill(tmp_path, **{"model.safetensors.index.fp16.json": index({QUERY: spelling.format(1)})})
    assert held(tmp_path) == {QUERY: SHARDS[0], DOWN: SHARDS[1]}
    assert spelling.format(1) in warned(tmp_path)


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_diffusers_own_index(tmp_path: Path, suffix: str) -> None:
    shards = [f"diffusion_pytorch_model-0000{n}-of-00002.{suffix}" for n in (1, 2)]
    for name, shard in zip((QUERY, DOWN), shards, strict=True):
        if suffix == "bin":
            torch.save({name: torch.ones(4, 8), f"stale.{name}": torch.ones(2)}, tmp_path / shard)
        else:
            (tmp_path / shard).write_bytes(weights(name, f"stale.{name}"))
    fill(
        tmp_path,
        **{f"diffusion_pytorch_model.{suffix}.index.json": index(dict(zip((QUERY, DOWN), shards, strict=True)))},
    )
    assert held(tmp_path) == {QUERY: shards[0], DOWN: shards[1]}
    assert warned(tmp_path) == f"2 tensors that the index does not name, e.g. stale.{DOWN}: left out"


def test_a_stub_beside_numbered_shards(tmp_path: Path) -> None:
    fill(
        tmp_path,
        **{SHARDS[0]: weights(QUERY), SHARDS[1]: weights(DOWN), "model.safetensors": weights("head", shape=(2, 3))},
    )
    assert held(tmp_path) == {QUERY: SHARDS[0], DOWN: SHARDS[1]}
    assert warned(tmp_path) == "files beside the model that are not read: model.safetensors"
    fill(tmp_path, **{"model.safetensors": weights(QUERY, DOWN)})  # as large as both: the model once more
    assert set(held(tmp_path).values()) == {"model.safetensors"}
    assert warned(tmp_path) == f"files beside the model that are not read: {SHARDS[0]}, {SHARDS[1]}"


def test_an_adapter_is_no_part_of_the_model_beside_it(tmp_path: Path) -> None:
    adapter = {"adapter_model.safetensors": weights("lora_A.weight")}
    fill(tmp_path / "shards", **{SHARDS[0]: weights(QUERY), SHARDS[1]: weights(DOWN)}, **adapter)
    assert set(held(tmp_path / "shards")) == {QUERY, DOWN}
    fill(tmp_path / "bin", **adapter)
    torch.save({QUERY: torch.ones(4, 8)}, tmp_path / "bin" / "pytorch_model.bin")
    assert set(held(tmp_path / "bin")) == {QUERY}
    assert set(held(fill(tmp_path / "alone", **adapter))) == {"lora_A.weight"}


def test_two_sharded_variants_are_never_told_to_be_opened_by_a_part(tmp_path: Path) -> None:
    for word in ("fp16", "bf16"):
        torch.save({QUERY: torch.ones(4, 8)}, tmp_path / f"odd.{word}-00001-of-00001.pt")
    assert refusal(tmp_path).endswith(": keep one of them there")


def test_on_the_hub_the_same_files_count(hub: HubServer) -> None:
    shards = {SHARDS[0]: weights(QUERY), SHARDS[1]: weights(DOWN)}
    hub.push("org/tiny", {**shards, "model.safetensors": weights("head", shape=(2, 3)), "x/y.safetensors": b""})
    opened: Checkpoint = open_checkpoint("org/tiny", Access.RANGES)
    assert {t.name for t in opened.tensors} == {QUERY, DOWN}
    assert opened.warnings == ("files beside the model that are not read: model.safetensors",)
