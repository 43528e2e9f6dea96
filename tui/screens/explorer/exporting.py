"""Taking it away: what is on screen as a file, the number under the cursor to the clipboard."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from rich.text import Text
from textual.content import Content

from rankscope.engine.errors import InputError, printable

from ...data import records
from .. import clipboard
from ..dialogs import Choice
from ..messages import Done
from .layout import COMPARE, ENERGY, HEATMAP, LAYERS, SPECTRUM, TABLE, TREE
from .scanning import Computing

NAMES = {
    SPECTRUM: "spectrum",
    ENERGY: "energy",
    HEATMAP: "heatmap",
    LAYERS: "layers",
    TABLE: "table",
    COMPARE: "compare",
}
Writer = Callable[[Path], None]
KINDS = (
    (".csv", "the numbers of what is shown"),
    (".svg", "the picture as it is on the screen"),
    (".png", "the same for print, by matplotlib"),
)


class Taking(Computing):
    """Exports and yanks what the focused pane shows; from the tree, what stands beside it."""

    @property
    def _shown_view(self) -> int:
        return self._pane if self._pane != TREE else self.top

    def action_export(self) -> None:
        """Ask for the kind of file."""
        name = NAMES[self._shown_view]
        rows = [(str(self._free_path(suffix).name), text) for suffix, text in KINDS]

        def chosen(number: int | None) -> None:
            if number is not None:
                self.export_to(rows[number][0])

        self.app.push_screen(Choice(f"export the {name}", rows), chosen)

    def action_yank(self) -> None:
        """Copy the number, or the line, that the focused pane stands on."""
        if self._pane == TABLE:
            text = self.table.text_of_cell()
        elif self._pane == COMPARE:
            text = self.compare.text_of_cell()
        elif self._pane in NAMES and self._pane != HEATMAP:
            text = self.chart.readout.plain
        else:
            numbers = [self.lens.text(p) for p in self.selection.projections(self.grid)]
            text = "\t".join(filter(None, numbers))
        if not text:
            self.say("there is no number here yet")
            return
        self._in_background(partial(self._copy, text), "copying")

    def _copy(self, text: str) -> None:
        how = clipboard.copy(self.app, text)
        self.post_message(Done(partial(self.say, f"copied {how}: {text}")))

    def export_to(self, name: str) -> None:
        """Write what is shown to a file, by its suffix; a file that is there is left alone."""
        path = Path(name).expanduser()
        if path.exists():
            self.say(f"{path} is there already: name another file")
            return
        writers = {".csv": self._csv, ".svg": self._svg, ".png": self._picture, ".pdf": self._picture}
        if path.suffix.lower() not in writers:
            self.say(f"{path.name!r}: the name must end in .csv, .svg, .png or .pdf")
            return
        self._in_background(partial(self._write, writers[path.suffix.lower()](), path), f"writing {path.name}")

    def _write(self, writer: Writer, path: Path) -> None:
        try:
            writer(path)
        except OSError as error:
            raise InputError(f"cannot write {printable(str(path))}: {error.strerror or error}") from None
        self.post_message(Done(partial(self.say, f"written: {path.absolute()}")))

    def _csv(self) -> Writer:
        from rankscope.store.export import csv_text  # numpy: the first paint does without, here and below

        view = self._shown_view
        lens = replace(self.lens)
        if view in (SPECTRUM, ENERGY):
            painting = self._painting
            rows = records.of_curves(painting.curves, painting.values) if painting else iter(())
        elif view == LAYERS:
            rows = records.of_layers([lens], self.grid)
        elif view == TABLE:
            rows = self.table.records()
        elif view == COMPARE:
            rows = self.compare.records()
        else:
            rows = records.of_cells([lens], self.shown)
        return lambda path: _save(path, csv_text(rows))

    def _svg(self) -> Writer:
        from ...charts.picture import svg_of

        view = self._shown_view
        pane = {HEATMAP: self.heatmap, TABLE: self.table, COMPARE: self.compare}.get(view, self.chart)
        strips = [pane.render_line(y) for y in range(pane.size.height)]
        lines = [Text.assemble(*((s.text, s.style or "") for s in strip)) for strip in strips]
        title = f"{self.session.model.name}  {Content.from_markup(str(pane.border_title)).plain}"
        return lambda path: _save(path, svg_of(lines, pane.size.width, title))

    def _picture(self) -> Writer:
        """By matplotlib, where it is installed."""
        from ...charts.picture import save_heatmap, save_picture

        view = self._shown_view
        if view in (TABLE, COMPARE):
            raise InputError("a table has no picture for print: export it as .csv, or as .svg as it is on the screen")
        if view == HEATMAP:
            lens, grid = replace(self.lens), self.grid
            return lambda path: save_heatmap(lens, grid, path)
        request = self._request()
        return lambda path: save_picture(self.pair, request, path)

    def _free_path(self, suffix: str) -> Path:
        """A name in this folder that no file has."""
        model = Path(self.session.model.name).stem or "model"
        parts = [model, NAMES[self._shown_view]]
        if self._shown_view in (SPECTRUM, ENERGY):
            parts.append(self.selection.label(self.grid))
        stem = "-".join("".join(c if c.isalnum() or c in "._-" else "_" for c in part) for part in parts)
        paths = [Path(f"{stem}{suffix}"), *(Path(f"{stem}-{n}{suffix}") for n in range(2, 1000))]
        return next(path for path in paths if not path.exists())


def _save(path: Path, text: str) -> None:
    from rankscope.store.segments import replace as write

    write(path, text.encode("utf-8", "backslashreplace"))
