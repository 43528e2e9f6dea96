"""Imported by the worker processes of the tests, to do what a test puts into the folder of RANKSCOPE_TEST_GATE.

`kills`: the address of a projection whose batch kills its worker process. `no_room`: the name of a worker on which
every matrix runs out of memory. `gate`: a FIFO; a batch waits until a writer has closed it, and reports this in the
FIFO `reached`.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from derived_examples import FORMULAS

from rankscope.engine.compute import worker_process
from rankscope.engine.compute.remote_batch import Batch, BatchResult
from rankscope.engine.derive import formulas

GATE = Path(os.environ["RANKSCOPE_TEST_GATE"])


def _word(name: str) -> str:
    return (GATE / name).read_text() if (GATE / name).exists() else ""


class Service(worker_process.Service):
    """The product's service, changed as the folder says."""

    def solve(self, batch: Batch) -> BatchResult:
        if _word("kills") in [p.address for p in batch.projections]:
            os.kill(os.getpid(), signal.SIGKILL)
        if (GATE / "gate").exists():
            with open(GATE / "gate") as gate:
                (GATE / "reached").write_bytes(b".")
                gate.read()
        if _word("no_room") == self._shown and not batch.is_last:
            lost = "no singular values: gram-eigvalsh on cpu: out of memory"
            return BatchResult(failures=tuple((p.key, lost) for p in batch.projections))
        return super().solve(batch)


def dask_setup(worker: Any) -> None:
    """Dask calls this before that of worker_process. A worker works in the folder of its name, where there is one."""
    if (GATE / str(worker.name)).is_dir():
        os.chdir(GATE / str(worker.name))
    worker_process.Service = Service  # type: ignore[misc]
    formulas.FORMULAS.update(FORMULAS)
