"""The weights of single modules of a checkpoint, as transformers loads it.

Only the tensors of one module, or of one expert of a stack, are read; the whole model is loaded only if this version of
transformers does not tell what it makes of the tensors.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from ..calibration.conversion import Recipe, recipes_of
from ..calibration.running import load_model, skeleton
from ..checkpoint.open import Checkpoint
from ..errors import InputError, WeightsError, printable
from ..formats.tensor import Tensor
from ..weights import HostArray
from .lora_modules import LoraModule
from .matrices import single

if TYPE_CHECKING:
    import torch
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
        every = dict(self.model.named_parameters(remove_duplicate=False))
        self._shapes = {name: tuple(held.shape) for name, held in every.items()}
        self._recipes = _with_tied(recipes_of(checkpoint, self.model), every)
        for name, recipe in self._recipes.items():
            _, tensor = recipe.sources[0]
            is_plain = recipe.is_copy and not tensor.problem and not tensor.parts
            if is_plain and name in self._shapes and tensor.shape != self._shapes[name]:
                self._refuse(tensor, self._shapes[name])

    def shape(self, module: LoraModule) -> tuple[int, ...] | None:
        """The shape of a module's weights in the model; None if the model has no such module."""
        return self._shapes.get(_parameter(module))

    def matrices(self, module: LoraModule) -> Iterator[HostArray]:
        """Yield the matrices of a module in float64, as the model has them: one, or that of each expert.

        Raises:
            WeightsError: a tensor cannot be read, or the matrix has another shape than the model's.
            InputError: see load_model.
        """
        name = _parameter(module)
        shape = self._shapes[name][-2:]
        for numbers in self._made(name, len(module.matrices) if module.is_parameter else None):
            if tuple(numbers.shape) != shape:
                made = by(tuple(numbers.shape))
                raise WeightsError(f"{printable(name)} is {made} in the files and {by(shape)} by config.json")
            found: HostArray = numbers.detach().double().numpy()
            yield found

    def keeps_order(self, module: LoraModule) -> bool:
        """Whether a module's rows and columns have the order in which they are stored. A module of several tensors has
        them one after the other."""
        recipe = self._recipes.get(_parameter(module))
        if recipe is None or module.is_parameter or len(recipe.sources) > 1:
            return True
        _, tensor = recipe.sources[0]
        return recipe.is_copy or recipe.keeps_order(tensor.shape)

    def _made(self, name: str, experts: int | None) -> Iterator[torch.Tensor]:
        recipe = self._recipes.get(name)
        if recipe is not None:
            yield from [recipe.whole(self._read)] if experts is None else recipe.experts(experts, self._read)
            return
        held = self._loaded.get_parameter(name)
        yield from [held] if experts is None else held

    @cached_property
    def _loaded(self) -> nn.Module:
        return load_model(self._checkpoint, "cpu")

    def _read(self, tensor: Tensor, number: int | None) -> torch.Tensor:
        """See conversion.Read."""
        import torch

        numbers = single(self._checkpoint, tensor, number)
        return torch.from_numpy(np.ascontiguousarray(numbers))

    def _refuse(self, tensor: Tensor, shape: tuple[int, ...]) -> None:
        raise InputError(
            f"{printable(self._checkpoint.name)} cannot be loaded by transformers: {printable(tensor.name, 100)} is "
            f"{by(tensor.shape)} in its files and {by(shape)} by its config.json: name a model whose config.json was "
            "saved with its weights, or leave out --extract"
        )


def _with_tied(recipes: Mapping[str, Recipe], every: Mapping[str, nn.Parameter]) -> dict[str, Recipe]:
    """The recipes, also under the other names of parameters that the model uses twice."""
    names: dict[int, list[str]] = defaultdict(list)
    for name, parameter in every.items():
        names[id(parameter)].append(name)
    found = dict(recipes)
    for tied in names.values():
        known = next((recipes[name] for name in tied if name in recipes), None)
        if known is not None:
            found |= {name: recipes.get(name, known) for name in tied}
    return found


def _parameter(module: LoraModule) -> str:
    return module.name if module.is_parameter else f"{module.name}.weight"


def by(shape: tuple[int, ...]) -> str:
    """A shape in words: `64 x 32`."""
    return " x ".join(map(str, shape))
