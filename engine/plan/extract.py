"""A LoRA adapter made of the difference of two checkpoints: its leading factors, as PEFT stores them.

transformers loads both models whole, so that nothing here needs to know what it fuses, stacks, transposes and permutes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from ..calibration.running import load_model
from ..checkpoint.open import Checkpoint
from ..errors import InputError, printable
from ..formats.writing import TensorToWrite
from ..moment import Moment
from ..spectrum import Projection
from ..weights import HostArray, Weights, encoded, host_array
from .factors import TwoFactors, factors
from .lora_file import WEIGHT, LoraRanks
from .lora_modules import LoraModule

if TYPE_CHECKING:
    from torch import Tensor, nn

_PREFIX = "base_model.model."
"""The prefix of all names in PEFT's files."""
_TYPE = "F32"


@dataclass(frozen=True, slots=True)
class Adapter:
    """The factors of an adapter.

    `ours` and `theirs` are A and B as transformers loads them. `moment` returns the second moment of a projection's
    input, None for unweighted factors. `place` moves a matrix to the device where it is factored.
    """

    ours: nn.Module
    theirs: nn.Module
    moment: Callable[[Projection], Moment | None]
    place: Callable[[HostArray], Weights]

    def entries(self, modules: Mapping[str, LoraModule], ranks: LoraRanks) -> Iterator[TensorToWrite]:
        """Yield the tensors to be written.

        Raises:
            InputError: a module has different shapes in the two models.
            WeightsError: as plan.factors.factors.
        """
        prefixes = _prefixes(self.ours, ranks)
        for name, rank in ranks.every.items():
            a, b = self._pair(modules.get(name) or modules[name.removesuffix(WEIGHT)], rank)
            for letter, numbers in (("A", b), ("B", a)):
                data: Callable[[], HostArray] = partial(encoded, numbers, _TYPE)
                yield TensorToWrite(f"{_PREFIX}{prefixes[name]}.lora_{letter}.weight", _TYPE, numbers.shape, data)

    def _pair(self, module: LoraModule, rank: int) -> TwoFactors:
        before, after = (_held(model, module) for model in (self.ours, self.theirs))
        if before.shape != after.shape:
            raise InputError(f"{printable(module.name)} has other shapes in A and in B as transformers loads them")
        if not module.is_parameter:
            return self._factored(before, after, module, 0, rank)
        pairs = [self._factored(*both, module, n, rank) for n, both in enumerate(zip(before, after, strict=True))]
        # PEFT's layout of a stack: rows of lora_A by expert, columns of lora_B by component, then by expert.
        return TwoFactors(
            np.stack([pair.a for pair in pairs], axis=2).reshape(pairs[0].a.shape[0], -1),
            np.concatenate([pair.b for pair in pairs]),
        )

    def _factored(self, before: Tensor, after: Tensor, module: LoraModule, number: int, rank: int) -> TwoFactors:
        """The factors of one of a module's matrices, padded with zeros if its rank is smaller than `rank`."""
        delta = _numbers(after) - _numbers(before)
        matrix = np.ascontiguousarray(delta.T if module.is_turned else delta)
        moment = self.moment(module.matrices[number][0])
        made = factors(self.place(matrix), moment, min(rank, *matrix.shape))
        a, b = host_array(made.a), host_array(made.b)
        lacking = rank - a.shape[1]
        return TwoFactors(np.pad(a, ((0, 0), (0, lacking))), np.pad(b, ((0, lacking), (0, 0))))


def loaded(checkpoint: Checkpoint) -> nn.Module:
    """Load a model to the CPU, in float32.

    Raises:
        InputError: see load_model.
    """
    return load_model(checkpoint, "cpu")


def _held(model: nn.Module, module: LoraModule) -> Tensor:
    if module.is_parameter:
        return model.get_parameter(module.name).detach()
    found: Any = model.get_submodule(module.name).weight
    held: Tensor = found.detach()
    return held


def _numbers(held: Tensor) -> HostArray:
    found: HostArray = held.double().numpy()
    return found


def _prefixes(model: nn.Module, ranks: LoraRanks) -> dict[str, str]:
    """The module part of the factors' names. For several parameters of one module PEFT wraps the module once for each,
    in the order of the parameters: the inner wrapper is the `base_layer` of the outer one."""
    found = {name: name for name in ranks.modules}
    wrapped: dict[str, list[str]] = defaultdict(list)
    for name, _ in model.named_parameters():
        if name in ranks.parameters:
            wrapped[name.rpartition(".")[0]].append(name)
    for module, names in wrapped.items():
        found |= {name: module + ".base_layer" * outside for outside, name in enumerate(reversed(names))}
    return found
