"""A matrix that is a whole factor smaller than config.json says has a note; one that is rightly so has none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from rankscope.engine.catalogue.tree import build_tree
from rankscope.engine.checkpoint.open import open_checkpoint
from rankscope.tui.cli.main import main

CONFIG = {
    "model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 8,
    "num_key_value_heads": 4, "intermediate_size": 96,
}  # fmt: skip
WHOLE = {
    "self_attn.q_proj": (64, 64), "self_attn.k_proj": (32, 64), "self_attn.v_proj": (32, 64),
    "self_attn.o_proj": (64, 64), "mlp.gate_proj": (96, 64), "mlp.up_proj": (96, 64), "mlp.down_proj": (64, 96),
}  # fmt: skip
COLUMNS = {"self_attn.o_proj", "mlp.down_proj"}


def part(count: int) -> dict[str, tuple[int, int]]:
    """The shapes of one of `count` parts, as Megatron's column and row parallel layers hold them."""
    return {n: (r, c // count) if n in COLUMNS else (r // count, c) for n, (r, c) in WHOLE.items()}


def notes(folder: Path, shapes: list[dict[str, tuple[int, int]]], config: dict[str, Any]) -> dict[str, str]:
    """The notes by address, for layers of these shapes."""
    folder.mkdir(exist_ok=True)
    tensors = {
        f"model.layers.{layer}.{name}.weight": np.ones(shape, np.float32)
        for layer, held in enumerate(shapes)
        for name, shape in held.items()
    }
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    tree = build_tree(open_checkpoint(str(folder)))
    return {p.address: p.note for p in tree.projections if p.note}


@pytest.mark.parametrize(("count", "share"), [(2, "half"), (4, "a quarter"), (8, "an eighth"), (16, "1/16")])
def test_one_part_of_a_cut_model(tmp_path: Path, count: int, share: str) -> None:
    found = notes(tmp_path, [part(count)] * 2, CONFIG)
    assert len(found) == 10  # the keys and values of 2 layers have their own number of heads
    assert found["layers.0.attention.query"] == f"{share} of the 64 x 64 that config.json says: a part of a cut model"
    assert found["layers.1.mlp.down"] == f"{share} of the 64 x 96 that config.json says: a part of a cut model"
    nested = {"model_type": "llava", "text_config": CONFIG | {"head_dim": 8}}
    assert notes(tmp_path / "nested", [part(count)] * 2, nested) == found


def test_some_of_the_matrices_alone(tmp_path: Path) -> None:
    for names, addresses in (
        (["q_proj"], ["attention.query"]),
        (["gate", "up", "down"], ["mlp.gate", "mlp.up", "mlp.down"]),
    ):
        cut = {name: shape for name, shape in part(2).items() if name.split(".")[1].startswith(tuple(names))}
        found = notes(tmp_path, [WHOLE, WHOLE | cut], CONFIG)
        assert found.keys() == {f"layers.1.{address}" for address in addresses}


@pytest.mark.parametrize(
    ("shapes", "config"),
    [
        (WHOLE, {}),
        (part(2), {"num_attention_heads": None, "intermediate_size": None}),
        (part(2), {"hidden_size": None}),
        ({n: s for n, s in WHOLE.items() if "q_proj" not in n} | {"self_attn.q_proj": (48, 64)}, {}),
        (WHOLE | {"self_attn.q_proj": (128, 64)}, {}),
        (WHOLE | {"self_attn.q_proj": (32, 64), "self_attn.o_proj": (64, 32)}, {"head_dim": 4}),
        (WHOLE | {"self_attn.q_proj": (32, 64)}, {"head_ratio": 2}),
        (WHOLE | {"self_attn.q_proj": (32, 64)}, {"qk_nope_head_dim": 4}),
        ({n: s if "self" in n else part(2)[n] for n, s in WHOLE.items()}, {}),
        ({n: (r // 2, c // 2) for n, (r, c) in WHOLE.items()}, {}),
        ({f"mlp.experts.0.{n[4:]}": s for n, s in part(2).items() if "mlp" in n}, {}),
    ],
)
def test_sizes_that_are_right(tmp_path: Path, shapes: dict[str, tuple[int, int]], config: dict[str, Any]) -> None:
    said = {key: value for key, value in (CONFIG | config).items() if value is not None}
    assert notes(tmp_path, [shapes] * 2, said) == {}


def test_the_line_stands_in_the_tree(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    notes(tmp_path / "m", [part(2)], CONFIG)
    assert main(["tree", str(tmp_path / "m"), "--store", str(tmp_path / "store"), "--json"]) == 0
    told = capsys.readouterr()
    said = "half of the 64 x 64 that config.json says: a part of a cut model"
    assert said in told.out
    assert told.err == f"5 matrices are parts of whole ones: layers.0.attention.query is {said}\n"
    assert main(["scan", str(tmp_path / "m"), "--store", str(tmp_path / "store"), "--device", "cpu"]) == 0
    assert said in capsys.readouterr().err
