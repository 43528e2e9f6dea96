"""The arguments of `rankscope show` and `rankscope plot`, turned into projections and a lens."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rankscope.engine.catalogue.tree import model_order
from rankscope.engine.derive.gauge import FIXED, why_not_balanced
from rankscope.engine.errors import InputError, printable
from rankscope.engine.spectrum import DEFAULT_THRESHOLDS, Projection

from ..data.chosen_weighting import NONE
from ..data.comparison import MOST_MARKS
from ..data.depths import words_of
from ..data.gauged_model import RAW
from ..data.grid import Grid, make_grid
from ..data.kept_ranks import KeptRanks
from ..data.lens import Lens
from ..data.measures import Measure, energy_of, unit_of
from ..data.pair import Pair, Side
from ..data.session import Session
from ..data.table_rows import has_twins
from ..data.views import BY_NAME, VIEWS, taking
from .delta_stored import open_deltas
from .kept import check_ranks, named_ranks, show_stacks
from .opening import lines_of, open_spectra, shown_of, stored_of, verify, wanted_of
from .options import ADDRESS, DELTA

_MOST_LISTED = 20
"""At most this many addresses are listed."""


@dataclass(frozen=True, slots=True)
class Query:
    """The projections to show, and the lens to show them through. `lens` is at the last of the thresholds; `notes` are
    printed last and say what is missing; `ranks` are those of --rank."""

    lens: Lens
    thresholds: tuple[float, ...]
    projections: list[Projection]
    grid: Grid
    is_filtered: bool
    notes: tuple[str, ...]
    ranks: KeptRanks | None = None

    @property
    def lenses(self) -> list[Lens]:
        """The lens at every threshold, or only once if its number depends on none."""
        if not self.lens.measure.depends_on_threshold:
            return [self.lens]
        return [replace(self.lens, threshold=threshold) for threshold in self.thresholds]


def understand(args: Namespace, root: Path) -> Query:
    """Open the models that the arguments name, and find the projections to show.

    Raises:
        InputError: options that do not go together, or nothing to show.
    """
    _check(args)
    gauge = FIXED if args.view == "gauge" else args.gauge
    measure = unit_of(getattr(args, "unit", None) or "k")
    check_ranks(measure, args)
    if is_delta(args):
        _check_delta(args, measure)
    first, wanted = _shown(args, root, gauge)
    ranks, stacks = named_ranks(first, wanted, args)
    if ranks is not None and measure.needs_ranks:
        measure = energy_of(ranks)
    if args.view == "compare" and len(wanted) > MOST_MARKS:
        raise InputError(f"{len(wanted)} projections: name at most {MOST_MARKS} to compare with --filter GLOB")
    _check_state(measure, first, args)
    stored = _stored(first, wanted, measure, args, gauge)
    if args.view == "gauge" and not any(first.has(p.parents[0]) for p in wanted):
        name = printable(args.model)
        raise InputError(
            f"the spectra of the weights as they are, to compare with, are not stored: run  rankscope scan {name}"
        )
    second = _second(args, root, measure, bool(first.model.further))
    pair = Pair(first, second, by_depth=args.pair != ADDRESS)
    if stacks and pair.second is not None:
        show_stacks(pair.second, args)
    notes = _notes(pair, wanted, len(wanted) - len(stored), args)
    thresholds = tuple(dict.fromkeys(args.threshold or DEFAULT_THRESHOLDS))
    lens = Lens(pair, thresholds[-1], measure, _side(args), ranks=ranks if args.view != "table" else None)
    if measure.needs_twin and not has_twins(lens, wanted):
        name = printable(args.model)
        raise InputError(f"no spectra with random signs are stored of {name}: run  rankscope scan {name} --null flip")
    if stacks := [p for p in stacks if p not in wanted]:
        wanted = sorted((*wanted, *stacks), key=model_order)
    return Query(lens, thresholds, wanted, _grid(first, wanted), bool(args.filter), tuple(notes), ranks)


def _shown(args: Namespace, root: Path, gauge: str) -> tuple[Session, list[Projection]]:
    """The session with the spectra of a model, of two or of a series, and the projections that the filter names."""
    if is_delta(args):
        deltas = open_deltas(args, root)
        return deltas, wanted_of(deltas.model.tree, args.filter)
    series: Session | None = getattr(args, "series", None)
    if series is not None:
        return series, wanted_of(series.model.tree, args.filter)
    session = open_spectra(args.model, root, args.weight, args.filter, gauge, with_derived=bool(args.filter))
    return session, shown_of(session, args.filter)


def _stored(
    session: Session, wanted: list[Projection], measure: Measure, args: Namespace, gauge: str
) -> list[Projection]:
    """The projections whose numbers are stored, after a check for damage; all for a view that shows no spectra.

    Raises:
        InputError: none is stored.
    """
    if measure.needs_directions:
        return _with_directions(session, wanted, args)
    if not BY_NAME[args.view].of_spectra:
        return wanted
    verify(session, [*wanted, *(other for p in wanted if (other := measure.beside(p)) is not None)])
    if is_delta(args):
        return [p for p in wanted if session.has(p)]
    return stored_of(session, args.model, wanted, args.weight, gauge)


def _side(args: Namespace) -> Side:
    """The side of --side; by default the only model, or the ratio of two."""
    if is_delta(args) or not args.against:
        return Side.A
    return Side(args.side) if args.side else Side.RATIO


def _grid(session: Session, wanted: Sequence[Projection]) -> Grid:
    beside = {p.key for p in session.model.further}
    return make_grid([p for p in wanted if p.key not in beside], [p for p in wanted if p.key in beside], shown=True)


def _notes(pair: Pair, wanted: list[Projection], missing: int, args: Namespace) -> Iterator[str]:
    """Lines about the projections shown: how many are `missing`, refused, not balanced, not matched."""
    if missing:
        yield f"{missing} of {len(wanted)} are not computed yet"
    if pair.first.shown_as and (refused := [p for p in wanted if p.problem]):
        lacks = "no second moments there" if args.weight != NONE else "no gauge that is known"
        yield f"{len(refused)} of them have {lacks}: {refused[0].problem}"
    if left := [p for p in wanted if why_not_balanced(p)]:
        yield f"{len(left)} of them are not balanced: {left[0].address}: {why_not_balanced(left[0])}"
    yield from lines_of(pair.first.said)
    if pair.second is not None and getattr(args, "by", None):
        yield from _missing(pair.second, args)
    elif pair.second is not None:
        yield from _unmatched(pair, pair.second, wanted, args)


def is_delta(args: Namespace) -> bool:
    """Whether the differences of two models are shown."""
    return bool(args.side == DELTA or args.view == DELTA)


def _check_delta(args: Namespace, measure: Measure) -> None:
    if not args.against:
        raise InputError("differences need two models: name the second with --against MODEL")
    if args.gauge != RAW:
        raise InputError("differences are computed in the raw gauge: leave out --gauge")
    if args.side not in (None, DELTA):
        raise InputError(f"--view {DELTA} goes with --side {DELTA}")
    if measure.needs_twin or measure.needs_raw or measure.needs_directions:
        raise InputError(f"differences have no {measure.name}: name another --unit")


def _either(views: Sequence[str]) -> str:
    """`heatmap, layers or table`."""
    *first, last = views
    return f"{', '.join(first)} or {last}" if first else last


def _check(args: Namespace) -> None:
    """Check that the options go together.

    Raises:
        InputError: they do not.
    """
    options = dict.fromkeys(option for view in VIEWS for option in view.options)
    for option in options.keys() - set(BY_NAME[args.view].options):
        if getattr(args, option, None):
            raise InputError(f"--{option} goes with --view {_either(taking(option))}, not with {args.view}")
    if getattr(args, "json", False) and "csv" not in BY_NAME[args.view].options:
        raise InputError(f"--json goes with --view {_either(taking('csv'))}, not with {args.view}")
    _check_view(args)
    _check_models(args)


def _check_view(args: Namespace) -> None:
    if args.view == "gauge" and (args.against or args.weight != NONE):
        raise InputError("--view gauge is for one model without weighting: leave out --against and --weight")
    if args.view == "gauge" and getattr(args, "unit", None) == "u1_participation":
        raise InputError("u1_participation is for the weights as they are: give --view gauge another --unit")
    if args.view == "directions" and args.against:
        raise InputError("--view directions is for one model: leave out --against")
    if args.view == "mla" and (args.against or args.gauge != RAW):
        raise InputError("--view mla is for one model in the raw gauge: leave out --against and --gauge")
    if args.view == "heads" and args.against:
        raise InputError("--view heads is for one model: leave out --against")


def _check_models(args: Namespace) -> None:
    if args.pair and not args.against:
        raise InputError("--pair is for two models: name the second with --against MODEL")
    if getattr(args, "by", None) and (not args.against or args.side or args.pair):
        raise InputError("--by role is for two models: name the second with --against MODEL, without --side and --pair")
    if args.side and not args.against:
        raise InputError("--side is for two models: name the second with --against MODEL")


def _check_state(measure: Measure, session: Session, args: Namespace) -> None:
    if measure.needs_twin and session.shown_as:
        option = "--weight" if args.weight != NONE else "--gauge"
        raise InputError(f"{measure.name} is for the weights as they are: leave out {option}")
    if measure.needs_raw and not session.shown_as:
        raise InputError(f"{measure.name} compares with the weights as they are: name a weighting with --weight")


def _with_directions(session: Session, wanted: list[Projection], args: Namespace) -> list[Projection]:
    """The projections whose participation of the first direction is known. Reads files.

    Raises:
        InputError: it is known of none.
    """
    session.load_participations(wanted)
    found = [p for p in wanted if session.participations.number(p) is not None]
    if not found:
        name = printable(args.model)
        raise InputError(f"no directions are computed for these: run  rankscope inspect {name} ADDRESS")
    return found


def _second(args: Namespace, root: Path, measure: Measure, with_derived: bool) -> Session | None:
    """The session of the model to compare with, None if there is none or the differences are shown."""
    if is_delta(args) or not args.against:
        return None
    second = open_spectra(args.against, root, args.weight, None, args.gauge, with_derived=with_derived)
    theirs = second.model.tree.scanned()
    if measure.needs_directions:
        second.load_participations(theirs)
        return second
    verify(second, theirs)
    stored_of(second, args.against, theirs, args.weight, args.gauge)
    return second


def _missing(second: Session, args: Namespace) -> list[str]:
    """A line if projections of the second model are not computed."""
    theirs = second.model.tree.scanned(args.filter)
    missing = sum(not second.has(q) for q in theirs)
    return [f"{missing} of {len(theirs)} are not computed yet in B"] if missing else []


def _unmatched(pair: Pair, second: Session, wanted: list[Projection], args: Namespace) -> Iterator[str]:
    """Lines about projections without a counterpart, and about those of the second model that are not computed."""
    if words := words_of(pair.depths):
        yield words
    partners = [q for p in wanted if (q := pair.partner(p)) is not None]
    theirs = pair.only_second(second.model.tree.scanned(args.filter))
    if len(partners) < len(wanted) or theirs:
        yield f"{len(wanted) - len(partners)} addresses are only in A, {len(theirs)} only in B"
        alone = [("A", p) for p in wanted if pair.partner(p) is None] + [("B", q) for q in theirs]
        yield from (f"only in {letter}: {p.address}" for letter, p in alone[:_MOST_LISTED])
        if len(alone) > _MOST_LISTED:
            yield f"and {len(alone) - _MOST_LISTED} more"
    if missing := sum(not second.has(q) for q in partners):
        yield f"{missing} of {len(partners)} are not computed yet in B"
