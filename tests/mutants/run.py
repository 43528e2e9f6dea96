"""The store, broken on purpose: every change must fail one of the tests that are named with it.

    python tests/mutants/run.py [WORD]      all of store.txt, or those whose name has the word; `make mutants`

Each change is made in a copy of the tree. One that no test catches, and one that makes a test hang, is printed at the
end; the exit code is then 1.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent
TREE = HERE.parents[1]
LIMIT = 240
"""Seconds after which a test counts as hanging."""


class Mutant(NamedTuple):
    """A change: its file, the lines before and after, and the names of the tests that catch it; `until` is the
    option that ends them at the first failure."""

    name: str
    file: str
    tests: list[str]
    until: list[str]
    old: str
    new: str


def mutants() -> list[Mutant]:
    """The changes in store.txt: `== name`, `file: tests`, removed lines after a `-`, added lines after a `+`. With
    `file: all of tests` these run to their end: each must fail or pass, and none may hang."""
    found = []
    for section in re.split(r"^== ", (HERE / "store.txt").read_text(), flags=re.MULTILINE)[1:]:
        name, where, *lines = section.splitlines()
        file, tests = where.split(": ")
        old, new = ("".join(f"{line[1:]}\n" for line in lines if line.startswith(sign)) for sign in "-+")
        until = [] if tests.startswith("all of ") else ["-x"]
        found.append(Mutant(name, file, tests.removeprefix("all of ").split(), until, old, new))
    return found


def files_of(mutant: Mutant) -> list[str]:
    """The files of its tests: test_store_NAME.py, or else test_NAME.py."""
    known = {path.name: str(path.relative_to(TREE)) for path in (TREE / "tests").rglob("test_*.py")}
    found = (known.get(f"test_store_{name}.py", known.get(f"test_{name}.py")) for name in mutant.tests)
    return [file for file in found if file is not None]


def broken(mutant: Mutant, text: str) -> str:
    """The text of the file with the change.

    Raises:
        ValueError: the file does not have the removed lines, or has them twice.
    """
    if text.count(mutant.old) != 1:
        raise ValueError(f"{mutant.name}: {mutant.file} has {text.count(mutant.old)} times:\n{mutant.old}")
    return text.replace(mutant.old, mutant.new)


def outcome(mutant: Mutant, tree: Path) -> str:
    """Test the change in a copy of the tree, which is restored afterwards; return the outcome."""
    path = tree / mutant.file
    before = path.read_text()
    path.write_text(broken(mutant, before))
    command = [sys.executable, "-m", "pytest", "-q", *mutant.until, "-n0", "-p", "no:cacheprovider", *files_of(mutant)]
    settings = {"PYTHONPATH": str(tree / ".src"), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        ran = subprocess.run(
            command, cwd=tree, env=os.environ | settings, capture_output=True, timeout=LIMIT, check=False
        )
    except subprocess.TimeoutExpired:
        return "HANGS"
    finally:
        path.write_text(before)
    return {0: "MISSED", 1: "caught"}.get(ran.returncode, f"DID NOT RUN ({ran.returncode})")


def main(word: str = "") -> int:
    """Run the changes whose name has the word."""
    wanted = [mutant for mutant in mutants() if word in mutant.name]
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        ignored = shutil.ignore_patterns(".venv", ".git", "__pycache__", ".*_cache", "dist")
        shutil.copytree(TREE, tree, symlinks=True, ignore=ignored)
        for number, mutant in enumerate(wanted, 1):
            found[mutant.name] = outcome(mutant, tree)
            print(f"{number:3}/{len(wanted)}  {found[mutant.name]:8} {mutant.file:20} {mutant.name}", flush=True)
    missed = [name for name, what in found.items() if what != "caught"]
    print(f"{len(wanted) - len(missed)} of {len(wanted)} are caught", *missed, sep="\n  ")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:2]))
