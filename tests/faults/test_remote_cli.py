"""`rankscope` and the explorer on a model that is not downloaded."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hub_server import HubServer, Odd
from hub_server import refused as refusing
from remote_models import CONFIG, NAME, SHARD_2, SHARDED, Clock
from safetensors.numpy import save

from rankscope.engine.compute.engine import ComputeSettings
from rankscope.engine.compute.events import Progress
from rankscope.tui.cli.main import main
from rankscope.tui.data.model import open_model
from rankscope.tui.data.session import Session
from rankscope.tui.data.wording import describe
from rankscope.tui.screens import dialogs
from rankscope.tui.screens.app import RankScopeApp
from rankscope.tui.screens.estimate import estimate
from rankscope.tui.screens.status_lines import model_text
from rankscope.tui.settings.config import Config

pytestmark = pytest.mark.usefixtures("short_first_range")
Cli = Callable[..., tuple[int, str, str]]
MOE = {
    "config.json": json.dumps(CONFIG | {"model_type": "mixtral"}).encode(),
    "model.safetensors": save(
        {
            f"model.layers.{layer}.block_sparse_moe.experts.{e}.w{w}.weight": np.full((32, 64), 1 + e, np.float32)
            for layer in range(2)
            for e in range(16)
            for w in (1, 2, 3)
        }
    ),
}


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    monkeypatch.setenv("RANKSCOPE_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("COLUMNS", "200")

    def run(*words: str) -> tuple[int, str, str]:
        code = main(words)
        return code, *capsys.readouterr()

    return run


def test_a_scan_says_what_it_fetches_and_a_download_computes_nothing_again(hub: HubServer, cli: Cli) -> None:
    hub.push(NAME, SHARDED)
    code, out, err = cli("scan", NAME, "--filter", "layers.0", "--json")
    assert code == 0
    assert {json.loads(line)["state"] for line in out.splitlines()} == {"done"}
    assert err.splitlines()[0] == "fetches 122.9 kB of 245.8 kB"
    assert "7/7" in err
    assert "122.9/122.9 kB" in err
    code, out, err = cli("scan", NAME, "--json")
    assert (code, err.splitlines()[0]) == (0, "fetches 122.9 kB of 245.8 kB")
    assert [json.loads(line)["state"] for line in out.splitlines()] == ["stored"] * 7 + ["done"] * 7
    hub.sent.clear()
    assert cli("scan", NAME)[2] == ""
    assert sum(hub.sent.values()) < 10_000  # headers
    code, out, err = cli("scan", NAME, "--download", "--json")
    assert {json.loads(line)["state"] for line in out.splitlines()} == {"stored"}
    assert hub.sent[SHARD_2] >= len(SHARDED[SHARD_2])
    hub.stop()
    assert cli("scan", NAME)[0] == 0  # from the cache


def test_what_was_computed_is_shown_without_the_server(hub: HubServer, cli: Cli) -> None:
    hub.push(NAME, SHARDED)
    cli("scan", NAME)
    hub.stop()
    code, out, err = cli("show", f"hf://{NAME}", "--csv")
    assert code == 0
    assert len(out.splitlines()) == 15
    cure = f"check the name, or run  rankscope scan hf://{NAME}  to read it from the Hub"
    assert f"not in the local Hub cache: {cure}; shown is what is stored of it" in err


def test_a_tree_needs_headers_only(hub: HubServer, cli: Cli) -> None:
    hub.push(NAME, SHARDED)
    code, out, _ = cli("tree", NAME)
    assert code == 0
    assert "layers.1.mlp.down" in out
    assert sum(hub.sent.values()) < 10_000


def test_a_tensor_that_cannot_be_had_is_a_failure_of_its_own(hub: HubServer, cli: Cli, clock: Clock) -> None:
    hub.push(NAME, SHARDED)
    cli("tree", NAME)
    hub.odd[f"{hub.repos[NAME].refs['main']}/{SHARD_2}"] = [Odd(), refusing(503)]
    code, out, err = cli("scan", NAME, "--json")
    states = {row["address"]: row["state"] for row in map(json.loads, out.splitlines())}
    assert code == 1
    assert {address for address, state in states.items() if state == "failed"} == {a for a in states if "s.1." in a}
    assert len(states) == 14
    assert f"failed: layers.1.mlp.down: cannot fetch {SHARD_2}: the Hub answered 503" in err
    assert "Traceback" not in err
    assert clock.waits


@pytest.mark.parametrize("model", ["hf://datasets/org/tiny", "https://huggingface.co/org/tiny", "org/nothing"])
@pytest.mark.usefixtures("hub")
def test_what_cannot_be_opened_is_one_line(cli: Cli, model: str) -> None:
    code, out, err = cli("scan", model)
    assert (code, out, len(err.splitlines())) == (2, "", 1)


def test_no_token_or_signature_is_printed_or_stored(
    hub: HubServer, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_topsecret")
    hub.gated[NAME] = "hf_topsecret"
    hub.cdn = "localhost"
    hub.push(NAME, SHARDED)
    hub.static["/x.safetensors"] = SHARDED[SHARD_2]
    url = f"http://localhost:{hub.port}/x.safetensors?signature=topsecret"
    monkeypatch.setattr("sys.argv", ["rankscope", "scan", url])
    for model in (NAME, url):
        code, out, err = cli("scan", model)
        assert code == 0
        assert "secret" not in out + err
    assert "secret" not in cli("ls")[1]
    kept = [path for path in (tmp_path / "store").rglob("*") if path.is_file()]
    assert kept
    assert not any(b"secret" in path.read_bytes() for path in kept)


def test_some_experts_of_each_layer(hub: HubServer, cli: Cli) -> None:
    hub.push(NAME, MOE)
    code, out, err = cli("scan", NAME, "--experts", "4")
    assert code == 0
    assert err.splitlines()[0] == "fetches 196.6 kB of 786.4 kB"
    assert "1 4/16" in out
    code, out, _ = cli("scan", NAME, "--experts", "8", "--json")
    states = [json.loads(line) for line in out.splitlines()]
    assert sorted({row["expert"] for row in states}) == [0, 2, 4, 6, 8, 10, 12, 14]
    assert {row["expert"] for row in states if row["state"] == "stored"} == {0, 4, 8, 12}


def test_the_question_before_a_scan_says_what_is_fetched(hub: HubServer, tmp_path: Path) -> None:
    hub.push(NAME, MOE)
    session = Session(open_model(NAME, tmp_path), tmp_path, lambda _: None, ComputeSettings("cpu", 1), 4)
    wanted = session.sampled(session.model.tree.scanned())
    lines = estimate(session, wanted, "")
    assert "fetching 196.6 kB of 786.4 kB" in lines
    assert "at most 4 experts of a layer" in lines


def test_progress_in_bytes() -> None:
    assert describe(Progress(3, 0, 14, 0.5, 60, ("cpu",), True, 1_200_000_000, 3_240_000_000)) == (
        "3/14  0.5/s  ETA 1 min 00 s  1.2/3.2 GB  0 failed"
    )


async def test_the_explorer_opens_scans_and_says_so(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Moving fetches nothing; a scan fetches the tensors after its question, and the last line says done."""
    hub.push(NAME, SHARDED)
    monkeypatch.setattr(dialogs, "QUIET_SECONDS", 0)
    app = RankScopeApp([open_model(NAME, tmp_path)], tmp_path, ComputeSettings("cpu", 1), Config())
    hub.requests.clear()
    async with app.run_test(size=(100, 30)) as pilot:
        session = app.pair.first
        await pilot.press(*"jjjkk33jjll")
        assert hub.requests == []
        assert "245.8 kB, not downloaded" in model_text(app.pair, session.model.tree.scanned(), 2)[0]
        await pilot.press("s")
        while getattr(app.screen, "_painted", None) is None:  # the question takes no key before it can be read
            await pilot.pause(0.01)
        await pilot.press("y")
        while session.progress is None or session.progress.busy:
            await pilot.pause(0.01)
        assert (session.progress.done, session.progress.fetched) == (14, session.progress.to_fetch)
    app.close(5)
    assert len(hub.requests) == 14
