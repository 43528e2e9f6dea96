"""A LoRA adapter made of the difference of two checkpoints: its leading factors, as PEFT stores them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from ..errors import WeightsError, printable
from ..formats.writing import TensorToWrite
from ..moment import Moment
from ..spectrum import Projection
from ..weights import HostArray, Weights, encoded, host_array
from .factors import LazyFactors, TwoFactors, factors
from .lora_file import WEIGHT, LoraRanks
from .lora_modules import LoraModule
from .module_weights import ModuleWeights

if TYPE_CHECKING:
    from torch import nn

_PREFIX = "base_model.model."
"""The prefix of all names in PEFT's files."""
_TYPE = "F32"


@dataclass(frozen=True, slots=True)
class Adapter:
    """The factors of an adapter.

    `ours` and `theirs` are the weights of A and B as transformers loads them. `moment` returns the second moment of a
    projection's input, None for unweighted factors. `place` moves a matrix to the device where it is factored.
    """

    ours: ModuleWeights
    theirs: ModuleWeights
    moment: Callable[[Projection], Moment | None]
    place: Callable[[HostArray], Weights]

    def entries(self, modules: Mapping[str, LoraModule], ranks: LoraRanks) -> Iterator[TensorToWrite]:
        """Yield the tensors to be written, one module after the other. The factors of a module are made when the first
        of them is written.

        Raises, when they are made:
            InputError: see load_model.
            WeightsError: weights cannot be read, or as plan.factors.factors; or the factors are too large.
        """
        prefixes = _prefixes(self.ours.model, ranks)
        for name, rank in ranks.every.items():
            module = modules.get(name) or modules[name.removesuffix(WEIGHT)]
            rows, cols = self._shape(module)
            pair, inner = LazyFactors(partial(self._pair, module, rank)), rank * len(module.matrices)
            for letter, number, shape in (("A", 1, (inner, cols)), ("B", 0, (rows, inner))):
                data = partial(_encoded, pair, number, name)
                yield TensorToWrite(f"{_PREFIX}{prefixes[name]}.lora_{letter}.weight", _TYPE, shape, data)

    def _shape(self, module: LoraModule) -> tuple[int, int]:
        """Output and input features of a module."""
        shape = self.ours.shape(module)
        assert shape is not None
        return (shape[-1], shape[-2]) if module.is_turned else (shape[-2], shape[-1])

    def _pair(self, module: LoraModule, rank: int) -> TwoFactors:
        both = zip(self.ours.matrices(module), self.theirs.matrices(module), strict=True)
        pairs = [self._factored(*pair, module, number, rank) for number, pair in enumerate(both)]
        if not module.is_parameter:
            return pairs[0]
        # PEFT's layout of a stack: rows of lora_A by expert, columns of lora_B by component, then by expert.
        return TwoFactors(
            np.stack([pair.a for pair in pairs], axis=2).reshape(pairs[0].a.shape[0], -1),
            np.concatenate([pair.b for pair in pairs]),
        )

    def _factored(self, before: HostArray, after: HostArray, module: LoraModule, number: int, rank: int) -> TwoFactors:
        """The factors of one of a module's matrices, padded with zeros if its rank is smaller than `rank`."""
        delta = after - before
        matrix = np.ascontiguousarray(delta.T if module.is_turned else delta)
        moment = self.moment(module.matrices[number][0])
        made = factors(self.place(matrix), moment, min(rank, *matrix.shape))
        a, b = host_array(made.a), host_array(made.b)
        lacking = rank - a.shape[1]
        return TwoFactors(np.pad(a, ((0, 0), (0, lacking))), np.pad(b, ((0, lacking), (0, 0))))


def _encoded(pair: LazyFactors, number: int, name: str) -> HostArray:
    try:
        return encoded(host_array(pair.take(number)), _TYPE)
    except OverflowError as error:
        raise WeightsError(f"{printable(name)}: {error}: leave it out with --filter GLOB") from None


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
