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
from rankscope.engine.errors import InputError, printable
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
from .query import Asked, is_delta, understand
from .series import check_options, session_of

SERIES = "series"
WIDTH, HEIGHT = 100, 30
"""Of a chart that is piped, or in a picture; on a terminal it is as wide as that, and at most so high."""
_LOG_LOG = 0
_BATCH = 256
"""Spectra that are read at once."""


def show(args: Namespace, root: Path) -> int:
    """Print a view of what is stored of a model, or of a series; 2 where nothing is."""
    if is_series(args.model) or args.view == SERIES:
        check_options(args)
        args.series = session_of(args.model, root)
        args.view = SERIES if args.view == DEFAULT else args.view
    args.model = " ".join(args.model)
    asked = understand(args, root)
    if args.csv or args.json:
        of_view = resolve(BY_NAME[args.view].csv)
        found = role_records(asked, args) if args.by else of_view(_content(asked, args))
        objects = (f"{json.dumps(record, allow_nan=False)}\n" for record in found)
        sys.stdout.writelines(csv_lines(found) if args.csv else objects)
    else:
        console = make_console(depth=None if args.color == "auto" else Depth(args.color))
        if is_delta(args):
            console.print(Text(delta.title_of(asked, args)))
            console.print()
        if args.view not in ("heatmap", "mla", "heads", "delta") and (
            by := weighted_by(asked.projections)
        ):  # these say it by every table
            console.print(Text(by))
            console.print()
        (print_roles if args.by else resolve(BY_NAME[args.view].text))(console, asked, args)
        for line in _sums(asked, args):
            console.print(Text(line), soft_wrap=True)
    for note in (*(_sums(asked, args) if args.csv or args.json else ()), *asked.notes):
        say(note)
    return 0


def plot(args: Namespace, root: Path) -> int:
    """Save a view of what is stored as a picture."""
    from ..charts.picture import check_picture, save_picture

    if args.rank and (args.unit or "k") != ENERGY:
        raise InputError("a picture shows --rank only with --unit energy")
    check_picture(Path(args.output))
    path = output_file(args.output, "-o FILE")
    asked = understand(args, root)
    try:
        save_picture(asked.lens.pair, _request(asked, args, Palette(), WIDTH, HEIGHT), path, asked.lens)
    except ValueError as error:
        raise InputError(str(error)) from None
    except OSError as error:
        raise InputError(f"cannot write {printable(args.output)}: {error.strerror or error}") from None
    what = f"heatmap of {asked.lens.title}" if args.view == "heatmap" else args.view
    for note in (f"{what} in {args.output}", *asked.notes):
        say(note)
    return 0


def _sums(asked: Asked, args: Namespace) -> list[str]:
    """What the ranks that are asked for come to, of a view that lists projections. Reads files."""
    view = BY_NAME[args.view]
    if asked.ranks is None or args.by or (view.place is ViewPlace.CHART and not view.over_layers):
        return []
    return list(sums(asked.lens, asked.ranks, asked.projections))


# Text


def print_heatmap(console: Console, asked: Asked, _: Namespace) -> None:
    """Threshold ranks, layers x roles, a table a threshold."""
    print_tables(console, asked.lenses, asked.projections, asked.grid)


def print_gauge(console: Console, asked: Asked, _: Namespace) -> None:
    """By role, the Spearman correlation of the layers' order as it is with that in the fixed gauge."""
    for lens in asked.lenses:
        found = list(orders(lens, asked.grid))
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


def print_table(console: Console, asked: Asked, args: Namespace) -> None:
    """Every projection with every metric."""
    fields = _fields(asked, args)
    rows = _sorted(fields, asked.projections, args.sort)
    labels = [ADDRESS, *(p.address for p in rows)]
    columns = [[field.title, *(field.text(p) for p in rows)] for field in fields[1:]]
    for table in wide_tables(console, labels, columns, justify="left"):
        console.print(table)
        console.print()
    _formulas(console, fields[1:])


def print_compare(console: Console, asked: Asked, _: Namespace) -> None:
    """What the filter names, side by side."""
    comparison = _comparison(asked)
    labels = ["", *(field.title for field in comparison.fields)]
    columns = []
    for number, column in enumerate(comparison.columns):
        rows = range(len(comparison.fields))
        shown = [(comparison.value(row, number), comparison.difference(row, number)) for row in rows]
        width = max(len(difference) for _, difference in shown)
        cells = [f"{value}  {difference:>{width}}" if width else value for value, difference in shown]
        columns.append([column.heading, *cells])
    base = (
        "differences of A are to the first A, of B to its A" if asked.lens.pair.second else "differences to the first"
    )
    for table in wide_tables(console, labels, columns, Text(base), justify="left"):
        console.print(table)
        console.print()
    for column in comparison.columns:
        console.print(Text(f"{column.heading}: {column.projection.address}"))
    console.print()
    _formulas(console, comparison.fields)


def _formulas(console: Console, fields: Sequence[Field]) -> None:
    """Three measures are called effective rank elsewhere: a number without its formula says little."""
    said = set()
    for field in fields:
        if field.lens is not None and field.lens.measure.name not in said:
            said.add(field.lens.measure.name)
            console.print(Text(f"{field.title}: {field.explained}"))


def print_chart(console: Console, asked: Asked, args: Namespace) -> None:
    """A chart, with its read-out or what keeping --rank components means."""
    width, height = WIDTH, HEIGHT
    if console.is_terminal:
        width, height = console.width, max(12, min(HEIGHT, console.height - 2))
    painting = paint(asked.lens.pair, _request(asked, args, _palette(console, args.color), width, height))
    k = None if asked.ranks is None else asked.ranks.common
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
    """What keeping k components means, a line a curve."""
    for curve, values in zip(painting.curves, painting.values, strict=True):
        one = replace(painting, curves=(curve,), values=(values,))
        yield Text(f"{curve[0]}  ", "bold").append_text(rank_readout(one, k, sys.maxsize))


def _palette(console: Console, choice: str) -> Palette:
    """Without colours where there is no terminal to show them, unless they are asked for."""
    if choice != "auto":
        return palette(Depth(choice))
    return palette(depth_of(Config(), os.environ) if console.is_terminal else Depth.MONO)


def _request(asked: Asked, args: Namespace, colours: Palette, width: int, height: int) -> Request:
    view = BY_NAME[args.view]
    several = asked.is_filtered and len(asked.projections) > 1 and view.place is ViewPlace.CHART and bool(view.small)
    return Request(
        selection=Selection(single=asked.projections[0] if len(asked.projections) == 1 else None),
        view=view.drawn_as,
        threshold=asked.lens.threshold,
        thresholds=asked.thresholds,
        axes=_LOG_LOG,
        width=width,
        height=height,
        version=0,
        grid=asked.grid,
        side=asked.lens.side,
        normalised=getattr(args, "normalised", False),
        facets=view.small_of is not None,
        marks=tuple(asked.projections) if several else (),
        compare=several,
        lines=(*MLA_LINES, *(args.line or ())),
        measure=asked.lens.measure,
        palette=colours,
    )


# Numbers


def _content(asked: Asked, args: Namespace) -> Content:
    """What is written as CSV; a view that can be sorted has columns, one of curves those of every projection."""
    view, content = BY_NAME[args.view], Content(asked.lenses, asked.projections, asked.grid)
    if args.view == "mla":
        return replace(content, latent=shown(asked, args)[1])
    if args.view == "delta":
        return replace(content, changes=delta.shown(asked, args))
    if args.view == "heads":
        found = heads.shown(asked, args)
        lenses = [lens_for(lens, args.of or QK) for lens in asked.lenses]
        return replace(content, lenses=lenses, heads=found.every)
    if view.place is ViewPlace.CHART and not view.over_layers:
        curves = _curves(asked)
        return replace(content, curves=curves, values=_values(curves))
    if "sort" not in view.options:
        return content
    fields = _fields(asked, args)
    return Content(asked.lenses, _sorted(fields, asked.projections, args.sort), asked.grid, fields)


def _curves(asked: Asked) -> list[Curve]:
    """What is stored of every projection, by its address, and its model where there are two."""
    places = ((p, place) for p in asked.projections for place in asked.lens.pair.curves(p, asked.lens.side))
    return [
        Curve(f"{p.address} {letter}".rstrip(), session, there)
        for p, (letter, session, there) in places
        if session.entry(there) is not None
    ]


def _values(curves: Sequence[Curve]) -> Iterator[Values]:
    """The values of each, read a batch at a time; none of what another process has removed meanwhile."""
    for start in range(0, len(curves), _BATCH):
        batch = curves[start : start + _BATCH]
        found: dict[str, Values] = {}
        for asked in dict.fromkeys(curve.session for curve in batch):
            found |= asked.read([curve.projection.key for curve in batch if curve.session is asked])
        yield from (found.get(curve.projection.key, np.empty(0)) for curve in batch)


def _fields(asked: Asked, args: Namespace) -> tuple[Field, ...]:
    """The columns of the table, their numbers in memory."""
    lens, wanted = asked.lens, asked.projections
    asked_for = asked.thresholds if args.threshold else ()
    lens_of_table = replace(lens, thresholds=(*lens.thresholds, *asked_for))
    fields = fields_of(lens_of_table, has_twins(lens, wanted), latent_measures(wanted))
    load(fields, wanted)
    return (*fields, *(fields_at(lens, asked.ranks, wanted) if asked.ranks is not None else ()))


def _sorted(fields: Sequence[Field], projections: Sequence[Projection], name: str | None) -> list[Projection]:
    field = find_field(fields, name or ADDRESS)
    if field is None:
        raise InputError(f"no column {printable(name or '')!r}: {' '.join(field.name for field in fields)}")
    if field.name == ADDRESS:
        return list(projections)
    return [projections[row] for row in sort_order([field.number(p) for p in projections], descending=True)]


def _comparison(asked: Asked) -> Comparison:
    comparison = Comparison(asked.lens, asked.projections)
    comparison.load()
    return comparison
