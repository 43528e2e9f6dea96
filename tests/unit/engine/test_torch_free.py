"""Opening a model needs neither torch nor numpy: proven in a process of its own."""

from __future__ import annotations

import subprocess
import sys

LISTING = ("errors", "checkpoint", "formats.gguf", "formats.safetensors", "catalogue", "projections")
ROOMS = (*LISTING, "spectrum", "events", "engine", "devices", "queue", "reporter", "flip")
OPENED = """
from rankscope.engine.checkpoint import open_checkpoint
from rankscope.engine.projections import build_tree
assert len(build_tree(open_checkpoint("demo")).scanned()) == 210
"""
IDLE = """
from rankscope.engine.engine import Engine
engine = Engine(None, print)
engine.stop()
assert engine.close()
"""
REPORT = "\nimport sys; print(*sorted(sys.modules), sep='\\n')"


def _modules(rooms: tuple[str, ...], program: str = "") -> set[str]:
    imports = "".join(f"import rankscope.engine.{room}\n" for room in rooms)
    command = [sys.executable, "-c", imports + program + REPORT]
    return set(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split())


def test_opening_the_demo_imports_neither_torch_nor_numpy() -> None:
    modules = _modules(ROOMS, OPENED + IDLE)
    assert "rankscope.engine.projections" in modules
    assert not modules & {"torch", "numpy", "gguf", "safetensors", "h5py", "textual", "rich", "huggingface_hub"}


def test_metrics_need_numpy_alone() -> None:
    modules = _modules(("metrics",))
    assert "numpy" in modules
    assert not modules & {"torch", "scipy"}


def test_the_check_sees_torch_where_it_is() -> None:
    assert "torch" in _modules(("solvers.gram",))
