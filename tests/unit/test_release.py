"""The version, the changelog, the tested versions, and the files that a hosting site reads agree with each other."""

from __future__ import annotations

import os
import re
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from rankscope.tui.cli.main import main, main_tui

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
HEADING = re.compile(r"^## \[(?P<version>[^]]+)\](?: - (?P<date>\d{4}-\d\d-\d\d))?$", re.MULTILINE)
EXTRAS = {name: list(map(Requirement, lines)) for name, lines in PROJECT["optional-dependencies"].items()}


@pytest.mark.parametrize("program", [main, main_tui], ids=lambda program: program.__name__)
def test_the_version_is_said(program: object, capsys: pytest.CaptureFixture[str]) -> None:
    assert callable(program)
    with pytest.raises(SystemExit) as left:
        program(["--version"])
    assert (left.value.code, capsys.readouterr().out.split()[1]) == (0, PROJECT["version"])


def test_the_changelog_is_of_this_version() -> None:
    unreleased, newest, *_ = HEADING.finditer((ROOT / "CHANGELOG.md").read_text())
    assert (unreleased["version"], unreleased["date"]) == ("Unreleased", None)
    assert newest["version"] == PROJECT["version"]
    assert newest["date"]


def test_the_changelog_says_nothing_twice() -> None:
    parts = re.split(r"^(?=#|- )", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
    lines = [" ".join(part.split()) for part in parts if part.startswith("- ")]
    assert len(lines) == len({line.casefold() for line in lines}) > 100


@pytest.mark.parametrize("extra", ["", *EXTRAS])
def test_what_is_installed_has_a_version_that_is_tested(extra: str) -> None:
    pinned = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if not line.startswith("#"):
            pin = Requirement(line)
            pinned.setdefault(canonicalize_name(pin.name), []).append(next(iter(pin.specifier)).version)
    for wanted in EXTRAS[extra] if extra else map(Requirement, PROJECT["dependencies"]):
        if wanted.name == PROJECT["name"]:
            assert wanted.extras <= set(EXTRAS)
        else:
            versions = pinned[canonicalize_name(wanted.name)]
            assert all(wanted.specifier.contains(version) for version in versions), (wanted, versions)


def test_the_workflow_runs_what_is_run_here() -> None:
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())["jobs"]
    (steps,) = (job["steps"] for job in jobs.values())
    (run,) = (ROOT / word for step in steps for word in step.get("run", "").split() if (ROOT / word).is_file())
    assert run == ROOT / ".ci" / "run"
    assert os.access(run, os.X_OK)


def test_an_issue_asks_for_what_doctor_says() -> None:
    form = yaml.safe_load((ROOT / ".github" / "ISSUE_TEMPLATE" / "bug.yml").read_text())
    (asked,) = (field for field in form["body"] if "`rankscope doctor`" in field["attributes"]["label"])
    assert asked["validations"]["required"]
