"""The projections that a typed filter finds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from app_models import LLAMA, llama_weights, save_model

from rankscope.tui.data.filter import find
from rankscope.tui.data.model import open_model

Found = Callable[[str], list[str]]


@pytest.fixture(scope="module")
def addresses_found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    folder = save_model(tmp_path_factory.mktemp("fuzzy") / "m", llama_weights(14), LLAMA)
    projections = open_model(str(folder), Path("unused")).tree.projections

    def found(pattern: str) -> list[str]:
        return [p.address for p in find(projections, pattern)]

    return found


def test_parts_and_globs_as_the_command_line_takes_them(addresses_found: Found) -> None:
    assert addresses_found("layers.3.attention.key") == ["layers.3.attention.key"]
    assert addresses_found("key") == [f"layers.{n}.attention.key" for n in range(14)]
    assert addresses_found("layers.1?.mlp.up") == [f"layers.{n}.mlp.up" for n in range(10, 14)]


def test_letters_in_order_with_numbers_whole(addresses_found: Found) -> None:
    assert addresses_found("3dwn") == ["layers.3.mlp.down"]
    assert addresses_found("13 aky") == ["layers.13.attention.key"]
    assert addresses_found("KY 12") == ["layers.12.attention.key"]


def test_a_glob_that_names_nothing_is_not_loosened(addresses_found: Found) -> None:
    assert addresses_found("k*y") == []
    assert addresses_found("xyz") == []


def test_a_sign_of_regular_expressions_is_a_letter(addresses_found: Found) -> None:
    assert addresses_found("(") == []
    assert addresses_found("la.0 +") == []
