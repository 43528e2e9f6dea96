"""Write the list of files in CONTRIBUTING.md from the modules' first lines: `python tests/unit/room_list.py`."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "CONTRIBUTING.md"
BEGIN, END = "<!-- files: python tests/unit/room_list.py writes this anew -->\n", "<!-- end of files -->\n"


def page() -> str:
    """CONTRIBUTING.md with the list as it should be now."""
    text = PAGE.read_text()
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}{listed()}{END}{after}"


def listed() -> str:
    """A table for each room: its purpose, and each of its files."""
    parts = []
    for house in ("engine", "store", "tui"):
        for folder in sorted({file.parent for file in (ROOT / house).rglob("*.py")}):
            files = [file for file in sorted(folder.glob("*.py")) if file.name != "__init__.py"]
            name = folder.relative_to(ROOT).as_posix()
            rows = [f"| `{file.name}` | {_first_line(file)} |" for file in files]
            parts.append(
                "\n".join([f"**{name}/** {_first_line(folder / '__init__.py')}\n", "| file | |", "|---|---|", *rows])
            )
    return "\n" + "\n\n".join(parts) + "\n\n"


def _first_line(file: Path) -> str:
    """The first sentence of a module's docstring, in one line."""
    text = ast.get_docstring(ast.parse(file.read_text())) or ""
    return " ".join(text.split("\n\n")[0].split()).replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(page())
