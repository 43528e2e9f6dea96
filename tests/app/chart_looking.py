"""Charts under test: sessions, requests, and which dots are drawn where."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from app_models import LLAMA, Weights, fill, save_model, spectrum_of
from numpy.typing import NDArray
from rich.text import Text
from safetensors.numpy import load_file

from rankscope.engine.compute.engine import ComputeSettings
from rankscope.engine.spectrum import Projection
from rankscope.store.spectra import SpectraStore
from rankscope.tui.charts.request import Request
from rankscope.tui.data.grid import Column, Grid, Row, Selection, make_grid
from rankscope.tui.data.model import open_model
from rankscope.tui.data.pair import Pair
from rankscope.tui.data.session import Session

BRAILLE = 0x2800
# The bits of a braille character, by dot column and dot row from the top.
BITS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))


def session_of(folder: Path, root: Path) -> Session:
    """A session on a model whose spectra are stored."""
    session = Session(open_model(str(folder), root), root, lambda _: None, ComputeSettings())
    session.load()
    return session


def saved(folder: Path, root: Path, weights: Weights, floor: float | None = None) -> Session:
    """A computed llama with these weights; `floor` is the noise floor of every spectrum."""
    model = save_model(folder, weights, LLAMA)
    if floor is None:
        fill(model, root)
    else:
        opened = open_model(str(model), root)
        stored = load_file(model / "model.safetensors")
        with SpectraStore(root, opened.folder) as store:
            for p in opened.tree.scanned():
                found = spectrum_of(p, stored[p.tensor])
                store.put(replace(found, provenance=replace(found.provenance, noise_floor=floor)))
    return session_of(model, root)


def grid_of(pair: Pair) -> Grid:
    """The grid of everything that a scan computes."""
    return make_grid(pair.first.model.tree.scanned())


def select(layer: int | None = None, block: str | None = None, role: str | None = None) -> Selection:
    """Select a layer, a block of it, a role in it, or a role over all layers."""
    column = Column(block, role) if block and role else None
    return Selection(None if layer is None else Row("", layer), column, None if column else block)


def ask(pair: Pair, selection: Selection, view: int = 1, **more: Any) -> Request:
    """A chart request for 80x20 at 90 %."""
    given: dict[str, Any] = {
        "threshold": 0.9, "thresholds": (0.6, 0.8, 0.9), "axes": 0, "width": 80, "height": 20, "version": 0,
        "grid": grid_of(pair),
    }  # fmt: skip
    return Request(selection, view, **{**given, **more})


def at(pair: Pair, layer: int, role: str, block: str = "attention") -> Projection:
    """A projection of the first model."""
    return grid_of(pair).cells[Row("", layer), Column(block, role)][0]


def sigma_of(p: Projection) -> NDArray[np.float64]:
    """The singular values by LAPACK, read from the file."""
    weights = load_file(Path(p.source.repo) / p.source.file)[p.tensor]
    return np.linalg.svd(weights.astype(np.float64), compute_uv=False)


def texts(lines: Iterable[Text]) -> list[str]:
    """The lines without their styles, in full width."""
    return [line.plain for line in lines]


def dots(lines: Sequence[Text], colour: int | None = None) -> set[tuple[int, int]]:
    """(column, row) of every braille dot, two columns and four rows a character; of this `colour` only, of 256."""
    found = set()
    for y, line in enumerate(lines):
        for x, char in enumerate(line.plain):
            if BRAILLE < ord(char) <= BRAILLE + 0xFF and colour in (None, colour_at(line, x)):
                bits = ord(char) - BRAILLE
                found |= {(2 * x + i, 4 * y + j) for i in (0, 1) for j in range(4) if bits & BITS[i][j]}
    return found


def colour_at(line: Text, x: int) -> int | None:
    """The number of a character's colour."""
    spans = [span for span in line.spans if span.start <= x < span.end]
    colours = [style.color.number for span in spans if (style := _style(span.style)) and style.color]
    return colours[-1] if colours else None


def colours_of(lines: Iterable[Text]) -> set[int | None]:
    """The colours in which braille characters are drawn."""
    return {
        colour_at(line, x)
        for line in lines
        for x, char in enumerate(line.plain)
        if BRAILLE < ord(char) <= BRAILLE + 0xFF
    }


def _style(style: Any) -> Any:
    from rich.style import Style

    return Style.parse(style) if isinstance(style, str) else style
