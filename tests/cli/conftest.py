"""`rankscope` in this process, each test on a store of its own."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from cli_models import write_llama
from cli_process import Ran, Run

from rankscope.tui.cli.main import main


@pytest.fixture(autouse=True)
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The store of the test, for this process and its children."""
    root = tmp_path / "store"
    for name in ("LC_ALL", "LC_CTYPE", "COLUMNS", "FORCE_COLOR", "NO_COLOR", "PYTHONUNBUFFERED"):
        monkeypatch.delenv(name, raising=False)
    values = {"RANKSCOPE_STORE": str(root), "HF_HUB_OFFLINE": "1", "LANG": "C.UTF-8", "TERM": "xterm"}
    for name, value in {**values, "OMP_NUM_THREADS": "1"}.items():
        monkeypatch.setenv(name, value)
    return root


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command in this process; imports cost seconds in each new one."""

    def run(*words: str | Path) -> Ran:
        try:
            code = main([str(word) for word in words])
        except SystemExit as end:
            code = int(end.code or 0)
        out, err = capsys.readouterr()
        return Ran(code, out, err)

    return run


@pytest.fixture(scope="session")
def _scanned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model and the store that a scan of it made."""
    folder = tmp_path_factory.mktemp("scanned")
    write_llama(folder / "m")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("RANKSCOPE_STORE", str(folder / "store"))
        assert main(["scan", str(folder / "m")]) == 0
    return folder


@pytest.fixture
def scanned(_scanned: Path, store: Path) -> Path:
    """A llama of two layers that all tests share and none changes; all of it is in the store of this test."""
    shutil.copytree(_scanned / "store", store)
    return _scanned / "m"
