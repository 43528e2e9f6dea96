"""The settings file: what it may contain, the answer to each mistake, and that printed settings load to the same."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from platformdirs import user_config_path

from rankscope.engine.errors import InputError
from rankscope.tui.cli.main import main_tui
from rankscope.tui.data.contrast import Contrast
from rankscope.tui.data.reference_lines import MLA_LINES, ReferenceLine
from rankscope.tui.settings.config import Config
from rankscope.tui.settings.keymap import checked, unknown
from rankscope.tui.settings.palette import Depth, Palette
from rankscope.tui.settings.read import config_path, load
from rankscope.tui.settings.write import written

ALL_KEYS = "theme, color, threshold, thresholds, contrast, suspend, bell, mouse, lines, keymap, colors"
EVERYTHING = """
theme = "nord"
color = "16"
threshold = "95%"
thresholds = [90, 0.6, "80", 90.0]
contrast = "role"
suspend = false
bell = false
mouse = true
[lines]
target = 256
"q lora" = { rank = 1536.5, role = "query" }
[keymap]
scan = "S,f5"
view.tree = "f1"
"filter.next" = ">"
[colors]
series = [1, 2, 3, 4, 5, 6, 7, 255]
"""


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The path of the user's settings file, which does not exist yet."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.delenv("RANKSCOPE_CONFIG", raising=False)
    found = config_path()
    found.parent.mkdir(parents=True)
    return found


def test_where_the_file_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("RANKSCOPE_CONFIG", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert config_path() == user_config_path("rankscope") / "config.toml"
    monkeypatch.setenv("RANKSCOPE_CONFIG", str(tmp_path / "mine.toml"))
    assert config_path() == tmp_path / "mine.toml"
    monkeypatch.setenv("RANKSCOPE_CONFIG", "~/mine.toml")
    assert config_path() == Path.home() / "mine.toml"
    monkeypatch.setenv("RANKSCOPE_CONFIG", "~nobody-here/mine.toml")
    with pytest.raises(InputError, match="RANKSCOPE_CONFIG=~nobody-here"):
        config_path()


def test_no_file_and_an_empty_file_leave_the_defaults(file: Path) -> None:
    assert load(file) == Config()
    file.write_text("# nothing\n")
    assert load(file) == Config()


def test_everything_that_a_file_may_say(file: Path) -> None:
    file.write_text(EVERYTHING)
    assert load(file) == Config(
        theme="nord",
        depth=Depth.SIXTEEN,
        threshold=0.95,
        thresholds=(0.6, 0.8, 0.9),
        lines=(ReferenceLine("target", 256), ReferenceLine("q lora", 1536.5, "query")),
        keymap={"scan": "S,f5", "view.tree": "f1", "filter.next": ">"},
        contrast=Contrast.ROLE,
        suspend=False,
        bell=False,
        mouse=True,
        palette=replace(Palette(), series=(1, 2, 3, 4, 5, 6, 7, 255)),
    )


@pytest.mark.parametrize(
    ("text", "config"),
    [
        ('color = "auto"', Config(depth=None)),
        ("color = 256", Config(depth=Depth.MANY)),
        ('color = "mono"', Config(depth=Depth.MONO)),
        ("threshold = 1", Config(threshold=1.0)),
        ("threshold = 99.5", Config(threshold=0.995)),
        ("[lines]", Config(lines=())),
        ("lines = {}", Config(lines=())),
        ("\ufefftheme = 'nord'\r\n", Config(theme="nord")),
    ],
)
def test_other_ways_to_write_it(file: Path, text: str, config: Config) -> None:
    file.write_text(text, encoding="utf-8")
    assert load(file) == config


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("theme = 3", 'theme is 3: write theme = "nord"'),
        ('theme = ""', "theme is ''"),
        ('theme = "a\\u001b[31m"', "theme is"),
        ("color = 8", "color is 8: write one of auto, 256, 16, mono"),
        ("color = [true]", "color is [True]"),
        ("threshold = 0", "threshold: 0 is not a threshold"),
        ("threshold = 101", "threshold: 101 is not a threshold"),
        ("threshold = nan", "threshold: nan is not a threshold"),
        ("threshold = true", "threshold: True is not a threshold"),
        ("threshold = 1979-05-27", "is not a threshold"),
        ("thresholds = 90", "thresholds is 90: write thresholds = [60, 80, 90]"),
        ("thresholds = []", "thresholds is []"),
        ('thresholds = [90, "x"]', "thresholds: 'x' is not a threshold"),
        ("lines = 3", "lines is 3: write a table [lines]"),
        ("[lines]\nx = 'a'", "lines.x is 'a': write x = 512"),
        ("[lines]\nx = 0", "lines.x: the rank 0"),
        ("[lines]\nx = -inf", "lines.x: the rank -inf"),
        ("[lines]\nx = nan", "lines.x: the rank nan"),
        ("[lines]\nx = true", "lines.x is True"),
        (f"[lines]\nx = 1{'0' * 400}", "lines.x: the rank 1000"),
        ("[lines]\nx = { role = 'key' }", "lines.x is None: write x = 512"),
        ("[lines]\nx = { rank = 3, role = 1 }", "lines.x.role is 1"),
        ('[lines]\n"\\u0007" = 1', "lines"),
        ("keymap = 'x'", "keymap is 'x': write a table [keymap]"),
        ("[keymap]\nscan = 3", "keymap.scan is 3"),
        ("[keymap]\nview.tree = ['x']", "keymap.view.tree is ['x']"),
        ("[colors]\nseries = [1, 2]", "colors.series is [1, 2]: write 8 colour numbers from 0 to 255"),
        ("[colors]\nabove = [1, 2, 3, 256]", "colors.above"),
        ("[colors]\nabove = [1, 2, 3, true]", "colors.above"),
        ("[colors]\nabove = [1, 2, 3, 4.0]", "colors.above"),
        ("colors = []", "colors is []: write a table [colors]"),
        ("theme = 'a'\ntheme = 'b'\n", "is not TOML: Cannot overwrite a value (at line 2"),
        ("theme = 'a'\n\n[lines\nx = 3\n", "(at line 3"),
        (f"threshold = {'9' * 5000}", "is not TOML"),
        (f"threshold = {'[' * 5000}", "is not TOML"),
    ],
    ids=lambda text: text[:40],
)
def test_a_mistake_is_one_line_with_the_file_and_the_key(file: Path, text: str, words: str) -> None:
    file.write_text(text)
    with pytest.raises(InputError) as error:
        load(file)
    line = str(error.value)
    assert line.startswith(f"settings file {file}: ")
    assert words in line
    assert line.isprintable()
    assert len(line) < len(str(file)) + 450


@pytest.mark.parametrize(
    ("text", "sentences", "config"),
    [
        ("tresholds = [90]", ["tresholds: did you mean thresholds?"], Config()),
        (
            "zzz = 1\ntheme = 'nord'\n[0]\nx = 3",
            [f"{name}: there are {ALL_KEYS}" for name in ("zzz", "0")],
            Config(theme="nord"),
        ),
        (
            "[lines]\nx = { rank = 3, rolle = 'key' }",
            ["lines.x.rolle: did you mean lines.x.role?"],
            Config(lines=(ReferenceLine("x", 3),)),
        ),
        (
            "[colors]\nabowe = [1]\nseries = [1, 2, 3, 4, 5, 6, 7, 8]",
            ["colors.abowe: did you mean colors.above?"],
            Config(palette=replace(Palette(), series=(1, 2, 3, 4, 5, 6, 7, 8))),
        ),
        (
            '"\\u001b[31m" = 1',
            [f"\\x1b[31m: there are {ALL_KEYS}"],
            Config(),
        ),
    ],
    ids=["top", "several", "line", "colors", "escape"],
)
def test_what_is_no_setting_is_left_out_with_a_warning(
    file: Path, text: str, sentences: list[str], config: Config
) -> None:
    file.write_text(text)
    warnings = tuple(f"settings file {file}: there is no setting {sentence}" for sentence in sentences)
    assert load(file) == replace(config, warnings=warnings)


def test_the_file_of_the_first_version_loads_and_so_does_every_line_of_it(file: Path) -> None:
    """The output of `rankscope-tui --print-config` in 0.1.0; the keys are comments in it until they are changed."""
    text = (Path(__file__).parent / "settings_0_1_0.toml").read_text()
    file.write_text(text)
    meant = replace(Config(), lines=(MLA_LINES[0], ReferenceLine("kv_lora_rank", 512)))  # a line for every role
    assert load(file) == meant
    keys_in_force = re.sub(r'^# ("[a-z_.]+" = )', r"\1", text, flags=re.MULTILINE)
    file.write_text(keys_in_force)
    config = load(file)
    assert len(config.keymap) == 92
    assert (config.keymap["scan"], config.keymap["rank.next"]) == ("s", "full_stop")
    assert replace(config, keymap={}) == meant
    assert list(unknown(config.keymap)) == []
    assert checked(config.keymap) == config.keymap


def test_a_file_that_cannot_be_read_is_one_line(file: Path) -> None:
    with pytest.raises(InputError, match="cannot be read: Is a directory"):
        load(file.parent)
    file.touch()
    with pytest.raises(InputError, match="cannot be read: Not a directory"):
        load(file / "below")
    file.write_bytes(b"theme = '\xff'")
    with pytest.raises(InputError, match="UTF-8"):
        load(file)
    with pytest.raises(InputError, match="larger than 1 MB"):
        load(Path("/dev/zero"))


@pytest.mark.parametrize(
    "config",
    [
        Config(),
        Config(lines=(), threshold=1.0, thresholds=(0.123456789012, 1.0), depth=Depth.MONO),
        Config(theme="nord", lines=(ReferenceLine('a "b" \\ \u00fc\U0001f600', 0.5, 'r"'), ReferenceLine("x", 1e9))),
        Config(keymap={"scan": "S,ctrl+y", "filter.next": "question_mark", "help": "f1"}),
        Config(palette=Palette(sequential=(0,) * 6, below=(1,) * 6, above=(255,) * 4, series=(3,) * 8)),
    ],
    ids=str,
)
def test_what_is_printed_loads_to_the_same(file: Path, config: Config) -> None:
    text = written(config, file, ["nord"])
    assert text.isascii()
    file.write_text(text)
    assert load(file) == config
    assert checked(load(file).keymap) == config.keymap


def _printed(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main_tui(["--print-config", *words]) == 0
    return capsys.readouterr().out


def test_print_config_names_every_key_and_the_file(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = _printed(capsys)
    assert f"{file} (not there" in text
    for key in ("theme", "color", "threshold", "thresholds", "sequential", "below", "above", "series"):
        assert f"\n{key} = " in text
    assert '"scan" = "s" ' in text
    assert "Compute what the filter shows" in text
    for default in MLA_LINES:
        assert f'"{default.name}" = ' in text


def test_the_command_line_goes_over_the_file(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_text(EVERYTHING)
    before = load(file)
    changed = ("--theme", "dracula", "--color", "auto", "-t", "80", "--line", "target=3", "--line", "x=4@key")
    file.write_text(_printed(capsys, *changed))
    assert load(file) == replace(
        before,
        theme="dracula",
        depth=None,
        threshold=0.8,
        lines=(before.lines[1], ReferenceLine("target", 3), ReferenceLine("x", 4, "key")),
        keymap=checked(before.keymap),
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("theme = 'nrd'", "no theme 'nrd': auto, ansi-dark"),
        ("[keymap]\nscan = 'x'", "the key x is that of 'stop' already"),
    ],
)
def test_a_wrong_file_ends_the_program_with_one_line(
    file: Path, capsys: pytest.CaptureFixture[str], text: str, words: str
) -> None:
    file.write_text(text)
    assert main_tui(["--print-config"]) == 2
    out, err = capsys.readouterr()
    (line,) = err.splitlines()
    assert out == ""
    assert line.startswith("rankscope-tui: ")
    assert words in line


def test_what_is_no_setting_and_no_binding_is_said_and_the_rest_holds(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file.write_text("theme = 'nord'\ntresholds = 1\n[keymap]\nscann = 'X'\nstop = 'X'\nview.graph = '7'\n")
    assert main_tui(["--print-config"]) == 0
    out, err = capsys.readouterr()
    assert err.splitlines() == [
        f"settings file {file}: there is no setting tresholds: did you mean thresholds?",
        f"settings file {file}: keymap: there is no key for 'scann': did you mean 'scan'?",
        f"settings file {file}: keymap: there is no key for 'view.graph': did you mean 'view.heatmap'?",
    ]
    file.write_text(out)
    assert load(file) == Config(theme="nord", keymap={"stop": "X"})


def test_the_explorer_says_it_too_before_it_opens_a_model(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file.write_text("tresholds = 1\n")
    for stream in ("stdin", "stdout"):
        monkeypatch.setattr(f"sys.{stream}.isatty", lambda: True)
    monkeypatch.setattr(os, "environ", {**os.environ})  # Textual's own setting of this process stays as it is
    assert main_tui(["/nowhere"]) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert first == f"settings file {file}: there is no setting tresholds: did you mean thresholds?"
    assert "/nowhere" in second


@pytest.mark.parametrize("value", ["", "x", "=3", "x=", "x=a", "x=0", "x=-1", "x=nan", "x=inf", "x=3@", "a\nb=3"])
def test_a_wrong_line_is_one_line(capsys: pytest.CaptureFixture[str], value: str) -> None:
    with pytest.raises(SystemExit) as end:
        main_tui([f"--line={value}"])
    (line,) = capsys.readouterr().err.splitlines()
    assert end.value.code == 2
    assert "NAME=K" in line


def test_a_named_file_that_is_not_there_is_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANKSCOPE_CONFIG", str(tmp_path / "none.toml"))
    for stream in ("stdin", "stdout"):
        monkeypatch.setattr(f"sys.{stream}.isatty", lambda: True)
    assert main_tui(["demo"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "none.toml" in line
    assert "RANKSCOPE_CONFIG" in line


def test_the_settings_are_read_before_textual_is_imported(file: Path) -> None:
    """Textual reads the number of colours when imported; and a start without settings loads no TOML reader."""
    program = (
        "import os, sys; from rankscope.tui.cli import launch;"
        "from rankscope.tui.settings.read import config_path, load;"
        "launch.set_up(load(config_path()), os.environ); print(*sorted(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert not file.exists()
    assert not {"textual", "tomllib", "numpy", "torch"} & set(done.stdout.split())
