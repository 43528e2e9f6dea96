"""PEFT's configuration of ranks, on modules whose names are suffixes of one another."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from rankscope.engine.plan.lora_file import LoraRanks, config_of, encoded, ranks_for
from rankscope.engine.plan.lora_modules import LoraModule, LoraModules, suffixed


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.proj, self.other = nn.Linear(6, 5), nn.Linear(5, 6)
        self.experts = nn.Module()
        self.experts.up = nn.Parameter(torch.zeros(3, 6, 5))


class Towers(nn.Module):
    """A model where `a.proj` is a suffix of `tower.a.proj` and of `tower.b.a.proj`."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.ab = Block(), Block()
        self.tower = nn.ModuleDict({"a": Block(), "b": nn.ModuleDict({"a": Block()})})


NAMES = tuple(
    [path for path, _ in Towers().named_modules() if path] + [n for n, p in Towers().named_parameters() if p.dim() == 3]
)


def found_of(*names: str, is_turned: bool = False) -> LoraModules:
    modules = tuple(LoraModule(name, name.endswith(".up"), is_turned, ()) for name in names)
    return LoraModules("Towers", modules, (), NAMES)


def wrapped(config: dict[str, Any]) -> dict[str, tuple[int, float]]:
    import peft

    model = peft.get_peft_model(Towers(), peft.LoraConfig(**config)).base_model.model
    return {
        path: (module.r["default"], module.scaling["default"])
        for path, module in model.named_modules()
        if isinstance(module, peft.tuners.lora.LoraLayer)
    }


@pytest.mark.parametrize(
    "given",
    [
        {"a.proj": 3, "ab.proj": 2},
        {"a.proj": 3, "tower.a.proj": 2, "tower.b.a.other": 2},
        {"tower.a.proj": 4, "a.proj": 0},
        {"a.proj": 1, "a.other": 1, "ab.other": 5},
    ],
)
def test_peft_wraps_what_is_named_and_nothing_that_ends_so(given: dict[str, int]) -> None:
    found = found_of(*given)
    ranks = ranks_for(found, given)
    config = config_of("base", found, ranks)
    assert wrapped(config) == {name: (rank, 1.0) for name, rank in given.items() if rank}
    ends_so = suffixed(NAMES, ranks.modules)
    assert (config["exclude_modules"] is not None) == bool(ends_so)
    assert all(re.fullmatch(config["exclude_modules"], name) for name in ends_so)
    assert encoded(config).endswith(b"}\n")


def test_the_most_common_rank_is_the_default() -> None:
    given = {"a.proj": 7, "a.other": 2, "ab.proj": 2, "ab.other": 7, "tower.a.proj": 2}
    config = config_of("base", found_of(*given), ranks_for(found_of(*given), given))
    assert (config["r"], config["lora_alpha"]) == (2, 2)
    assert config["rank_pattern"] == config["alpha_pattern"] == {r"^a\.proj$": 7, r"^ab\.other$": 7}


def test_a_parameter_that_others_end_in_is_left_out_and_named() -> None:
    given = {"a.experts.up": 2, "ab.experts.up": 2, "ab.proj": 1}
    ranks = ranks_for(found_of(*given), given)
    assert ranks == LoraRanks({"ab.proj": 1}, {"ab.experts.up": 2}, ("a.experts.up",))
    config = config_of("base", found_of(*given), ranks)
    assert wrapped(config).keys() == {"ab.proj", "ab.experts"}


def test_conv1d_is_turned() -> None:
    given = {"a.proj": 2}
    for is_turned in (True, False):
        found = found_of(*given, is_turned=is_turned)
        assert config_of("base", found, ranks_for(found, given))["fan_in_fan_out"] is is_turned


def test_beside_stacks_what_peft_takes_for_a_part_of_them_is_named_by_its_weight() -> None:
    given = {"a.proj": 2, "a.down_proj": 3, "tower.a.down_proj": 1, "b.up_proj": 3}
    for has_stacks in (True, False):
        found = replace(found_of(*given), has_stacks=has_stacks)
        found = replace(found, names=(*NAMES, *(f"{name}.weight" for name in given), "tower.b.up_proj.weight"))
        ranks = ranks_for(found, given)
        if has_stacks:
            parameters = {"tower.a.down_proj.weight": 1, "a.down_proj.weight": 3}
            assert ranks == LoraRanks({"a.proj": 2}, parameters, ("b.up_proj.weight",))
        else:
            assert ranks == LoraRanks(given, {})
