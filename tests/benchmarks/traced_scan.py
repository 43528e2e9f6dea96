"""`rankscope scan` as startup.py runs it to see where a whole process spends its time.

    python tests/benchmarks/traced_scan.py BEGAN scan MODEL ...

BEGAN is the time (time.time) at which the process was requested. The last line on stdout is a JSON object: the seconds
from then to each step, in order.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any


class Trace:
    """Seconds since a moment by step; for a repeated step, the first or the last time."""

    def __init__(self, began: float) -> None:
        self._began = began
        self.done: dict[str, float] = {}

    def first(self, what: str) -> None:
        """Note a step the first time that it happens."""
        self.done.setdefault(what, time.time() - self._began)

    def last(self, what: str) -> None:
        """Note a step each time that it happens."""
        self.done[what] = time.time() - self._began

    def after(self, holder: Any, name: str, note: Callable[[str], None], what: str) -> None:
        """Note a step whenever a function of a module or class returns."""
        plain = getattr(holder, name)

        def noted(*arguments: Any, **named: Any) -> Any:
            result = plain(*arguments, **named)
            note(what)
            return result

        setattr(holder, name, noted)


def main() -> int:
    """Run the command; return its exit code."""
    trace = Trace(float(sys.argv[1]))
    from rankscope.tui.cli.main import main as run

    trace.first("interpreter")
    from rankscope.engine.compute import devices
    from rankscope.engine.compute.engine import Engine
    from rankscope.engine.compute.reporter import Reporter
    from rankscope.engine.compute.worker_thread import Solver
    from rankscope.tui.cli import commands

    trace.first("imports of the command")
    tell = Reporter.tell

    def told(self: Reporter, event: Any) -> None:
        trace.first(f"first {type(event).__name__}")
        trace.last(f"last {type(event).__name__}")
        tell(self, event)

    Reporter.tell = told  # type: ignore[method-assign]
    trace.after(commands, "open_model", trace.first, "headers read")
    trace.after(devices, "pick", trace.first, "devices known, torch imported for a GPU")
    trace.after(devices, "make_run", trace.first, "readers start")
    trace.after(Engine, "submit", trace.first, "asked for")
    trace.after(commands, "compute", trace.first, "computed and saved")
    trace.after(Solver, "__init__", trace.first, "kernels loaded")
    code = run(sys.argv[2:])
    trace.first("tables printed")
    print(json.dumps(dict(sorted(trace.done.items(), key=lambda pair: pair[1]))), flush=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
