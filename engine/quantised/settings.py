"""The quantisation settings in config.json, read without trusting them: any key may be missing or hold anything."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass
from typing import Any

OWN_FILES = {"quantize_config.json": "gptq", "quant_config.json": "awq", "hf_quant_config.json": "modelopt"}
"""Files in which AutoGPTQ, the first AutoAWQ and modelopt write what others write into config.json."""


@dataclass(frozen=True, slots=True)
class QuantisationSettings:
    """The quantisation that config.json states: `method`, "" for none, and the rest of quantization_config."""

    method: str
    config: Mapping[str, Any]

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> QuantisationSettings:
        """The settings in config.json, or in its part for the text tower."""
        nested = [config.get(key) for key in ("text_config", "llm_config", "language_config", "thinker_config")]
        for place in (config, *(n for n in nested if isinstance(n, Mapping))):
            for key in ("quantization_config", "compression_config"):
                if isinstance(found := place.get(key), Mapping):
                    return cls(_method(found), found)
        return cls("", {})

    def number(self, *names: str) -> int | None:
        """The value of the first of these keys that holds a whole number."""
        return next((self.config[name] for name in names if type(self.config.get(name)) is int), None)

    def word(self, *names: str) -> str:
        """The text, in lower case, under the first of these keys that holds one; "" if none does."""
        return next((self.config[name].lower() for name in names if isinstance(self.config.get(name), str)), "")

    def weights(self) -> list[Mapping[str, Any]]:
        """The settings of the weights in the groups of compressed-tensors and modelopt."""
        groups = self.config.get("config_groups")
        found = groups.values() if isinstance(groups, Mapping) else ()
        return [g["weights"] for g in found if isinstance(g, Mapping) and isinstance(g.get("weights"), Mapping)]

    def has_zero_points(self, parts: Container[str]) -> bool:
        """True if weights of these parts have zero points: there are some, or all groups state that there should be."""
        stated = [w.get("symmetric") for w in self.weights()]
        return "weight_zero_point" in parts or (bool(stated) and all(symmetric is False for symmetric in stated))

    def blocks(self) -> list[tuple[int, int]]:
        """The blocks of weights that share a scale, from all places where config.json may state them."""
        named = [self.config.get("weight_block_size")]
        named += [w.get("block_structure") for w in self.weights()]
        named += [[1, w.get("group_size")] for w in self.weights()]
        return [(b[0], b[1]) for b in named if isinstance(b, list) and len(b) == 2 and all(map(positive, b))]


def _method(config: Mapping[str, Any]) -> str:
    if isinstance(method := config.get("quant_method"), str):
        return method.lower()
    if config.get("load_in_4bit") or config.get("load_in_8bit"):
        return "bitsandbytes"
    return "modelopt" if "quant_algo" in config else "compressed-tensors" if "config_groups" in config else ""


def positive(number: object) -> bool:
    """True for a whole number from 1 to 2^31 - 1."""
    return type(number) is int and 0 < number < 1 << 31


def completed(config: Mapping[str, Any], read: Callable[[str], Mapping[str, Any]]) -> Mapping[str, Any]:
    """config.json with the quantization_config that a quantiser wrote to a separate file, if it has none itself.

    `read` returns a JSON file of the model by its name, {} if there is none.

    Raises:
        InputError: as `read`.
    """
    if QuantisationSettings.of(config).config:
        return config
    for name, method in OWN_FILES.items():
        if found := read(name):
            inner = found.get("quantization")
            return {
                **config,
                "quantization_config": {"quant_method": method} | dict(inner if isinstance(inner, dict) else found),
            }
    return config
