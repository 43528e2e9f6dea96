"""The one list of views: key, name and place of each, and what draws and writes it.

Keys, help, footer, palette, `show`, `plot`, exports and the check of options are made from it, so that a new view is
one row here and one file. Code is named as "module:name" below rankscope.tui and imported where it is needed
(`named.resolve`): `rankscope --help` reads this table and nothing else of the interface.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, IntEnum


class View(IntEnum):
    """The views that are named in code, by their keys."""

    TREE = 0
    SPECTRUM = 1
    ENERGY = 2
    HEATMAP = 3
    LAYERS = 4
    TABLE = 5
    COMPARE = 6
    HEADS = 7
    DELTA = 8
    PLAN = 9


class ViewPlace(Enum):
    """The place of a view in the explorer."""

    TREE = "at the left"
    TOP = "over the chart, where there is room for both"
    CHART = "the chart"


@dataclass(frozen=True, slots=True)
class ViewSpec:
    """One view.

    `key`: the digit that shows it, None for one that only the command line has. `help`: its line among the keys.
    `title`: for a chart, the text in its border ("{unit}" for the chosen number).
    `axes`: for a chart, its kinds of axes, numbered as in charts.request.Axes; other views have theirs in the widget.
    `draw`: draws a chart, (pair, request) -> (Figure, Shown | None); `small`: draws its small multiples; `readout`: the
        line below it, (pair, request) -> Text.
    `widget`: a widgets.top_pane.TopPane.
    `csv`: (Content) -> records, see view_records; `text`: (console, query, args) prints; `picture`: (pair, request,
        path, lens) writes one.
    `options`: those of `rankscope show` and `plot` that only some views take.
    `over_layers`: shows roles over all layers, whatever is selected, so no rank cursor and no comparison of marks.
    `of_spectra`: shows nothing if no spectrum is stored. `from_values`: its numbers are computed when it is shown.
    `small_of`: the view whose small multiples the command line shows under this name.
    """

    name: str
    key: int | None
    help: str
    place: ViewPlace
    title: str = ""
    axes: tuple[str, ...] = ("", "", "")
    widget: str = ""
    draw: str = ""
    small: str = ""
    readout: str = "charts.readout:readout"
    csv: str = ""
    text: str = ""
    picture: str = ""
    options: tuple[str, ...] = ()
    over_layers: bool = False
    from_values: bool = False
    small_of: int | None = None
    of_spectra: bool = True

    @property
    def drawn_as(self) -> int:
        """The key of the view that draws it."""
        key = self.key if self.small_of is None else self.small_of
        assert key is not None
        return key


_CHART_TEXT, _CHART_PICTURE = "cli.show:print_chart", "charts.picture:save_chart"

VIEWS: tuple[ViewSpec, ...] = (
    ViewSpec("tree", View.TREE, "Go to the tree", ViewPlace.TREE),
    ViewSpec(
        "heatmap",
        View.HEATMAP,
        "Threshold ranks by layer and role",
        ViewPlace.TOP,
        widget="widgets.heatmap:Heatmap",
        csv="data.view_records:of_heatmap",
        text="cli.show:print_heatmap",
        picture="charts.picture:save_heatmap_view",
        options=("unit", "rank", "by", "csv"),
    ),
    ViewSpec(
        "table",
        View.TABLE,
        "Every projection with every metric; o sorts",
        ViewPlace.TOP,
        widget="widgets.table:MetricTable",
        csv="data.view_records:of_table",
        text="cli.show:print_table",
        options=("rank", "sort", "csv"),
        from_values=True,
    ),
    ViewSpec(
        "compare",
        View.COMPARE,
        "The marked projections side by side",
        ViewPlace.TOP,
        widget="widgets.compare:Compare",
        csv="data.view_records:of_compare",
        text="cli.show:print_compare",
        options=("rank", "csv"),
        from_values=True,
    ),
    ViewSpec(
        "plan",
        View.PLAN,
        "Ranks for a budget; :plan 20% makes them",
        ViewPlace.TOP,
        widget="widgets.plan_map:PlanMap",
        csv="data.view_records:of_plan",
    ),
    ViewSpec(
        "heads",
        View.HEADS,
        "Single heads, QK and OV: heads x layers",
        ViewPlace.TOP,
        widget="widgets.head_map:HeadMap",
        csv="data.view_records:of_heads",
        text="cli.heads:print_heads",
        options=("unit", "of", "offset", "csv"),
        of_spectra=False,
    ),
    ViewSpec(
        "layers",
        View.LAYERS,
        "The number that u chooses by layer, one line a role",
        ViewPlace.CHART,
        title="{unit} by {rows}",
        draw="charts.by_layer:draw",
        readout="charts.readout:over_layers",
        csv="data.view_records:of_layers_view",
        text=_CHART_TEXT,
        picture=_CHART_PICTURE,
        options=("line", "unit", "rank", "csv"),
        over_layers=True,
    ),
    ViewSpec(
        "spectrum",
        View.SPECTRUM,
        "Singular values of the selection",
        ViewPlace.CHART,
        title="singular values by index",
        axes=("log x log", "log y", "linear"),
        draw="charts.spectrum_charts:draw_spectrum",
        small="charts.facets:draw",
        csv="data.view_records:of_curves_view",
        text=_CHART_TEXT,
        picture=_CHART_PICTURE,
        options=("rank", "normalised", "csv"),
    ),
    ViewSpec(
        "energy",
        View.ENERGY,
        "Cumulative energy of the selection",
        ViewPlace.CHART,
        title="% of sum sigma^2 by components",
        axes=("log x", "linear", "linear", "minus noise"),
        draw="charts.spectrum_charts:draw_energy",
        small="charts.facets:draw",
        csv="data.view_records:of_curves_view",
        text=_CHART_TEXT,
        picture=_CHART_PICTURE,
        options=("rank", "csv"),
    ),
    ViewSpec(
        "facets",
        None,
        "Spectra of the first and the last layers",
        ViewPlace.CHART,
        text=_CHART_TEXT,
        picture=_CHART_PICTURE,
        options=("normalised",),
        small_of=View.SPECTRUM,
    ),
    ViewSpec(
        "directions",
        None,
        "What the first direction of each projection is, where that is computed",
        ViewPlace.TOP,
        csv="data.view_records:of_directions",
        text="cli.inspect:print_directions",
        options=("csv",),
        of_spectra=False,
    ),
    ViewSpec(
        "series",
        None,
        "Several models, as checkpoints of one training: models x roles",
        ViewPlace.TOP,
        csv="data.view_records:of_heatmap",
        text="cli.series:print_series",
        options=("unit", "csv"),
    ),
    ViewSpec(
        "gauge",
        None,
        "By role, whether the order of the layers survives fixing the gauge",
        ViewPlace.TOP,
        csv="data.view_records:of_gauge",
        text="cli.show:print_gauge",
        options=("unit", "csv"),
    ),
    ViewSpec(
        "mla",
        None,
        "Which kv_lora_rank and q_lora_rank latent attention would need, where that is computed",
        ViewPlace.TOP,
        csv="data.view_records:of_mla",
        text="cli.mla:print_mla",
        options=("rope", "real", "balance", "bias", "csv"),
        of_spectra=False,
    ),
    ViewSpec(
        "delta",
        View.DELTA,
        "What a fine-tune changed: ranks of B - A",
        ViewPlace.TOP,
        widget="widgets.delta_table:DeltaTable",
        csv="data.view_records:of_delta",
        text="cli.delta:print_delta",
        options=("independent", "csv"),
        from_values=True,
    ),
)
"""In their order on the screen: the tree, views above the chart, the charts."""

DEFAULT = "heatmap"
"""The view that `rankscope show` and `plot` show by default."""

BY_KEY = {view.key: view for view in VIEWS if view.key is not None}
BY_NAME = {view.name: view for view in VIEWS}


def keyed() -> list[ViewSpec]:
    """The views of the explorer, in the order of their keys."""
    return [BY_KEY[key] for key in sorted(BY_KEY)]


def placed(place: ViewPlace) -> list[ViewSpec]:
    """The views of the explorer in one place, in the order of their keys."""
    return [view for view in keyed() if view.place is place]


def named_for(twin: str) -> list[str]:
    """The names of the views that have a `text` or a `picture`, in the order in which the command line lists them."""
    listed = sorted(VIEWS, key=lambda view: (view.name != DEFAULT, view.key is None, view.key))
    return [view.name for view in listed if getattr(view, twin)]


def taking(option: str) -> list[str]:
    """The names of the views that take an option."""
    return [view.name for view in VIEWS if option in view.options]
