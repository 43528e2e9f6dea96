"""The factor by which an adapter scales the product of its matrices, from its adapter_config.json."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from ..errors import printable

_DEFAULT_ALPHA = 8
_LONGEST, _MOST_REPEATS = 200, 3
WRAPPER = "base_model.model."
"""The prefix that PEFT puts before the names of a model's modules."""
_NOT_FOLLOWED = ("use_bdlora", "use_qalora", "kasa_config", "layer_replication")
"""Options of PEFT with which the added matrix is not scale x B A, or is added elsewhere too."""
_REPEAT = re.compile(r"[*+{]")
_REPEATED_GROUP = re.compile(r"\)\s*[*+{]")


class Scales:
    """The scale of each module from adapter_config.json, {} if there is none; GGUF's metadata use the same words.
    `lines` collects what a user should know about it."""

    def __init__(self, adapter: Mapping[str, Any]) -> None:
        self._adapter = adapter
        self.lines: dict[str, None] = {}
        for option in filter(adapter.get, _NOT_FOLLOWED):
            self.lines[f"{option} of adapter_config.json is not applied: the spectra are those of scale x B A"] = None

    @property
    def is_turned(self) -> bool:
        """True if the matrices to be changed are stored as (inputs, outputs), as by Conv1D."""
        return self._adapter.get("fan_in_fan_out") is True

    @property
    def uses_root(self) -> bool:
        """True if alpha is divided by the root of the rank (rsLoRA, arXiv 2312.03732)."""
        return self._adapter.get("use_rslora") is True

    def of(self, module: str, rank: int) -> float:
        """The factor for the product of a module's matrices of this rank; 1 if nothing states it."""
        mlx = self._adapter.get("lora_parameters")
        if isinstance(mlx, Mapping):
            return self._of_mlx(mlx, rank)
        if not self._adapter:
            self.lines["lora_alpha is given nowhere: B A is taken with scale 1"] = None
            return 1.0
        patterns = self._adapter.get("alpha_pattern")
        alpha = self._adapter.get("lora_alpha", _DEFAULT_ALPHA)
        if isinstance(patterns, Mapping):
            alpha = next((value for key, value in patterns.items() if self._names(str(key), module)), alpha)
        divisor = self.divisor(rank)
        return self._number(alpha, "lora_alpha", divisor) / divisor

    def divisor(self, rank: int) -> float:
        """The number that alpha is divided by."""
        return math.sqrt(rank) if self.uses_root else float(rank)

    def _of_mlx(self, parameters: Mapping[str, Any], rank: int) -> float:
        if "scale" in parameters:
            return self._number(parameters["scale"], "scale", 1)
        if "alpha" in parameters:
            return self._number(parameters["alpha"], "alpha", rank) / rank
        self.lines["adapter_config.json gives no scale: B A is taken with scale 1"] = None
        return 1.0

    def _number(self, value: Any, name: str, instead: float) -> float:
        """The stated value as a number, or `instead`, with which the scale becomes 1."""
        try:
            number = float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else math.nan
        except OverflowError:  # JSON may hold whole numbers of any size
            number = math.inf
        if math.isfinite(number):
            return number
        self.lines[f"{name} of adapter_config.json is not a number ({printable(str(value), 40)}): the scale is 1"] = (
            None
        )
        return instead

    def _names(self, pattern: str, module: str) -> bool:
        """True if a key of alpha_pattern names a module, by PEFT's rule (peft.utils.get_pattern_key). The file may be
        untrusted, so patterns that could take for ever to match are not read."""
        name = module.removeprefix(WRAPPER)
        whole = pattern if pattern.startswith("^") else rf"(?:.*\.)?(?:{pattern})$"
        why = "it is too long, or repeats too much"
        if max(len(pattern), len(name)) <= _LONGEST and not _is_wild(pattern):
            try:
                return re.match(whole, name) is not None
            except re.error as error:
                why = str(error)
        self.lines[f"alpha_pattern {printable(pattern, 60)} of adapter_config.json is not read: {why}"] = None
        return False


def _is_wild(pattern: str) -> bool:
    """True if matching the pattern could take for ever: it repeats a group, or repeats often."""
    return len(_REPEAT.findall(pattern)) > _MOST_REPEATS or _REPEATED_GROUP.search(pattern) is not None
