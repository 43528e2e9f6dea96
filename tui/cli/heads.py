"""Single heads on the command line: `scan --derived heads` and `show --view heads`."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.text import Text

from rankscope.engine.catalogue.tree import build_tree
from rankscope.engine.derive.head_matrices import BY_KV_HEAD
from rankscope.engine.errors import InputError, printable
from rankscope.engine.spectrum import Projection

from ..data.chosen_weighting import NONE, choose
from ..data.head_rows import HeadRows, head_grid, head_rows, in_state, label_of, lens_for, stored_rows
from ..data.model import Model
from ..drawing.console import say
from ..drawing.console_tables import layer_tables
from .query import Query


def heads_to_compute(model: Model, root: Path, weight: str, gauges: Sequence[str], args: Namespace) -> list[Projection]:
    """The heads that the filter shows, under a weighting and in each of the gauges; a line if heads cannot be told.

    Raises:
        InputError: RoPE of this model is unknown, which --offset needs.
    """
    found: list[Projection] = []
    for gauge in gauges:
        rows = _rows(model, root, weight, gauge, args.offset).named(args.filter)
        for sentence in (*rows.unknown, *rows.refusals):
            say(f"not computed: {sentence}")
        found += [p for p in rows.every if p.problem is None]
    return found


def _rows(model: Model, root: Path, weight: str, gauge: str, offset: int) -> HeadRows:
    return head_rows(in_state(model, root, choose(weight, model, root, lambda _: None), gauge), offset)


def shown(query: Query, args: Namespace) -> HeadRows:
    """The numbers of `show --view heads`.

    Raises:
        InputError: no spectrum of a head is stored.
    """
    session = query.lens.pair.first
    if session.raw.checkpoint is None:
        rows = stored_rows(session, args.offset)
    else:
        whole = replace(session.raw, tree=build_tree(session.raw.checkpoint))  # without filter, weighting and gauge
        rows = _rows(whole, session.root, args.weight, args.gauge, args.offset)
    rows = rows.named(args.filter)
    if args.of:
        rows = replace(rows, by_kind={kind: found for kind, found in rows.by_kind.items() if kind == args.of})
    if not any(map(session.has, rows.every)):
        if rows.unknown or rows.refusals:
            raise InputError((*rows.unknown, *rows.refusals)[0])
        options = f" --weight {printable(args.weight)}" if args.weight != NONE else ""
        options += f" --gauge {args.gauge}" if args.gauge != "raw" else ""
        options += f" --offset {args.offset}" if args.offset else ""
        raise InputError(f"no heads are computed: run  rankscope scan {printable(args.model)} --derived heads{options}")
    session.show_beside(rows.every)
    return rows


def print_heads(console: Console, query: Query, args: Namespace) -> None:
    """Print layers x heads of each kind, a table for each threshold."""
    rows = shown(query, args)
    for kind, found in rows.by_kind.items():
        if all(p.problem for p in found):
            continue
        console.print(Text(f"{label_of(found)}: layers x {'KV heads' if kind in BY_KV_HEAD else 'heads'}"))
        for lens in (lens_for(each, kind) for each in query.lenses):
            lens.load(found)
            for table in layer_tables(console, head_grid(found), lens):
                console.print(table)
                console.print()
    for sentence in (*rows.unknown, *rows.refusals):
        say(sentence)
