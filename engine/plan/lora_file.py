"""Ranks of LoRA adapters as PEFT's configuration: the content of `LoraConfig` and adapter_config.json."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .lora_modules import LoraModules, suffixed

_TASKS = (
    ("ForCausalLM", "CAUSAL_LM"),
    ("LMHeadModel", "CAUSAL_LM"),
    ("ForConditionalGeneration", "SEQ_2_SEQ_LM"),
    ("ForSequenceClassification", "SEQ_CLS"),
    ("ForTokenClassification", "TOKEN_CLS"),
    ("ForQuestionAnswering", "QUESTION_ANS"),
)
"""PEFT's name for the task of a model class, by the end of the class's name. PEFT also works without one."""

WEIGHT = ".weight"
"""The end of the name of a module's weight."""
_PARTS = ("gate", "gate_proj", "up_proj", "down_proj", "w1", "w2", "w3")
"""PEFT's names for parts of experts that transformers stacks (its transformers_weight_conversion.py)."""


@dataclass(frozen=True, slots=True)
class LoraRanks:
    """The ranks of an adapter, by name: of `modules`, and of `parameters`, which are stacks of experts and the weights
    of modules whose names PEFT would misread. `left` are parameters that PEFT could not tell from others."""

    modules: Mapping[str, int]
    parameters: Mapping[str, int]
    left: tuple[str, ...] = ()

    @property
    def every(self) -> dict[str, int]:
        """The ranks of modules and parameters."""
        return {**self.modules, **self.parameters}

    @property
    def common(self) -> int:
        """The most common rank; if there are several, the smallest."""
        counts = Counter(self.every.values())
        return min(counts, key=lambda rank: (-counts[rank], rank))


def ranks_for(found: LoraModules, ranks: Mapping[str, int]) -> LoraRanks:
    """The ranks of the modules that get an adapter: those of rank 1 or more.

    In a model with stacked experts PEFT takes every target whose last word is one of _PARTS for a part of the experts,
    even in a dense layer, so the weight of such a module is named as a parameter instead. PEFT matches parameters by
    the ends of their names too, and can exclude none: a parameter whose name ends another's is left out.
    """
    given = {m.name: ranks[m.name] for m in found.modules if ranks[m.name] >= 1}
    stacks = {m.name for m in found.modules if m.is_parameter}
    renamed = {name for name in given if found.has_stacks and name.rpartition(".")[2] in _PARTS} - stacks
    parameters = {name: rank for name, rank in given.items() if name in stacks}
    parameters |= {f"{name}{WEIGHT}": given[name] for name in renamed}
    others = suffixed(found.names, parameters)
    left = tuple(name for name in parameters if any(other.endswith(f".{name}") for other in others))
    return LoraRanks(
        {name: rank for name, rank in given.items() if name not in stacks and name not in renamed},
        {name: rank for name, rank in parameters.items() if name not in left},
        left,
    )


def config_of(base: str, found: LoraModules, ranks: LoraRanks) -> dict[str, Any]:
    """PEFT's configuration (0.21) for these ranks; alpha is the rank, so that the scale is 1.

    PEFT matches targets by the ends of module names. Other modules whose names end in a target are excluded by one
    anchored expression, as the entries of a list would be matched by ends too.
    """
    common = ranks.common
    other = {f"^{re.escape(name)}$": rank for name, rank in ranks.every.items() if rank != common}
    excluded = "|".join(map(re.escape, suffixed(found.names, ranks.modules)))
    turned = {m.name for m in found.modules if m.is_turned and not m.is_parameter}
    return {
        "peft_type": "LORA",
        "task_type": next((task for end, task in _TASKS if found.kind.endswith(end)), None),
        "base_model_name_or_path": base,
        "r": common,
        "lora_alpha": common,
        "target_modules": list(ranks.modules),
        "target_parameters": list(ranks.parameters) or None,
        "exclude_modules": f"^(?:{excluded})$" if excluded else None,
        "rank_pattern": other,
        "alpha_pattern": other,
        "use_rslora": False,
        "fan_in_fan_out": not turned.isdisjoint(ranks.modules),
        "lora_dropout": 0.0,
        "bias": "none",
        "inference_mode": False,
    }


def encoded(config: Mapping[str, Any]) -> bytes:
    """A configuration as JSON."""
    return f"{json.dumps(config, indent=1)}\n".encode()
