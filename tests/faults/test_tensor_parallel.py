"""Files with a part of every matrix are refused as a set, by name, and also when only one of them is given."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from opening import DOWN, KEY, QUERY, refusal, weights

from rankscope.engine.checkpoint.open import open_checkpoint

SETS = {
    "mp_rank_{:02}_model_states.pt": "DeepSpeed: save the whole model with the program that trained it",
    "model-rank-{}-part-0.safetensors": "vLLM: open the model that they were made from",
    "rank{}.safetensors": "TensorRT-LLM: open the model that they were made from",
    "zero_pp_rank_{}_mp_rank_00_model_states.pt": "DeepSpeed's ZeRO-3: join them with its zero_to_fp32.py",
    "layer_03-model_{:02}-model_states.pt": "GPT-NeoX: join them with its tools/ckpts/convert_neox_to_hf.py",
    "mp_rank_{:02}/model_optim_rng.pt": "Megatron: join them with its tools/checkpoint/convert.py",
    "mp_rank_{:02}_000/model_optim_rng.pt": "Megatron: join them with its tools/checkpoint/convert.py",
}


def fill(folder: Path, *names: str, keys: tuple[str, ...] = (QUERY,)) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".safetensors"):
            (folder / name).write_bytes(weights(*keys))
        else:
            torch.save({key: torch.ones(4, 8) for key in keys}, folder / name)
    return folder


@pytest.mark.parametrize(("name", "said"), SETS.items())
def test_a_set_and_each_of_its_files(tmp_path: Path, name: str, said: str) -> None:
    files = [name.format(n) for n in range(3)]
    fill(tmp_path, *files, "latest.txt")
    parts = f" of 3 of a tensor-parallel model saved by {said}"
    line = refusal(tmp_path)
    assert line.endswith(f"is part 1{parts}")
    assert files[0].split("/")[0] in line
    for number, file in enumerate(files, 1):
        assert refusal(tmp_path / file).endswith(f"is part {number}{parts}")
        if "/" in file:
            assert refusal(tmp_path / file.split("/")[0]).endswith(f"is part {number}{parts}")


@pytest.mark.parametrize(("name", "said"), SETS.items())
def test_a_part_whose_set_is_elsewhere(tmp_path: Path, name: str, said: str) -> None:
    file = fill(tmp_path, name.format(2)) / name.format(2)
    wanted = f"is part 3 of at least 3 of a tensor-parallel model saved by {said}"
    assert refusal(file).endswith(wanted)
    assert refusal(tmp_path).endswith(wanted)


@pytest.mark.parametrize("name", [name for name in SETS if "zero" not in name and "layer" not in name])
def test_the_only_part_of_a_model_that_was_not_cut_opens(tmp_path: Path, name: str) -> None:
    file = fill(tmp_path, name.format(0)) / name.format(0)
    for model in (file, file.parent):
        assert [t.name for t in open_checkpoint(str(model)).tensors] == [QUERY]


@pytest.mark.parametrize("name", [name for name in SETS if "zero" in name or "layer" in name])
def test_files_that_hold_no_whole_model_even_of_one_process(tmp_path: Path, name: str) -> None:
    file = fill(tmp_path, name.format(0), "mp_rank_00_model_states.pt") / name.format(0)
    assert " is one of the files over which " in refusal(file)
    assert " is one of the files over which " in refusal(tmp_path)


def test_a_file_that_says_of_how_many_it_is(tmp_path: Path) -> None:
    file = tmp_path / "mp_rank_00_model_states.pt"
    torch.save({"module": {QUERY: torch.ones(4, 8)}, "mp_world_size": 4}, file)
    assert refusal(file).endswith("is one of 4 parts of a tensor-parallel model: save the whole model")
    torch.save({"module": {QUERY: torch.ones(4, 8)}, "mp_world_size": 1}, file)
    assert len(open_checkpoint(str(file)).tensors) == 1


def test_a_whole_model_beside_parts_is_the_model(tmp_path: Path) -> None:
    fill(tmp_path, "model-rank-0-part-0.safetensors", "model-rank-1-part-0.safetensors")
    fill(tmp_path, "model.safetensors", keys=(KEY, DOWN))
    assert {t.name for t in open_checkpoint(str(tmp_path)).tensors} == {KEY, DOWN}
    assert "is part 2 of 2 of a tensor-parallel model" in refusal(tmp_path / "model-rank-1-part-0.safetensors")
