"""The list of `make mutants` fits the code: the lines that each replaces exist once, and its tests exist."""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path
from types import ModuleType

TREE = Path(__file__).parents[2]


def runner() -> ModuleType:
    spec = importlib.util.spec_from_file_location("mutants", TREE / "tests" / "mutants" / "run.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_mutant_can_be_made_and_has_its_tests() -> None:
    run = runner()
    mutants = run.mutants()
    assert len({mutant.name for mutant in mutants}) == len(mutants) > 40
    for mutant in mutants:
        text = (TREE / mutant.file).read_text()
        assert ast.dump(ast.parse(run.broken(mutant, text))) != ast.dump(ast.parse(text)), mutant.name
        assert len(run.files_of(mutant)) == len(mutant.tests) > 0, mutant.name
