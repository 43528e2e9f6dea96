"""Second moments of the inputs of projections, and the protocol of what supplies them."""

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

    `form` says what the `operands` load, all float64:
    "diagonal": one array of shape (n,), the diagonal of C, whose other entries are 0;
    "full": one array of shape (n, n), C itself;
    "layer_norm": gain and bias of shape (n,) each: C = diag(gain) (I - 1 1^T / n) diag(gain) + bias bias^T, for an x
    that left a LayerNorm whose normalised values are uncorrelated except that they sum to 0.
    """

    form: Form
    cols: int
    operands: tuple[Operand, ...]

    @property
    def digest(self) -> str:
        """Digest of form and numbers: equal for equal C, wherever it was read."""
        return digest(self.form, *(operand.digest for operand in self.operands))

    def of_file(self, file: str) -> Moment:
        """This moment with `file`, the file of second moments that it comes from (see Operand)."""
        return replace(self, operands=tuple(replace(operand, file=file) for operand in self.operands))


class Weighting(Protocol):
    """A source of second moments: the gains of a model's norms, an imatrix, a file of moments."""

    @property
    def name(self) -> str:
        """The value of `Derived.weighting`: "norm", "imatrix", "moments" or "centred"."""
        ...

    @property
    def is_centred(self) -> bool:
        """True if its moments are about the mean, C - mu mu^T: only for display, as what factors cost is uncentred."""
        ...

    @property
    def label(self) -> str:
        """A description for titles: kind, file, data sets, tokens or chunks."""
        ...

    def moment(self, projection: Projection) -> Moment:
        """The second moment of a projection's input. Called for one projection after another, perhaps from another
        thread.

        Raises:
            WeightsError: there is none; the message says why and names the projection or the tensor.
        """
        ...


def digest_of_moments(weighting: Weighting, projections: Iterable[Projection]) -> str:
    """One digest over the second moments that a weighting has for projections of a checkpoint. It depends only on the
    numbers, not on their order; projections without a moment are left out."""
    found: dict[str, str] = {}
    for p in projections:
        with suppress(WeightsError):
            found[p.key] = weighting.moment(p).digest
    return digest(*(part for pair in sorted(found.items()) for part in pair))


def diagonal(values: Values) -> Moment:
    """The moment whose diagonal is `values`, shape (n,): E[x^2], or the squared gain of an RMS norm."""
    return Moment("diagonal", len(values), (operand(values),))


def full(values: Values) -> Moment:
    """The moment that is `values`, shape (n, n). If it is too large to keep, give Moment an Operand that loads it."""
    return Moment("full", len(values), (operand(values),))


def layer_norm(gain: Values, bias: Values) -> Moment:
    """The moment of the output of a LayerNorm with this gain and bias, each of shape (n,)."""
    return Moment("layer_norm", len(gain), (operand(gain), operand(bias)))


@dataclass(frozen=True, slots=True)
class FewNumbers:
    """Loads a few numbers that say how a matrix is made, such as rows of heads; can be sent to other processes."""

    numbers: tuple[float, ...]

    def __call__(self) -> Values:
        import numpy as np

        return np.array(self.numbers, np.float64)


def travelling(numbers: Iterable[float]) -> Operand:
    """A few numbers as an operand that carries them along, as no file and no norm holds them."""
    few = FewNumbers(tuple(map(float, numbers)))
    return replace(operand(few()), load=few)


def operand(values: Values) -> Operand:
    """An operand of numbers in memory; its digest is of their shape and their bytes as little-endian float64."""
    import numpy as np

    return Operand(digest(values.shape, np.ascontiguousarray(values, "<f8").tobytes()), lambda: values)
