"""Separate processes on one store: pipes, signals, kills, two at once, and what they import."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_models import addresses, lapack, write, write_llama
from cli_process import NEXT, SEVERAL, Run, finish, spawn, start

REPORT = (
    "import sys, atexit; atexit.register(lambda: print(*sorted({'torch', 'numpy', 'rich', 'textual', 'h5py', "
    "'plotext', 'gguf', 'huggingface_hub', 'safetensors'} & set(sys.modules)), file=sys.stderr)); "
)
VERSION_1 = Path(__file__).parents[1] / "unit/store/version_1/seg-6179995df259f2056fe27491e8e45b9f.h5"
LIGHT = REPORT + "from rankscope.tui.cli import main as cli; sys.exit(cli.{main}())"


@pytest.fixture(scope="module")
def long_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """96 matrices that take more than a second, so that a scan can be interrupted in the middle."""
    return attention_only(tmp_path_factory.mktemp("models") / "long", 24, 448)


def attention_only(folder: Path, layers: int, side: int) -> Path:
    rng = np.random.default_rng(1)
    leaves = ("q_proj", "k_proj", "v_proj", "o_proj")
    names = [f"model.layers.{layer}.self_attn.{leaf}.weight" for layer in range(layers) for leaf in leaves]
    write(folder, {name: rng.standard_normal((side, side)).astype(np.float16) for name in names})
    return folder


def read_rows(process: subprocess.Popen[str], count: int) -> list[dict[str, Any]]:
    """The next rows from the pipe, as they come."""
    assert process.stdout is not None
    return [json.loads(process.stdout.readline()) for _ in range(count)]


def test_kill_9_loses_no_row_that_was_printed(long_model: Path, cli: Run) -> None:
    printed: dict[str, float] = {}
    for fresh in (1, 4, 9):
        process = start("scan", long_model, "--json")
        rows = read_rows(process, 1)
        while rows[-1]["state"] == "stored":
            rows += read_rows(process, 1)
        # More may be stored than was printed: what was saved just before the kill.
        assert printed.items() <= {row["address"]: row["sigma_max"] for row in rows[:-1]}.items()
        rows += read_rows(process, fresh - 1)
        assert process.poll() is None
        process.kill()
        rest = finish(process)
        assert rest.code == -signal.SIGKILL
        lines = [json.loads(line) for line in rest.out.splitlines(keepends=True) if line.endswith("\n")]
        printed |= {row["address"]: row["sigma_max"] for row in [*rows, *lines]}
    ran = cli("tree", long_model, "--json")
    assert printed.items() <= {row["address"]: row["sigma_max"] for row in ran.rows}.items()
    assert all(ran.states[address] == "stored" for address in printed)
    assert "not computed" in ran.states.values()


def test_a_reader_that_leaves_after_the_first_row(tmp_path: Path, cli: Run) -> None:
    model = attention_only(tmp_path / "m", 2, 1024)  # all rows fit in one buffer of 8 kB: this one was flushed
    process = start("scan", model, "--json")
    (first,) = read_rows(process, 1)
    assert process.poll() is None
    assert (first["state"], first["error"]) == ("done", None)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    err = process.stderr.read()
    process.wait(timeout=60)
    process.stderr.close()
    assert "Traceback" not in err
    assert "Exception" not in err
    states = cli("tree", model, "--json").states
    assert states[first["address"]] == "stored"
    assert "not computed" in states.values()


@pytest.mark.parametrize("words", [("show", "m"), ("tree", "m"), ("tree", "m", "--json"), ("ls",)])
def test_output_into_a_closed_pipe_is_silent(
    tmp_path: Path, cli: Run, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_llama(tmp_path / "m", 1)
    cli("scan", "m")
    reading, writing = os.pipe()
    os.close(reading)
    process = start(*words, stdout=writing)
    os.close(writing)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")


def test_two_scans_of_one_store_at_once(tmp_path: Path, cli: Run) -> None:
    arrays = write_llama(tmp_path / "m", 4)
    both = [start("scan", tmp_path / "m", "--json") for _ in range(2)]
    for ran in [finish(process) for process in both]:
        assert ran.code == 0
        assert sorted(ran.states) == sorted(addresses(4))
        assert set(ran.states.values()) <= {"done", "stored"}
    rows = cli("scan", tmp_path / "m", "--json").rows
    assert [(row["address"], row["state"]) for row in rows] == [(address, "stored") for address in addresses(4)]
    for row in rows:
        assert row["sigma_max"] == pytest.approx(lapack(arrays[row["tensor"]])[0], rel=1e-12)


def test_a_scan_of_what_is_stored_imports_no_torch(tmp_path: Path, cli: Run) -> None:
    write_llama(tmp_path / "m", 1)
    cli("scan", tmp_path / "m")
    words = ("scan", tmp_path / "m", "--json", NEXT, "show", tmp_path / "m", NEXT, "tree", tmp_path / "m")
    planned = ("plan", tmp_path / "m", "--cut", "20%", "--min-rank", "2", "-o", tmp_path / "plan.json")
    ran = spawn(*words, NEXT, *planned, program=REPORT + SEVERAL)
    assert ran.code == 0
    assert "h5py" in ran.err
    assert "torch" not in ran.err
    assert "textual" not in ran.err


@pytest.mark.parametrize("main", ["main", "main_tui"])
@pytest.mark.parametrize("word", ["--help", "--version"])
def test_help_and_version_import_nothing_heavy(main: str, word: str) -> None:
    ran = spawn(word, program=LIGHT.replace("{main}", main))
    assert (ran.code, ran.err) == (0, "\n")
    assert ran.out.startswith("usage: " if word == "--help" else "rankscope")
    assert ran.out.isascii()


def test_what_lists_and_removes_stored_models_imports_nothing_that_opens_one(store: Path) -> None:
    (store / "org--tiny").mkdir(parents=True)
    shutil.copy(VERSION_1, store / "org--tiny")
    names = {"spectrum", "errors", "metrics", "bounds", "atomic"}
    modules = "*(name for name in sys.modules if name.startswith('rankscope.engine.'))"
    program = (
        f"import sys, atexit; atexit.register(lambda: print({modules}, file=sys.stderr)); "
        "from rankscope.tui.cli.main import main; sys.exit(main())"
    )
    for words in (["--version"], ["ls"], ["rm", "org/tiny"]):
        ran = spawn(*words, program=program)
        assert ran.code == 0
        assert {module.split(".")[2] for module in ran.err.splitlines()[-1].split()} <= names
    assert list(store.iterdir()) == []


def test_the_explorer_without_a_terminal_is_wrong_use() -> None:
    ran = spawn("demo", program=LIGHT.replace("{main}", "main_tui"))
    assert ran.code == 2
    line, modules = ran.err.splitlines()
    assert "needs a terminal" in line
    assert modules == ""


@pytest.mark.parametrize(
    "locale",
    [{"LC_ALL": "C", "LANG": "C"}, {"LANG": "C"}, {"LC_ALL": "C", "PYTHONUTF8": "0"}],
    ids=["LC_ALL", "LANG", "no UTF-8 mode"],
)
def test_names_beyond_ascii_in_the_c_locale(tmp_path: Path, cli: Run, locale: dict[str, str]) -> None:
    name = "Schlüssel.漢字.weight"
    write_llama(tmp_path / "bücher-é", 1, changes={name: np.eye(6, dtype=np.float32)})
    env = {**locale, "PYTHONIOENCODING": "ascii"}
    if "PYTHONUTF8" not in locale:
        cli("scan", tmp_path / "bücher-é", "--filter", "other*")
    else:
        assert spawn("scan", tmp_path / "bücher-é", "--filter", "other*", env=env).code == 0
    model, out = tmp_path / "bücher-é", tmp_path / "größe.csv"
    words = ("show", model, "--filter", "other*", NEXT, "tree", model, NEXT, "tree", model, "--json", NEXT)
    ran = spawn(*words, "export", model, "--filter", "other*", "-o", out, env=env, program=SEVERAL)
    assert ran.code == 0
    assert ran.err.startswith(f"2 spectra in {tmp_path}")
    assert len(ran.err.splitlines()) == 1
    assert (ran.out + ran.err).isascii()
    shown = ran.out.split(NEXT)
    assert ["Schl" in text for text in shown] == [True, True, True, False, False]
    assert "Schlüssel" in out.read_text(encoding="utf-8")
