"""Plans as JSON: what is written is read back, and a wrong file is refused in one line."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rankscope.engine.errors import InputError
from rankscope.engine.plan.plan_file import Plan, PlanRow, PlanWeighting, read_plan, write_plan
from rankscope.engine.spectrum import Slice

ROWS = (
    PlanRow("layers.0.mlp.up", "a", "h.0.up.weight", None, (24, 16), "factor", 8, 0.75, 320),
    PlanRow("layers.0.attention.key", "b", "h.0.qkv", Slice(0, 3, 4, 4), (12, 16), "keep", None, 1.0, 192),
    PlanRow("layers.0.expert.2.gate", "c", "h.0.experts", Slice(1, 1, 0, 16, 2), (16, 16), "factor", 2, 0.5, 64),
)
PLAN = Plan(
    "org/näme", "0" * 40, PlanWeighting("moments", "moments m.safetensors, pooled", "dd", True),
    "parameters", "factors", False, 0.2, "projections", 8, 8, 600, 12.5, 11.0, ROWS,
)  # fmt: skip


def test_what_is_written_comes_back(tmp_path: Path) -> None:
    for plan in (PLAN, Plan("m", None, None, "absolute", "factors", True, 0.0, "total", 1, 1, 9, 0.0, 0.0, ROWS[:1])):
        write_plan(tmp_path / "plan.json", plan)
        assert read_plan(tmp_path / "plan.json") == plan
    assert PLAN.parameters == 320 + 192 + 64


def test_a_stranger_reads_it_as_json(tmp_path: Path) -> None:
    write_plan(tmp_path / "plan.json", PLAN)
    found = json.loads((tmp_path / "plan.json").read_text())
    assert (found["format"], found["version"], found["weighting"]["pooled"]) == ("rankscope plan", 1, True)
    assert [row["slice"] for row in found["rows"]] == [None, [0, 3, 4, 4, None], [1, 1, 0, 16, 2]]
    assert found["rows"][0] == {
        "address": "layers.0.mlp.up", "key": "a", "tensor": "h.0.up.weight", "slice": None, "shape": [24, 16],
        "action": "factor", "rank": 8, "energy": 0.75, "parameters": 320,
    }  # fmt: skip


def changed(field: str, value: Any, row: int | None = None) -> Callable[[dict[str, Any]], None]:
    def change(held: dict[str, Any]) -> None:
        place = held if row is None else held["rows"][row]
        place[field] = value

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (changed("format", "something"), "is not a plan: make one with"),
        (changed("version", 2), "version 2, and this program reads version 1"),
        (changed("version", None), "version None"),
        (changed("model", 7), "'model' is 7, and must be a text"),
        (changed("commit", ["x"]), "'commit'"),
        (lambda held: held.pop("cost"), "'cost' is missing"),
        (changed("cost", "free"), "must be factors or pifa"),
        (changed("cost", {}), "must be factors or pifa"),
        (changed("uniform", 1), "must be true or false"),
        (changed("cut", 1.5), "a number from 0 to 1"),
        (changed("cut", True), "a number from 0 to 1"),
        (changed("loss", float("nan")), "'loss' is NaN"),
        (changed("loss", float("inf")), "'loss' is Infinity"),
        (changed("bound", "1"), "'bound'"),
        (changed("budget", -1), "at least 0"),
        (changed("budget", 1.0), "'budget' is 1.0"),
        (changed("min_rank", 0), "at least 1"),
        (changed("weighting", "norm"), "'weighting' is \"norm\", and must be an object"),
        (lambda held: held["weighting"].pop("pooled"), "weighting: 'pooled' is missing"),
        (changed("rows", {}), "'rows' must be a list"),
        (changed("rows", [1]), "'rows' must be a list of objects"),
        (changed("rows", []), "no rows"),
        (changed("rank", 17, 0), "row 1: layers.0.mlp.up: 'rank' is 17, and must be a whole number from 1 to 16"),
        (changed("rank", -8, 0), "from 1 to 16"),
        (changed("rank", None, 0), "from 1 to 16"),
        (changed("rank", 3, 1), "row 2: layers.0.attention.key: 'rank' must be null"),
        (changed("shape", [0, 16], 0), "'rank'"),
        (changed("shape", [24], 0), "'shape' is [24], and must be 2 whole numbers"),
        (changed("slice", [0, 3, 4], 1), "'slice'"),
        (changed("slice", [0, 3, 4, -1, None], 1), "'slice'"),
        (changed("slice", [0, 3, 4, 4, "2"], 1), "'slice'"),
        (changed("action", "drop", 0), "must be keep or factor"),
        (changed("energy", 1.01, 0), "'energy'"),
        (changed("parameters", 321, 0), "'parameters' is 321, but its shape and rank give 320"),
        (changed("address", "layers.0.attention.key", 0), "'layers.0.attention.key' is in another row too"),
        (changed("key", "b", 0), "the key 'b' is in another row too"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(tmp_path: Path, change: Callable[[dict[str, Any]], None], words: str) -> None:
    file = tmp_path / "plan.json"
    write_plan(file, PLAN)
    held = json.loads(file.read_text())
    change(held)
    file.write_text(json.dumps(held))
    with pytest.raises(InputError) as caught:
        read_plan(file)
    assert words in str(caught.value)
    assert "plan.json" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\x93NUMPY\x01", b"GGUF\x03\0\0\0", b"\xff\xfe", b"not a plan"])
def test_what_is_no_json_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "plan.json").write_bytes(content)
    with pytest.raises(InputError, match=r"plan\.json"):
        read_plan(tmp_path / "plan.json")


def test_what_cannot_be_read_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name, said in (
        ("none.json", "no such plan: .*none.json: make one with  rankscope plan MODEL --cut 20% -o FILE.json"),
        ("pipe", "cannot read .*pipe: not a regular file: name a file"),
        (".", "cannot read .*: it is a folder: name a file in it"),
    ):
        with pytest.raises(InputError, match=f"^{said}$"):
            read_plan(tmp_path / name)


def test_pivoted_rows_cost_less(tmp_path: Path) -> None:
    row = PlanRow("layers.0.mlp.up", "a", "h.0.up.weight", None, (24, 16), "factor", 8, 0.75, 8 * (40 - 8))
    plan = Plan("m", None, None, "relative", "pifa", False, 0.1, "total", 8, 8, 300, 1.0, 0.5, (row,))
    write_plan(tmp_path / "plan.json", plan)
    assert read_plan(tmp_path / "plan.json") == plan
