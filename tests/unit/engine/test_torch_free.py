"""Opening a model needs neither torch nor numpy: shown in a separate process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

LISTING = ("errors", "checkpoint.open", "formats.gguf", "formats.safetensors", "catalogue.rules", "catalogue.tree")
COMPUTING = ("compute.events", "compute.engine", "compute.devices", "compute.queue", "compute.reporter")
ROOMS = (*LISTING, *COMPUTING, "spectrum", "derive.flip")
LATER = ("checkpoint.remote", "formats.gguf_blocks", "formats.torch_zip", "quantised.modules", "quantised.schemes")
OPENED = """
from rankscope.engine.checkpoint.open import open_checkpoint
from rankscope.engine.catalogue.tree import build_tree
assert len(build_tree(open_checkpoint("demo")).scanned()) == 210
"""
IDLE = """
from rankscope.engine.compute.engine import Engine
engine = Engine(None, print)
engine.stop()
assert engine.close()
"""
SCANNED = """
import threading
from concurrent.futures import Future
import numpy as np
from safetensors.numpy import save_file
from rankscope.engine.checkpoint.open import open_checkpoint
from rankscope.engine.compute.engine import Engine, ComputeSettings
from rankscope.engine.compute.events import Progress, Saved
from rankscope.engine.catalogue.tree import build_tree
save_file({"model.layers.0.mlp.up_proj.weight": np.eye(5, 7, dtype=np.float32)}, "FOLDER/model.safetensors")
class Sink:
    def has(self, key):
        return False
    def listen(self, tell):
        pass
    def look(self):
        return False
    def put(self, spectrum):
        future = Future()
        future.set_result(None)
        return future
events, idle = [], threading.Event()
def listen(batch):
    events.extend(batch)
    if not batch[-1].busy:
        idle.set()
checkpoint = open_checkpoint("FOLDER")
engine = Engine(Sink(), listen, ComputeSettings("cpu"))
engine.submit(checkpoint, build_tree(checkpoint).scanned())
assert idle.wait(30)
assert engine.close()
assert [list(e.spectrum.values) for e in events if isinstance(e, Saved)] == [[1.0] * 5]
"""
REPORT = "\nimport sys; print(*sorted(sys.modules), sep='\\n')"


def _modules(rooms: tuple[str, ...], program: str = "") -> set[str]:
    imports = "".join(f"import rankscope.engine.{room}\n" for room in rooms)
    command = [sys.executable, "-c", imports + program + REPORT]
    return set(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split())


def test_opening_the_demo_imports_neither_torch_nor_numpy() -> None:
    modules = _modules(ROOMS, OPENED + IDLE)
    assert "rankscope.engine.catalogue.tree" in modules
    assert not modules & {"torch", "numpy", "gguf", "safetensors", "h5py", "textual", "rich", "huggingface_hub"}
    assert not modules & {f"rankscope.engine.{name}" for name in LATER}


def test_metrics_need_numpy_alone() -> None:
    modules = _modules(("metrics",))
    assert "numpy" in modules
    assert not modules & {"torch", "scipy"}


def test_the_check_sees_torch_where_it_is_and_the_kernels_are_left_where_they_are() -> None:
    modules = _modules(("solvers.two_stage",))
    assert "torch" in modules
    assert "triton" not in modules


def test_a_scan_on_a_cpu_imports_no_torch(tmp_path: Path) -> None:
    modules = _modules(ROOMS, SCANNED.replace("FOLDER", str(tmp_path)))
    assert "numpy" in modules
    assert "torch" not in modules
