"""Settings of all tests, before numpy, torch or transformers is imported: one BLAS thread, no network, no user."""

from __future__ import annotations

import gc
import os
import tempfile
from collections.abc import Generator

import pytest
from running_demo import FIXTURE, RunningDemo, load_demo, users_first

# Test processes side by side with a BLAS thread for each core are 15 to 25 times slower.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"
# Readline, which pytest imports, hands its terminal's size to the processes that pytest-xdist starts.
for name in ("LINES", "COLUMNS"):
    os.environ.pop(name, None)
# Do not read the settings, the log and the first-run hint of the user who runs the tests.
os.environ |= {f"XDG_{kind}_HOME": tempfile.mkdtemp(prefix="rankscope-") for kind in ("CONFIG", "STATE")}

# Garbage collection went through hundreds of thousands of objects of torch and transformers for each screen: an eighth
# of the time.
gc.set_threshold(100_000, 20, 20)
gc.disable()  # until all tests are imported: what their modules make stays


@pytest.fixture(scope="session", name=FIXTURE)
def _running_demo() -> RunningDemo:
    return load_demo()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put tests in the order of their folders, which `pytest_make_collect_report` turns; load the demo once for the
    suite: see running_demo.
    """
    items[:] = users_first(sorted(items, key=lambda item: item.path))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Begin each folder elsewhere in each process of pytest-xdist: one reads what another has compiled.

    From a fresh checkout each of them compiled all tests, at the same time: 9 s of CPU for each.
    """
    report = yield
    worker = getattr(collector.config, "workerinput", None)
    if worker and isinstance(collector, pytest.Directory):
        first = len(report.result) * int(worker["workerid"][2:]) // worker["workercount"]
        report.result = report.result[first:] + report.result[:first]
    return report


def pytest_collection_finish() -> None:
    """Freeze what all tests have imported, or garbage collection goes through it five times at the end."""
    gc.freeze()
    gc.enable()
