"""Textual's names with an underscore: all that we use are in one table, exist, and are no others."""

from __future__ import annotations

import ast
import importlib
import inspect
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from textual.app import App
from textual.drivers.linux_driver import LinuxDriver
from textual.widgets import Tree

import rankscope.tui
from rankscope.tui.drawing.textual_private import USES, Use
from rankscope.tui.screens.guard import Surviving

ROOT = Path(next(iter(rankscope.tui.__path__)))
OF_OTHERS = {
    ("cli/ending.py", "_exit"),
    ("cli/launch.py", "_exit"),
    ("cli/main.py", "_exit"),
    ("cli/parser.py", "_actions"),
    ("charts/curves.py", "_limit_size"),
    ("screens/explorer/panes.py", "_replace"),
    ("screens/status_lines.py", "_replace"),
}
"""Names of os, argparse, plotext and named tuples."""


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def names_in(tree: ast.AST) -> set[str]:
    """The private attributes that are read, written or called, and private functions that are defined."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            found.add(node.attr)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            found.add(node.name)
    return set(filter(is_private, found))


def defined_in(tree: ast.AST) -> set[str]:
    """The names that are defined: functions, classes, variables, fields, attributes of an object."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
            found.add(node.id if isinstance(node, ast.Name) else node.attr)
    return found


def of_textual(cls: type) -> set[str]:
    """The private names of a class's base classes in Textual."""
    bases = [base for base in cls.__mro__ if base.__module__.startswith("textual.")]
    return set().union(*(private_in(base.__module__)[base.__name__] for base in bases))


@cache
def private_in(module: str) -> dict[str, set[str]]:
    """The private names that each class of a module defines."""
    tree = ast.parse(inspect.getsource(importlib.import_module(module)))
    return {n.name: set(filter(is_private, defined_in(n))) for n in tree.body if isinstance(n, ast.ClassDef)}


@cache
def trees() -> dict[Path, ast.Module]:
    """The syntax trees of our sources."""
    return {path.relative_to(ROOT): ast.parse(path.read_text()) for path in sorted(ROOT.rglob("*.py"))}


def used() -> Iterator[tuple[str, str]]:
    """(file, private name): those that we use but do not define, and those shared with a base class of Textual."""
    ours = set().union(*map(defined_in, trees().values()))
    for file, tree in trees().items():
        yield from ((str(file), name) for name in names_in(tree) - ours)
        module = ".".join(["rankscope.tui", *file.with_suffix("").parts]).removesuffix(".__init__")
        for node in tree.body:
            if isinstance(node, ast.ClassDef):
                private = of_textual(getattr(importlib.import_module(module), node.name))
                yield from ((str(file), name) for name in (names_in(node) & private if private else ()))


def test_the_table_names_every_use_and_no_other() -> None:
    assert set(used()) - OF_OTHERS == {(use.file, use.name) for use in USES}


def test_nothing_is_imported_from_a_private_module() -> None:
    for tree in trees().values():
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("textual"):
                assert not any(map(is_private, [*(node.module or "").split("."), *(a.name for a in node.names)]))


@pytest.mark.parametrize("use", USES, ids=lambda use: use.name)
def test_textual_has_it_still(use: Use) -> None:
    if use.owner is LinuxDriver:  # it needs a running event loop
        assert use.name in of_textual(LinuxDriver)
        return
    owner: object = Tree("") if use.owner is Tree else App()
    assert isinstance(owner, use.owner)
    assert hasattr(owner, use.name)


@pytest.mark.parametrize("name", ["_dispatch_message", "_handle_exception", "_register_child"])
def test_what_is_overridden_is_called_as_it_was(name: str) -> None:
    ours, theirs = getattr(Surviving, name), getattr(App, name)
    assert ours is not theirs
    assert list(inspect.signature(ours).parameters) == list(inspect.signature(theirs).parameters)
    assert inspect.iscoroutinefunction(ours) == inspect.iscoroutinefunction(theirs)
