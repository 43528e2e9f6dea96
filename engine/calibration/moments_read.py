"""Files of second moments: sums of x x^T, or of x^2, over the tokens of a calibration, in safetensors.

For the input of a tensor: `<tensor>.xx` (n, n) or `<tensor>.x2` (n,), and `<tensor>.x` (n,), which are sums over tokens
in float32 or float64, and `<tensor>.count`, the number of tokens, so that E = sum / count. `<tensor>.first.*` are the
same for position 0 only, which the former include; `<tensor>.held.*` for held-out sequences, which they do not. An
input that several tensors share is stored once; the metadata map the others to its tensor, as JSON under `inputs`.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
from xxhash import xxh3_128

from ..errors import UnseenError, WeightsError, printable
from ..formats.format import Origin
from ..formats.safetensors import SAFETENSORS
from ..formats.tensor import FileStamp, Tensor, read_bytes
from ..landing import CHUNK, HOST
from ..moment import Moment, diagonal
from ..spectrum import Operand, Values, digest
from ..weights import HostArray, host_array
from .moment_reader import FeatureOrder, StackedMatrix, mean_of
from .said import Figures, read_figures
from .tokens_read import read_back

TokenPart: TypeAlias = Literal["", "first", "held"]
"""The tokens that are summed: all that are not held out, only those of position 0, or those held out."""

_NUMBERS = {"F32": "<f4", "F64": "<f8", "I32": "<i4", "U32": "<u4", "I64": "<i8", "U64": "<u8"}
_TOLERANCE = 1e-5
"""How far a matrix of sums may be from symmetric, and below 0 on its diagonal, relative to its largest entry."""
_ROWS = 256


@dataclass(frozen=True)
class Moments:
    """A file of second moments. `sums` has its tensors by (model's tensor, part of the tokens), then by kind (xx, x2,
    x, count). `inputs` maps tensors that share the input of another to that one. `counts` is how many tokens that are
    not held out reached each input. `said`, `figures` and `tokens_read`: see MomentReader.
    """

    sums: Mapping[tuple[str, str], Mapping[str, Tensor]]
    inputs: Mapping[str, str]
    stamp: FileStamp
    data_sets: str = ""
    counts: Mapping[str, float] = field(default_factory=dict)
    said: tuple[str, str] = ("", "")
    figures: Mapping[str, Figures] = field(default_factory=dict)
    tokens_read: frozenset[str] | None = None
    _digests: dict[tuple[str, str], str] = field(default_factory=dict, repr=False, compare=False)

    kind = "moments"

    @property
    def names(self) -> tuple[str, ...]:
        """See MomentReader."""
        return (*(name for name, part in self.sums if not part), *self.inputs)

    @property
    def about(self) -> str:
        """See MomentReader: data sets, and the largest number of tokens that reached an input."""
        tokens = max(self.counts.values(), default=0)
        return ", ".join(filter(None, [printable(self.data_sets, 60), f"{tokens:,.0f} tokens"]))

    @property
    def is_split(self) -> bool:
        """See MomentReader."""
        return any(part == "first" for _, part in self.sums)

    def tokens_of(self, name: str, matrix: StackedMatrix | None) -> float | None:
        """See MomentReader."""
        count = self.counts.get(self.inputs.get(name, name), np.nan)
        return count if matrix is None and 0 <= count < np.inf else None

    def moment(
        self, name: str, cols: int, matrix: StackedMatrix | None, order: FeatureOrder | None, part: TokenPart = ""
    ) -> Moment:
        """See MomentReader: E[x x^T], or E[x^2] if the file has no more, over one part of the tokens.

        For its digest a matrix is read whole, once; whether it can be used is only checked when its operand is loaded.
        """
        name = self.inputs.get(name, name)
        held, shown = self.sums.get((name, part), {}), printable(f"{name}.{part}" if part else name)
        sums = held.get("xx", held.get("x2"))
        if sums is None:
            raise WeightsError(f"{shown} has no second moments in the file")
        if matrix is not None:
            raise WeightsError(
                f"{shown} is a stack of matrices, and the file has only the moments of their common input"
            )
        if sums.dtype not in ("F32", "F64"):
            raise WeightsError(f"{shown} has moments of type {sums.dtype}: they must be F32 or F64")
        if sums.shape != ((cols, cols) if "xx" in held else (cols,)):
            sizes = " x ".join(map(str, sums.shape)) or "scalar"
            raise WeightsError(f"{shown} has moments of {sizes} in the file, and {cols} input features in the model")
        count = self._count(shown, held)
        if "xx" not in held:
            return diagonal(self._squares(shown, sums, count, order))
        seen = digest(self._seen(name, part, sums), repr(count), b"" if order is None else order.tobytes())
        return Moment("full", cols, (Operand(seen, partial(self._products, shown, sums, count, order)),))

    def mean(self, name: str, cols: int, matrix: StackedMatrix | None, order: FeatureOrder | None) -> Values:  # noqa: ARG002
        """See MomentReader. A stack has no mean, as it has no moment."""
        name = self.inputs.get(name, name)
        held, shown = self.sums.get((name, ""), {}), printable(name)
        sums = held.get("x")
        if sums is None or sums.dtype not in ("F32", "F64") or sums.shape != (cols,):
            raise WeightsError(f"{shown} has no mean: the file has no sums of x of its {cols} input features")
        means = mean_of(_read(sums, self.stamp), self._count(shown, held))
        if not np.isfinite(means).all():
            raise WeightsError(f"{shown} has no mean: a sum of x is not finite")
        return means if order is None else means[order]

    def _count(self, shown: str, held: Mapping[str, Tensor]) -> float:
        """How many tokens were summed.

        Raises:
            UnseenError: none.
            WeightsError: the file does not tell, or the number is impossible.
        """
        tokens = _tokens(held, self.stamp)
        if tokens is None:
            raise WeightsError(f"{shown} has no usable moments: the file does not say of how many tokens they are")
        if tokens == 0:
            raise UnseenError.of(shown)
        if not 0 < tokens < np.inf:
            raise WeightsError(f"{shown} has no usable moments: the file states {tokens:g} tokens")
        return tokens

    def _squares(self, shown: str, sums: Tensor, count: float, order: FeatureOrder | None) -> Values:
        """Sums of x^2 -> E[x^2], in the model's order of input features."""
        means = mean_of(_read(sums, self.stamp), count)
        if not np.isfinite(means).all() or means.min(initial=0) < 0:
            raise WeightsError(f"{shown} has no usable moments: a sum of squares is negative or not finite")
        return means if order is None else means[order]

    def _products(self, shown: str, sums: Tensor, count: float, order: FeatureOrder | None) -> Values:
        """Sums of x x^T -> E[x x^T], symmetric to the last bit, in the model's order of input features."""
        means = mean_of(_read(sums, self.stamp), count)
        largest = float(max(means.max(initial=0), -means.min(initial=0)))
        if not np.isfinite(largest):
            raise WeightsError(f"{shown} has no usable moments: a sum of products is not finite")
        if means.diagonal().min(initial=0) < -_TOLERANCE * largest:
            raise WeightsError(f"{shown} has no usable moments: a sum of squares is negative")
        for start in range(0, len(means), _ROWS):  # a transpose of the whole would need memory for another matrix
            rows, columns = means[start : start + _ROWS, start:], means[start:, start : start + _ROWS].T
            if np.abs(rows / 2 - columns / 2).max(initial=0) > _TOLERANCE / 2 * largest:
                raise WeightsError(f"{shown} has no usable moments: its sums of products are not symmetric")
            rows[:] = columns[:] = rows / 2 + columns / 2
        return means if order is None else means[np.ix_(order, order)]

    def _seen(self, name: str, part: TokenPart, sums: Tensor) -> str:
        """The digest of a matrix of sums, read in chunks, and only once even if several tensors share it."""
        if (known := self._digests.get((name, part))) is not None:
            return known
        state = xxh3_128()
        for begin in range(sums.begin, sums.end, CHUNK):
            piece = sums._replace(begin=begin, end=min(begin + CHUNK, sums.end))
            state.update(host_array(read_bytes(piece, self.stamp, HOST)[0]).data)
        self._digests[name, part] = seen = digest(sums.dtype, sums.shape, state.hexdigest())
        return seen


def read_moments(file: Path) -> Moments | None:
    """The second moments in a safetensors file, None if it holds something else.

    Raises:
        InputError: it cannot be read, is truncated or damaged.
    """
    tensors, stamp, _ = SAFETENSORS.list_tensors(file, Origin(str(file.resolve()), ""))
    sums: dict[tuple[str, str], dict[str, Tensor]] = defaultdict(dict)
    for tensor in tensors:
        name, _, kind = tensor.name.rpartition(".")
        if name and kind in ("xx", "x2", "x", "count"):
            whole, _, part = name.rpartition(".")
            sums[(whole, part) if whole and part in ("first", "held") else (name, "")][kind] = tensor
    if not any(held.keys() & {"xx", "x2"} for held in sums.values()):
        return None
    metadata = SAFETENSORS.metadata(file)
    inputs = dict(_shared(metadata, {name for name, _ in sums}))
    stated = {name: _tokens(held, stamp) for (name, part), held in sums.items() if not part}
    counts = {name: tokens for name, tokens in stated.items() if tokens is not None}
    data_sets, architecture, name = (metadata.get(key, "") for key in ("datasets", "architecture", "model"))
    figures, read = read_figures(metadata.get("figures", "{}")), read_back(metadata.get("read", ""))
    return Moments(sums, inputs, stamp, data_sets, counts, (architecture, name), figures, read)


def _shared(metadata: Mapping[str, str], held: Collection[str]) -> Iterator[tuple[str, str]]:
    """Yield each tensor that shares the input of another, with that one.

    The map may be under any key of the metadata, or be the metadata themselves.
    """
    for key, text in metadata.items():
        if text in held:
            yield key, text
        elif text.startswith("{"):
            with suppress(ValueError, RecursionError):
                for name, other in json.loads(text).items():
                    if type(other) is str and other in held and name not in held:
                        yield name, other


def _tokens(held: Mapping[str, Tensor], stamp: FileStamp) -> float | None:
    """The number in `count`, None if there is none."""
    count = held.get("count")
    if count is None or count.dtype not in _NUMBERS or math.prod(count.shape) != 1:
        return None
    return float(_read(count, stamp).item())


def _read(tensor: Tensor, stamp: FileStamp) -> HostArray:
    numbers, _ = read_bytes(tensor, stamp, HOST)
    return host_array(numbers).view(_NUMBERS[tensor.dtype]).reshape(tensor.shape)
