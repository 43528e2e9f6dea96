"""CONTRIBUTING.md names every file with its purpose."""

from __future__ import annotations

from room_list import PAGE, ROOT, page


def test_the_list_of_files_is_that_of_the_modules() -> None:
    """`python tests/unit/room_list.py` rewrites it."""
    assert PAGE.read_text() == page()


def test_every_room_and_module_says_what_it_is_for() -> None:
    rows = [line for line in page().splitlines() if line.startswith("| `") and line.endswith(" |")]
    files = [f for house in ("engine", "store", "tui") for f in (ROOT / house).rglob("*.py") if f.name != "__init__.py"]
    listed = [row for row in rows if ".py` | " in row and not row.endswith("`|  |")]
    assert len(listed) == len(files)
    assert all(row.split("|")[2].strip() for row in listed)
