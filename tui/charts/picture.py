"""Charts and heatmaps as pictures by matplotlib, from the same figures as in the terminal; and panes as SVG by Rich."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.text import Text

from rankscope.engine.atomic import write_atomically
from rankscope.engine.errors import InputError, cannot_write, install_line, printable

from ..data.chosen_weighting import weighted_by
from ..data.grid import Grid
from ..data.lens import Lens
from ..data.measures import BY_NAME
from ..data.named import resolve
from ..data.pair import Pair, Side
from ..data.spread import median_of
from ..data.views import BY_KEY
from .extreme import over_tens, tamed, tens_of
from .figure import ONLY_ZEROS, Axis, Chart, Figure, Series, Sign, Stroke, drawable, signs, spans
from .painter import figure_of
from .request import Request
from .ticks import axis_text, axis_ticks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure as Paper
    from matplotlib.lines import Line2D
    from numpy.typing import NDArray

    Tones = NDArray[np.float64]

SUFFIXES = (".png", ".pdf", ".svg")
INKS = ("#0072b2", "#e07b00", "#2e8b57", "#b5489a", "#a68a00", "#008b8b", "#c1121f", "#6b6b6b")
"""The terminal's hues, dark enough for white paper."""
GREY = "0.6"
MOST_NUMBERS = 40
"""Up to as many layers, heatmap cells have room for numbers."""
_MOST_TICKS = 6
_MOST_PLACES = 12
"""Names that have room along an axis."""
_CANVAS = (160, 48)
"""Size of the imagined terminal that a picture shows, whatever the real one: every panel fits."""
_DASHES: dict[Stroke, Any] = {Stroke.SOLID: "-", Stroke.DASHED: (0, (5, 3)), Stroke.DOTTED: (0, (1, 1.6))}
_STYLE: Any = {
    "font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.linewidth": 0.7,
    "axes.titlesize": 9, "legend.frameon": False, "legend.fontsize": 8, "lines.linewidth": 1.3,
    "pdf.fonttype": 42, "svg.hashsalt": "rankscope",
}  # fmt: skip


def save_picture(pair: Pair, request: Request, path: Path, lens: Lens | None = None) -> None:
    """Write the view of a request as .png, .pdf or .svg, in one step; the heatmap view has the numbers of `lens`.

    Raises:
        InputError: another suffix, no matplotlib, a view without a picture, nothing to draw, or the file cannot be
            written.
    """
    picture = BY_KEY[request.view].picture
    if not picture:
        raise InputError("this view cannot be drawn for print: export it as .csv, or as .svg of the screen")
    resolve(picture)(pair, request, path, lens)


def save_heatmap_view(pair: Pair, request: Request, path: Path, lens: Lens | None) -> None:
    """Call save_heatmap with the lens of a request."""
    save_heatmap(lens or Lens(pair, request.threshold, side=request.side), request.grid, path)


def save_chart(pair: Pair, request: Request, path: Path, _lens: Lens | None) -> None:
    """Write a chart, see save_picture."""
    check_picture(path)
    width, height = _CANVAS
    figure, _ = figure_of(pair, replace(request, width=width, height=height))
    charts = tamed([drawable(chart) for chart in figure.charts])
    if figure.empty or not any(chart.series for chart in charts):
        raise InputError(f"there is nothing to draw: {figure.empty or ONLY_ZEROS}")
    with _paper(path, _size(figure, len(charts)), f"{_models(pair, request.grid)}   {figure.title}".rstrip()) as paper:
        _draw(paper, figure, charts)


def save_heatmap(lens: Lens, grid: Grid, path: Path) -> None:
    """Write layers x roles as .png, .pdf or .svg, in one step: the lens's number in each cell, its shade as colour.

    Raises:
        InputError: as save_picture.
    """
    check_picture(path)
    lens.load(p for cell in grid.cells.values() for p in cell)
    tones, texts = _cells(lens, grid)
    if not texts:
        raise InputError("there is nothing to draw: not computed, s scans the model")
    tones[np.isinf(tones)] = np.nan  # infinite: they have a text and no colour
    if np.isnan(tones).all():
        raise InputError("there is nothing to draw: all of it is infinite")
    size = (2.4 + 0.75 * len(grid.columns), 1.6 + 0.2 * min(len(grid.rows), 60))
    with _paper(path, size, f"{_models(lens.pair, grid)}   {lens.title}: {lens.formula}") as paper:
        _heatmap(paper, lens, grid, tones, texts)


def svg_of(lines: Sequence[Text], width: int, title: str) -> str:
    """Lines of a terminal as an SVG that looks like a terminal. The title is wrapped above it, as beside the window's
    buttons there may be no room."""
    from rich.console import Console

    console = Console(record=True, width=width, file=io.StringIO(), force_terminal=True, color_system="256")
    console.print(Text(printable(title), "bold"), overflow="fold")
    for line in lines:
        console.print(line, no_wrap=True, overflow="crop", crop=True)
    return console.export_svg(title="")


def check_picture(path: Path) -> None:
    """Check that a picture can be written in the form that the suffix of its name says.

    Raises:
        InputError: it cannot.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(f"a picture must end in .png, .pdf or .svg, not {printable(path.name)!r}")
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise InputError(f"pictures need matplotlib:  {install_line('plots')}") from None


@contextmanager
def _paper(path: Path, size: tuple[float, float], title: str) -> Iterator[Paper]:
    """A context with a sheet to draw on, of `size` inches; it is written at the end if nothing fails."""
    import matplotlib.style
    from matplotlib.figure import Figure as Paper

    # Not the user's matplotlib style: it may need TeX, or be made for a dark background.
    with matplotlib.style.context(["default", _STYLE]):
        paper = Paper(figsize=size, layout="constrained")
        paper.suptitle(_escaped(title), fontsize=10, x=0.01, ha="left")
        yield paper
        _write(paper, path)


def _write(paper: Paper, path: Path) -> None:
    kind = path.suffix.lower()[1:]
    data = io.BytesIO()
    # Without the date, the same chart gives the same file.
    metadata = {"svg": {"Date": None}, "pdf": {"CreationDate": None}, "png": None}[kind]
    paper.savefig(data, format=kind, dpi=200, metadata=metadata)
    try:
        write_atomically(path, data.getvalue())
    except OSError as error:
        raise cannot_write(path, error) from None


def _escaped(text: str) -> str:
    """A text with literal dollars: matplotlib would set text between them as a formula."""
    return text.replace("$", r"\$")


def _models(pair: Pair, grid: Grid) -> str:
    names = [printable(session.model.name) for session in pair.sessions]
    named = names[0] if len(names) == 1 else f"A: {names[0]}   B: {names[1]}"
    return "   ".join(filter(None, [named, weighted_by(p for cell in grid.cells.values() for p in cell)]))


# Charts


def _draw(paper: Paper, figure: Figure, charts: Sequence[Chart]) -> None:
    across = figure.columns
    places = paper.subplots(
        -(-len(charts) // across), across, squeeze=False, sharex=figure.shared, sharey=figure.shared
    )
    for number, place in enumerate(places.flat):
        if number < len(charts):
            _chart(place, charts[number], alone=len(charts) == 1)
            _labels(place, charts[number], figure.shared, number % across == 0, number + across >= len(charts))
        else:
            place.set_axis_off()
    _legend(paper, places.flat[0], figure, alone=len(charts) == 1)


def _size(figure: Figure, count: int) -> tuple[float, float]:
    """Width and height in inches for this number of charts."""
    if count == 1:
        return 7.2, 4.4
    down = -(-count // figure.columns)
    return min(13.0, 1.5 + 3.6 * figure.columns), 1.0 + (2.4 if down > 1 else 3.6) * down


def _chart(place: Axes, chart: Chart, *, alone: bool) -> None:
    x, y = spans(chart)
    place.set_xscale("log" if chart.x.log else "linear")
    if names := chart.x.places:
        step = -(-len(names) // _MOST_PLACES)
        place.set_xticks(range(0, len(names), step), [_escaped(name) for name in names[::step]])
    place.set_yscale("log" if chart.y.log else "linear")
    if chart.y.tens or chart.y.exponents:
        texts = axis_ticks(chart.y, y, _MOST_TICKS)
        place.set_yticks(list(texts), list(texts.values()))
    for level in chart.levels:
        if y[0] <= level.value <= y[1]:
            ink = "0.2" if level.is_bright else GREY
            place.axhline(level.value, color=ink, linewidth=0.7, linestyle=_DASHES[level.stroke], zorder=1)
            place.annotate(
                _escaped(level.label), (1.0, level.value), (3, 0), xycoords=("axes fraction", "data"),
                textcoords="offset points", va="center", fontsize=7, color=ink,
            )  # fmt: skip
    for series in chart.series:
        marker = "o" if len(series.x) <= MOST_NUMBERS and series.number is not None else ""
        if series.band is not None:
            place.fill_between(series.x, *series.band, color=_line_style(series)["color"], alpha=0.15, linewidth=0)
        place.plot(series.x, series.y, marker=marker, markersize=2.5, **_line_style(series))
    place.set_xlim(*x)
    place.set_ylim(*_with_margin(y, chart.y))
    if not alone:
        place.set_title(_escaped(chart.title), loc="left")


def _with_margin(span: tuple[float, float], axis: Axis) -> tuple[float, float]:
    """A little room above, and below unless the axis begins at 0, so that no curve runs along the frame."""
    low, high = span
    if axis.log:
        room = (high / low) ** 0.04
        return low / room, high * room
    room = 0.03 * (high - low)
    return low - room * (low != 0), high + room


def _line_style(line: Series | Sign) -> dict[str, Any]:
    if line.number is None:
        return {"color": GREY, "linestyle": _DASHES[line.stroke], "linewidth": 1.1, "zorder": 1.5}
    return {"color": INKS[line.number % len(INKS)], "linestyle": _DASHES[line.stroke], "zorder": 2}


def _labels(place: Axes, chart: Chart, shared: bool, is_left: bool, is_bottom: bool) -> None:
    """Label the axes of the outermost charts."""
    from matplotlib.ticker import MaxNLocator

    if not chart.x.log:
        place.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    if is_bottom or not shared:
        place.set_xlabel(chart.x.name)
        place.tick_params(labelbottom=True)
    if is_left or not shared:
        place.set_ylabel(chart.y.name)


def _legend(paper: Paper, place: Axes, figure: Figure, *, alone: bool) -> None:
    from matplotlib.lines import Line2D

    handles: list[Line2D] = [Line2D([], [], label=_escaped(sign.label), **_line_style(sign)) for sign in signs(figure)]
    handles += [Line2D([], [], linestyle="none", label=_escaped(note)) for note in figure.notes]
    if alone and len(handles) <= 6:
        place.legend(handles=handles, loc="best")
    else:
        paper.legend(handles=handles, loc="outside right upper")


# Heatmaps


def _cells(lens: Lens, grid: Grid) -> tuple[Tones, dict[tuple[int, int], str]]:
    """What the shade shows, (rows, columns) with NaN for unknown, and texts for the unknown cells."""
    tones = np.full((len(grid.rows), len(grid.columns)), np.nan)
    texts = {}
    for y, row in enumerate(grid.rows):
        for x, column in enumerate(grid.columns):
            cell = grid.cells.get((row, column), ())
            numbers = [n for p in cell if (n := lens.number(p)) is not None]
            shades = [t for p in cell if (t := lens.tone(p)) is not None]
            if numbers and shades:
                tones[y, x], middle = median_of(shades), median_of(numbers)
                texts[y, x] = next(filter(None, map(lens.sign, cell)), "") + lens.written(middle)
    return tones, texts


def _heatmap(paper: Paper, lens: Lens, grid: Grid, tones: Tones, texts: dict[tuple[int, int], str]) -> None:
    import matplotlib as mpl
    from matplotlib.colors import ListedColormap

    tens = tens_of(float(np.nanmax(tones)))
    tones = over_tens(tones, tens)
    norm, extend = _norm(tones, lens)
    colours = mpl.colormaps["RdBu_r" if lens.diverges else "viridis"].with_extremes(bad="0.92")
    if lens.greyed_above is not None:  # that number is 1, the middle of the colours
        colours = ListedColormap(colours(np.linspace(0.0, 0.5, 128))).with_extremes(bad="0.92", over="0.75")
    place = paper.subplots()
    image = place.imshow(tones, aspect="auto", cmap=colours, norm=norm)
    place.spines[:].set_visible(False)
    headings = [_escaped(printable(c.heading)).replace(".", ".\n") for c in grid.columns]
    place.set_xticks(range(len(headings)), headings)
    place.xaxis.tick_top()
    place.tick_params(length=0)
    step = max(1, len(grid.rows) // MOST_NUMBERS)
    place.set_yticks(range(0, len(grid.rows), step), [_escaped(row.label) for row in grid.rows[::step]])
    place.set_ylabel(_escaped(grid.rows_are))
    if len(grid.rows) <= MOST_NUMBERS:
        for (y, x), text in texts.items():
            red, green, blue, _ = colours(norm(tones[y, x]))
            ink = "black" if 0.3 * red + 0.59 * green + 0.11 * blue > 0.5 else "white"
            place.text(x, y, text, ha="center", va="center", fontsize=7, color=ink)
    bar = paper.colorbar(image, ax=place, label=_formula(lens), pad=0.02, extend=extend)
    if tens:
        bar.ax.yaxis.set_major_formatter(lambda value, _: axis_text(Axis("", tens=tens), value))
    low, high = float(np.nanmin(tones)), float(np.nanmax(tones))
    if high > low:  # a scale around 1 often uses only one half of the colours
        bar.ax.set_ylim(max(low, norm.vmin or low), min(high, norm.vmax or high))


def _norm(tones: Tones, lens: Lens) -> tuple[Normalize, str]:
    """The colour scale, and which of its ends are open. One cell in fifty may lie outside it, so that a single outlier
    does not make all others look the same; numbers that the lens greys lie outside too."""
    from matplotlib.colors import Normalize

    known = tones[~np.isnan(tones)]
    if lens.greyed_above is not None:
        low, high = min(float(np.percentile(known, 1)), lens.greyed_above - 0.01), lens.greyed_above
    elif lens.diverges:
        half = max(float(np.percentile(np.abs(known - 1.0), 98)), 0.01)
        low, high = 1.0 - half, 1.0 + half
    else:
        low, high = (float(np.percentile(known, q)) for q in (1, 99))
    outside = (bool((known < low).any()), bool((known > high).any()))
    names = {(False, False): "neither", (True, False): "min", (False, True): "max", (True, True): "both"}
    return Normalize(low, high), names[outside]


def _formula(lens: Lens) -> str:
    """The formula of what the colour shows."""
    if lens.side is Side.RATIO:
        return f"{lens.measure.titled(lens.threshold)} of B / {lens.measure.titled(lens.threshold)} of A"
    return BY_NAME[lens.measure.shaded_by or lens.measure.name].explained(lens.threshold)
