"""The data classes that all of the program shares: a source file, a projection, its spectrum, the run that made it.

Nothing here imports torch or h5py; spectra can be read, drawn and compared with numpy only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# A string, so that opening a model and painting its tree need not wait 0.17 s for importing numpy.
Values: TypeAlias = "NDArray[np.float64]"

THRESHOLDS = (0.6, 0.8, 0.9, 0.95, 0.99)
"""The energy thresholds that the key `t` goes through. Their ranks are stored, so a table of them reads no values."""
DEFAULT_THRESHOLDS = THRESHOLDS[:3]
"""The thresholds of the reference notebook."""
DIRECTIONS = "directions"
"""The formula of rows that hold the leading singular values with their vectors instead of all values. For a matrix in
the fixed gauge it is followed by `_` and the gauge's formula."""
LEADING = 8
"""The number of leading singular vectors that are stored."""
FACTORS, FACTORS_ALPHA = "factors", "factors_alpha"
"""The formulas of a matrix that a checkpoint holds as two factors B A. Its parents are the blocks of B, then A, and
for FACTORS_ALPHA a single number that scales the product."""


HEADS, TURNED_HEADS = 2, 3
"""Values of Slice.axis for a stack of one matrix per head; see Slice."""


@dataclass(frozen=True, slots=True)
class Slice:
    """The part of a fused tensor that is one projection.

    The stored tensor's `axis` is reshaped to (`groups`, size / groups); the projection is the
    inner slots `offset` to `offset + width` of every group, in order. `index` picks one matrix of a
    3-D stack before that; without it a 3-D tensor is read as (size, all the rest). With axis HEADS the
    matrices of a stack lie below one another, `width` columns each; with TURNED_HEADS each is transposed first.
    """

    axis: int
    groups: int
    offset: int
    width: int
    index: int | None = None

    def __str__(self) -> str:
        """The text that goes into a projection's key: it must never change for slices that had one."""
        text = f"Slice(axis={self.axis}, groups={self.groups}, offset={self.offset}, width={self.width})"
        return text if self.index is None else f"{text}[{self.index}]"


@dataclass(frozen=True, slots=True)
class Source:
    """One file of a checkpoint, with what identifies its content.

    `identity` is the digest of the content if that is known without reading it (the blob's name
    in the Hub cache), else a digest of size, modification time, inode and header. `repo` is the Hub
    id or the path of the checkpoint, `commit` the resolved 40-hex revision ("" for local files).
    """

    repo: str
    commit: str
    file: str
    identity: str
    size: int
    content_addressed: bool


@dataclass(frozen=True, slots=True)
class Projection:
    """One logical 2-D weight matrix of shape (`rows`, `cols`) = (output, input features).

    `address` is unique in its checkpoint, e.g. `layers.12.attention.key`. `key` identifies the matrix
    by source, slice, dequantisation, stored dtype and shape; it never depends on the revision.
    `transposed` marks tensors stored (input, output), as GPT-2's Conv1D. `note` is a line for the
    user, "" for none; `problem` says in a sentence why no spectrum can be computed, None if one
    can. `rows` and `cols` are 0 for a tensor that is no matrix. `derived` says how a matrix that no checkpoint holds
    is made, None for one that is stored: the twin with random signs has its projection's address and another key.
    """

    address: str
    tensor: str
    slice: Slice | None
    tower: str | None
    layer: int | None
    block: str
    role: str
    expert: int | None
    rows: int
    cols: int
    dtype: str
    dequantisation: str
    transposed: bool
    source: Source
    key: str
    problem: str | None = None
    note: str = ""
    derived: Derived | None = None

    @property
    def null(self) -> str:
        """ "flip" for a sign-flipped twin, "" for everything else."""
        return FLIPPED.formula if self.derived == FLIPPED else ""

    @property
    def is_product(self) -> bool:
        """True if it is a matrix of its model that is stored as two factors."""
        return self.derived is not None and self.derived.formula in (FACTORS, FACTORS_ALPHA)

    @property
    def stored_as(self) -> str:
        """How its weights are stored: a type, a packing, or, for two factors, `2 B A, r 8`."""
        if self.derived is not None and self.is_product:
            return self.derived.label
        return self.dequantisation or self.dtype

    @property
    def inner(self) -> int:
        """The size that the two factors of a product share; 0 for any other matrix."""
        if not self.is_product:
            return 0
        return self.parents[-1 if self.derived is not None and self.derived.formula == FACTORS else -2].rows

    @property
    def parents(self) -> tuple[Projection, ...]:
        """The projections whose matrices are read for this one: itself, unless it is derived from others."""
        made = self.derived
        return made.parents if made is not None and made.parents else (self,)

    @property
    def label(self) -> str:
        """The address, followed by the kind of a derived matrix: `layers.3.mlp.up@norm` under a weighting, `@fixed`."""
        made = self.derived
        if made is None:
            return self.address
        if not made.is_further and (made.weighting or made.gauge):
            return "@".join(filter(None, (self.address, made.weighting, made.gauge)))
        return f"{self.address} {made.label}"

    def counts(self, weighting: str = "", gauge: str = "") -> bool:
        """True if it belongs to its model's spectra (listed, scanned, added up) under a weighting and a gauge.

        Each state of a projection belongs to one weighting and gauge. A further row (Derived.is_further) only counts
        if the model itself holds it, as two factors.
        """
        if self.derived is None or self.is_product:
            return not weighting and not gauge
        return not self.derived.is_further and (self.derived.weighting, self.derived.gauge) == (weighting, gauge)

    @property
    def count(self) -> int:
        """Number of singular values, min(rows, cols); for a product at most the size that its factors share."""
        return min(self.rows, self.cols, self.inner or self.cols)

    @property
    def is_directions(self) -> bool:
        """True if its leading directions are computed (engine/derive/directions.py) instead of all values."""
        return self.derived is not None and self.derived.formula.partition("_")[0] == DIRECTIONS

    @property
    def stored_count(self) -> int:
        """How many numbers are stored: `count` singular values; or, for k leading directions, k singular values with
        left and right vectors, and the norms of all rows and columns."""
        if not self.is_directions:
            return self.count
        return min(LEADING, self.count) * (1 + self.rows + self.cols) + self.rows + self.cols

    @property
    def cost(self) -> float:
        """Floating-point operations of Gram product and eigenvalues (for a product: of both factors), for progress
        and ETA."""
        small, large = sorted((self.rows, self.cols))
        if inner := self.inner:
            small, large = min(small, inner), 2 * (self.rows + self.cols)
        return float(small) * small * large + 4.0 / 3.0 * float(small) ** 3


@dataclass(frozen=True, slots=True)
class Operand:
    """Numbers that a formula takes beside matrices, known by their `digest`, which is part of the key.

    `load` returns them as float64 when the matrix is made; it is None in what a store returns. `file` is the file of
    second moments that they come from, by a path that another process can open; "" if they come from the checkpoint.

    Raises, when loading:
        WeightsError: the numbers cannot be read.
    """

    digest: str
    load: Callable[[], Values] | None = field(default=None, repr=False, compare=False)
    file: str = field(default="", repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class Derived:
    """How a matrix is made from others, by a formula of engine/derive.

    `formula` and `version` name it, `label` is shown behind the address. `parents` are the projections
    whose matrices it takes, in order, none of them derived; () if it takes the matrix of the tensor and slice
    that the derived projection itself names. `operands` are the other numbers it takes.

    A further row (`is_further`: a twin, a stack, a product, a difference) is a separate matrix beside the model's;
    if its model holds two factors in its place (FACTORS), it counts as one of the model's.
    Any other is a state of its first parent and has the parent's address: under a `weighting`, in a `gauge`,
    "" for none. A further row may have a weighting and a gauge too.
    """

    formula: str
    version: int
    label: str
    is_further: bool
    parents: tuple[Projection, ...] = ()
    operands: tuple[Operand, ...] = ()
    weighting: str = ""
    gauge: str = ""


FLIPPED = Derived("flip", 1, "with random signs", is_further=True)
"""Marks every sign-flipped twin (engine/derive/flip.py). It is the only derived row in files of format version 1, whose
column `null` holds the formula."""


@dataclass(frozen=True, slots=True)
class Run:
    """The process that computed: versions, machine and command line, for provenance."""

    run_id: str
    software: str
    torch: str
    cuda: str
    driver: str
    host: str
    command: str
    started_at: str


@dataclass(frozen=True, slots=True)
class Provenance:
    """How singular values were computed, and how far they can be trusted.

    `frobenius_norm` is summed from the weights, independently of the values (for W C^1/2: sqrt(tr W C W^T)).
    `error_bound` bounds the absolute error of every value above `noise_floor`; a value below the floor is
    known only to be below it; all three in the units of the weights. `seconds` is solving time. `clipped` is the
    share of the trace of the second moments that lay in negative eigenvalues, which count as 0.
    """

    frobenius_norm: float
    solver: str
    solver_version: int
    compute_dtype: str
    error_bound: float
    noise_floor: float
    device: str
    seconds: float
    clipped: float = 0.0


@dataclass(frozen=True, slots=True)
class Spectrum:
    """The singular values of a projection, with everything needed to trust them.

    `values`: float64, shape (min(rows, cols),), descending, in the units of the weights; for leading directions
    float32, shape (projection.stored_count,), packed as in engine/derive/directions.py. `computed_at` is ISO 8601,
    UTC. `weights_digests` are digests of the stored bytes that were read, one for the tensor of each of
    `projection.parents`, in order ("" in results that are older than such digests for content-addressed files).
    """

    projection: Projection
    values: Values = field(repr=False, compare=False)
    provenance: Provenance
    computed_at: str
    weights_digests: tuple[str, ...]
    run: Run


def derive(projection: Projection, made: Derived) -> Projection:
    """The matrix that `made` describes, with address, layer, role, shape and source of `projection`.

    Its key is the digest of its parents' keys, of formula and version, and of the digests of its operands: it changes
    with everything that the matrix depends on. With parents it is not transposed (they are transposed before a formula
    takes them), and has the problem of the first parent that has one.
    """
    parents = made.parents or (projection,)
    parts = (*(p.key for p in parents), made.formula, made.version, *(operand.digest for operand in made.operands))
    changed = replace(projection, derived=made, key=digest(*parts))
    if not made.parents:
        return changed
    problem = next((f"{p.label}: {p.problem}" for p in parents if p.problem is not None), None)
    return replace(changed, transposed=False, problem=problem)


def digest(*parts: object) -> str:
    """128-bit hex digest of the parts, in order and separated unambiguously."""
    return blake2b(framed(*parts), digest_size=16).hexdigest()


def framed(*parts: object) -> bytes:
    """The bytes that `digest` digests, each part behind its length; results can be joined."""
    pieces: list[bytes] = []
    for part in parts:
        data = part if isinstance(part, bytes) else str(part).encode()
        pieces += (len(data).to_bytes(8, "little"), data)
    return b"".join(pieces)
