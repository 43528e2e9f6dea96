"""Numbers computed from values: visible ones first, reported in a few batches, and not counted again by every pane."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from app_looking import HUGE, View, exploring
from app_models import LLAMA, fill, llama_weights, numpy_rank, save_model
from app_sheets import session_of
from safetensors.numpy import load_file
from textual.widgets.tree import TreeNode

from rankscope.engine.metrics import stable_rank
from rankscope.engine.spectrum import Projection
from rankscope.tui.data.pair import Pair
from rankscope.tui.data.session import Session
from rankscope.tui.data.state import ExplorerState
from rankscope.tui.data.views import View as Views
from rankscope.tui.drawing.cells import Look
from rankscope.tui.screens.explorer import loading
from rankscope.tui.screens.explorer.loading import MOST_TOLD, Loader
from rankscope.tui.screens.messages import NumbersLoaded

EXPERTS, LAYERS = 12, 3


class Pane:
    """A pane that shows facts of everything; a part of it is visible."""

    compares_marks = False

    def __init__(self, session: Session) -> None:
        self._session = session
        self.loaded: list[str] = []
        self.view: tuple[str, ...] = ()

    def unread(self) -> set[str]:
        return {p.key for p in self._session.model.tree.scanned()} - set(self.loaded)

    def keys_in_view(self) -> tuple[str, ...]:
        return self.view

    def load(self, projections: Sequence[Projection]) -> None:
        self.loaded += [p.key for p in projections]


class Desk:
    """A loader whose thread does one step when it is told to."""

    def __init__(self, session: Session) -> None:
        self.state = ExplorerState.of(Pair(session), 0.9, (0.9,))
        self.state.top = Views.TABLE
        self.jobs: deque[Callable[[], None]] = deque()
        self.told: list[NumbersLoaded] = []
        self.loader = Loader(self.state, self.jobs.append, self.told.append)

    def work(self) -> None:
        while self.jobs:
            self.jobs.popleft()()


@pytest.fixture
def session(llama: Path, root: Path) -> Session:
    return session_of(llama, root)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "CHUNK", 2)


def test_everything_is_read_and_told_of_once_what_is_in_view_first(session: Session) -> None:
    desk, pane = Desk(session), Pane(session)
    keys = [p.key for p in desk.state.shown]
    pane.view = (keys[30], keys[31], keys[32])
    desk.loader.load(pane, None)  # type: ignore[arg-type]
    desk.jobs.popleft()()
    assert desk.told == []
    desk.jobs.popleft()()
    assert desk.told[0].keys == set(pane.view)
    desk.jobs.popleft()()
    desk.loader.in_view = (keys[40],)  # the user has moved on
    desk.jobs.popleft()()
    assert pane.loaded[:6] == [*pane.view, *keys[:2], keys[40]]
    desk.work()
    told = [key for message in desk.told for key in message.keys]
    assert (sorted(told), sorted(pane.loaded)) == (sorted(keys), sorted(keys))
    assert len(desk.told) <= MOST_TOLD + 4
    assert not any(message.of_lens for message in desk.told)
    desk.loader.load(pane, None)  # type: ignore[arg-type]
    desk.work()
    assert (len(pane.loaded), sum(len(message.keys) for message in desk.told)) == (len(keys), len(keys))


def test_a_later_question_overtakes_and_what_was_read_is_told(session: Session) -> None:
    desk, pane = Desk(session), Pane(session)
    keys = {p.key for p in desk.state.shown}
    desk.loader.load(pane, None)  # type: ignore[arg-type]
    desk.jobs.popleft()()
    begun = set(pane.loaded)
    assert len(begun) == 2
    desk.state.top = Views.HEATMAP
    desk.loader.load(pane, None)  # type: ignore[arg-type]  # 90 % of the energy: the store's table has that
    desk.work()
    assert set(pane.loaded) == begun == {key for message in desk.told for key in message.keys}
    desk.state.top = Views.TABLE
    desk.loader.load(pane, None)  # type: ignore[arg-type]
    desk.work()
    assert sorted(pane.loaded) == sorted(keys)


def test_what_was_read_before_the_disk_failed_is_told(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    desk, pane = Desk(session), Pane(session)
    monkeypatch.setattr(loading, "MOST_TOLD", 1)
    desk.loader.load(pane, None)  # type: ignore[arg-type]
    desk.jobs.popleft()()
    assert (len(pane.loaded), desk.told) == (2, [])
    monkeypatch.setattr(pane, "load", lambda _: (_ for _ in ()).throw(OSError("the disk")))
    with pytest.raises(OSError, match="the disk"):
        desk.work()
    assert [message.keys for message in desk.told] == [set(pane.loaded)]
    assert not desk.jobs


@pytest.fixture(scope="module")
def moe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    weights = llama_weights(LAYERS)
    for layer in range(LAYERS):
        for role in ("gate_proj", "up_proj", "down_proj"):
            whole = weights.pop(f"model.layers.{layer}.mlp.{role}.weight")
            for expert in range(EXPERTS):
                weights[f"model.layers.{layer}.mlp.experts.{expert}.{role}.weight"] = whole[: 40 - expert] + expert
    return save_model(tmp_path_factory.mktemp("moe") / "moe", weights, {**LLAMA, "model_type": "qwen3_moe"})


def fill_part(moe: Path, root: Path) -> None:
    """Store everything but the experts 3 and 7, and the output of layer 1, which a test makes fail."""
    every = [p.address for p in fill(moe, root, ()).tree.scanned()]
    lacking = (".expert.3.", ".expert.7.", "layers.1.attention.output")
    fill(moe, root, [address for address in every if not any(part in address for part in lacking)])


class Watched:
    """A session that counts what was counted, read and reported."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.events: list[str] = []
        for owner, name in (
            (Look, "forget"), (Session, "stored"), (Session, "read"), (TreeNode, "refresh"), (NumbersLoaded, "__init__")
        ):  # fmt: skip
            self._watch(monkeypatch, owner, name)

    def _watch(self, monkeypatch: pytest.MonkeyPatch, owner: type, name: str) -> None:
        before = getattr(owner, name)

        def watched(*arguments: object, **named: object) -> object:
            self.events.append(f"{owner.__name__}.{name}")
            return before(*arguments, **named)

        monkeypatch.setattr(owner, name, watched)

    def take(self) -> list[str]:
        found, self.events = self.events, []
        return found


async def checked(view: View, moe: Path, threshold: float) -> None:
    """Check the heatmap's experts and the tree's counts against LAPACK."""
    weights = load_file(moe / "model.safetensors")
    name = "model.layers.1.mlp.experts.{}.up_proj.weight"
    ranks = [numpy_rank(weights[name.format(e)], threshold) for e in range(EXPERTS) if e not in (3, 7)]
    heatmap = view.app.explorer.heatmap
    column = [c.role for c in heatmap.grid.columns].index("up")
    cell = heatmap._look.cell(heatmap.grid.rows[1], heatmap.grid.columns[column])
    assert cell.forms[0] == f"{np.median(ranks):.0f} {len(ranks)}/{EXPERTS}"
    each = 4 + 3 * EXPERTS
    stored = [each - 6, each - 7, each - 6]
    assert [f"{n}  {count} of {each}" in "\n".join(view.labels) for n, count in enumerate(stored)] == [True] * 3


async def test_another_threshold_counts_nothing_and_reads_nothing(
    moe: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill_part(moe, root)
    async with exploring(moe, root, HUGE) as view:
        await view.rests()
        watched, counts = Watched(monkeypatch), dict(view.app.explorer.look._counts)
        assert len(counts) == LAYERS * 7
        for threshold in (0.95, 0.99):
            await view.press("t")
            assert view.app.explorer.state.threshold == threshold
            await checked(view, moe, threshold)
        view.app.explorer.state.set_unit("stable_rank")
        await view.rests()
        found = watched.take()
        assert {"Look.forget", "Session.stored", "NumbersLoaded.__init__"}.isdisjoint(found)
        assert all(view.app.explorer.look._counts[place] is count for place, count in counts.items())
        # No visible line of the tree has a number: lines of layers and blocks are not drawn again.
        assert "TreeNode.refresh" not in found


async def test_a_threshold_that_is_not_in_the_table_arrives_in_parts_and_is_right(
    moe: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill_part(moe, root)
    async with exploring(moe, root, HUGE) as view:
        await view.rests()
        state = view.app.explorer.state
        watched = Watched(monkeypatch)
        state.set_threshold(0.97)
        state.step_threshold(1)  # it is overtaken, and requested again
        state.step_threshold(-1)
        await view.rests()
        await view.until(lambda: not state.lens.unread(), "all ranks")
        await view.pilot.pause()
        # There are 60 chunks. The first load may have come far before it was overtaken.
        assert 1 < watched.take().count("NumbersLoaded.__init__") <= 2 * MOST_TOLD + 4
        await checked(view, moe, 0.97)


async def test_the_table_fills_without_a_recount_also_the_second_time(
    moe: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill_part(moe, root)
    async with exploring(moe, root, HUGE) as view:
        await view.rests()
        table = view.app.explorer.table
        watched = Watched(monkeypatch)
        await view.press("5")
        await view.rests()
        await view.until(lambda: not table.unread(), "all facts")
        await view.pilot.pause()
        found = watched.take()
        assert {"Look.forget", "Session.stored"}.isdisjoint(found)
        assert 1 <= found.count("NumbersLoaded.__init__") <= MOST_TOLD + 4
        weights = load_file(moe / "model.safetensors")
        fields = {field.name: field for field in table._fields}
        for p in view.app.explorer.state.shown:
            sigma = np.linalg.svd(weights[p.tensor].astype(np.float64), compute_uv=False)
            is_there = view.app.explorer.state.session.entry(p) is not None
            assert (fields["nuclear_ratio"].text(p) != ".") == is_there
            if is_there:
                assert fields["nuclear_ratio"].number(p) == pytest.approx(sigma.sum() / sigma[0])
                assert fields["stable_rank"].number(p) == pytest.approx(stable_rank(sigma))
        await view.press("3", "5", "t", "t")
        await view.rests()
        assert {"Look.forget", "Session.stored", "NumbersLoaded.__init__"}.isdisjoint(watched.take())
        await checked(view, moe, 0.99)
