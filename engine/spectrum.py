"""The nouns that every room shares: a source file, a projection, its spectrum, the run that made it.

Nothing here imports torch or h5py; a spectrum can be read, drawn and compared with numpy alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# A string, so that opening a model and painting its tree need not wait 0.17 s for numpy.
Values: TypeAlias = "NDArray[np.float64]"

THRESHOLDS = (0.6, 0.8, 0.9, 0.95, 0.99)
"""The energy thresholds whose ranks are stored, so that a table of them needs no values, and that `t` goes through."""
DEFAULT_THRESHOLDS = THRESHOLDS[:3]
"""Those of the reference notebook."""
DIRECTIONS = "directions"
"""The formula of the rows that hold not singular values alone, but the leading ones with their vectors. Of a matrix in
the fixed gauge `_` and the formula that makes it follow."""
LEADING = 8
"""How many of these."""
FACTORS, FACTORS_ALPHA = "factors", "factors_alpha"
"""The formulas of a matrix that a checkpoint holds as two factors B A: its parents are the blocks of B, then A, and of
FACTORS_ALPHA a single number by which it is scaled."""


HEADS, TURNED_HEADS = 2, 3
"""See Slice."""


@dataclass(frozen=True, slots=True)
class Slice:
    """The part of a fused tensor that is one projection.

    The stored tensor's `axis` is reshaped to (`groups`, size / groups); the projection is the
    inner slots `offset` to `offset + width` of every group, in order. `index` picks one matrix of a
    3-D stack before that; without it a 3-D tensor is read as (size, all the rest). Axis HEADS or TURNED_HEADS: the
    matrices of a stack, of the latter each transposed, below one another, of `width` columns.
    """

    axis: int
    groups: int
    offset: int
    width: int
    index: int | None = None

    def __str__(self) -> str:
        """Part of a projection's content key: it must never change for slices that had one."""
        text = f"Slice(axis={self.axis}, groups={self.groups}, offset={self.offset}, width={self.width})"
        return text if self.index is None else f"{text}[{self.index}]"


@dataclass(frozen=True, slots=True)
class Source:
    """One file of a checkpoint, and what makes it that file and no other.

    `identity` is the digest of the content where that is known without reading it (the blob's name
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

    `address` is unique in its checkpoint, e.g. `layers.12.attention.key`. `key` says what the matrix
    is (source, slice, dequantisation, stored dtype and shape) and never depends on the revision.
    `transposed` marks tensors stored (input, output), as GPT-2's Conv1D. `note` is a line for the
    user, "" for none; `problem` the sentence that says why no spectrum can be computed, None where
    one can. `rows` and `cols` are 0 for a tensor that is no matrix. `derived` says how a matrix is made that no
    checkpoint holds, None for one that does: the twin with random signs has its projection's address and another key.
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
        """Whether it is a matrix of its model that is stored as two factors."""
        return self.derived is not None and self.derived.formula in (FACTORS, FACTORS_ALPHA)

    @property
    def stored_as(self) -> str:
        """What its weights are stored as: a type, how they are packed, or `2 B A, r 8` of two factors."""
        if self.derived is not None and self.is_product:
            return self.derived.label
        return self.dequantisation or self.dtype

    @property
    def inner(self) -> int:
        """The size that the two factors of a product share; 0 of any other matrix."""
        if not self.is_product:
            return 0
        return self.parents[-1 if self.derived is not None and self.derived.formula == FACTORS else -2].rows

    @property
    def parents(self) -> tuple[Projection, ...]:
        """The projections whose matrices are read for this one: itself, unless it is derived of others."""
        made = self.derived
        return made.parents if made is not None and made.parents else (self,)

    @property
    def label(self) -> str:
        """The address, and behind it what a derived matrix is: `layers.3.mlp.up@norm` under a weighting, `@fixed`."""
        made = self.derived
        if made is None:
            return self.address
        if not made.is_further and (made.weighting or made.gauge):
            return "@".join(filter(None, (self.address, made.weighting, made.gauge)))
        return f"{self.address} {made.label}"

    def counts(self, weighting: str = "", gauge: str = "") -> bool:
        """Whether it is a spectrum of its model, to be listed, scanned and added up, under a weighting and a gauge.

        A projection is in exactly one of its states; a further row (Derived.is_further) is counted where the model
        holds it, as two factors.
        """
        if self.derived is None or self.is_product:
            return not weighting and not gauge
        return not self.derived.is_further and (self.derived.weighting, self.derived.gauge) == (weighting, gauge)

    @property
    def count(self) -> int:
        """Number of singular values, min(rows, cols); of a product no more than its factors share."""
        return min(self.rows, self.cols, self.inner or self.cols)

    @property
    def is_directions(self) -> bool:
        """Whether what is computed are its leading directions (engine/derive/directions.py) instead of all values."""
        return self.derived is not None and self.derived.formula.partition("_")[0] == DIRECTIONS

    @property
    def stored_count(self) -> int:
        """How many numbers are stored of it: `count` singular values; of its k leading directions their singular
        values, left vectors and right vectors, and the norms of all rows and columns."""
        if not self.is_directions:
            return self.count
        return min(LEADING, self.count) * (1 + self.rows + self.cols) + self.rows + self.cols

    @property
    def cost(self) -> float:
        """Floating-point operations of Gram product and eigenvalues, of a product of both factors, for progress and
        ETA."""
        small, large = sorted((self.rows, self.cols))
        if inner := self.inner:
            small, large = min(small, inner), 2 * (self.rows + self.cols)
        return float(small) * small * large + 4.0 / 3.0 * float(small) ** 3


@dataclass(frozen=True, slots=True)
class Operand:
    """Numbers that a formula takes beside matrices: known by their `digest`, which is part of the key.

    `load` gives them as float64 when the matrix is made; None in what comes from a store. `file` is the file of second
    moments that they come from, as another process would open it, "" where they are of the checkpoint itself.

    Raises, when loading:
        WeightsError: they cannot be had.
    """

    digest: str
    load: Callable[[], Values] | None = field(default=None, repr=False, compare=False)
    file: str = field(default="", repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class Derived:
    """How a matrix is made of others, by a formula of engine/derive.

    `formula` and `version` name it, `label` is what a user reads behind the address. `parents` are the projections
    whose matrices it takes, in order, none of them derived; () where that is the matrix of the tensor and slice
    which the derived projection itself names. `operands` are the other numbers it takes.

    A further row (`is_further`: a twin, a stack, a product, a difference) is a matrix of its own beside the model's;
    where its model holds two factors in its place (FACTORS) it counts as one of the model's.
    Any other one is a state of its first parent, which has the parent's address: under a `weighting`, in a `gauge`,
    "" for none. A further row may have them as well.
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
"""Of every sign-flipped twin (engine/derive/flip.py). No other derived row lies in files of format version 1, whose
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
    """How singular values came about, and how far they can be trusted.

    `frobenius_norm` is summed from the weights apart from the values (of W C^1/2: sqrt(tr W C W^T)).
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

    `values`: float64, shape (min(rows, cols),), descending, in the units of the weights; of leading directions float32,
    shape (projection.stored_count,), as engine/derive/directions.py packs them. `computed_at` is ISO 8601,
    UTC. `weights_digests` are of the stored bytes that were read, one for the tensor of each of `projection.parents`,
    in order ("" where it was computed before digests of content-addressed files were kept).
    """

    projection: Projection
    values: Values = field(repr=False, compare=False)
    provenance: Provenance
    computed_at: str
    weights_digests: tuple[str, ...]
    run: Run


def derive(projection: Projection, made: Derived) -> Projection:
    """The matrix that `made` describes, named and placed like `projection`: address, layer, role, shape, source.

    Its key is the digest of its parents' keys, of formula and version, and of the digests of its operands: it changes
    with everything that the matrix depends on. With parents it is not transposed (they are turned before a formula
    sees them), and has the problem of the first that has one.
    """
    parents = made.parents or (projection,)
    parts = (*(p.key for p in parents), made.formula, made.version, *(operand.digest for operand in made.operands))
    changed = replace(projection, derived=made, key=digest(*parts))
    if not made.parents:
        return changed
    problem = next((f"{p.label}: {p.problem}" for p in parents if p.problem is not None), None)
    return replace(changed, transposed=False, problem=problem)


def digest(*parts: object) -> str:
    """128-bit hex digest of the parts, in order and unambiguously separated."""
    return blake2b(framed(*parts), digest_size=16).hexdigest()


def framed(*parts: object) -> bytes:
    """What `digest` digests, in pieces that may be joined: each part behind its length."""
    pieces: list[bytes] = []
    for part in parts:
        data = part if isinstance(part, bytes) else str(part).encode()
        pieces += (len(data).to_bytes(8, "little"), data)
    return b"".join(pieces)
