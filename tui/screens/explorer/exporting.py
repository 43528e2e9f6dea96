"""Export and yank: what is on screen as a file, the number under the cursor to the clipboard."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from rich.text import Text
from textual.content import Content as Markup

from rankscope.engine.atomic import write_atomically
from rankscope.engine.errors import cannot_write

from ...data.chosen_weighting import weighted_by
from ...data.comparison import headings_of
from ...data.named import resolve
from ...data.views import BY_KEY, View, ViewPlace, ViewSpec
from .. import clipboard
from ..dialogs import Choice
from ..messages import BackgroundDone
from .background import Background

FileWriter = Callable[[Path], None]
MOST_NAMED = 4
"""Marks that the name of a file lists."""
LONGEST_STEM = 200
"""Bytes of a file's name before its suffix: file systems allow 255 in all."""
KINDS = (
    (".csv", "the numbers of what is shown"),
    (".svg", "the picture as it is on the screen"),
    (".png", "the same for print, by matplotlib"),
)


class Exporter:
    """Exports and yanks what the focused pane of a screen shows; for the tree, the pane beside it."""

    def __init__(self, screen: Background) -> None:
        self._screen = screen
        self._state = screen.state

    @property
    def _view(self) -> ViewSpec:
        state = self._state
        return BY_KEY[state.top if state.pane == View.TREE else state.pane]

    @property
    def _models(self) -> str:
        """The names of one model or two, as in the first line."""
        names = [session.model.name for session in self._state.pair.sessions]
        named = names[0] if len(names) == 1 else f"A {names[0]}   B {names[1]}"
        return "  ".join(filter(None, [named, weighted_by(self._state.session.model.tree.projections)]))

    def choose(self) -> None:
        """Offer the kinds of file, and write the chosen one."""
        rows = [(str(self._free_path(suffix).name), text) for suffix, text in KINDS]

        def chosen(number: int | None) -> None:
            if number is not None:
                self.write(rows[number][0])

        self._screen.app.push_screen(Choice(f"export the {self._view.name}", rows), chosen)

    def yank(self) -> None:
        """Copy the number, or the line, under the cursor of the focused pane."""
        state, pane = self._state, self._screen.tops.get(self._state.pane)
        text = pane.text_of_cell() if pane is not None else None
        if BY_KEY[state.pane].place is ViewPlace.CHART:
            text = self._screen.chart.readout.plain
        elif text is None:
            text = "\t".join(filter(None, (state.lens.text(p) for p in state.selected)))
        if not text:
            state.say("there is no number here yet to copy")
            return
        if (name := state.pair.shown_as) and BY_KEY[state.pane].place is not ViewPlace.CHART:
            text = f"{text} @{name.replace(' ', '@')}"
        self._screen.in_background(partial(self._copy, text), "copying")

    def _copy(self, text: str) -> None:
        how = clipboard.copy(self._screen.app, text)
        self._screen.post_message(BackgroundDone(partial(self._state.say, f"copied {how}: {text}")))

    def write(self, name: str) -> None:
        """Write what is shown to a file, in the form of its suffix; an existing file is left alone."""
        path = Path(name).expanduser()
        if path.exists():
            self._state.say(f"{path} exists already: name another file")
            return
        writers = {".csv": self._csv, ".svg": self._svg, ".png": self._picture, ".pdf": self._picture}
        if path.suffix.lower() not in writers:
            self._state.say(f"{path.name!r}: the name must end in .csv, .svg, .png or .pdf")
            return
        work = partial(self._write, writers[path.suffix.lower()](), path)
        self._screen.in_background(work, f"writing {path.name}")

    def _write(self, writer: FileWriter, path: Path) -> None:
        try:
            writer(path)
        except OSError as error:
            raise cannot_write(path, error) from None
        self._screen.post_message(BackgroundDone(partial(self._state.say, f"written: {path.absolute()}")))

    def _csv(self) -> FileWriter:
        from rankscope.store.export import csv_text  # numpy, which the first paint does not import; the same below

        from ...data.view_records import Content

        view, state = self._view, self._state
        content = Content((replace(state.lens),), state.rows, state.grid)
        if view.place is ViewPlace.TOP:
            content = self._screen.tops[view.drawn_as].content(content)
        elif painting := self._screen.painting:
            content = replace(content, curves=painting.curves, values=painting.values)
        return lambda path: _save(path, csv_text(resolve(view.csv)(content)))

    def _svg(self) -> FileWriter:
        from ...charts.picture import svg_of

        pane = self._screen.tops.get(self._view.drawn_as, self._screen.chart)
        strips = [pane.render_line(y) for y in range(pane.size.height)]
        lines = [Text.assemble(*((s.text, s.style or "") for s in strip)) for strip in strips]
        title = f"{self._models}  {Markup.from_markup(str(pane.border_title)).plain}"
        return lambda path: _save(path, svg_of(lines, pane.size.width, title))

    def _picture(self) -> FileWriter:
        """Draw by matplotlib, if it is installed."""
        from ...charts.picture import save_picture

        request, lens = replace(self._screen.request(), view=self._view.drawn_as), replace(self._state.lens)
        return lambda path: save_picture(lens.pair, request, path, lens)

    def _free_path(self, suffix: str) -> Path:
        """A name in this folder that no file has."""
        view, state = self._view, self._state
        parts = [Path(state.session.model.name).stem or "model", view.name]
        if view.key == View.COMPARE or (view.place is ViewPlace.CHART and state.compares):
            parts += _named_marks(headings_of(tuple(state.marks.values())))
        elif view.place is ViewPlace.CHART and not view.over_layers:
            parts.append(state.selection.label(state.grid))
        if name := state.pair.shown_as:
            parts.append(f"by {name}")
        stem = "-".join("".join(c if c.isalnum() or c in "._-" else "_" for c in part) for part in parts)
        stem = stem.encode()[:LONGEST_STEM].decode(errors="ignore")
        paths = [Path(f"{stem}{suffix}"), *(Path(f"{stem}-{n}{suffix}") for n in range(2, 1000))]
        return next(path for path in paths if not path.exists())


def _named_marks(headings: list[str]) -> list[str]:
    """All of a few marks, or the first ones and how many more there are."""
    if len(headings) <= MOST_NAMED:
        return headings
    return [*headings[: MOST_NAMED - 1], f"and {len(headings) - MOST_NAMED + 1} more"]


def _save(path: Path, text: str) -> None:
    write_atomically(path, text.encode("utf-8", "backslashreplace"))
