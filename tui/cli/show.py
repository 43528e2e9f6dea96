"""`rankscope show` and `rankscope plot`: what is stored, as text, as CSV or JSON, or as a picture."""

from __future__ import annotations

import json
import os
import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.text import Text

from rankscope.engine.derive.head_matrices import QK
from rankscope.engine.errors import InputError, cannot_write, printable
from rankscope.engine.spectrum import Projection, Values
from rankscope.store.export import csv_lines

from ..charts.painter import paint
from ..charts.readout import rank_readout
from ..charts.request import Painting, Request
from ..charts.ruler import ruled
from ..data.chosen_weighting import weighted_by
from ..data.comparison import Comparison
from ..data.gauged_model import orders
from ..data.grid import Selection
from ..data.head_rows import lens_for
from ..data.latent_columns import latent_measures
from ..data.measures import ENERGY
from ..data.named import resolve
from ..data.pair import Curve
from ..data.rank_columns import fields_at
from ..data.reference_lines import MLA_LINES
from ..data.series_model import is_series
from ..data.table_rows import ADDRESS, Field, fields_of, find_field, has_twins, load, sort_order
from ..data.view_records import Content
from ..data.views import BY_NAME, DEFAULT, ViewPlace
from ..drawing.console import make_console, say
from ..drawing.console_tables import print_tables, wide_tables
from ..settings.config import Config
from ..settings.palette import Depth, Palette, palette
from ..settings.terminal import depth_of
from . import delta, heads
from .by_role import print_roles, role_records
from .kept import sums
from .mla import shown
from .outputs import output_file
from .query import Query, is_delta, understand
from .series import check_options, session_of

SERIES = "series"
WIDTH, HEIGHT = 100, 30
"""Columns and rows of a chart that is piped or in a picture; on a terminal it takes the width, up to this height."""
_LOG_LOG = 0
_BATCH = 256
"""Spectra read at one time."""


def show(args: Namespace, root: Path) -> int:
    """Print a view of what is stored of a model or a series; 2 if nothing is stored."""
    if is_series(args.model) or args.view == SERIES:
        check_options(args)
        args.series = session_of(args.model, root)
        args.view = SERIES if args.view == DEFAULT else args.view
    args.model = " ".join(args.model)
    query = understand(args, root)
    if args.csv or args.json:
        of_view = resolve(BY_NAME[args.view].csv)
        found = role_records(query, args) if args.by else of_view(_content(query, args))
        objects = (f"{json.dumps(record, allow_nan=False)}\n" for record in found)
        sys.stdout.writelines(csv_lines(found) if args.csv else objects)
    else:
        console = make_console(depth=None if args.color == "auto" else Depth(args.color))
        if is_delta(args):
            console.print(Text(delta.title_of(query, args)))
            console.print()
        if args.view not in ("heatmap", "mla", "heads", "delta") and (
            by := weighted_by(query.projections)
        ):  # these name the weighting in every table
            console.print(Text(by))
            console.print()
        (print_roles if args.by else resolve(BY_NAME[args.view].text))(console, query, args)
        for line in _sums(query, args):
            console.print(Text(line), soft_wrap=True)
    for note in (*(_sums(query, args) if args.csv or args.json else ()), *query.notes):
        say(note)
    return 0


def plot(args: Namespace, root: Path) -> int:
    """Save a view of what is stored as a picture."""
    from ..charts.picture import check_picture, save_picture

    if args.rank and (args.unit or "k") != ENERGY:
        raise InputError("a picture shows --rank only with --unit energy")
    check_picture(Path(args.output))
    path = output_file(args.output, "-o FILE")
    query = understand(args, root)
    try:
        save_picture(query.lens.pair, _request(query, args, Palette(), WIDTH, HEIGHT), path, query.lens)
    except ValueError as error:
        raise InputError(str(error)) from None
    except OSError as error:
        raise cannot_write(args.output, error) from None
    what = f"heatmap of {query.lens.title}" if args.view == "heatmap" else args.view
    for note in (f"{what} in {args.output}", *query.notes):
        say(note)
    return 0


def _sums(query: Query, args: Namespace) -> list[str]:
    """Lines about all ranks of --rank together, for a view that lists projections. Reads files."""
    view = BY_NAME[args.view]
    if query.ranks is None or args.by or (view.place is ViewPlace.CHART and not view.over_layers):
        return []
    return list(sums(query.lens, query.ranks, query.projections))


# Text


def print_heatmap(console: Console, query: Query, _: Namespace) -> None:
    """Print threshold ranks, layers x roles, a table for each threshold."""
    print_tables(console, query.lenses, query.projections, query.grid)


def print_gauge(console: Console, query: Query, _: Namespace) -> None:
    """Print for each role the Spearman correlation of the layers' order as they are with that in the fixed gauge."""
    for lens in query.lenses:
        found = list(orders(lens, query.grid))
        name = lens.measure.titled(lens.threshold)
        columns = [
            ["layers", *(str(order.layers) for order in found)],
            [f"{name} raw", *("" if o.raw is None else lens.written(o.raw) for o in found)],
            [f"{name} fixed", *("" if o.fixed is None else lens.written(o.fixed) for o in found)],
            ["Spearman", *("" if o.correlation is None else f"{o.correlation:.2f}" for o in found)],
        ]
        title = Text(f"{name} by layer: medians, and the correlation of the layers' order, raw against fixed")
        for table in wide_tables(console, ["role", *(o.column.heading for o in found)], columns, title):
            console.print(table)
            console.print()


def print_table(console: Console, query: Query, args: Namespace) -> None:
    """Print every projection with every metric."""
    fields = _fields(query, args)
    rows = _sorted(fields, query.projections, args.sort)
    labels = [ADDRESS, *(p.address for p in rows)]
    columns = [[field.title, *(field.text(p) for p in rows)] for field in fields[1:]]
    for table in wide_tables(console, labels, columns, justify="left"):
        console.print(table)
        console.print()
    _formulas(console, fields[1:])


def print_compare(console: Console, query: Query, _: Namespace) -> None:
    """Print the projections that the filter names side by side."""
    comparison = _comparison(query)
    labels = ["", *(field.title for field in comparison.fields)]
    columns = []
    for number, column in enumerate(comparison.columns):
        rows = range(len(comparison.fields))
        shown = [(comparison.value(row, number), comparison.difference(row, number)) for row in rows]
        width = max(len(difference) for _, difference in shown)
        cells = [f"{value}  {difference:>{width}}" if width else value for value, difference in shown]
        columns.append([column.heading, *cells])
    base = (
        "differences of A are to the first A, of B to its A" if query.lens.pair.second else "differences to the first"
    )
    for table in wide_tables(console, labels, columns, Text(base), justify="left"):
        console.print(table)
        console.print()
    for column in comparison.columns:
        console.print(Text(f"{column.heading}: {column.projection.address}"))
    console.print()
    _formulas(console, comparison.fields)


def _formulas(console: Console, fields: Sequence[Field]) -> None:
    """Print formulas: three measures are called effective rank elsewhere, so a number needs its formula."""
    said = set()
    for field in fields:
        if field.lens is not None and field.lens.measure.name not in said:
            said.add(field.lens.measure.name)
            console.print(Text(f"{field.title}: {field.explained}"))


def print_chart(console: Console, query: Query, args: Namespace) -> None:
    """Print a chart, with its read-out or what keeping --rank components means."""
    width, height = WIDTH, HEIGHT
    if console.is_terminal:
        width, height = console.width, max(12, min(HEIGHT, console.height - 2))
    painting = paint(query.lens.pair, _request(query, args, _palette(console, args.color), width, height))
    k = None if query.ranks is None else query.ranks.common
    rules = painting.columns(k)
    for y, line in enumerate(painting.lines):
        console.print(ruled(line, rules.get(y, ()), painting.request.palette.dim_style))
    if k is not None and painting.ruler is not None:
        console.print(painting.ruler.mark(k, width))
        for line in _at_rank(painting, k):
            console.print(line)
    else:
        console.print(painting.readout)


def _at_rank(painting: Painting, k: int) -> Iterator[Text]:
    """What keeping k components means, a line for each curve."""
    for curve, values in zip(painting.curves, painting.values, strict=True):
        one = replace(painting, curves=(curve,), values=(values,))
        yield Text(f"{curve[0]}  ", "bold").append_text(rank_readout(one, k, sys.maxsize))


def _palette(console: Console, choice: str) -> Palette:
    """The colours of --color; without it none where there is no terminal."""
    if choice != "auto":
        return palette(Depth(choice))
    return palette(depth_of(Config(), os.environ) if console.is_terminal else Depth.MONO)


def _request(query: Query, args: Namespace, colours: Palette, width: int, height: int) -> Request:
    view = BY_NAME[args.view]
    several = query.is_filtered and len(query.projections) > 1 and view.place is ViewPlace.CHART and bool(view.small)
    return Request(
        selection=Selection(single=query.projections[0] if len(query.projections) == 1 else None),
        view=view.drawn_as,
        threshold=query.lens.threshold,
        thresholds=query.thresholds,
        axes=_LOG_LOG,
        width=width,
        height=height,
        version=0,
        grid=query.grid,
        side=query.lens.side,
        normalised=getattr(args, "normalised", False),
        facets=view.small_of is not None,
        marks=tuple(query.projections) if several else (),
        compare=several,
        lines=(*MLA_LINES, *(args.line or ())),
        measure=query.lens.measure,
        palette=colours,
    )


# Numbers


def _content(query: Query, args: Namespace) -> Content:
    """What is written as CSV: the columns of a view that can be sorted, or the curves of every projection."""
    view, content = BY_NAME[args.view], Content(query.lenses, query.projections, query.grid)
    if args.view == "mla":
        return replace(content, latent=shown(query, args)[1])
    if args.view == "delta":
        return replace(content, changes=delta.shown(query, args))
    if args.view == "heads":
        found = heads.shown(query, args)
        lenses = [lens_for(lens, args.of or QK) for lens in query.lenses]
        return replace(content, lenses=lenses, heads=found.every)
    if view.place is ViewPlace.CHART and not view.over_layers:
        curves = _curves(query)
        return replace(content, curves=curves, values=_values(curves))
    if "sort" not in view.options:
        return content
    fields = _fields(query, args)
    return Content(query.lenses, _sorted(fields, query.projections, args.sort), query.grid, fields)


def _curves(query: Query) -> list[Curve]:
    """The stored curves, each with its address, and its model if there are two."""
    places = ((p, place) for p in query.projections for place in query.lens.pair.curves(p, query.lens.side))
    return [
        Curve(f"{p.address} {letter}".rstrip(), session, there)
        for p, (letter, session, there) in places
        if session.entry(there) is not None
    ]


def _values(curves: Sequence[Curve]) -> Iterator[Values]:
    """The values of each curve, read in batches; none for what another process has removed meanwhile."""
    for start in range(0, len(curves), _BATCH):
        batch = curves[start : start + _BATCH]
        found: dict[str, Values] = {}
        for session in dict.fromkeys(curve.session for curve in batch):
            found |= session.read([curve.projection.key for curve in batch if curve.session is session])
        yield from (found.get(curve.projection.key, np.empty(0)) for curve in batch)


def _fields(query: Query, args: Namespace) -> tuple[Field, ...]:
    """The columns of the table, with their numbers read into memory."""
    lens, wanted = query.lens, query.projections
    asked_for = query.thresholds if args.threshold else ()
    lens_of_table = replace(lens, thresholds=(*lens.thresholds, *asked_for))
    fields = fields_of(lens_of_table, has_twins(lens, wanted), latent_measures(wanted))
    load(fields, wanted)
    return (*fields, *(fields_at(lens, query.ranks, wanted) if query.ranks is not None else ()))


def _sorted(fields: Sequence[Field], projections: Sequence[Projection], name: str | None) -> list[Projection]:
    field = find_field(fields, name or ADDRESS)
    if field is None:
        raise InputError(f"no column {printable(name or '')!r}: {' '.join(field.name for field in fields)}")
    if field.name == ADDRESS:
        return list(projections)
    return [projections[row] for row in sort_order([field.number(p) for p in projections], descending=True)]


def _comparison(query: Query) -> Comparison:
    comparison = Comparison(query.lens, query.projections)
    comparison.load()
    return comparison
