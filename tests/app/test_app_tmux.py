"""The real program in a real terminal: tmux at 80x24, keys sent, screen read, killed and opened again."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import gguf
import pytest
from app_models import numpy_rank
from running_demo import read_gguf

from rankscope.engine.checkpoint.open import demo_file

pytestmark = pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is not installed")
PROGRAM = Path(sys.executable).parent / "rankscope-tui"
DEADLINE = 60.0


class Terminal:
    """A shell in tmux."""

    def __init__(self, folder: Path, store: Path) -> None:
        self._tmux = ["tmux", "-S", str(folder / "tmux"), "-f", "/dev/null"]
        environment = {k: v for k, v in os.environ.items() if not k.startswith("TMUX") and k != "COLORTERM"}
        environment |= {
            "RANKSCOPE_STORE": str(store),
            "TERM": "tmux-256color",
            "OMP_NUM_THREADS": "1",
            "PS1": "ready> ",
        }
        command = [
            "new-session",
            "-d",
            "-x",
            "80",
            "-y",
            "24",
            "env",
            "TERM=tmux-256color",
            "bash",
            "--norc",
            "--noprofile",
        ]
        subprocess.run([*self._tmux, *command], check=True, env=environment)
        self._ask("set", "-g", "status", "off")
        self.sees("ready>")

    def _ask(self, *command: str) -> str:
        return subprocess.run([*self._tmux, *command], check=True, capture_output=True, text=True).stdout

    def keys(self, *names: str) -> None:
        """Press these."""
        for name in names:
            self._ask("send-keys", name)

    def line(self, text: str) -> None:
        """Type a line into the shell."""
        self._ask("send-keys", "-l", text)
        self.keys("Enter")

    @property
    def screen(self) -> str:
        """What stands there."""
        return self._ask("capture-pane", "-p")

    def until(self, condition: Callable[[str], bool], what: str) -> str:
        """Wait until the screen is so."""
        deadline = time.monotonic() + DEADLINE
        while not condition(screen := self.screen):
            assert time.monotonic() < deadline, f"waited in vain for {what}:\n{screen}"
        return screen

    def sees(self, *texts: str) -> str:
        """Wait for these on the screen."""
        return self.until(lambda screen: all(text in screen for text in texts), " and ".join(map(repr, texts)))

    def flags(self) -> str:
        """Alternate screen, cursor, mouse, application keys: what a program must put back."""
        return self._ask(
            "display", "-p", "#{alternate_on} #{cursor_flag} #{mouse_any_flag} #{keypad_cursor_flag}"
        ).strip()

    def child(self) -> int:
        """The process that runs in the shell."""
        shell = self._ask("display", "-p", "#{pane_pid}").strip()
        return int(Path(f"/proc/{shell}/task/{shell}/children").read_text().split()[0])

    def close(self) -> None:
        """End of the server, and of all that runs in it."""
        subprocess.run([*self._tmux, "kill-server"], check=False, capture_output=True)


@pytest.fixture
def terminal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Terminal]:
    """A terminal with an empty store."""
    found = Terminal(tmp_path_factory.mktemp("t"), tmp_path_factory.mktemp("store"))
    yield found
    found.close()


def _demo_rank(name: str) -> int:
    tensor = next(t for t in read_gguf(demo_file()).tensors if t.name == name)
    return numpy_rank(gguf.dequantize(tensor.data, tensor.tensor_type), 0.9)


def test_compute_kill_open_again_and_quit(terminal: Terminal) -> None:
    before = terminal.flags()
    terminal.line(f"{PROGRAM} demo --fresh")
    terminal.sees("0 tree", "30 layers", "0/210 stored", "layers.0.attention", "q quit")
    assert terminal.flags() != before
    terminal.keys("3")
    terminal.sees("3 heatmap  k90", "layer ", "k:k0")  # the overview, on 80 columns
    terminal.keys("z", "j")
    terminal.sees("layers.1.attention.query")
    terminal.keys("Enter")
    number = re.compile(r">\s+1\s+\[(\d+)\]")
    screen = terminal.until(lambda s: number.search(s) is not None and "1/210 stored" in s, "the number")
    shown = number.findall(screen)
    assert shown == [str(_demo_rank("blk.1.attn_q.weight"))]
    os.kill(terminal.child(), signal.SIGKILL)
    terminal.until(lambda s: "Killed" in s, "the shell's word")
    terminal.line("reset")
    terminal.line(f"clear; {PROGRAM} demo --fresh")
    terminal.sees("0 tree", "1/210 stored")
    terminal.keys("3", "z", "j")
    assert number.findall(terminal.sees("layers.1.attention.query")) == shown
    terminal.keys("q")
    terminal.until(lambda s: s.rstrip().endswith("ready>"), "the prompt")
    assert terminal.flags() == before
    terminal.line("echo the $((6 * 7)); stty -a | grep -o ' icanon.* echo '")
    assert "the 42" in terminal.sees("the 42", "icanon")


def test_a_wrong_name_is_one_line_and_no_screen(terminal: Terminal) -> None:
    terminal.line(f"clear; {PROGRAM} /nowhere; echo code $?")
    screen = terminal.sees("code 2")
    assert "no such file or folder: /nowhere" in screen
    assert "Traceback" not in screen
