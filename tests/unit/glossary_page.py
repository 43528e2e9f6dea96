"""Write docs/GLOSSARY.md from the terms in the explorer's help: `python tests/unit/glossary_page.py`."""

from __future__ import annotations

from pathlib import Path

from rankscope.tui.data.glossary import GLOSSARY

PAGE = Path(__file__).parents[2] / "docs" / "GLOSSARY.md"


def page() -> str:
    """The page as it should be now."""
    rows = [f"| {word} | {meaning} |".replace("*", "\\*") for word, meaning in GLOSSARY]
    head = ["# Glossary", "", "`?` in the explorer shows the same, below the keys.", "", "| word | |", "|---|---|"]
    return "\n".join([*head, *rows, ""])


if __name__ == "__main__":
    PAGE.write_text(page())
