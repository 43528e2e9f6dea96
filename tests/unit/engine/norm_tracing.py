"""Which norm's output a running model takes into each product with a weight, found from the numbers alone.

Every norm outputs rows of numbers; a product whose input rows are all among those of a norm is fed by that norm. The
rows without gain, needed for comparing, come from running the norm again with a weight of ones and of zeros.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from lapack_reference import Array
from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from rankscope.engine.catalogue.rules import cut
from rankscope.engine.moment import Moment
from rankscope.engine.spectrum import Slice

Running: TypeAlias = Any
_PRODUCTS = (torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__, torch.bmm, torch.mm)
_ADDED = (torch.addmm, torch.baddbmm, torch.Tensor.baddbmm)
_ROWS = 6
"""The number of an input's rows that are compared: with random numbers one would do."""

_WIDTH = 3
"""Narrower rows may be alike by chance."""


@dataclass
class Input:
    """The inputs of the products with one weight in which at least one row was not zero.

    `rows`: some of the inputs, (rows, n). `bare`: the same rows before gain and bias of the norm, None where some
    product's input came from no norm. `answers`: the outputs of a linear layer for them, without its bias; None for
    other products, and for stacks.
    """

    rows: torch.Tensor
    bare: torch.Tensor | None
    answers: torch.Tensor | None


class Watcher(TorchFunctionMode):
    """While active, fills `inputs` by the name of the weight; all planes of a stack go together."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.inputs: dict[str, Input] = {}
        self._left: dict[tuple[float, ...], torch.Tensor] = {}
        self._widths: set[int] = set()
        named = ((name, p) for name, p in model.named_parameters() if p.dim() > 1)
        self._weights = {p.untyped_storage().data_ptr(): (name, p.dim()) for name, p in named}

    def norm_left(self, rows: torch.Tensor, bare: torch.Tensor) -> None:
        """Note what a norm returned, (..., n), and the same without gain and bias."""
        width = rows.shape[-1]
        if width < _WIDTH:
            return
        self._widths.add(width)
        for key, own in zip(_keys(rows.reshape(-1, width)), bare.reshape(-1, width), strict=True):
            self._left[key] = own

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        answer = function(*args, **kwargs)
        with torch._C.DisableTorchFunction():
            for weight, rows in _product(function, args, kwargs):
                if found := self._weights.get(weight.untyped_storage().data_ptr()):
                    name, dims = found
                    linear = function is functional.linear and dims == 2
                    bias = (args[2] if len(args) > 2 else kwargs.get("bias")) if linear else None
                    self._note(name, rows, (answer if bias is None else answer - bias) if linear else None)
        return answer

    def _note(self, name: str, values: torch.Tensor, answer: torch.Tensor | None) -> None:
        rows = values.detach().reshape(-1, values.shape[-1])
        some = (rows.abs().amax(1) > 1e-9).nonzero()[:_ROWS, 0]
        rows = rows[some]
        answers = None if answer is None else answer.detach().reshape(-1, answer.shape[-1])[some]
        if len(rows):
            known = self.inputs.get(name)
            if known is None or known.bare is not None:
                self.inputs[name] = Input(rows, self._bare(rows), answers)

    def _bare(self, rows: torch.Tensor) -> torch.Tensor | None:
        width = rows.shape[1]
        for norm in sorted(w for w in self._widths if width % w == 0)[::-1]:
            found = [self._left.get(key) for key in _keys(rows.reshape(-1, norm))]
            if all(own is not None for own in found):
                return torch.stack([own for own in found if own is not None]).reshape(-1, width)
        return None


def _keys(rows: torch.Tensor) -> Iterator[tuple[float, ...]]:
    """A key of each row: some of its numbers over the largest, so that a constant factor changes nothing."""
    largest = rows.gather(1, rows.abs().argmax(1, keepdim=True))
    for row in (rows / largest)[:, :8].double().mul(1e8).round().tolist():
        yield tuple(row)


def _product(function: Any, args: Any, kwargs: Any) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """The factors of a product that may be a weight, each with the rows that it is multiplied with."""
    if function is functional.linear:
        yield (args[1] if len(args) > 1 else kwargs["weight"]), args[0]
    elif function in _PRODUCTS:
        yield args[1], args[0]
        if args[1].dim() > 1:
            yield args[0], args[1].transpose(-1, -2)
    elif function in _ADDED:
        given = (*args, *kwargs.values())
        yield kwargs.get("batch2", given[2]), kwargs.get("batch1", given[1])
    elif function is torch.einsum and len(args) == 3:
        yield args[2], args[1]
    elif function in (torch.conv1d, torch.conv2d):
        weight = args[1] if len(args) > 1 else kwargs["weight"]
        if set(weight.shape[2:]) == {1}:
            yield weight, args[0].movedim(1, -1)


def fits(given: Input, moment: Moment, matrix: Array, part: Slice | None) -> bool:
    """Whether a projection's input came from a norm with the gain and bias of `moment`, and folding them into its
    `matrix`, (out, in), gives the linear layer's outputs, or `part` of them.

    A constant factor behind the norm is allowed. A LayerNorm's normalised rows have the mean 0.
    """
    assert given.bare is not None
    bare, rows = given.bare.double().numpy(), given.rows.double().numpy()
    loaded = [operand.load() for operand in moment.operands if operand.load]
    centred = moment.form == "layer_norm"
    if centred == (np.abs(bare.mean(1)).max() > 1e-6):
        return False
    # C holds only squares of gains.
    gain, bias = loaded if centred else (np.copysign(np.sqrt(loaded[0]), (rows * bare).sum(0)), np.zeros(moment.cols))
    came = gain * bare + bias
    factor = (rows * came).sum(1, keepdims=True) / (came * came).sum(1, keepdims=True)
    folded = factor * (bare @ (matrix * gain).T + matrix @ bias)
    answers = rows @ matrix.T
    if given.answers is not None:
        theirs = given.answers.double().numpy()
        answers = theirs if part is None else cut(theirs.T, part).T
    # On the Hub the rows of some queries and keys are in another order than in memory.
    return _close(factor * came, rows) and _close(np.sort(folded), np.sort(answers))


def _close(one: Array, other: Array) -> bool:
    return bool(np.abs(one - other).max() <= 1e-5 * np.abs(other).max())


def scattered(model: Running) -> Running:
    """The model with random numbers in its norms and all biases, so that no two norms are alike."""
    torch.manual_seed(11)
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.data = 0.7 + 0.2 * torch.randn_like(parameter)
    return model


def watched(model: Running, run: Callable[[Running], object]) -> dict[str, Input]:
    """The inputs of a model's weights while it runs, as far as it can."""
    watcher = Watcher(model)
    kept = {module: module.forward for module in model.modules() if _is_norm(module)}
    for module, forward in kept.items():
        module.forward = _watching(watcher, module, forward)
    try:
        with torch.no_grad(), watcher:
            run(model)
    finally:
        for module in kept:
            del module.forward
    return watcher.inputs


def _is_norm(module: nn.Module) -> bool:
    return "norm" in type(module).__name__.lower() and not list(module.children())


def _watching(watcher: Watcher, module: Running, forward: Callable[..., Any]) -> Callable[..., Any]:
    def answer(*args: Any, **kwargs: Any) -> Any:
        with torch._C.DisableTorchFunction():
            rows = forward(*args, **kwargs)
            weight = getattr(module, "weight", None)
            # BatchNorm takes channels that are not the last axis.
            if isinstance(rows, torch.Tensor) and (weight is None or rows.shape[-1] % len(weight) == 0):
                watcher.norm_left(rows.detach(), _without_gain(module, forward, args, kwargs))
        return rows

    return answer


def _without_gain(module: Running, forward: Callable[..., Any], args: Any, kwargs: Any) -> torch.Tensor:
    """z of a norm gain * z + bias: its output for a weight of one less its output for a weight of zero."""
    weight = getattr(module, "weight", None)
    if weight is None:
        bare: torch.Tensor = forward(*args, **kwargs).detach()
        return bare
    kept, answers = weight.data.clone(), []
    for value in (1.0, 0.0):
        weight.data.fill_(value)
        answers.append(forward(*args, **kwargs).detach())
    weight.data.copy_(kept)
    return answers[0] - answers[1]
