"""Links out of a model's folder: followed into a Hub cache's blobs, elsewhere only where the user allows it."""

from __future__ import annotations

from pathlib import Path

import pytest
from opening import QUERY, index, refusal, weights

from rankscope.engine.checkpoint.open import open_checkpoint
from rankscope.engine.formats.guarded import LINKS
from rankscope.engine.formats.safetensors import INDEX
from rankscope.tui.cli.main import main

BLOB = "a" * 64


def linked(folder: Path, target: Path, name: str = "model.safetensors") -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(weights(QUERY))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).symlink_to(target)
    return folder


@pytest.mark.parametrize("name", ["model.safetensors", "parts/odd.safetensors"])
def test_links_into_any_hub_cache_are_inside(tmp_path: Path, name: str) -> None:
    """Older versions of the Hub's client left such links when they downloaded a model to a folder."""
    (tmp_path / "work" / "parts").mkdir(parents=True)
    folder = linked(tmp_path / "work", tmp_path / "cache" / "models--org--a" / "blobs" / BLOB, name)
    if "/" in name:
        (folder / INDEX).write_bytes(index({QUERY: name}))
    (tensor,) = open_checkpoint(str(folder)).tensors
    assert (tensor.source.identity, tensor.source.content_addressed) == (BLOB, True)


@pytest.mark.parametrize(
    "place", ["elsewhere/x", "cache/datasets--org--a/blobs/x", "cache/models--org--a/blobs/y/x", "blobs/x"]
)
def test_other_links_need_the_users_word(
    tmp_path: Path, place: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LINKS, "followed", False)
    folder = linked(tmp_path / "work", tmp_path / place)
    line = f"is a link out of its folder: name the folder of {tmp_path / place}, or add --follow-links"
    assert refusal(folder).endswith(line)
    assert main(["tree", str(folder), "--follow-links"]) == 0
    assert "layers.0.attention.query" in capsys.readouterr().out
    assert main(["tree", str(folder)]) == 2
    assert line in capsys.readouterr().err
