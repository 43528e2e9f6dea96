"""The session's memory of a model: what is stored, values loaded and dropped, ranks that follow a new spectrum."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from app_models import fill, matrix, rank_in, spectrum_of

from rankscope.engine.compute.engine import ComputeSettings
from rankscope.engine.compute.events import Event, Saved, SavedAgain, SolvingAgain, StayBounds
from rankscope.engine.metrics import threshold_rank
from rankscope.store.spectra import entry_of
from rankscope.tui.data import known as module
from rankscope.tui.data.session import Session, State


def _ignore(_: tuple[Event, ...]) -> None:
    return None


@pytest.fixture
def session(llama: Path, root: Path) -> Session:
    """A session on the llama, with all spectra stored and none loaded."""
    return Session(fill(llama, root), root, _ignore, ComputeSettings())


def test_values_that_make_room_are_loaded_again_where_they_are_asked_for(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_MAX_VALUES", 0)
    session.load()
    first, second, *_ = session.model.tree.scanned()
    session.load_values([first])
    session.load_values([first, second])
    assert session.values(first) is not None
    assert session.values(second) is not None


def test_a_new_spectrum_replaces_what_was_worked_out_of_the_old(session: Session, llama: Path) -> None:
    session.load()
    query = session.model.tree.scanned()[0]
    session.load_values([query])
    session.load_ranks([query], 0.7)
    assert session.rank(query, 0.7) == rank_in(llama, 0, "query", 0.7)
    other = spectrum_of(query, matrix((query.rows, query.cols), 99))
    session.apply([Saved(other)])
    session.store.put(replace(other, computed_at="2026-11-24T00:00:00Z")).result()
    session.load_ranks([query], 0.7)
    session.load_values([query])
    assert session.rank(query, 0.7) == threshold_rank(other.values, 0.7)
    assert session.values(query) is not None
    assert (session.values(query) == other.values).all()  # type: ignore[union-attr]
    session.close()


def test_a_second_result_takes_the_place_of_the_first(session: Session) -> None:
    session.load()
    query = session.model.tree.scanned()[0]
    session.load_values([query])
    other = spectrum_of(query, matrix((query.rows, query.cols), 99))
    assert session.apply([SavedAgain(other)]) == [query.key]
    assert session.entry(query) == entry_of(other)
    assert session.values(query) is None  # must be read again
    assert session.state(query) is State.DONE
    assert session.apply([SolvingAgain(query, "cuda:0"), StayBounds((query,))]) == []
    assert session.state(query) is State.DONE


def test_what_is_saved_while_the_store_is_read_is_not_lost(session: Session) -> None:
    query = session.model.tree.scanned()[0]
    found = spectrum_of(query, matrix((query.rows, query.cols), 99))
    newer = replace(found, provenance=replace(found.provenance, solver="newer"))
    session.apply([Saved(newer)])
    session.load()
    entry = session.entry(query)
    assert entry is not None
    assert entry.provenance.solver == "newer"
    assert session.state(query) is State.DONE
