"""A series of the branches of a repo on the Hub: its branches, that only headers are fetched, and faults."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hub_server import HubServer
from remote_models import NAME, ONE_FILE, tensors
from safetensors.numpy import save

from rankscope.engine.checkpoint.revisions import models_named
from rankscope.engine.errors import InputError
from rankscope.tui.data.series_model import open_series


@pytest.fixture
def branches(hub: HubServer) -> HubServer:
    """A repo with three steps and main."""
    hub.push(NAME, ONE_FILE)
    for step in (1000, 200, 3000):
        weights = {name: w * np.float32(step) for name, w in (tensors(0) | tensors(1)).items()}
        hub.push(NAME, {**ONE_FILE, "model.safetensors": save(weights)}, ref=f"step{step}")
    return hub


def test_branches_are_found_and_only_headers_are_fetched(branches: HubServer, tmp_path: Path) -> None:
    assert models_named([f"{NAME}@step*"]) == [f"{NAME}@step{step}" for step in (1000, 200, 3000)]
    branches.sent.clear()
    model = open_series([f"{NAME}@step*"], tmp_path / "store")
    found = [p.address for p in model.tree.projections if p.address.endswith(".layers.0.attention.query")]
    assert found == [f"step.{step}.layers.0.attention.query" for step in (200, 1000, 3000)]
    assert len({p.key for p in model.tree.projections}) == 3 * 14
    assert sum(branches.sent.values()) < 3 * len(ONE_FILE["model.safetensors"])
    assert models_named([f"{NAME}@ma?n", NAME]) == [f"{NAME}@main", NAME]


def test_what_is_no_branch_and_a_hub_that_fails_are_one_line(branches: HubServer, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"org/tiny@stop\* matches nothing: no branch or tag of org/tiny"):
        models_named([f"{NAME}@stop*"])
    with pytest.raises(InputError, match="org/other"):
        models_named(["org/other@step*"])
    branches.faults["/refs"] = 403
    with pytest.raises(InputError, match=NAME):
        models_named([f"{NAME}@step*"])
    # The store of a repo does not record revisions: no step may be shown as another.
    with pytest.raises(InputError, match="step9"):
        open_series([f"{NAME}@step1000", f"{NAME}@step9"], tmp_path / "store")
