"""Wrong use, hostile names, and tables on narrow and on plain terminals."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from cli_models import addresses, lapack, tensor_name, threshold_rank, write_llama
from cli_process import Run

from rankscope.engine.compute.events import Progress
from rankscope.tui.cli.main import main_tui
from rankscope.tui.data.wording import describe
from rankscope.tui.settings.encoding import is_utf8_locale

HOSTILE = "[red]a[/red]\x1b[31m\r\n[link=x]\u202e.weight"
STYLES = re.compile(r"\x1b\[[0-9;]*m")


def on_a_terminal(monkeypatch: pytest.MonkeyPatch, columns: int = 80) -> None:
    """A context manager and no fixture: while fixtures are set up, stdout is another one."""
    for stream in ("stdout", "stderr"):
        monkeypatch.setattr(f"sys.{stream}.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", str(columns))


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("bogus",),
        ("scan",),
        ("tree", "m", "more"),
        ("scan", "m", "--bogus"),
        ("scan", "m", "--device", "gpu"),
        ("scan", "m", "--device", "cuda:0,cuda:0"),
        ("scan", "m", "--threads", "0"),
        ("scan", "m", "--threads", "two"),
        ("scan", "-t", "0.9", "m"),
        ("export", "m"),
        ("rm",),
        ("ls", "\x1b[31m\n[red]"),
    ],
    ids=" ".join,
)
def test_wrong_use_is_one_line(cli: Run, words: tuple[str, ...]) -> None:
    line = cli(*words).error
    assert re.match(r"rankscope( \w+)?: ", line)
    assert line.endswith("--help")


def test_wrong_use_of_the_explorer_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--bogus"], ["m", "-t", "0"], ["m", "--experts", "0"]):
        with pytest.raises(SystemExit) as end:
            main_tui(words)
        assert end.value.code == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("rankscope-tui: ")


@pytest.mark.parametrize("command", ["scan", "show", "tree", "rm"])
@pytest.mark.parametrize(
    "model", ["", "./no-such", "/no/such/folder", "no-such.gguf", "\x1b[31m[red]\n", "~/no-such", "file.txt", "a/b/c"]
)
def test_no_such_model_is_one_line(
    tmp_path: Path, cli: Run, monkeypatch: pytest.MonkeyPatch, command: str, model: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file.txt").write_text("no weights")
    line = cli(command, model).error
    assert line.startswith("rankscope: ")
    assert re.search(r"no such|not a file|nothing|neither", line)


CURES = [
    (("scan", "./modle"), "no such file or folder: ./modle: did you mean model?"),
    (("scan", "MODLE/"), "'MODLE/' is not a file, a folder or a Hub id: did you mean model?"),
    (("scan", "modle/part.gguf"), "no such file or folder: modle/part.gguf: did you mean model/part.gguf?"),
    (("scan", "model/prat.ggfu.gguf"), "model/prat.ggfu.gguf: name one that is here, org/name on the Hub, or demo"),
    (
        ("show", "demoo"),
        "demoo is neither a file nor a folder here (did you mean demo?), and not in the local Hub cache",
    ),
    (("tree", "whole.safetensors"), "whole.safetensors: name one that is here, org/name on the Hub, or demo"),
    (("tree", "list"), "list/config.json is not a JSON object, {...}: fetch it again, or name another file"),
    (("apply", "plam.json", "-o", "out"), "no such plan: plam.json: did you mean plan.json?"),
    (("apply", "model", "-o", "out"), "cannot read model: it is a folder: name a file in it"),
    (("scan", "model", "--weight", "./moments.safetensors"), "name an imatrix of llama.cpp or a file of moments"),
    (("moments", "model", "--text", "texd", "-o", "m.safetensors"), "no such text file: texd: did you mean text?"),
    (
        ("moments", "model", "--text", "text", "-o", "m.safetensors"),
        "text holds no text: name a file with some, or builtin",
    ),
    (("tree", "model", "--storr", "x"), "tree: unrecognized arguments: --storr x: did you mean --store?"),
]


@pytest.mark.parametrize(
    ("words", "said"), CURES, ids=lambda value: " ".join(value) if isinstance(value, tuple) else ""
)
def test_a_line_says_what_to_do(
    tmp_path: Path, cli: Run, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("model", "list"):
        write_llama(tmp_path / folder)
    (tmp_path / "list" / "config.json").write_text("[1]")
    (tmp_path / "model" / "part.gguf").touch()
    (tmp_path / "plan.json").write_text("{}")
    (tmp_path / "text").touch()
    assert said in cli(*words).error


def test_hostile_names_are_escaped_everywhere(tmp_path: Path, cli: Run) -> None:
    folder = tmp_path / "[bold]m\x1b[2J\n[/bold]"
    weights = np.ones((4, 4), np.float32)
    weights[0, 0] = np.nan
    write_llama(folder, 1, changes={HOSTILE: weights, f"good.{HOSTILE}": np.eye(5, dtype=np.float32)})
    scanned = cli("scan", folder, "--filter", "other.*red*")
    assert scanned.code == 1
    runs = [
        *(scanned, cli("scan", folder, "--filter", "other.*red*", "--json"), cli("tree", folder), cli("ls")),
        *(cli("tree", folder, "--json"), cli("show", folder, "--filter", "other.*"), cli("show", f"{folder}.gguf")),
        *(cli("scan", folder, "--filter", HOSTILE), cli("export", folder, "-o", f"{folder}/no/x.csv")),
        cli("export", folder, "-o", folder / "a.csv", "--filter", "other.*"),
        cli("rm", folder),
    ]
    for ran in runs:
        assert all(line.isprintable() for line in [*ran.out.splitlines(), *ran.err.splitlines()])
    assert {row["tensor"] for row in runs[1].rows} == {HOSTILE, f"good.{HOSTILE}"}
    assert "[bold]m" in runs[3].out  # shown, and not taken for markup
    assert "%5Bred%5Da" in runs[2].out


def test_a_layer_list_with_a_hostile_name_makes_a_plain_table(tmp_path: Path, cli: Run) -> None:
    names = [f"{tower}.layers.0.self_attn.q_proj.weight" for tower in ("[red]one[/red]", "two\x1b[31m")]
    write_llama(tmp_path / "m", 0, changes={name: np.eye(6, dtype=np.float32) for name in names})
    ran = cli("scan", tmp_path / "m", "-t", "50")
    assert ran.code == 0
    assert all(line.isprintable() for line in ran.out.splitlines())
    assert len([line for line in ran.out.splitlines() if line.endswith("  3")]) == 5


def test_no_number_is_cut_off_on_a_narrow_terminal(tmp_path: Path, cli: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    experts = {
        f"model.layers.1.mlp.{part}.{role}_proj.weight": np.random.default_rng(n).standard_normal((9, 24))
        for n, (part, role) in enumerate(
            (p, r) for p in ("experts.0", "shared_experts") for r in ("gate", "up", "down")
        )
    }
    arrays = write_llama(tmp_path / "m", changes=experts)
    cli("scan", tmp_path / "m")
    wanted = {a: threshold_rank(lapack(arrays[tensor_name(a)]), 0.9) for a in addresses()}
    for width in (80, 30):
        on_a_terminal(monkeypatch, width)
        lines = STYLES.sub("", cli("show", tmp_path / "m", "-t", "90").out).splitlines()
        assert max(map(len, lines[1:])) <= width
        assert not any("…" in line for line in lines)
        rows = [line.split() for line in lines]
        headings = [word for first, *rest in filter(None, rows) for word in rest if first == "layer"]
        assert [heading.rpartition(".")[2] for heading in headings[:7]] == [a.rpartition(".")[2] for a in addresses(1)]
        assert len(set(headings)) == 7 + 6
        cells = [word for first, *rest in filter(None, rows) for word in rest if first == "0"]
        assert cells == [str(wanted[a]) for a in addresses(1)]


def test_piped_tables_are_bare_columns(tmp_path: Path, cli: Run) -> None:
    write_llama(tmp_path / "m", 1)
    cli("scan", tmp_path / "m")
    for words in (("show", tmp_path / "m"), ("tree", tmp_path / "m"), ("ls",), ("doctor",)):
        out = cli(*words).out
        assert "\x1b" not in out
        assert out.isascii()
    assert len(cli("tree", tmp_path / "m").out.splitlines()) == 1 + 7 + 2


@pytest.mark.parametrize(("locale", "utf8"), [({"LC_ALL": "C"}, False), ({"LANG": "C"}, False), ({}, True)])
def test_a_c_locale_gets_ascii_rules_and_bars(
    tmp_path: Path, cli: Run, monkeypatch: pytest.MonkeyPatch, locale: dict[str, str], utf8: bool
) -> None:
    write_llama(tmp_path / "m", 1)
    on_a_terminal(monkeypatch)
    for name, value in locale.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("LC_CTYPE", "C.UTF-8")  # as Python sets it itself where LANG is C
    ran = cli("scan", tmp_path / "m")
    assert "7/7" in ran.err
    assert [ran.out.isascii(), ran.err.isascii()] == [not utf8] * 2


@pytest.mark.parametrize(
    ("variables", "utf8"),
    [
        ({"LANG": "de_DE.UTF-8"}, True),
        ({"LANG": "de_DE.ISO-8859-1", "LC_CTYPE": "C.UTF-8"}, True),
        ({"LANG": "en_US.UTF-8", "LC_ALL": "C"}, False),
        ({"LANG": "POSIX", "LC_CTYPE": "C.utf8"}, False),
        ({"LANG": "", "LC_CTYPE": "UTF-8"}, True),
        ({"LANG": ""}, False),
    ],
)
def test_the_locale(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], utf8: bool) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert is_utf8_locale() is utf8


def test_progress_reads_as_plain_numbers() -> None:
    line = describe(Progress(143, 2, 3000, 12345.6, 189.6, ("cpu",), True))
    assert line == "143/3000  12300/s  ETA 3 min 10 s  2 failed"
    assert describe(Progress(5, 0, 5, 0.034567, None, (), False)) == "5/5  0.0346/s  0 failed"


def test_rows_are_strict_json_objects_of_one_line(tmp_path: Path, cli: Run) -> None:
    write_llama(tmp_path / "m", 1, changes={"Schlüssel.weight": np.eye(3, dtype=np.float32)})
    out = cli("tree", tmp_path / "m", "--json").out
    assert out.isascii()
    assert [json.dumps(json.loads(line)) for line in out.splitlines()] == out.splitlines()
