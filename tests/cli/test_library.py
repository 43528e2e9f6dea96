"""The library of docs/LIBRARY.md: what it computes, how it ends, and how a notebook shows its objects."""

from __future__ import annotations

import csv
import re
import shutil
import signal
import sys
import threading
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_models import EMBEDDING, HIDDEN, KV, Arrays, addresses, lapack, tensor_name, threshold_rank, write_llama
from cli_process import Run
from safetensors.numpy import save_file

from rankscope.engine.compute.events import Progress
from rankscope.engine.errors import InputError
from rankscope.tui.data.library import OpenModel, open_model
from rankscope.tui.data.session import Session, State

KEY = "layers.0.attention.key"
HOSTILE = "<img src=x onerror=alert(1)>"


@pytest.fixture
def arrays(tmp_path: Path) -> Arrays:
    return write_llama(tmp_path / "m")


@pytest.fixture
def model(tmp_path: Path, arrays: Arrays) -> OpenModel:
    assert arrays
    return open_model(tmp_path / "m")


def test_a_scan_gives_what_lapack_gives(tmp_path: Path, cli: Run, model: OpenModel, arrays: Arrays) -> None:
    assert [p.address for p in model.projections] == addresses()
    assert np.isnan(model.numbers()).all()
    seen: list[Progress] = []
    assert model.scan("*.key", progress=seen.append) == {}
    assert (seen[-1].done, seen[-1].total, seen[-1].busy) == (2, 2, False)
    assert model.scan(progress=seen.append) == {}
    assert seen[-1].total == 12
    true = [lapack(arrays[tensor_name(address)]) for address in addresses()]
    for address, values in zip(addresses(), true, strict=True):
        spectrum = model.spectrum(address)
        np.testing.assert_allclose(spectrum.values, values, atol=1e-7 * values[0])
        assert (spectrum.values.dtype, spectrum.projection.address) == (np.float64, address)
    for threshold in (0.9, 0.97):
        ranks = [threshold_rank(values, threshold) for values in true]
        assert model.numbers("k", threshold).tolist() == ranks
        assert model.table(threshold)[f"k{threshold * 100:g}"].tolist() == ranks
        assert model.heatmap("k", threshold).values.ravel().tolist() == ranks
    assert cli("scan", tmp_path / "m", "--json").rows[0]["state"] == "stored"  # the same store as the commands
    count = len(seen)
    assert model.scan(progress=seen.append) == {}
    assert len(seen) == count  # nothing was left to compute


def test_a_spectrum_is_computed_where_it_is_not_stored(model: OpenModel, arrays: Arrays) -> None:
    for address, tensor in ((KEY, tensor_name(KEY)), (EMBEDDING, "model.embed_tokens.weight")):
        true = lapack(arrays[tensor])
        np.testing.assert_allclose(model.spectrum(address).values, true, atol=1e-7 * true[0])
    assert repr(model) == "<m: 14 projections, 1 stored>"


def test_what_the_commands_compute_meanwhile_is_found(tmp_path: Path, cli: Run, model: OpenModel) -> None:
    assert np.isnan(model.numbers("k")).all()
    cli("scan", tmp_path / "m", "--filter", "layers.1")
    assert np.isnan(model.numbers("k")).tolist() == [True] * 7 + [False] * 7


def test_a_frame_has_the_rows_of_the_table(model: OpenModel, monkeypatch: pytest.MonkeyPatch) -> None:
    model.scan("layers.0")
    frame = model.frame()
    assert frame["address"].tolist() == addresses()
    assert frame["k90"].isna().tolist() == [False] * 7 + [True] * 7
    assert frame.set_index("address").loc[KEY, ["rows", "cols"]].tolist() == [KV, 24]
    assert frame["layer"].dtype.kind == "i"
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(InputError, match=r"^pandas is not installed: pip install pandas, or take \.table\(\)$"):
        model.frame()


@pytest.mark.parametrize("stops", ["ctrl+c", "an error of the caller"])
def test_a_stopped_scan_keeps_what_is_finished(tmp_path: Path, stops: str, monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = write_llama(tmp_path / "m", 20)
    model = open_model(tmp_path / "m")

    def stop(now: Progress) -> None:
        if not now.done:
            return
        if stops == "ctrl+c":
            signal.raise_signal(signal.SIGINT)
        raise ZeroDivisionError

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it for background processes
    try:
        with pytest.raises((KeyboardInterrupt, ZeroDivisionError)) as raised:
            model.scan(progress=stop)
    finally:
        signal.signal(signal.SIGINT, before)
    assert raised.type is (KeyboardInterrupt if stops == "ctrl+c" else ZeroDivisionError)
    with open_model(tmp_path / "m") as another:
        assert not np.isnan(another.numbers("k")).all()

    def tidy(session: Session) -> None:
        """What the first scan left is reported while the second begins."""
        if any(session.state(p) is State.QUEUED for p in model.projections):
            model._events.put(model._events.get(timeout=60))

    monkeypatch.setattr(Session, "tidy", tidy)
    monkeypatch.setattr(OpenModel, "_look", lambda _: None)
    assert model.scan() == {}
    assert not np.isnan(model.numbers("k")).any()
    true = lapack(arrays[tensor_name(KEY)])
    np.testing.assert_allclose(model.spectrum(KEY).values, true, atol=1e-7 * true[0])


def test_closing_ends_the_threads_and_what_is_stored_is_read(tmp_path: Path, arrays: Arrays) -> None:
    before = set(threading.enumerate())
    with open_model(tmp_path / "m") as model:
        model.scan("*.key")
        assert set(threading.enumerate()) > before
    assert set(threading.enumerate()) <= before
    true = lapack(arrays[tensor_name(KEY)])
    np.testing.assert_allclose(model.spectrum(KEY).values, true, atol=1e-7 * true[0])
    with pytest.raises(InputError, match=r"^m is closed: open it again$"):
        model.scan()
    model.close()


def test_a_model_that_is_gone_opens_from_what_is_stored(tmp_path: Path, model: OpenModel, arrays: Arrays) -> None:
    model.scan("layers.0")
    shutil.rmtree(tmp_path / "m")
    with pytest.warns(UserWarning, match="shown is what is stored of it"):
        gone = open_model(tmp_path / "m")
    with gone:
        assert [p.address for p in gone.projections] == addresses(1)
        true = lapack(arrays[tensor_name(KEY)])
        np.testing.assert_allclose(gone.spectrum(KEY).values, true, atol=1e-7 * true[0])
        assert gone.scan() == {}
        with pytest.raises(InputError, match=r"^only what is stored can be shown: .*$"):
            gone.scan(recompute=True)
        with pytest.raises(InputError, match=r"^no projection 'layers.1.attention.key' in .*: see \.projections$"):
            gone.spectrum("layers.1.attention.key")


def test_failures_are_told_by_address(tmp_path: Path) -> None:
    bad = np.full((KV, 24), np.nan, np.float32)
    write_llama(tmp_path / "m", 1, changes={tensor_name(KEY): bad})
    with open_model(tmp_path / "m") as model:
        failed = model.scan()
        assert set(failed) == {KEY}
        assert "\n" not in failed[KEY]
        with pytest.raises(InputError, match=f"^{re.escape(KEY)}: .*NaN"):
            model.spectrum(KEY)
        html = Page(model._repr_html_())
        assert [text for _, text in html.cells].count("!") == 1
        assert model.scan(progress=lambda _: None) == failed


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"name": "absent/model.safetensors"}, "absent"),
        ({"name": "a\0b"}, "holds a zero byte"),
        ({"weight": "absent.imatrix"}, "absent.imatrix"),
        ({"gauge": "loose"}, "gauge is raw or fixed, not 'loose'"),
        ({"device": "tpu"}, "auto, cpu, cuda"),
        ({"experts": 0}, "experts must be a whole number above 0, not 0"),
        ({"threads": -1}, "threads must be a whole number above 0, not -1"),
    ],
)
def test_what_cannot_be_opened_is_one_line(tmp_path: Path, arrays: Arrays, given: dict[str, Any], message: str) -> None:
    assert arrays
    with pytest.raises(InputError, match=re.escape(message)) as raised:
        open_model(**{"name": tmp_path / "m", **given})
    assert "\n" not in str(raised.value)


def test_what_cannot_be_asked_is_one_line(tmp_path: Path, model: OpenModel) -> None:
    for ask, message in (
        (lambda: model.spectrum(HOSTILE + "\x1b[2J"), "no projection"),
        (lambda: model.spectrum("other.model.layers.0.input_layernorm.weight"), "not a matrix"),
        (lambda: model.numbers("rank"), "no unit 'rank': k percent"),
        (lambda: model.numbers("energy"), "no unit 'energy': k percent"),
        (lambda: model.heatmap("energy"), "no unit 'energy': k percent"),
        (lambda: model.numbers("k", 90), "threshold is a share"),
        (lambda: model.numbers("k", float("nan")), "threshold is a share"),
        (lambda: model.heatmap("k", "90"), "threshold is a share"),  # type: ignore[arg-type]
        (lambda: model.scan("nothing"), "no address matches 'nothing'"),
    ):
        with pytest.raises(InputError, match=message) as raised:
            ask()
        assert str(raised.value).isprintable()
    (tmp_path / "file").write_text("")
    with (
        pytest.warns(UserWarning, match="Not a directory"),
        pytest.raises(InputError, match="cannot write to the store"),
    ):
        open_model(tmp_path / "m", store=tmp_path / "file" / "store").scan()


def test_a_weighting_and_a_gauge_are_words(tmp_path: Path, cli: Run) -> None:
    gains = np.linspace(0.5, 2.0, HIDDEN, dtype=np.float32)
    norms = {f"model.layers.0.{name}_layernorm.weight": gains for name in ("input", "post_attention")}
    write_llama(tmp_path / "m", 1, changes=norms)
    for options in ({"weight": "norm"}, {"gauge": "fixed"}):
        with open_model(tmp_path / "m", **options) as model:
            assert model.scan("layers.0") == {}
            words = [f"--{name}={value}" for name, value in options.items()]
            shown = cli("show", tmp_path / "m", *words, "--filter", "layers.0", "--view", "table", "--csv").out
            ranks = [float(row["k90"]) for row in csv.DictReader(shown.splitlines())]
            assert model.numbers("k", filter="layers.0").tolist() == ranks
            assert next(iter(options.values())) in model.heatmap("k").title
            made = model.spectrum(KEY).projection.derived
            assert made is not None
            assert {"weight": made.weighting, "gauge": made.gauge}[next(iter(options))] == next(iter(options.values()))


class Page(HTMLParser):
    """A parser that collects styled cells, tags and attributes, and checks that tags are closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.cells: list[tuple[str, str]] = []
        self.names: set[str] = set()
        self._open: list[str] = []
        self.feed(html)
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._open.append(tag)
        self.names |= {tag, *(name for name, _ in attrs)}
        if tag == "td":
            self.cells.append((dict(attrs)["style"] or "", ""))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open[-1] == "td":
            self.cells[-1] = (self.cells[-1][0], data)


def luminance(colour: str) -> float:
    """The relative luminance of #rgb or #rrggbb (WCAG 2.1)."""
    digits = colour[1:] if len(colour) == 7 else "".join(2 * c for c in colour[1:])
    parts = [int(digits[at : at + 2], 16) / 255 for at in (0, 2, 4)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))


def test_a_cell_of_experts_is_their_median_and_names_a_failure(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    place = "model.layers.0.mlp.experts"
    experts = {f"{place}.{n}.up_proj.weight": rng.standard_normal((40, 24)).astype(np.float32) for n in range(4)}
    true = sorted(threshold_rank(lapack(weights), 0.9) for weights in [*experts.values()][1:])
    experts[f"{place}.0.up_proj.weight"][3, 4] = np.inf
    write_llama(tmp_path / "m", 1, changes=experts)
    with open_model(tmp_path / "m") as model:
        assert list(model.scan()) == ["layers.0.expert.0.up"]
        heatmap = model.heatmap("k", 0.9)
        at = heatmap.columns.index("expert.up")
        assert heatmap.values[0, at] == true[1]
        cell = heatmap.cells[0][at]
        assert (cell.text, cell.note) == (f"{true[1]} !", "median of 3 of 4 experts, 1 failed")
    with open_model(tmp_path / "m", experts=2) as model:
        found = [p.address for p in model.projections if p.expert is not None]
        assert found == ["layers.0.expert.0.up", "layers.0.expert.2.up"]


def test_a_notebook_shows_what_reads_on_any_ground(tmp_path: Path) -> None:
    write_llama(tmp_path / HOSTILE, 6)
    with open_model(tmp_path / HOSTILE) as model:
        model.scan("layers.[0-4].*")
        html = model.heatmap("k", 0.9)._repr_html_()
        page = Page(html)
        assert page.names <= {*["table", "caption", "thead", "tbody", "tr", "th", "td"], "style", "title"}
        assert HOSTILE not in html
        assert "&lt;img" in html
        assert len(page.cells) == 6 * 7
        assert [int(text) for _, text in page.cells[:35]] == model.numbers("k").tolist()[:35]
        grounds = set()
        for style, _ in page.cells[:35]:
            found = dict(part.split(":") for part in style.split(";"))
            light, dark = sorted((luminance(found["background-color"]), luminance(found["color"])))
            assert (dark + 0.05) / (light + 0.05) >= 4.5
            grounds.add(found["background-color"])
        assert len(grounds) > 1
        for style, text in page.cells[35:]:
            assert text == "."
            assert "color" not in style  # the page's colours
        assert model._repr_html_() == model.heatmap("k/k0", 0.9)._repr_html_()


def test_matrices_outside_of_layers_have_a_table_and_no_heatmap(tmp_path: Path) -> None:
    weights = np.random.default_rng(0).standard_normal((5, 7)).astype(np.float32)
    save_file({"odd": weights, "vector": np.ones(3, np.float32)}, tmp_path / "odd.safetensors")
    with open_model(tmp_path / "odd.safetensors") as model:
        assert model.scan() == {}
        assert model.table()["k90"].tolist() == [threshold_rank(lapack(weights), 0.9)]
        assert model.heatmap().values.shape == (0, 0)
        assert "no layers, see .table()" in model._repr_html_()
