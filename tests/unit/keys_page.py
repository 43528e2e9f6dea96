"""docs/KEYS.md, made of the explorer's bindings, commands and marks: `python tests/unit/keys_page.py`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from rankscope.tui.data.wording import LEGEND
from rankscope.tui.screens.command_line import EXAMPLES
from rankscope.tui.settings.keymap import SECTIONS, bindings
from rankscope.tui.settings.keys import shown_keys

PAGE = Path(__file__).parents[2] / "docs" / "KEYS.md"
_HEAD = """\
# Keys

Generated from the program's own table (`tui/settings/keys.py`): `python tests/unit/keys_page.py` rewrites it. `?` in
the explorer shows those of the pane that has the focus.

Every key can be changed: `rankscope-tui --print-config` prints the settings as a file, and its section `[keymap]` takes
the names of the last column, as in `"mark" = "space,m"`. A key that would then do two things is refused.
"""
_COMMANDS = """
## Commands

`:` opens the command line; `tab` completes, `up` brings back. `:12` goes to layer 12, `:tour` leads through a question,
and the name of any key of the explorer, or the end of that name, does what the key does: `:scan`, `:quit`. `ctrl+p`
finds keys by what they do. These take an argument:

| for example | |
|---|---|
"""
_MARKS = """
## Marks

In the tree and in the cells:

| mark | |
|---|---|
"""


def page() -> str:
    """The page as it has to be now."""
    sections = [
        f"\n## {title[0].upper()}{title[1:]}\n\n| key | does | name |\n|---|---|---|\n"
        + _rows((_keys(shown_keys(b, {})), b.tooltip, f"`{b.id}`") for b in bindings(table))
        for title, table in SECTIONS.items()
    ]
    commands = _rows((f"`{example}`", f"`{name}`") for name, example in sorted(EXAMPLES.items()))
    marks = _rows((f"`{mark}`", meaning) for mark, meaning in LEGEND)
    return "".join([_HEAD, *sections, _COMMANDS, commands, _MARKS, marks])


def _keys(text: str) -> str:
    return " ".join(f"`{key}`" for key in text.split())


def _rows(rows: Iterable[tuple[str, ...]]) -> str:
    """Lines of a table; an asterisk outside of code would begin emphasis."""
    lines = (" | ".join(cell if "`" in cell else cell.replace("*", "\\*") for cell in row) for row in rows)
    return "".join(f"| {line} |\n" for line in lines)


if __name__ == "__main__":
    PAGE.write_text(page())
