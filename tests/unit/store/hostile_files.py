"""A process that reads mutated files of a store: `hostile_files.py BASES ROOT SECRET NUMBER ...`.

For each number it makes one file, with the name and digests that belong to its bytes, reads everything that the file
claims to hold, and shows it. It prints each number before, and `done` at the end, unless it crashes, hangs or opens the
secret. It lists refused files in ROOT/refused.
"""

from __future__ import annotations

import io
import json
import random
import resource
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from hashlib import blake2b
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from rankscope.store.layout import FORMAT, HEAD
from rankscope.store.spectra import SpectraStore
from rankscope.tui.cli.main import main

MOST_MEMORY = 6 * 2**30
NASTY = (2**60, 2**63 - 1, 2**63, 2**64 - 1, 2**32, 2**31, 255, 1, 0)
TEXTS = (b"\x1b]0;hostile\x07", b"\xff\xfe\x9b31m", b"../../etc/passwd", b"other", b"layers.1.mlp.up", b"")


def some_bytes(rng: random.Random, data: bytearray) -> None:
    """Change a few bytes, anywhere."""
    for _ in range(rng.randint(1, 8)):
        data[rng.randrange(HEAD, len(data))] = rng.choice((0, 1, 2, 0x7F, 0xFF, rng.randrange(256)))


def some_numbers(rng: random.Random, data: bytearray) -> None:
    """Change a few numbers of 8 bytes, mostly where addresses and sizes are."""
    for _ in range(rng.randint(1, 3)):
        place = rng.randrange(HEAD, len(data) - 8) // 8 * 8
        data[place : place + 8] = rng.choice(NASTY).to_bytes(8, "little")


def some_cells(rng: random.Random, data: bytearray) -> None:
    """Change a cell of the index, or of another table."""
    with h5py.File(io.BytesIO(data), "r") as file:
        names = [name for name in file if file[name].dtype.names and file[name].size]
        if not names:
            return
        name = rng.choice((*names, "index"))
        dtype, start = file[name].dtype, file[name].id.get_offset()
        table = np.ndarray(file[name].shape, dtype, data, start)
    column = rng.choice(dtype.names)
    if dtype[column].kind in "iu":
        size = dtype[column].itemsize
        value: Any = rng.choice(NASTY) % 2 ** (8 * size)
        table[column].view(f"u{size}")[rng.randrange(len(table))] = value
    else:
        value = rng.choice(TEXTS if dtype[column].kind == "S" else (np.nan, np.inf, -np.inf, -1.0, 1e308, 0.0))
        table[column][rng.randrange(len(table))] = value


def a_piece(rng: random.Random, data: bytearray) -> None:
    """Cut off the end, or move a piece to another place."""
    if rng.random() < 0.3:
        del data[rng.randrange(HEAD, len(data)) :]
        return
    count = rng.randint(8, 400)
    here, there = (rng.randrange(HEAD, len(data) - count) // 8 * 8 for _ in range(2))
    data[there : there + count] = data[here : here + count]


MUTATIONS: tuple[Callable[[random.Random, bytearray], None], ...] = (some_bytes, some_numbers, some_cells, a_piece)


def with_head(data: bytearray) -> bytes:
    """The file with the digest in its head that belongs to the rest."""
    first, size = (int(field) for field in data[:HEAD].split()[1:3])
    rest = blake2b(data[HEAD:first], digest_size=16)
    rest.update(data[first + size :])
    return f"{FORMAT} {first} {size} {rest.hexdigest()}\n".encode().ljust(HEAD, b"\0") + data[HEAD:]


def mutated(number: int, bases: list[bytes]) -> tuple[str, bytes]:
    """The kind and the bytes of a mutated file."""
    rng = random.Random(number)
    data = bytearray(rng.choice(bases))  # the last of them has no rows
    MUTATIONS[number % len(MUTATIONS)](rng, data)
    if rng.random() < 0.5:
        return "seg", bytes(data)
    return "vol", with_head(data)


def say(line: str) -> None:
    """Write a line to the waiting test."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def show(*words: str) -> str:
    """Show what a command shows; it may report damage, and raise nothing else."""
    said = io.StringIO()
    with redirect_stdout(said), redirect_stderr(said):
        code = main(list(words))
    assert code in (0, 1, 2), (words, said.getvalue())
    assert "Traceback" not in said.getvalue(), said.getvalue()
    assert "\x1b]" not in said.getvalue(), said.getvalue()
    assert "\x9b" not in said.getvalue(), said.getvalue()
    return said.getvalue()


def read(root: Path, folder: str, number: int) -> bool:
    """Whether any spectrum of a folder is served; read and show every byte of it."""
    store = SpectraStore(root, folder)
    entries = store.entries()
    store.verify()
    for key, values in store.values(store.stored()).items():
        assert values.shape == (store.stored().projection(key).stored_count,)
    if not entries:
        return False
    words = (("ls",), ("show", folder, "--csv"), ("show", folder, "--view", "table"), ("show", folder))
    which = number // len(MUTATIONS) % (3 * len(words))  # one in three: showing takes ten times as long as reading
    if which < len(words):
        show(*words[which])
    return True


def read_all(bases: list[bytes], root: Path, secret: Path, numbers: list[int]) -> None:
    """Read all mutated files: see the module's docstring."""

    def watch(event: str, of: tuple[Any, ...]) -> None:
        assert event != "open" or str(of[0]) != str(secret), "the secret was opened"

    sys.addaudithook(watch)
    refused = []
    for number in numbers:
        say(str(number))
        kind, data = mutated(number, bases)
        folder = root / f"org--m{number}"
        folder.mkdir(parents=True)
        path = folder / f"{kind}-{blake2b(data, digest_size=16).hexdigest()}.h5"
        path.write_bytes(data)
        if not read(root, folder.name, number):
            refused.append(number)
        for left in folder.iterdir():
            left.unlink()
        folder.rmdir()
    (root / "refused").write_text(json.dumps(refused))
    say("done")


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY, MOST_MEMORY))
    files = [path.read_bytes() for path in sorted(Path(sys.argv[1]).iterdir())]
    read_all(files, Path(sys.argv[2]), Path(sys.argv[3]), [int(number) for number in sys.argv[4:]])
