"""Tokens that a calibration has read are found again at any place in other texts."""

from __future__ import annotations

import numpy as np
import pytest

from rankscope.engine.calibration.tokens_read import RUN, digests_of, has_read, read_back, written

BEGIN, UNKNOWN = 0, 1
SPECIAL = (BEGIN, UNKNOWN)


def words(seed: int, count: int) -> list[int]:
    return [int(token) for token in np.random.default_rng(seed).integers(2, 50_000, count)]


@pytest.mark.parametrize("at", range(RUN))
@pytest.mark.parametrize("before", [0, 5])
def test_a_passage_of_two_runs_is_found_wherever_it_begins(at: int, before: int) -> None:
    """Also after a token that begins every sequence, and with unknown words in it."""
    text = words(0, 10 * RUN)
    text[3] = UNKNOWN
    read = digests_of([[BEGIN, *text[: 5 * RUN]], [BEGIN, *text[5 * RUN :]]], SPECIAL)
    passage = text[at : at + 2 * RUN]
    assert has_read(read, [BEGIN, *words(1, before), *passage, *words(2, 7)], SPECIAL)


def test_other_text_is_not_found_nor_a_few_words_of_it() -> None:
    text = words(0, 10 * RUN)
    read = digests_of([[BEGIN, *text]], SPECIAL)
    assert len(read) == 10
    assert not has_read(read, [BEGIN, *words(1, 500)], SPECIAL)
    assert not has_read(read, [BEGIN, *words(1, 50), *text[: RUN - 1], *words(2, 50)], SPECIAL)


def test_a_file_says_it_and_what_others_wrote_there_says_nothing() -> None:
    digests = digests_of([words(0, 100)], SPECIAL)
    assert read_back(written(digests)) == frozenset(digests)
    for odd in ("", "[]", "no", "{}", '{"run": 8, "digests": []}', '{"run": 16, "digests": [1]}', '{"run": 16}'):
        assert read_back(odd) is None, odd
