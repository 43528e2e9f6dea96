"""The page of families in docs/ is what the catalogue and the tests say."""

from __future__ import annotations

from family_table import PAGE, page


def test_the_page_of_families_is_that_of_the_catalogue() -> None:
    assert PAGE.read_text() == page()
