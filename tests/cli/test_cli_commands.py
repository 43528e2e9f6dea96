"""Commands are rows of a table: what the table holds, and that a new command takes one row and one function."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path
from types import ModuleType

import pytest

from rankscope.tui.cli import main as cli
from rankscope.tui.data.named import resolve


def test_every_command_names_a_function() -> None:
    names = [command.name for command in cli.COMMANDS]
    assert names == [
        "scan",
        "show",
        "plot",
        "inspect",
        "mla",
        "delta",
        "tree",
        "export",
        "moments",
        "plan",
        "apply",
        "perplexity",
        "worker",
        "ls",
        "rm",
        "doctor",
    ]
    assert [command.name for command in cli.COMMANDS if not command.has_model] == ["apply", "worker", "ls", "doctor"]
    for command in cli.COMMANDS:
        assert callable(resolve(command.run))


def test_a_new_command_is_a_row_and_a_function(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = ModuleType("stub")

    def count(args: Namespace, root: Path) -> int:
        sys.stdout.write(f"{args.model} {args.times} {root}\n")
        return 7

    def options(parser: ArgumentParser) -> None:
        parser.add_argument("--times", type=int, default=1)

    module.count = count  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "rankscope.tui.cli.stub", module)
    row = cli.Command("count", "count something", "cli.stub:count", options)
    monkeypatch.setattr(cli, "COMMANDS", (*cli.COMMANDS, row))
    assert cli.main(["count", "gpt2", "--times", "3", "--store", str(tmp_path)]) == 7
    assert capsys.readouterr().out == f"gpt2 3 {tmp_path}\n"
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    assert "count something" in capsys.readouterr().out
