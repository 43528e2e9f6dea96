"""Second moments of what flows into projections, and what a source of them answers."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Literal, Protocol, TypeAlias

from .errors import WeightsError
from .spectrum import Operand, Projection, Values, digest

Form: TypeAlias = Literal["diagonal", "full", "layer_norm"]


@dataclass(frozen=True, slots=True)
class Moment:
    """C = E[x x^T], the second moment of the input x of a projection with n = `cols` input features.

    By `form`, what the `operands` load, all float64:
    "diagonal": one of shape (n,), the diagonal of C, whose other entries are 0;
    "full": one of shape (n, n), C itself;
    "layer_norm": gain and bias of shape (n,) each: C = diag(gain) (I - 1 1^T / n) diag(gain) + bias bias^T, of an x
    that left a LayerNorm whose normalised values are uncorrelated but for their mean, which is 0.
    """

    form: Form
    cols: int
    operands: tuple[Operand, ...]

    @property
    def digest(self) -> str:
        """Of form and numbers: equal for equal C, wherever it was read."""
        return digest(self.form, *(operand.digest for operand in self.operands))

    def of_file(self, file: str) -> Moment:
        """The same, with the file of second moments that it comes from; see Operand."""
        return replace(self, operands=tuple(replace(operand, file=file) for operand in self.operands))


class Weighting(Protocol):
    """A source of second moments: the gains of a model's norms, an imatrix, a file of moments."""

    @property
    def name(self) -> str:
        """What stands in `Derived.weighting`: "norm", "imatrix", "moments" or "centred"."""
        ...

    @property
    def is_centred(self) -> bool:
        """Whether its moments are about the mean, C - mu mu^T: for display alone, as what factors cost is uncentred."""
        ...

    @property
    def label(self) -> str:
        """What a title says of it: kind, file, data sets, tokens or chunks."""
        ...

    def moment(self, projection: Projection) -> Moment:
        """The second moment of a projection's input. Called for one after another, also from another thread.

        Raises:
            WeightsError: there is none; the sentence says why and names the projection or the tensor.
        """
        ...


def digest_of_moments(weighting: Weighting, projections: Iterable[Projection]) -> str:
    """One digest over the second moments that a weighting has of projections of a checkpoint: the same for a weighting
    with the same numbers, in whatever order these come, and for whichever of them it has none."""
    found: dict[str, str] = {}
    for p in projections:
        with suppress(WeightsError):
            found[p.key] = weighting.moment(p).digest
    return digest(*(part for pair in sorted(found.items()) for part in pair))


def diagonal(values: Values) -> Moment:
    """The moment whose diagonal is `values`, shape (n,): E[x^2], or the squared gain of an RMS norm."""
    return Moment("diagonal", len(values), (operand(values),))


def full(values: Values) -> Moment:
    """The moment that is `values`, shape (n, n). For one too large to keep, give Moment an Operand that loads it."""
    return Moment("full", len(values), (operand(values),))


def layer_norm(gain: Values, bias: Values) -> Moment:
    """The moment of what leaves a LayerNorm with this gain and bias, each of shape (n,)."""
    return Moment("layer_norm", len(gain), (operand(gain), operand(bias)))


@dataclass(frozen=True, slots=True)
class FewNumbers:
    """A few numbers that say how matrices are to be made, as rows of heads: they travel to other processes."""

    numbers: tuple[float, ...]

    def __call__(self) -> Values:
        import numpy as np

        return np.array(self.numbers, np.float64)


def travelling(numbers: Iterable[float]) -> Operand:
    """A few numbers as an operand that no file and no norm holds."""
    few = FewNumbers(tuple(map(float, numbers)))
    return replace(operand(few()), load=few)


def operand(values: Values) -> Operand:
    """Numbers that are at hand, known by the digest of their shape and of their bytes as little-endian float64."""
    import numpy as np

    return Operand(digest(values.shape, np.ascontiguousarray(values, "<f8").tobytes()), lambda: values)
