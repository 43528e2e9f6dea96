"""Code by its name, imported when it is needed: tables that name it can be read by `--help`."""

from __future__ import annotations

from importlib import import_module
from typing import Any


def resolve(name: str) -> Any:
    """What "module:name" below rankscope.tui names, "charts.spectrum_charts:draw_energy"."""
    module, _, attribute = name.partition(":")
    return getattr(import_module(f"rankscope.tui.{module}"), attribute)
