"""Importance matrices of llama.cpp: the mean square of each input feature of a tensor, E[x^2].

Both layouts are those of llama.cpp's tools/imatrix/imatrix.cpp: a GGUF file with `<tensor>.in_sum2` and
`<tensor>.counts`, and the older .dat, where each name is followed by its numbers.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PureWindowsPath
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError, UnseenError, WeightsError, cannot_read, printable
from ..formats import gguf
from ..formats.guarded import open_regular
from ..formats.tensor import FileStamp, Tensor, identify, read_plain
from ..landing import HOST
from ..moment import Moment
from ..spectrum import Operand, Source, Values, digest
from ..weights import host_array
from .moment_reader import FeatureOrder, StackedMatrix, mean_of
from .said import Figures

SUMS, COUNTS, PLAIN_SUMS = ".in_sum2", ".counts", ".in_sum"
_MAX_ENTRIES = 1_000_000
_MAX_NAME = 1024
_SHOWN = 3


class ImatrixSums(NamedTuple):
    """Where the sums for a tensor's input lie in the file: `squares`, one matrix of a stack after the other, and how
    many tokens they sum: `counts` for each matrix or, if that is None, `calls`, the number of chunks, for all of them.
    `plain` are the sums of x, in the order of `squares`, which newer files have.
    """

    squares: Tensor
    counts: Tensor | None = None
    calls: int = 0
    plain: Tensor | None = None


@dataclass(frozen=True)
class Imatrix:
    """An importance matrix: the `sums` of each tensor's input, by the tensor's name. `chunks` is from how many chunks
    of `chunk_size` tokens it was made; both are 0 if the file does not tell. `said`: see MomentReader.
    """

    sums: Mapping[str, ImatrixSums]
    stamp: FileStamp
    data_sets: tuple[str, ...] = ()
    chunks: int = 0
    chunk_size: int = 0
    said: tuple[str, str] = ("", "")
    _counted: dict[str, Values] = field(default_factory=dict, repr=False, compare=False)

    kind = "imatrix"
    is_split = False

    @property
    def figures(self) -> Mapping[str, Figures]:
        """See MomentReader: an imatrix has none."""
        return {}

    @property
    def tokens_read(self) -> frozenset[str] | None:
        """See MomentReader: an imatrix does not tell."""
        return None

    @property
    def names(self) -> tuple[str, ...]:
        """See MomentReader."""
        return tuple(self.sums)

    @property
    def about(self) -> str:
        """See MomentReader: data sets and chunks."""
        shown = [printable(PureWindowsPath(path).name or path, 40) for path in self.data_sets]
        words = [*shown[:_SHOWN], *["..."] * (len(shown) > _SHOWN)]
        if self.chunks:
            size = f" of {self.chunk_size:,}" if self.chunk_size else ""
            words.append(f"{self.chunks:,} chunk{'s' * (self.chunks != 1)}{size}")
        return ", ".join(words)

    def moment(self, name: str, cols: int, matrix: StackedMatrix | None, order: FeatureOrder | None) -> Moment:
        """See MomentReader: E[x^2].

        Its digest is that of the numbers as both layouts hold them (see `_settled`), so that the two files of one run
        give the same keys.
        """
        sums, counts = self.sums[name], self._counts(name)
        matrices, index = self._matrices(name, cols, matrix), matrix.number if matrix else 0
        count = float(counts[index if len(counts) > 1 else 0])
        if count == 0:
            raise UnseenError.of(_of(name, matrix))
        squares = _row(sums.squares, cols, index)
        means = self._means(squares, count, order)
        if not np.isfinite(means).all() or means.min() < 0:
            fault = "a sum of squares is negative" if np.isfinite(means).all() else "a sum of squares is not finite"
            raise WeightsError(f"{_of(name, matrix)} has no usable moments: {fault}")
        if matrices > len(counts) and (means == 1.0).all():  # what llama.cpp writes if an expert has no count
            raise UnseenError.of(_of(name, matrix))
        calls = sums.calls or (math.ceil(counts.max() / self.chunk_size) if self.chunk_size else 1)
        seen = digest(means.shape, _settled(means, calls).astype("<f4").tobytes())
        return Moment("diagonal", cols, (Operand(seen, partial(self._means, squares, count, order)),))

    def tokens_of(self, name: str, matrix: StackedMatrix | None) -> float | None:
        """See MomentReader. None for the older layout, which counts chunks, and if all experts share one count."""
        sums, counts = self.sums[name], self._counts(name)
        if sums.counts is None or (matrix is not None and matrix.number >= len(counts) > 1):
            return None
        if matrix is not None and len(counts) == 1:
            return None
        return float(counts[matrix.number if matrix else 0])

    def mean(self, name: str, cols: int, matrix: StackedMatrix | None, order: FeatureOrder | None) -> Values:
        """See MomentReader."""
        sums, counts, index = self.sums[name], self._counts(name), matrix.number if matrix else 0
        if sums.plain is None or sums.plain.shape != sums.squares.shape:
            raise WeightsError(f"{_of(name, matrix)} has no mean: the file has no sums of x, only of x^2")
        self._matrices(name, cols, matrix)
        count = float(counts[index if len(counts) > 1 else 0])
        if count == 0:
            raise UnseenError.of(_of(name, matrix))
        means = self._means(_row(sums.plain, cols, index), count, order)
        if not np.isfinite(means).all():
            raise WeightsError(f"{_of(name, matrix)} has no mean: a sum of x is not finite")
        return means

    def _matrices(self, name: str, cols: int, matrix: StackedMatrix | None) -> int:
        """How many matrices with `cols` columns the sums of a tensor cover; `matrix` must be one of them.

        Raises:
            WeightsError: the sums do not fit, or do not cover `matrix`.
        """
        total, stated = self.sums[name].squares.shape[0], len(self._counts(name))
        matrices, rest = divmod(total, cols)
        if stated == 1 and matrix is not None and matrix.of and total % matrix.of == 0:
            stated = matrix.of  # one count for all of them does not tell how many there are
        if rest or not matrices or stated not in (1, matrices) or (matrices > 1 and matrix is None):
            raise WeightsError(f"{printable(name)} takes {total // stated} input features in the file, not {cols}")
        if matrix is not None and matrix.number >= matrices:
            raise WeightsError(
                f"{printable(name)} is a stack of {matrices} in the file, without number {matrix.number}"
            )
        return matrices

    def _counts(self, name: str) -> Values:
        """How many tokens, or chunks, were summed for each matrix of a tensor; there may be one number for all.

        Raises:
            WeightsError: the counts cannot be read, or are impossible.
        """
        if (known := self._counted.get(name)) is not None:
            return known
        sums = self.sums[name]
        counts = np.array([sums.calls], np.float64)
        if sums.counts is not None:
            counts = mean_of(host_array(read_plain(sums.counts, self.stamp, HOST)[0]), 1)
        if not np.isfinite(counts).all() or counts.min() < 0:
            raise WeightsError(f"{printable(name)} has no usable moments: it states {counts.min():g} tokens")
        self._counted[name] = counts
        return counts

    def _means(self, squares: Tensor, count: float, order: FeatureOrder | None) -> Values:
        """Sums of squares -> E[x^2], in the model's order of input features."""
        means = mean_of(host_array(read_plain(squares, self.stamp, HOST)[0]), count)
        return means if order is None else means[order]


def _settled(means: Values, calls: int) -> NDArray[np.float32]:
    """E[x^2] as both layouts of one run give it, to the last bit.

    The .dat holds E[x^2] rounded to float32, times the number of chunks, rounded again. Dividing that and rounding once
    more may change the number, but a second round trip changes it no more. So the numbers of a GGUF file take the round
    trip too; they change by less than 2e-7 of themselves.
    """
    with np.errstate(over="ignore"):  # one that overflows is infinite in both
        rounded = means.astype(np.float32) * np.float32(calls)
    return (rounded.astype(np.float64) / calls).astype(np.float32)


def _row(sums: Tensor, cols: int, index: int) -> Tensor:
    """The sums of one matrix of a stack, with `cols` input features."""
    begin = sums.begin + 4 * cols * index
    return sums._replace(shape=(cols,), begin=begin, end=begin + 4 * cols)


def _of(name: str, matrix: StackedMatrix | None) -> str:
    return printable(name) if matrix is None else f"expert {matrix.number} of {printable(name)}"


def read_gguf(file: Path) -> Imatrix | None:
    """The importance matrix in a GGUF file, None if it holds something else.

    Raises:
        InputError: it cannot be read, is truncated or damaged.
    """
    metadata, (tensors, stamp, _) = gguf.list_any(file)
    found = {tensor.name: tensor for tensor in tensors}
    names = [name.removesuffix(SUMS) for name in found if name.endswith(SUMS)]
    if not names:
        return None
    sums = {name: _checked(file, name, found) for name in names}
    data_sets = metadata.get("imatrix.datasets")
    architecture, name = (metadata.get(f"general.{key}") for key in ("architecture", "name"))
    return Imatrix(
        sums,
        stamp,
        tuple(data_sets) if isinstance(data_sets, list) else (),
        _positive(metadata.get("imatrix.chunk_count")),
        _positive(metadata.get("imatrix.chunk_size")),
        (architecture if type(architecture) is str else "", name if type(name) is str else ""),
    )


def _checked(file: Path, name: str, found: Mapping[str, Tensor]) -> ImatrixSums:
    """The sums of a tensor with their counts, both flat.

    Raises:
        InputError: there are no counts, or sums or counts are empty or no float32.
    """
    squares, counts = found[name + SUMS], found.get(name + COUNTS)
    if counts is None:
        raise _damaged(file, f"it has sums of {printable(name)} and no counts")
    if {squares.dtype, counts.dtype} != {"F32"} or 0 in (*squares.shape, *counts.shape):
        raise _damaged(file, f"the sums of {printable(name)} are not float32, or empty")
    plain = found.get(name + PLAIN_SUMS)
    return ImatrixSums(_flat(squares), _flat(counts), plain=_flat(plain) if plain and plain.dtype == "F32" else None)


def _flat(tensor: Tensor) -> Tensor:
    return tensor._replace(shape=(math.prod(tensor.shape),))


def _positive(value: Any) -> int:
    return value if type(value) is int and value > 0 else 0


def read_legacy(file: Path) -> Imatrix:
    """The importance matrix in a file of the older layout. Its numbers are not read yet, only their places are noted.

    Little-endian: int32 entries; for each int32 length, name, int32 chunks, int32 values, float32 values. These may
    follow: int32 chunks, int32 length, name of the data set.

    Raises:
        InputError: it cannot be read, is truncated or damaged.
    """
    try:
        with open_regular(file) as handle:
            stamp = FileStamp.of(file.stat())
            walk = _Walk(file, handle, stamp.size, identify(file, str(file.resolve()), "", b""))
            sums: dict[str, ImatrixSums] = {}
            for number in range(walk.count("entries", _MAX_ENTRIES)):
                name, entry = walk.entry()
                if name in sums:
                    raise _damaged(file, f"entry {number + 1} has the name of another")
                sums[name] = entry
            chunks, data_set = walk.trailer()
    except OSError as error:
        raise cannot_read(file, error) from None
    return Imatrix(sums, stamp, (data_set,) if data_set else (), max(chunks, 0))


class _Walk:
    """A cursor over a file of the older layout that checks its bounds and skips the values."""

    def __init__(self, file: Path, handle: BinaryIO, size: int, source: Source) -> None:
        self._file, self._handle, self._size, self._source = file, handle, size, source

    def count(self, what: str, limit: int) -> int:
        """Read the next number, a count of at most `limit`."""
        (number,) = struct.unpack("<i", self._take(4))
        if not 0 < number <= limit:
            raise _damaged(self._file, f"it states {number} {what}")
        return int(number)

    def entry(self) -> tuple[str, ImatrixSums]:
        """Read the name of a tensor and where its sums lie."""
        name = self._take(self.count("letters of a name", _MAX_NAME)).decode("utf-8", "replace")
        (calls,) = struct.unpack("<i", self._take(4))
        values = self.count(f"values of {printable(name)}", (1 << 31) - 1)
        begin = self._handle.tell()
        end = begin + 4 * values
        if end > self._size:
            raise self._cut_off()
        self._handle.seek(end)
        return name, ImatrixSums(Tensor(name, "F32", (values,), self._file, begin, end, self._source), calls=calls)

    def trailer(self) -> tuple[int, str]:
        """Read the number of chunks and the data set, 0 and "" if they are missing or cut off."""
        rest = self._handle.read(8 + 4096)
        if len(rest) < 8:
            return 0, ""
        chunks, length = struct.unpack_from("<ii", rest)
        return chunks, rest[8 : 8 + max(length, 0)].decode("utf-8", "replace")

    def _take(self, count: int) -> bytes:
        data = self._handle.read(count)
        if len(data) < count:
            raise self._cut_off()
        return data

    def _cut_off(self) -> InputError:
        return _damaged(self._file, "it ends inside its entries")


def _damaged(file: Path, reason: str) -> InputError:
    return InputError(f"{printable(str(file))} is a damaged imatrix: {reason}; make it again, or download it again")
