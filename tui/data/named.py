"""Code by its name, imported when it is needed: `--help` can read tables of such names."""

from __future__ import annotations

from importlib import import_module
from typing import Any


def resolve(name: str) -> Any:
    """The object that "module:name" below rankscope.tui names, as "charts.spectrum_charts:draw_energy"."""
    module, _, attribute = name.partition(":")
    return getattr(import_module(f"rankscope.tui.{module}"), attribute)
