"""The memory that an untrusted header takes, relative to the size of its file."""

from __future__ import annotations

import json
import struct
import tracemalloc
from contextlib import suppress
from pathlib import Path

import pytest

from rankscope.engine.errors import InputError
from rankscope.engine.formats.format import Origin
from rankscope.engine.formats.guarded import read_json
from rankscope.engine.formats.safetensors import SAFETENSORS

SIZE = 1_100_000
FACE = "\U0001f600"


def keys(length: int, of: int, end: str = "") -> list[str]:
    """Distinct names of this length, for as many bytes as a header may have."""
    return [f"{number:06x}".rjust(length, "x") + end for number in range(SIZE // of)]


def in_one_entry(names: list[str]) -> str:
    unknown = ",".join(f'"{name}":1' for name in names)
    return f'{{"a":{{"dtype":"F32","shape":[0],"data_offsets":[0,0],{unknown}}}}}'


def objects(names: list[str]) -> str:
    return "{" + ",".join(f'"{name}":{{"{name[::-1]}":1}}' for name in names) + "}"


HEADERS = {
    "short unknown names": in_one_entry(keys(8, 13)),
    "wide names": in_one_entry(keys(100, 108, FACE)),
    "one wide name": in_one_entry(["x" * SIZE + FACE]),
    "one name that an escape makes wide": in_one_entry(["x" * SIZE + json.dumps(FACE)[1:-1]]),
    "long objects": objects(keys(60, 130)),
}


@pytest.mark.parametrize("header", HEADERS.values(), ids=HEADERS)
def test_a_hostile_header_takes_ten_times_its_file_at_most(tmp_path: Path, header: str) -> None:
    file = tmp_path / "model.safetensors"
    data = header.encode()
    file.write_bytes(struct.pack("<Q", len(data)) + data)
    tracemalloc.start()
    with suppress(InputError):
        SAFETENSORS.list_tensors(file, Origin("m", ""))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak <= 10 * file.stat().st_size


def test_a_large_header_of_a_file_with_weights_is_read(tmp_path: Path) -> None:
    count = SIZE // 70
    entries = {
        f"w.{n}": {"dtype": "U8", "shape": [1000], "data_offsets": [1000 * n, 1000 * n + 1000]} for n in range(count)
    }
    data = json.dumps({"__metadata__": {FACE: "{,:[\\"} | dict.fromkeys(map(str, range(9)), FACE), **entries}).encode()
    file = tmp_path / "model.safetensors"
    with file.open("wb") as out:
        out.write(struct.pack("<Q", len(data)) + data)
        out.truncate(8 + len(data) + 1000 * count)
    assert len(data) > 2**20
    assert len(SAFETENSORS.list_tensors(file, Origin("m", "")).tensors) == count


def test_what_stands_within_strings_counts_as_no_values(tmp_path: Path) -> None:
    """In more strings than are counted together, each with far more brackets, colons and commas than are around it."""
    texts = {f"{n}": "{[,:" * 60 for n in range(5000)}
    config, file = tmp_path / "config.json", tmp_path / "model.safetensors"
    config.write_text(json.dumps(texts))
    assert read_json(config) == texts
    data = json.dumps({"__metadata__": texts, "w": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}).encode()
    file.write_bytes(struct.pack("<Q", len(data)) + data + b"1")
    assert len(SAFETENSORS.list_tensors(file, Origin("m", "")).tensors) == 1
