"""The settings as a file that loads to the same settings: what `rankscope-tui --print-config` prints."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from textwrap import wrap

from rankscope.engine.errors import printable

from ..data.reference_lines import ReferenceLine
from . import keymap
from .config import AUTO, Config


def written(config: Config, file: Path, themes: Iterable[str]) -> str:
    """TOML with comments; `file` is the path at which settings are read."""
    found = "" if file.exists() else " (not there: all is at its default)"
    return "\n".join(
        [
            f"# Settings of rankscope-tui, looked for in {printable(str(file), 500)}{found}.",
            "# RANKSCOPE_CONFIG names another file. A line that is left out stays at its default.",
            "",
            *(f"# {line}" for line in wrap(", ".join([AUTO, *sorted(themes)]), 110, break_on_hyphens=False)),
            f"theme = {_quoted(config.theme)}",
            f"color = {_quoted(config.depth or AUTO)}  # auto: what the terminal supports; 256, 16 or mono",
            f'threshold = {config.threshold!r}  # energy threshold to start with: 0.9, 90 or "90%"',
            f"thresholds = {list(config.thresholds)}  # energy thresholds that t goes through",
            f"contrast = {_quoted(config.contrast)}  # of shades: fixed (the unit's scale), model or role",
            f"suspend = {str(config.suspend).lower()}  # whether ctrl+z leaves the terminal to the shell until fg",
            f"bell = {str(config.bell).lower()}  # whether the terminal's bell rings when a scan is done",
            f"mouse = {str(config.mouse).lower()}  # whether clicks are for the explorer, not for selecting text",
            "",
            *_lines(config.lines),
            "",
            *_colors(config),
            "",
            *_keymap(config),
            "",
        ]
    )


def _lines(lines: Iterable[ReferenceLine]) -> Iterator[str]:
    yield '# Ranks drawn across the layers view: NAME = K, or NAME = { rank = K, role = "query" } for one role only.'
    yield "# These replace the defaults, the ranks of DeepSeek-V2's MLA; an empty table draws none."
    yield "[lines]"
    for line in lines:
        rank = int(line.rank) if float(line.rank).is_integer() else line.rank
        value = f"{{ rank = {rank}, role = {_quoted(line.role)} }}" if line.role else f"{rank}"
        yield f"{_quoted(line.name)} = {value}"


def _colors(config: Config) -> Iterator[str]:
    yield "# Numbers of the 256 colours: shades from low to high; below and above 1; curves."
    yield "[colors]"
    for name in ("sequential", "below", "above", "series"):
        yield f"{name} = {list(getattr(config.palette, name))}"


def _keymap(config: Config) -> Iterator[str]:
    """Lines of the keymap. Bindings at their default are comments, so that they follow when the default changes."""
    yield '# Keys: take the # away and write others, "x" or "x,ctrl+y". The names have to stay in quotes.'
    yield "[keymap]"
    for title, table in keymap.SECTIONS.items():
        yield f"# {title}"
        for binding in keymap.bindings(table):
            chosen = config.keymap.get(binding.id or "")
            setting = f"{_quoted(binding.id or '')} = {_quoted(chosen or binding.key)}"
            yield f"{'' if chosen else '# '}{setting:<46}  # {binding.tooltip}"


def _quoted(text: str) -> str:
    """A TOML basic string in ASCII, as a terminal with another encoding would change other characters."""
    plain = ("\\" + c if c in '"\\' else c if " " <= c <= "~" else f"\\U{ord(c):08x}" for c in text)
    return f'"{"".join(plain)}"'
