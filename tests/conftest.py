"""One BLAS thread, no network and nobody's settings, before numpy, torch or transformers is imported."""

from __future__ import annotations

import gc
import os
import tempfile

import pytest
from running_demo import FIXTURE, RunningDemo, load_demo, users_first

# Test processes beside each other with a BLAS thread a core each are 15 to 25 times slower.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"
# Readline, which pytest imports, hands its terminal's size to the processes that pytest-xdist starts.
for name in ("LINES", "COLUMNS"):
    os.environ.pop(name, None)
# The settings, the log and the first-run hint of whoever runs the tests are not looked at.
os.environ |= {f"XDG_{kind}_HOME": tempfile.mkdtemp(prefix="rankscope-") for kind in ("CONFIG", "STATE")}

# Hundreds of thousands of objects of torch and transformers were gone through for each screen: an eighth of the time.
gc.set_threshold(100_000, 20, 20)


@pytest.fixture(scope="session", name=FIXTURE)
def _running_demo() -> RunningDemo:
    return load_demo()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """One load of the demo for the suite: see running_demo."""
    items[:] = users_first(items)


def pytest_collection_finish() -> None:
    """What all tests have imported stays: no collection of garbage goes through it again, as five do at the end."""
    gc.freeze()
