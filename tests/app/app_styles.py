"""Textual's style sheets, parsed once for all explorers of a process of tests."""

from __future__ import annotations

from typing import Any

from textual.css.model import RuleSet
from textual.css.stylesheet import Stylesheet


def parse_styles_once() -> None:
    """Let all apps of this process share the rules that Textual parses of the same text with the same variables: each
    start of an explorer parsed the styles of all its widgets again."""
    parse = Stylesheet._parse_rules
    parsed: dict[tuple[object, ...], list[RuleSet]] = {}

    def parse_once(self: Stylesheet, css: str, *given: Any, **options: Any) -> list[RuleSet]:
        key = (css, *given, *sorted(options.items()), *sorted(self._variables.items()))
        if key not in parsed:
            parsed[key] = parse(self, css, *given, **options)
        return parsed[key]

    Stylesheet._parse_rules = parse_once  # type: ignore[method-assign]
