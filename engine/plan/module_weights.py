"""The weights of single modules of a checkpoint, as transformers loads it.

If a stored tensor is the weights of a module, only that tensor is read; else the whole model is loaded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from ..calibration.running import load_model, loaded_as, skeleton
from ..checkpoint.open import Checkpoint
from ..errors import InputError, printable
from ..formats.tensor import Tensor
from ..weights import HostArray
from .lora_modules import LoraModule
from .matrices import Matrices

if TYPE_CHECKING:
    from torch import nn


class ModuleWeights:
    """The weights of the modules of one checkpoint."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        """
        Raises:
            InputError: transformers is not installed, or cannot make a model from the checkpoint's configuration; or a
                tensor has another shape in the files than by that, so that transformers would not load it.
        """
        self.model: nn.Module = skeleton(checkpoint)
        self._checkpoint = checkpoint
        self._matrices = Matrices(checkpoint)
        self._shapes = {name: tuple(held.shape) for name, held in self.model.named_parameters()}
        self._stored: Mapping[str, Tensor] = dict(self._named())
        for name, tensor in self._stored.items():
            if tensor.shape != self._shapes[name]:
                self._refuse(tensor, self._shapes[name])

    def shape(self, module: LoraModule) -> tuple[int, ...] | None:
        """The shape of a module's weights in the model; None if the model has no such module."""
        return self._shapes.get(_parameter(module))

    def numbers(self, module: LoraModule) -> HostArray:
        """The weights of a module in float64, as the model has them.

        Raises:
            WeightsError: the tensor cannot be read.
            InputError: see load_model.
        """
        tensor = self._stored.get(_parameter(module))
        if tensor is not None:
            return np.asarray(self._matrices.whole(tensor), np.float64)
        held: Any = self._loaded.get_parameter(_parameter(module)).detach()
        found: HostArray = held.double().numpy()
        return found

    @cached_property
    def _loaded(self) -> nn.Module:
        return load_model(self._checkpoint, "cpu")

    def _named(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the stored tensors that are parameters of the model as they are, with the parameters' names."""
        if self._checkpoint.format.stands_alone:
            return
        name_of = loaded_as(self.model)
        prefix = f"{getattr(self.model, 'base_model_prefix', '')}."
        for tensor in self._checkpoint.tensors:
            name = name_of(tensor.name)
            if name is not None and not tensor.problem and not tensor.parts:  # parts: packed, or in several files
                places = (name, prefix + name, name.removeprefix(prefix))
                yield from ((place, tensor) for place in places if place in self._shapes)

    def _refuse(self, tensor: Tensor, shape: tuple[int, ...]) -> None:
        raise InputError(
            f"{printable(self._checkpoint.name)} cannot be loaded by transformers: {printable(tensor.name, 100)} is "
            f"{by(tensor.shape)} in its files and {by(shape)} by its config.json: name a model whose config.json was "
            "saved with its weights, or leave out --extract"
        )


def _parameter(module: LoraModule) -> str:
    return module.name if module.is_parameter else f"{module.name}.weight"


def by(shape: tuple[int, ...]) -> str:
    """A shape in words: `64 x 32`."""
    return " x ".join(map(str, shape))
