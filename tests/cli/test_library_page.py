"""docs/LIBRARY.md does what it says, and imports nothing that draws in a terminal."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "LIBRARY.md"
PROGRAM = """
import doctest, sys
ran = doctest.testfile(sys.argv[1], module_relative=False, optionflags=doctest.NORMALIZE_WHITESPACE)
print(ran.failed, ran.attempted)
print(*sorted(sys.modules))
"""


def test_the_page_runs_as_it_stands_in_a_fresh_interpreter() -> None:
    command = [sys.executable, "-W", "error::UserWarning", "-c", PROGRAM, str(PAGE)]
    ran = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    *said, counts, modules = ran.stdout.splitlines()
    assert counts == f"0 {PAGE.read_text().count('>>> ')}", "\n".join(said)
    loaded = {name.partition(".")[0] for name in modules.split()}
    assert {"numpy", "h5py", "rankscope"} <= loaded
    assert not loaded & {"textual", "rich", "plotext", "matplotlib"}
