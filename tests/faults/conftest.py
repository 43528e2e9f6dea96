"""Fixtures for opening models: a stand-in Hub for the real client in this process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_server import HubServer, serve
from remote_models import END, Clock

from rankscope.engine.checkpoint import remote, retries
from rankscope.engine.formats import torch_zip


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """Set the client's constants and not the variables: the client reads the environment when it is imported."""
    from huggingface_hub import close_session, constants

    with serve() as server:
        values = {
            "ENDPOINT": server.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": server.url + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HOME": str(tmp_path / "hf"),
            "HF_HUB_CACHE": str(tmp_path / "hf" / "hub"),
            "HF_TOKEN_PATH": str(tmp_path / "hf" / "token"),
            "HF_STORED_TOKENS_PATH": str(tmp_path / "hf" / "stored_tokens"),
            "AGENT_HARNESSES_PATH": str(tmp_path / "hf" / "harnesses.json"),
            "HF_HUB_OFFLINE": False,
            "HF_HUB_DISABLE_PROGRESS_BARS": True,
        }
        for name, value in values.items():
            monkeypatch.setattr(constants, name, value, raising=False)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        monkeypatch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
        monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)  # between retries
        monkeypatch.chdir(tmp_path)
        close_session()
        yield server
        close_session()


@pytest.fixture
def short_first_range(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the first request short: the test files are small, and it must not fetch all of them."""
    monkeypatch.setattr(remote, "FIRST", 1000)


@pytest.fixture
def short_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the first requests for both ends of a PyTorch file short."""
    monkeypatch.setattr(remote, "FIRST", END)
    monkeypatch.setattr(torch_zip, "_MORE", END)
    monkeypatch.setattr(torch_zip, "_BEFORE", END // 4)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Waiting for a server takes no time."""
    made = Clock()
    monkeypatch.setattr(retries, "clock", made)
    monkeypatch.setattr(retries, "pause", made.pause)
    return made
