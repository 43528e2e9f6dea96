"""A command whose extra is not installed names it in one line and writes nothing; all others run without any."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
import pytest
from cli_models import write_llama

from rankscope.tui.cli.main import COMMANDS

HIDDEN = """
import sys
absent = "accelerate cryptography dask distributed matplotlib pandas peft scipy tokenizers transformers"
sys.modules |= dict.fromkeys(absent.split())
"""
"""The packages of the extras, which can be neither found nor imported."""
SEVERAL = f"""{HIDDEN}
from rankscope.tui.cli.main import main
for command in sys.stdin.read().splitlines():
    try:
        code = main(command.split())
    except SystemExit as left:
        code = left.code
    print("exit", code, file=sys.stderr, flush=True)
import rankscope.tui.screens.app
"""
"""Commands, a line each, in a fresh interpreter that starts once for all of them; and the explorer's modules."""
RUN = (
    *("doctor", "scan m", "scan g.gguf", "ls", "tree m", "show m --view table", "export m -o m.h5", "mla m"),
    *("inspect m layers.0.mlp.up", "delta m n", "plan m --cut 20% --min-rank 1 --multiple 1 -o p.json"),
    *(
        "plan g.gguf --cut 20% --min-rank 1 --multiple 1 -o g.json",
        "apply p.json -o factors",
        "apply p.json --merge -o dense",
    ),
    "rm m",
)
REFUSED = {
    "moments m --text text -o m.safetensors": "calibrate",
    "perplexity m --text text": "calibrate",
    "perplexity m --text text --plan p.json": "calibrate",
    "apply g.json -o of_gguf": "calibrate",
    "delta m n -o ranks.json": "calibrate",
    "delta m n --extract lora": "calibrate",
    "plot m -o m.png": "plots",
    "plot m --view energy -o m.svg": "plots",
    "scan n --scheduler tcp://127.0.0.1:1": "cluster",
    "worker tcp://127.0.0.1:1 --device cpu": "cluster",
}


@dataclass(frozen=True)
class Session:
    """The stderr of each command, with its exit code as last line, and the files that exist in the end."""

    said: dict[str, list[str]]
    files: set[str]


def write_gguf(file: Path) -> None:
    """Write a file with one matrix."""
    writer = gguf.GGUFWriter(str(file), "llama")
    writer.add_block_count(1)
    writer.add_tensor("blk.0.ffn_up.weight", np.random.default_rng(0).standard_normal((40, 24)).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Session:
    """All commands, one after the other, with no extra installed."""
    folder = tmp_path_factory.mktemp("extras")
    write_llama(folder / "m", layers=1)
    write_llama(folder / "n", layers=1, seed=1)
    write_gguf(folder / "g.gguf")
    (folder / "text").write_text("the text that the model reads\n" * 50)
    commands = (*RUN[:-1], *REFUSED, RUN[-1])
    env = {**os.environ, "RANKSCOPE_STORE": str(folder / "store")}
    program, lines = [sys.executable, "-c", SEVERAL], "\n".join(commands)
    ran = subprocess.run(program, input=lines, capture_output=True, encoding="utf-8", cwd=folder, env=env)
    assert ran.returncode == 0, ran.stderr
    parts = re.split(r"(?<=^exit \d)\n", ran.stderr, flags=re.MULTILINE)[:-1]
    said = {command: part.splitlines() for command, part in zip(commands, parts, strict=True)}
    return Session(said, {path.name for path in folder.iterdir()})


@pytest.mark.parametrize("command", REFUSED)
def test_an_extra_that_is_needed_is_named_in_one_line(session: Session, command: str) -> None:
    line, code = session.said[command]
    assert code == "exit 2"
    assert line.isprintable()
    assert line.endswith(f"{sys.executable} -m pip install 'rankscope-tui[{REFUSED[command]}]'")


def test_what_was_refused_wrote_nothing(session: Session) -> None:
    assert not session.files & {"m.safetensors", "of_gguf", "ranks.json", "lora", "m.png", "m.svg"}
    assert {"m.h5", "p.json", "g.json", "factors", "dense"} <= session.files


@pytest.mark.parametrize("command", RUN)
def test_all_else_needs_none(session: Session, command: str) -> None:
    assert session.said[command][-1] == "exit 0", session.said[command]


def test_every_command_was_run() -> None:
    assert {words.split()[0] for words in (*RUN, *REFUSED)} == {command.name for command in COMMANDS}
