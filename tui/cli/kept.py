"""The ranks of `rankscope show --rank`: their roles, and how much of a model they keep."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator, Sequence
from dataclasses import replace

from rankscope.engine.catalogue.tree import matches
from rankscope.engine.derive.latent import KEY_VALUE
from rankscope.engine.errors import InputError, printable
from rankscope.engine.spectrum import Projection

from ..data.gauged_model import RAW
from ..data.kept_ranks import KeptRanks
from ..data.kept_sum import ShownRanks
from ..data.lens import Lens
from ..data.measures import Measure, energy_of
from ..data.pair import Side
from ..data.session import Session
from ..data.stacks import with_stored
from ..data.views import BY_NAME, ViewPlace


def check_ranks(measure: Measure, args: Namespace) -> None:
    """Check that --rank, --unit and --view go together.

    Raises:
        InputError: they do not.
    """
    view = BY_NAME[args.view]
    is_over_ranks = view.place is ViewPlace.CHART and not view.over_layers
    if measure.needs_ranks and "rank" not in view.options:
        raise InputError(f"--unit energy is for --view heatmap or layers, not for {view.name}")
    if measure.needs_ranks and not args.rank:
        raise InputError("--unit energy needs the ranks: --rank 512, or --rank query=1536,key_value=512 by role")
    if not args.rank:
        return
    if "unit" in view.options and not measure.needs_ranks:
        raise InputError(f"--rank with --view {view.name} needs --unit energy: add it")
    if is_over_ranks and args.rank.roles:
        raise InputError(f"--view {view.name} takes only one --rank")
    for kind in ("csv", "json"):
        if is_over_ranks and getattr(args, kind, False):
            raise InputError(f"--rank with --{kind} needs --view table: charts are written at every rank")


def named_ranks(
    session: Session, wanted: Sequence[Projection], args: Namespace
) -> tuple[KeptRanks | None, list[Projection]]:
    """The ranks of --rank for the roles that are shown; and the stacks of keys and values to show beside them, if one
    of the ranks is theirs.

    Raises:
        InputError: no such role is known, or nothing of it is computed.
    """
    if not args.rank:
        return None, []
    names = {name for name, _ in args.rank.roles}
    stacks = show_stacks(session, args) if names & {"kv", KEY_VALUE} else []
    if KEY_VALUE in names and not stacks and not any(p.role == KEY_VALUE for p in wanted):
        name = printable(args.model)
        raise InputError(
            f"keys and values as one matrix are not computed for these: run  rankscope scan {name} --derived mla"
        )
    ranks = args.rank.named(dict.fromkeys(p.role for p in (*wanted, *stacks)))
    return ranks, stacks if ranks.names(KEY_VALUE) else []


def show_stacks(session: Session, args: Namespace) -> list[Projection]:
    """Add the stored stacks of keys and values to a session's projections. Return those that the filter names; none in
    the fixed gauge."""
    if args.gauge != RAW:
        return []
    session.show(with_stored(session.model, session.root, session.weighting))
    return [p for p in session.model.further if not args.filter or matches(p.address, args.filter)]


def sums(lens: Lens, ranks: KeptRanks, projections: Sequence[Projection]) -> Iterator[str]:
    """Lines about all ranks together, one for each model. Reads files."""
    shown = ShownRanks(lens.pair, projections)
    is_pair = lens.pair.second is not None
    for side in (Side.A, Side.B) if is_pair else (Side.A,):
        kept = replace(lens, measure=energy_of(ranks), side=side)
        kept.load(projections)
        if (found := shown.sum(kept)) is not None:
            yield f"{side}: {found.forms[0]}" if is_pair else found.forms[0]
