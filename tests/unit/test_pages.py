"""README and the pages in docs/: links lead somewhere, commands are the programs', keys are the explorer's."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from keys_page import PAGE as KEYS
from keys_page import page as keys_page

from rankscope.tui.cli import arguments
from rankscope.tui.cli.main import COMMANDS, _parser
from rankscope.tui.cli.parser import Parser

ROOT = Path(__file__).parents[2]
README, DOCS = ROOT / "README.md", ROOT / "docs"
PAGES = (README, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted(DOCS.glob("*.md")))
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_BLOCK = re.compile(r"^```sh\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def links(page: Path) -> Iterator[tuple[Path, str]]:
    """The files that a page links to, and the anchors in them, without links to the web."""
    for target in _LINK.findall(page.read_text()):
        if not target.startswith(("http://", "https://")):
            path, _, anchor = target.partition("#")
            yield (page.parent / path if path else page), anchor


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def commands(page: Path) -> Iterator[list[str]]:
    """The words of each command in a page's command blocks, without settings before it."""
    for block in _BLOCK.findall(page.read_text()):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line.replace(";", " ; ").replace("|", " | ").replace("&&", " ; "), comments=True)
            yield from _divided(words)


def _divided(words: list[str]) -> Iterator[list[str]]:
    found: list[str] = []
    for word in [*words, ";"]:
        if word not in (";", "|", ">"):
            if found or not (word == "nice" or re.fullmatch(r"[A-Z_]+=.*", word)):
                found.append(word)
        elif found:
            yield found
            found = []
        if word == ">":  # redirected into a file
            break


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_are_relative_and_lead_to_a_file_and_a_heading(page: Path) -> None:
    for target, anchor in links(page):
        assert target.exists(), target
        assert target.resolve().is_relative_to(ROOT), target
        assert not anchor or anchor in anchors(target), f"{target}#{anchor}"


def test_a_page_that_is_named_in_a_text_of_the_program_exists() -> None:
    files = [file for house in ("engine", "store", "tui") for file in (ROOT / house).rglob("*.py")]
    named = {name for file in (*files, *PAGES) for name in re.findall(r"\bdocs/[\w.]+\.(?:md|svg)\b", file.read_text())}
    assert len(named) > 15
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []


def test_readme_is_a_screen_and_a_half_and_leads_to_every_page() -> None:
    assert len(README.read_text().splitlines()) <= 130
    linked = {target.resolve() for target, _ in links(README)}
    assert [page.name for page in sorted(DOCS.glob("*.md")) if page not in linked] == []


def test_every_picture_is_shown_on_a_page() -> None:
    shown = {target.resolve() for page in PAGES for target, _ in links(page)}
    assert [picture.name for picture in sorted(DOCS.glob("*.svg")) if picture not in shown] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_are_those_of_the_programs(page: Path) -> None:
    """The programs' parsers accept them, with every option; the files that they run exist."""
    explorer = Parser("rankscope-tui")
    arguments.explorer(explorer)
    (targets,) = re.findall(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for program, *words in commands(page):
        match program.rpartition("/")[2]:
            case "rankscope":
                _parser(words).parse_args(words)
            case "rankscope-tui":
                explorer.parse_args(words)
            case "make":
                assert all(word in targets.split() or "=" in word for word in words), words
            case "python":
                assert (ROOT / words[0]).is_file(), words


def test_every_command_has_an_example() -> None:
    named = {words[1] for words in commands(DOCS / "COMMAND_LINE.md") if words[0] == "rankscope"}
    assert sorted(command.name for command in COMMANDS if command.name not in named) == []


def test_the_page_of_keys_is_that_of_the_bindings() -> None:
    """`python tests/unit/keys_page.py` rewrites it."""
    assert KEYS.read_text() == keys_page()
