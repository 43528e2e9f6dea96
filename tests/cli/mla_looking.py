"""References for the tests of latent attention on the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from rankscope.engine.compute.opened import OpenedCheckpoints
from rankscope.engine.compute.remote_batch import light
from rankscope.engine.derive.latent import Way
from rankscope.tui.data.chosen_weighting import choose
from rankscope.tui.data.latent_layers import layers_of
from rankscope.tui.data.model import open_model


def smallest(sigma: Any, most: float) -> int:
    """The smallest k whose tail is at most `most`."""
    return next(k for k in range(len(sigma) + 1) if (sigma[k:] ** 2).sum() <= most * (1 + 1e-12))


def table(out: str) -> dict[str, list[str]]:
    """The lines of the last table by their first word."""
    return {
        words[0]: words[1:] for line in out.splitlines() if len(words := line.split()) > 4 and words[2][:4] != "keep"
    }


def elsewhere(folder: Path, weight: Path | None, chosen: Way) -> None:
    """Check that another process that opens the same files makes the same derived projections, operands included."""
    model = open_model(str(folder), folder / "store")
    assert model.checkpoint is not None
    under = None if weight is None else choose(str(weight), model, folder / "store", print)
    for p in (p for layer in layers_of(model, chosen, under) for p in layer.wanted if p.derived is not None):
        assert p.derived is not None
        there = OpenedCheckpoints([model.checkpoint]).whole(light(p)).derived
        assert there is not None
        for ours, theirs in zip(p.derived.operands, there.operands, strict=True):
            assert ours.load is not None
            assert theirs.load is not None
            np.testing.assert_array_equal(ours.load(), theirs.load())
