"""The tensors that are written for a plan: those that stay, and factors or products in place of the others."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..catalogue.rules import put
from ..checkpoint.open import Checkpoint
from ..errors import InputError, WeightsError, printable
from ..formats.safetensors import DTYPE_BITS
from ..formats.tensor import Tensor
from ..formats.writing import TensorToWrite
from ..quantised.effective import FORMULAS as OWN_FACTORS
from ..weights import WRITTEN, HostArray, encoded, host_array
from .factors import LazyFactors, TwoFactors, factors
from .matrices import Matrices, MatrixSource
from .works import Work

_SCALES_OF_INPUTS = (
    "input_scale", "input_activation_scale", "input_global_scale", "output_scale",
    "q_scale", "k_scale", "v_scale", "act_scale",
)  # fmt: skip
"""Tensors of quantised modules for activations and caches, which modules with plain weights do not have."""


@dataclass(frozen=True)
class RewrittenCheckpoint:
    """How a checkpoint is written anew.

    `own` reads the checkpoint, `source` the matrices that are factored. With `merge` the product of two factors is
    written in place of a matrix, so that names and shapes stay; else the factors. `dtype` is the type of all
    floating-point numbers, None for the stored types; `floats` is then that of dequantised numbers. `place` moves a
    matrix to the device where it is factored; `tell` is called after each.
    """

    checkpoint: Checkpoint
    works: Sequence[Work]
    own: Matrices
    source: MatrixSource
    merge: bool
    dtype: str | None
    floats: str
    place: Callable[[HostArray], Any] = field(default=lambda matrix: matrix, repr=False)
    tell: Callable[[], None] = field(default=lambda: None, repr=False)

    def entries(self) -> dict[Path, list[TensorToWrite]]:
        """The tensors to be written, by the file of the checkpoint in which they lie now.

        Raises:
            InputError: a tensor cannot be written; the message names it.
        """
        by_tensor: dict[str, list[Work]] = defaultdict(list)
        for work in self.works:
            by_tensor[work.projection.tensor].append(work)
        found: dict[Path, list[TensorToWrite]] = defaultdict(list)
        for tensor in self.checkpoint.tensors:
            works = by_tensor.get(tensor.name, [])
            found[tensor.file] += self._planned(tensor, works) if works else self._kept(tensor)
        names = Counter(entry.name for entries in found.values() for entry in entries)
        if twice := [name for name, count in names.items() if count > 1]:
            raise InputError(f"{printable(twice[0])} would be written twice: use --merge")
        return dict(found)

    def type_of(self, tensor: Tensor) -> str:
        """The type of the numbers that are written in place of a tensor's matrices."""
        return self.dtype or (tensor.dtype if tensor.scheme is None and tensor.dtype in WRITTEN else self.floats)

    def _kept(self, tensor: Tensor) -> Iterator[TensorToWrite]:
        _check(tensor)
        if self.checkpoint.quantisation and tensor.name.rpartition(".")[2] in _SCALES_OF_INPUTS:
            return
        if tensor.scheme is not None and tensor.scheme.formula in OWN_FACTORS:
            for _, part in tensor.parts:
                yield from self._kept(part)
            return
        is_stored = not tensor.parts and not tensor.strides
        if is_stored and (self.dtype in (None, tensor.dtype) or tensor.dtype not in WRITTEN):
            yield TensorToWrite(tensor.name, tensor.dtype, tensor.shape, partial(self._bytes, tensor))
        else:
            dtype = self.type_of(tensor)
            yield TensorToWrite(
                tensor.name, dtype, tensor.shape, lambda: _stored(tensor.name, self.own.whole(tensor), dtype)
            )

    def _planned(self, tensor: Tensor, works: Sequence[Work]) -> Iterator[TensorToWrite]:
        _check(tensor)
        if tensor.scheme is not None and tensor.scheme.formula in OWN_FACTORS:
            name = printable(tensor.name)
            raise InputError(
                f"{name} is stored as {tensor.scheme.name}, which cannot be replaced: plan without it, by --filter"
            )
        dtype = self.type_of(tensor)
        if self.merge:
            yield TensorToWrite(tensor.name, dtype, tensor.shape, partial(self._merged, tensor, works, dtype))
            return
        for work in works:
            pair = LazyFactors(partial(self._factors, work))
            p = work.projection
            for number, (letter, shape) in enumerate((("A", (p.rows, work.rank)), ("B", (work.rank, p.cols)))):
                name = f"{factor_name(work)}.{letter}"
                yield TensorToWrite(name, dtype, shape, partial(_taken, pair, number, name, dtype))
        left = int((~covered(tensor.shape, works)).sum())
        if left:
            rest = partial(self._rest, tensor, works, dtype)
            yield TensorToWrite(f"{tensor.name}.rest", dtype, (left,), rest)

    def _bytes(self, tensor: Tensor) -> HostArray:
        return host_array(self.checkpoint.read_stored(tensor))

    def _factors(self, work: Work) -> TwoFactors:
        made = factors(self.place(self.source.matrix(work.projection)), work.moment, work.rank)
        self.tell()
        return TwoFactors(host_array(made.a), host_array(made.b))

    def _merged(self, tensor: Tensor, works: Sequence[Work], dtype: str) -> HostArray:
        whole = np.array(self.own.whole(tensor), np.float64 if dtype == "F64" else np.float32, order="C")
        for work in works:
            made = self._factors(work)
            write_into(whole, work, made.a @ made.b)
        return _stored(tensor.name, whole, dtype)

    def _rest(self, tensor: Tensor, works: Sequence[Work], dtype: str) -> HostArray:
        return _stored(tensor.name, self.own.whole(tensor)[~covered(tensor.shape, works)], dtype)


def factor_name(work: Work) -> str:
    """The beginning of its factors' names: the tensor; the number of the matrix in a stack; the role in a fused one."""
    p = work.projection
    if p.slice is None:
        return p.tensor
    number = p.expert if p.slice.index is None else p.slice.index
    return ".".join(str(word) for word in (p.tensor, number, p.role) if word is not None)


def covered(shape: tuple[int, ...], works: Sequence[Work]) -> HostArray:
    """A mask of a tensor of this shape, true where the factored matrices lie."""
    mask = np.zeros(shape, bool)
    for work in works:
        write_into(mask, work, np.ones((work.projection.rows, work.projection.cols), bool))
    return mask


def write_into(whole: HostArray, work: Work, matrix: HostArray) -> None:
    """Write a matrix, shape (output, input features), to its place in its stored tensor."""
    p = work.projection
    turned = matrix.T if p.transposed else matrix
    if p.slice is None:
        whole[...] = turned
    else:
        put(whole, p.slice, turned)


def _taken(pair: LazyFactors, number: int, name: str, dtype: str) -> HostArray:
    return _stored(name, pair.take(number), dtype)


_INSTEAD = "plan the model that it was made of"


def _check(tensor: Tensor) -> None:
    name, scheme = printable(tensor.name), tensor.scheme
    if tensor.problem and tensor.parts:
        raise InputError(f"{name}: {tensor.problem}: {_INSTEAD}")
    if scheme is not None and scheme.formula == "ternary":
        raise InputError(
            f"{name} is of BitNet, which rounds activations too: its weights alone are another model: {_INSTEAD}"
        )
    if scheme is not None and scheme.formula == "fp4" and len(tensor.shape) > 2:
        raise InputError(f"{name} is a stack of {scheme.name}, which has another order when unpacked: {_INSTEAD}")
    if not tensor.parts and tensor.dtype not in DTYPE_BITS:
        raise InputError(f"{name} is {printable(tensor.dtype)}, which safetensors does not hold: {_INSTEAD}")


def _stored(name: str, numbers: HostArray, dtype: str) -> HostArray:
    try:
        return encoded(numbers, dtype)
    except OverflowError as error:
        raise WeightsError(f"{printable(name)}: {error}: name another --dtype") from None
