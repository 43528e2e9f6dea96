"""A plan: the rank that each projection of a model gets. A JSON file, checked when it is read; see docs/PLAN.md."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, astuple, dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeVar, cast

from ..atomic import write_atomically
from ..errors import InputError, cannot_read, printable
from ..formats.guarded import head_of, no_such, open_regular, parse_json
from ..spectrum import Slice

Objective: TypeAlias = Literal["parameters", "relative", "absolute"]
"""The weight of a projection's tail in the loss: its parameters m n, 1, or its whole energy."""
Cost: TypeAlias = Literal["factors", "pifa"]
"""The parameters of rank r: r (m + n) for two factors, or r (m + n - r) for the same rank by pivoting rows (PIFA)."""
Scope: TypeAlias = Literal["projections", "total"]
"""The parameters of which a cut is a share: those of the planned projections, or all that the model stores."""
Action: TypeAlias = Literal["keep", "factor"]

OBJECTIVES: tuple[Objective, ...] = ("parameters", "relative", "absolute")
COSTS: tuple[Cost, ...] = ("factors", "pifa")
SCOPES: tuple[Scope, ...] = ("projections", "total")
_ACTIONS: tuple[Action, ...] = ("keep", "factor")
_WEIGHTINGS = ("norm", "imatrix", "moments")
_FORMAT, _VERSION = "rankscope plan", 1
_MOST_BYTES = 256 << 20
"""The largest plan file that is read: 500,000 projections, with 300 bytes for a row."""
_T = TypeVar("_T", bound=str)


def parameters_of(rows: int, cols: int, rank: int | None, cost: Cost) -> int:
    """How many parameters a projection of this shape has at a rank, or, with None, as it is."""
    if rank is None:
        return rows * cols
    return rank * (rows + cols - (rank if cost == "pifa" else 0))


@dataclass(frozen=True, slots=True)
class PlanWeighting:
    """The weighting under which a plan was made.

    `name` and `label` as in moment.Weighting; `digest` covers the second moments of all planned projections
    (digest_of_moments): another file with the same numbers has the same one. `pooled`: the moments of experts that few
    tokens reached include other tokens of their layer.
    """

    name: str
    label: str
    digest: str
    pooled: bool


@dataclass(frozen=True, slots=True)
class PlanRow:
    """What a plan makes of one projection: it is kept as it is, or becomes the product of two factors of `rank`.

    `key` is the content key of the matrix in the checkpoint, `tensor` and `slice` its place there, `shape` is (m, n) =
    (output, input features). `rank` is None if it is kept. `energy` is the share of its energy that remains, under the
    plan's weighting; `parameters` is how many it has then.
    """

    address: str
    key: str
    tensor: str
    slice: Slice | None
    shape: tuple[int, int]
    action: Action
    rank: int | None
    energy: float
    parameters: int


@dataclass(frozen=True, slots=True)
class Plan:
    """Ranks for the projections of a model.

    `model` and `commit` name the checkpoint; `commit` is None if it has none. `uniform`: every projection keeps the
    same share of its parameters. `cut` is the share of the parameters in the scope `of` that is removed, `budget` the
    most parameters that all rows may have. `loss` is by the `objective`, and `bound` is below the loss of every plan
    with this budget. Every rank is a multiple of `multiple` and at least `min_rank`.
    """

    model: str
    commit: str | None
    weighting: PlanWeighting | None
    objective: Objective
    cost: Cost
    uniform: bool
    cut: float
    of: Scope
    min_rank: int
    multiple: int
    budget: int
    loss: float
    bound: float
    rows: tuple[PlanRow, ...]

    @property
    def parameters(self) -> int:
        """The parameters of all rows."""
        return sum(row.parameters for row in self.rows)


def write_plan(path: Path, plan: Plan) -> None:
    """Write a plan in one step.

    Raises:
        OSError: the disk is full or fails; a file that was at `path` is still there, unchanged.
    """
    head = {"format": _FORMAT, "version": _VERSION}
    written = head | asdict(replace(plan, rows=()))
    text = json.dumps(written, allow_nan=False, indent=1).removesuffix("[]\n}")
    rows = ",\n".join(f"  {json.dumps(_written(row), allow_nan=False)}" for row in plan.rows)
    write_atomically(path, f"{text}[\n{rows}\n ]\n}}\n".encode())


def _written(row: PlanRow) -> dict[str, Any]:
    """A row as JSON. (asdict would copy every part of each of 46,000 rows, which takes two seconds.)"""
    held = {name: getattr(row, name) for name in PlanRow.__slots__}
    return held | {"slice": None if row.slice is None else astuple(row.slice)}


def looks_like_plan(path: Path) -> bool:
    """Return whether a file begins as a plan of any version does."""
    return f'"{_FORMAT}"'.encode() in head_of(path, 100)


def read_plan(path: Path) -> Plan:
    """Read a plan.

    Raises:
        InputError: it cannot be read, is no plan, has another version, or holds something impossible.
    """
    shown = printable(str(path))
    try:
        with open_regular(path) as file:
            data = file.read(_MOST_BYTES + 1)
    except FileNotFoundError:
        raise no_such("plan", str(path), "make one with  rankscope plan MODEL --cut 20% -o FILE.json") from None
    except OSError as error:
        raise cannot_read(path, error) from None
    if len(data) > _MOST_BYTES:
        raise InputError(f"{shown} is larger than {_MOST_BYTES} bytes: too large for a plan, name another")
    found = parse_json(data, path)
    if found.get("format") != _FORMAT:
        raise InputError(f"{shown} is not a plan: make one with  rankscope plan MODEL --cut 20% -o {shown}")
    if found.get("version") != _VERSION:
        version = printable(str(found.get("version")), 20)
        raise InputError(
            f"{shown} is a plan of version {version}, and this program reads version {_VERSION}: make it again"
        )
    try:
        return _plan(_Fields(found, ""))
    except _OddError as odd:
        raise InputError(f"{shown} is not a usable plan: {odd}; make it again with  rankscope plan") from None


class _OddError(Exception):
    """What is wrong in a plan, as a part of a sentence."""


class _Fields:
    """Reads the fields of a JSON object and checks their types. `where` names the object in messages."""

    def __init__(self, held: Mapping[str, Any], where: str) -> None:
        self._held, self.where = held, where

    def odd(self, words: str) -> _OddError:
        """An error with these words about this object."""
        return _OddError(f"{self.where}{words}")

    def get(self, name: str) -> Any:
        if name not in self._held:
            raise self.odd(f"{name!r} is missing")
        return self._held[name]

    def _checked(self, name: str, is_right: Callable[[Any], bool], words: str) -> Any:
        value = self.get(name)
        if not is_right(value):
            raise self.odd(f"{name!r} is {printable(json.dumps(value), 40)}, and must be {words}")
        return value

    def text(self, name: str) -> str:
        return cast("str", self._checked(name, lambda x: type(x) is str and x != "", "a text"))

    def choice(self, name: str, choices: tuple[_T, ...]) -> _T:
        return cast("_T", self._checked(name, lambda x: type(x) is str and x in choices, " or ".join(choices)))

    def flag(self, name: str) -> bool:
        return cast("bool", self._checked(name, lambda x: type(x) is bool, "true or false"))

    def whole(self, name: str, least: int, most: int | None = None) -> int:
        end = "at least" if most is None else "from"
        words = f"a whole number {end} {least}{'' if most is None else f' to {most}'}"
        return cast(
            "int", self._checked(name, lambda x: type(x) is int and x >= least and (most is None or x <= most), words)
        )

    def number(self, name: str, most: float = math.inf) -> float:
        words = "a number of at least 0" if most == math.inf else f"a number from 0 to {most:g}"
        value = self._checked(name, lambda x: type(x) in (int, float) and 0 <= x <= most and x != math.inf, words)
        return float(value)

    def wholes(self, name: str, count: int) -> list[int]:
        """A list of `count` whole numbers of at least 0."""

        def are(x: Any) -> bool:
            return type(x) is list and len(x) == count and all(type(one) is int and one >= 0 for one in x)

        return cast("list[int]", self._checked(name, are, f"{count} whole numbers of at least 0"))

    def inner(self, name: str) -> _Fields:
        found = self._checked(name, lambda x: type(x) is dict, "an object")
        return _Fields(found, f"{self.where}{name}: ")


def _plan(fields: _Fields) -> Plan:
    cost = fields.choice("cost", COSTS)
    rows = fields.get("rows")
    if type(rows) is not list or not all(type(row) is dict for row in rows):
        raise fields.odd("'rows' must be a list of objects")
    plan = Plan(
        model=fields.text("model"),
        commit=None if fields.get("commit") is None else fields.text("commit"),
        weighting=None if fields.get("weighting") is None else _weighting(fields.inner("weighting")),
        objective=fields.choice("objective", OBJECTIVES),
        cost=cost,
        uniform=fields.flag("uniform"),
        cut=fields.number("cut", 1.0),
        of=fields.choice("of", SCOPES),
        min_rank=fields.whole("min_rank", 1),
        multiple=fields.whole("multiple", 1),
        budget=fields.whole("budget", 0),
        loss=fields.number("loss"),
        bound=fields.number("bound"),
        rows=tuple(_row(_Fields(row, f"row {number}: "), cost) for number, row in enumerate(rows, 1)),
    )
    for name in ("address", "key"):
        seen: set[str] = set()
        for number, row in enumerate(plan.rows, 1):
            value = getattr(row, name)
            if value in seen:
                raise fields.odd(f"row {number}: the {name} {printable(value, 80)!r} is in another row too")
            seen.add(value)
    if not plan.rows:
        raise fields.odd("it has no rows")
    return plan


def _weighting(fields: _Fields) -> PlanWeighting:
    return PlanWeighting(
        fields.choice("name", _WEIGHTINGS), fields.text("label"), fields.text("digest"), fields.flag("pooled")
    )


def _row(fields: _Fields, cost: Cost) -> PlanRow:
    address = fields.text("address")
    fields.where = f"{fields.where}{printable(address, 80)}: "
    rows, cols = fields.wholes("shape", 2)
    action = fields.choice("action", _ACTIONS)
    rank: int | None = None
    if action == "factor":
        rank = fields.whole("rank", 1, min(rows, cols))
    elif fields.get("rank") is not None:
        raise fields.odd("'rank' must be null where the matrix is kept")
    parameters = fields.whole("parameters", 0)
    if parameters != (made := parameters_of(rows, cols, rank, cost)):
        raise fields.odd(f"'parameters' is {parameters}, but its shape and rank give {made}")
    energy = fields.number("energy", 1.0)
    return PlanRow(
        address,
        fields.text("key"),
        fields.text("tensor"),
        _slice(fields),
        (rows, cols),
        action,
        rank,
        energy,
        parameters,
    )


def _slice(fields: _Fields) -> Slice | None:
    """Read [axis, groups, offset, width, index]; the index is null for what is no stack."""
    held = fields.get("slice")
    if held is None:
        return None
    if type(held) is list and held[4:] == [None]:
        axis, groups, offset, width = _Fields({"slice": held[:4]}, fields.where).wholes("slice", 4)
        return Slice(axis, groups, offset, width)
    axis, groups, offset, width, index = fields.wholes("slice", 5)
    return Slice(axis, groups, offset, width, index)
