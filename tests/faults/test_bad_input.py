"""Malformed safetensors and GGUF files: opened exactly where that is right, else one clear line."""

from __future__ import annotations

import json
import os
import random
import re
import struct
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from opening import DOWN, KEY, QUERY, refusal, stored, tree_or_refusal, weights
from safetensors import SafetensorError, safe_open

from rankscope.engine.catalogue.tree import Tree
from rankscope.engine.checkpoint.open import open_checkpoint
from rankscope.engine.formats.safetensors import DTYPE_BITS

F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
NEXT = {"dtype": "F32", "shape": [2], "data_offsets": [8, 16]}
ENTRY = json.dumps(F32).encode()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "model.safetensors"


def accepted_by_the_reference(file: Path) -> bool:
    try:
        with safe_open(file, framework="np") as opened:
            assert isinstance(list(opened.keys()), list)
    except SafetensorError:
        return False
    return True


def entry(**changed: Any) -> dict[str, Any]:
    return {"t": {**F32, **changed}}


MALFORMED = {
    "empty": (b"", "is empty: download it again"),
    "seven bytes": (bytes(7), "too short for a header"),
    "no header": (bytes(8), "not JSON"),
    "length beyond the file": (struct.pack("<Q", 1000) + b"{}", "header of 1000 bytes in a file of 10"),
    "length of 64 bits": (struct.pack("<Q", 2**64 - 1) + b"{}", "truncated or not safetensors"),
    "not JSON": (stored(b"PK\x03\x04"), "not JSON"),
    "half a JSON": (stored(b'{"t":'), "not JSON"),
    "an array": (stored([]), "not a JSON object"),
    "a number": (stored(1), "not a JSON object"),
    "NaN": (stored(b'{"t":{"x":NaN,' + ENTRY[1:] + b"}", bytes(8)), "not JSON"),
    "UTF-16": (stored(json.dumps(entry()).encode("utf-16-le"), bytes(8)), "not JSON"),
    "a byte order mark": (stored(b"\xef\xbb\xbf" + json.dumps(entry()).encode(), bytes(8)), "not JSON"),
    "not UTF-8": (stored(b'{"\xed\xa0\x80":' + ENTRY + b"}", bytes(8)), "not JSON"),
    "half a surrogate pair": (stored({"\ud800": F32}, bytes(8)), "not JSON"),
    "nested too deep": (stored(b"[" * 200_000 + b"]" * 200_000), "not JSON"),
    "nested objects": (stored(b'{"a":' * 100_000 + b"1" + b"}" * 100_000), "not JSON"),
    "entry is a number": (stored({"t": 1}), "incomplete entry for tensor t"),
    "entry is a string": (stored({"t": "F32"}), "incomplete entry for tensor t"),
    "entry is null": (stored({"t": None}), "incomplete entry for tensor t"),
    "no dtype": (stored({"t": {"shape": [2], "data_offsets": [0, 8]}}, bytes(8)), "incomplete entry"),
    "no shape": (stored({"t": {"dtype": "F32", "data_offsets": [0, 8]}}, bytes(8)), "incomplete entry"),
    "one offset": (stored(entry(data_offsets=[0])), "incomplete entry"),
    "three offsets": (stored(entry(data_offsets=[0, 8, 8]), bytes(8)), "incomplete entry"),
    "offsets are a number": (stored(entry(data_offsets=8), bytes(8)), "incomplete entry"),
    "offsets are text": (stored(entry(data_offsets="08"), bytes(8)), "not whole numbers"),
    "unknown dtype": (stored(entry(dtype="F33\x1b[2J"), bytes(8)), "unknown dtype F33"),
    "dtype is a list": (stored(entry(dtype=["F32"]), bytes(8)), "unknown dtype"),
    "shape is a number": (stored(entry(shape=2), bytes(8)), "not whole numbers"),
    "shape is null": (stored(entry(shape=None), bytes(8)), "not whole numbers"),
    "negative size": (stored(entry(shape=[-2]), bytes(8)), "not whole numbers"),
    "two negative sizes": (stored(entry(shape=[-1, -2]), bytes(8)), "not whole numbers"),
    "float size": (stored(entry(shape=[2.0]), bytes(8)), "not whole numbers"),
    "text size": (stored(entry(shape=["2"]), bytes(8)), "not whole numbers"),
    "bool size": (stored(entry(shape=[True], data_offsets=[0, 4]), bytes(4)), "not whole numbers"),
    "size beyond 64 bits": (stored(entry(shape=[2**64])), "not whole numbers"),
    "product beyond 64 bits": (stored(entry(shape=[2**62, 2**62, 0], data_offsets=[0, 0])), "overflows"),
    "hostile product": (stored(entry(shape=[2**62] * 200_000)), "overflows"),
    "numbers of 3000 digits": (stored(entry(shape=[10**3000, 10**3000])), "not whole numbers"),
    "negative offset": (stored(entry(data_offsets=[-8, 0]), bytes(8)), "not whole numbers"),
    "float offset": (stored(entry(data_offsets=[0, 8.0]), bytes(8)), "not whole numbers"),
    "offsets backwards": (stored(entry(data_offsets=[8, 0]), bytes(8)), "-8 bytes"),
    "offsets of another shape": (stored(entry(shape=[3]), bytes(8)), "8 bytes where dtype and shape need 12"),
    "offsets of another dtype": (stored(entry(dtype="F64"), bytes(8)), "8 bytes where dtype and shape need 16"),
    "half a byte": (stored(entry(dtype="F4", shape=[3], data_offsets=[0, 1]), bytes(1)), "1 bytes where"),
    "overlap": (stored({"a": F32, "b": {**F32, "data_offsets": [4, 12]}}, bytes(12)), "overlap at tensor b"),
    "the same bytes twice": (stored({"a": F32, "b": F32}, bytes(8)), "overlap at tensor b"),
    "hole": (stored({"a": F32, "b": {**F32, "data_offsets": [12, 20]}}, bytes(20)), "hole at tensor b"),
    "hole at the start": (stored({"b": NEXT}, bytes(16)), "hole at tensor b"),
    "truncated data": (stored({"a": F32, "b": NEXT}, bytes(11)), "truncated: 5 bytes are missing"),
    "no data": (stored(entry()), "truncated: 8 bytes are missing"),
    "trailing bytes": (stored(entry(), bytes(9)), "unlisted bytes"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_header_is_refused_with_its_reason(file: Path, case: str) -> None:
    content, reason = MALFORMED[case]
    file.write_bytes(content)
    assert not accepted_by_the_reference(file)
    assert reason in refusal(file)


def test_a_header_beyond_100_megabytes(file: Path) -> None:
    file.write_bytes(struct.pack("<Q", 100_000_001))
    os.truncate(file, 100_000_100)  # sparse: takes no space
    assert not accepted_by_the_reference(file)
    assert "header of 100,000,001 bytes, too large for the 100,000,000 that safetensors allows" in refusal(file)


DIFFERENCES = {
    # stricter: which of two entries is meant cannot be known
    "a name twice": (b'{"t":' + ENTRY + b',"t":' + ENTRY + b"}", True, False),
    "metadata with a name twice": (b'{"__metadata__":{"x":"1","x":"2"},"t":' + ENTRY + b"}", True, False),
    # stricter: the format says object; that Rust's derived reader takes a sequence is an accident
    "entry as an array": (b'{"t":["F32",[2],[0,8]]}', True, False),
    # laxer: what these say is never read
    "metadata that is no text": (b'{"__metadata__":{"x":1},"t":' + ENTRY + b"}", False, True),
    "an unread number too large": (b'{"t":{"x":1e999,' + ENTRY[1:] + b"}", False, True),
    "an unread value 200 deep": (b'{"t":{"x":' + b"[" * 200 + b"]" * 200 + b"," + ENTRY[1:] + b"}", False, True),
    # laxer: minus nought is nought
    "minus nought": (b'{"t":{"dtype":"F32","shape":[2],"data_offsets":[-0,8]}}', False, True),
}


@pytest.mark.parametrize("case", DIFFERENCES)
def test_where_we_differ_from_the_reference_on_purpose(file: Path, case: str) -> None:
    header, reference, ours = DIFFERENCES[case]
    file.write_bytes(stored(header, bytes(8)))
    assert accepted_by_the_reference(file) is reference
    assert isinstance(tree_or_refusal(file), Tree) is ours


def test_the_dtypes_are_the_references(file: Path) -> None:
    file.write_bytes(stored(entry(dtype="none"), bytes(8)))
    with pytest.raises(SafetensorError, match="unknown variant `none`, expected one of") as caught:
        safe_open(file, framework="np")
    assert set(re.findall(r"`(\w+)`", str(caught.value))) - {"none"} == set(DTYPE_BITS)
    for dtype, bits in DTYPE_BITS.items():
        held = {"dtype": dtype, "shape": [8, 8], "data_offsets": [0, 8 * bits]}
        file.write_bytes(stored({"t": held}, bytes(8 * bits)))
        assert accepted_by_the_reference(file)
        assert isinstance(tree_or_refusal(file), Tree)


TOKENS = re.compile(rb'-?\d+|"[^"]*"|[\[\]{},:]')
REPLACEMENTS = (
    b"-1", b"0", b"-0", b"1", b"4", b"8", b"128", b"1.0", b"1e2", b"true", b"null", b"NaN", b"18446744073709551616",
    b'"F64"', b'"F16"', b'"U8"', b'"x"', b'"t"', b"[]", b"{}", b"[0,128]", b"\xff", b"\\", b"  ", b",",
)  # fmt: skip

HARMLESS = (
    (b"F32", b"I32"),
    (b"[4,8]", b"[8,4]"),
    (b"[4,8]", b"[32]"),
    (b'"a"', b'"\\u00e9"'),
    (b"[4,8]", b"[4,1,8,1]"),
)


def mutated(header: bytes, rng: random.Random) -> bytes:
    """One to three changes: a bit, a byte more or less, a token replaced, two swapped, a part doubled, a space."""
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        at = rng.randrange(len(header))
        spans = [m.span() for m in TOKENS.finditer(header)]
        (a, b), (c, d) = sorted(rng.choices(spans, k=2)) if spans else ((0, 0), (0, 0))
        header = rng.choice((
            header[:at] + bytes([header[at] ^ 1 << rng.randrange(8)]) + header[at + 1 :],
            header[:at] + header[at + 1 :],
            header[:at] + bytes([rng.randrange(256)]) + header[at:],
            header[:a] + rng.choice(REPLACEMENTS) + header[b:],
            header[:a] + header[c:d] + header[b:c] + header[a:b] + header[d:] if b <= c else header,
            header[: at + 1] + header[max(0, at - 20) :],
            header[:a] + rng.choice((b" ", b"\n", b"\t")) + header[a:],
            header.replace(*rng.choice(HARMLESS)),
        ))  # fmt: skip
        if not header:
            return b" "
    return header


def test_random_mutations_are_accepted_exactly_where_the_reference_accepts_them(file: Path) -> None:
    rng = random.Random(20261123)
    whole = weights("a", "b.weight", DOWN)
    length = struct.unpack("<Q", whole[:8])[0]
    header, data = whole[8 : 8 + length].rstrip(), whole[8 + length :]
    accepted = excused = 0
    for _ in range(600):
        broken = mutated(header, rng)
        stated = len(broken) + rng.choice((0,) * 20 + (-1, 1, 8, 256))
        cut = rng.choice((0,) * 20 + (4,))
        file.write_bytes(struct.pack("<Q", max(stated, 0)) + broken + data[cut:])
        expected, outcome = accepted_by_the_reference(file), tree_or_refusal(file)
        if isinstance(outcome, Tree) is expected:
            accepted += expected
            continue
        known = b"-0" in broken if isinstance(outcome, Tree) else "occurs twice" in outcome
        assert known, (broken, expected, outcome)  # see DIFFERENCES
        excused += 1
    assert 60 < accepted < 540
    assert excused < 30


def test_what_the_reference_reads_is_what_we_list(file: Path) -> None:
    file.write_bytes(weights(QUERY, KEY, DOWN))
    content = file.read_bytes()
    with safe_open(file, framework="np") as opened:
        for tensor in open_checkpoint(str(file)).tensors:
            expected = opened.get_tensor(tensor.name)
            held = np.frombuffer(content[tensor.begin : tensor.end], np.float32).reshape(tensor.shape)
            np.testing.assert_array_equal(held, expected)


@pytest.mark.parametrize("suffix", [".safetensors", ".gguf"])
@pytest.mark.parametrize("kind", ["fifo", "link to a device", "dangling link", "link to itself", "folder"])
def test_what_is_no_file_is_refused_at_once(tmp_path: Path, kind: str, suffix: str) -> None:
    path = tmp_path / f"model{suffix}"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to({"link to a device": "/dev/zero", "dangling link": "nowhere"}.get(kind, path.name))
    refusal(path)
    if suffix == ".safetensors":
        refusal(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
def test_a_file_without_permission(file: Path) -> None:
    file.write_bytes(weights(QUERY))
    file.chmod(0)
    assert "Permission denied" in refusal(file)
    file.parent.chmod(0)
    try:
        assert "Permission denied" in refusal(file.parent)
        assert "Permission denied" in refusal(file)
    finally:
        file.parent.chmod(0o700)


@pytest.fixture(scope="module")
def small_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every kind of value and array in the metadata; a float, a half and a 4-bit tensor."""
    path = tmp_path_factory.mktemp("gguf") / "small.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_embedding_length(64)
    writer.add_head_count(2)
    writer.add_token_list(["a", "bb", "ccc"])
    writer.add_token_scores([0.0, 1.0, 2.0])
    writer.add_bool("a.bool", True)
    writer.add_float64("a.double", 1.5)
    writer.add_array("a.nested", [[1, 2], [3, 4]])
    rng = np.random.default_rng(0)
    matrix = rng.standard_normal((32, 64)).astype(np.float32)
    writer.add_tensor("blk.0.attn_q.weight", matrix)
    writer.add_tensor("blk.0.attn_k.weight", matrix.astype(np.float16))
    packed = gguf.quants.quantize(matrix, gguf.GGMLQuantizationType.Q4_0)
    writer.add_tensor("blk.0.ffn_up.weight", packed, raw_dtype=gguf.GGMLQuantizationType.Q4_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _placed(reader: gguf.GGUFReader) -> dict[str, tuple[str, tuple[int, ...], int, int]]:
    return {
        t.name: (t.tensor_type.name, tuple(map(int, t.shape[::-1])), t.data_offset, t.data_offset + t.n_bytes)
        for t in reader.tensors
    }


def _header(path: Path) -> int:
    return min(begin for _, _, begin, _ in _placed(gguf.GGUFReader(path)).values())


def test_a_whole_gguf_is_listed_as_ggufs_own_reader_does(small_gguf: Path) -> None:
    opened = open_checkpoint(str(small_gguf))
    assert {t.name: (t.dtype, t.shape, t.begin, t.end) for t in opened.tensors} == _placed(gguf.GGUFReader(small_gguf))


def test_a_gguf_cut_off_anywhere_is_refused(small_gguf: Path, tmp_path: Path) -> None:
    whole, cut = small_gguf.read_bytes(), tmp_path / "cut.gguf"
    end = max(end for _, _, _, end in _placed(gguf.GGUFReader(small_gguf)).values())
    for length in range(0, end, 7):
        cut.write_bytes(whole[:length])
        refusal(cut)


@pytest.fixture
def little_memory() -> Iterator[None]:
    """A header of some hundred bytes must not make the reader allocate by the megabyte."""
    tracemalloc.start()
    yield
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20_000_000


@pytest.mark.usefixtures("little_memory")
def test_a_gguf_with_a_flipped_byte_opens_or_is_refused(small_gguf: Path, tmp_path: Path) -> None:
    rng = random.Random(20261123)
    whole, broken = small_gguf.read_bytes(), tmp_path / "broken.gguf"
    header, opened = _header(small_gguf), 0
    for _ in range(300):
        at = rng.randrange(header)
        broken.write_bytes(whole[:at] + bytes([rng.choice((0, 1, 255, rng.randrange(256)))]) + whole[at + 1 :])
        if isinstance(tree_or_refusal(broken), Tree):
            opened += 1
            assert all(0 <= t.begin <= t.end <= len(whole) for t in open_checkpoint(str(broken)).tensors)
    assert 30 < opened < 290


def _string(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


def _gguf(tensors: int, entries: int, body: bytes, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, entries) + body


HUGE = struct.pack("<Q", 2**64 - 1)
ALIGNMENT = _string(b"general.alignment")
TENSOR = _string(b"blk.0.attn_q.weight") + struct.pack("<I", 2)
HOSTILE_GGUF = {
    "empty": b"",
    "another magic": b"GGML" + bytes(64),
    "version 1": _gguf(0, 0, b"", version=1),
    "big-endian": b"GGUF" + struct.pack(">IQQ", 3, 0, 0),
    "2^64 tensors": _gguf(2**64 - 1, 0, b""),
    "2^64 entries": _gguf(0, 2**64 - 1, bytes(4096)),
    "endless key": _gguf(0, 1, HUGE),
    "endless text": _gguf(0, 1, _string(b"k") + struct.pack("<I", 8) + HUGE),
    "endless array": _gguf(0, 1, _string(b"k") + struct.pack("<II", 9, 10) + HUGE),
    "endless array of texts": _gguf(0, 1, _string(b"k") + struct.pack("<II", 9, 8) + HUGE + bytes(4096)),
    "nested arrays": _gguf(0, 1, _string(b"k") + struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 5000),
    "unknown value type": _gguf(0, 1, _string(b"k") + struct.pack("<I", 99)),
    "unknown array type": _gguf(0, 1, _string(b"k") + struct.pack("<IIQ", 9, 99, 1)),
    "2^32 dimensions": _gguf(1, 0, _string(b"t") + struct.pack("<I", 2**32 - 1) + bytes(4096)),
    "endless tensor": _gguf(1, 0, TENSOR + HUGE + HUGE + struct.pack("<IQ", 0, 0)),
    "endless offset": _gguf(1, 0, TENSOR + struct.pack("<QQIQ", 2, 2, 0, 2**64 - 1) + bytes(64)),
    "unknown tensor type behind the end": _gguf(1, 0, TENSOR + struct.pack("<QQIQ", 2, 2, 99, 64) + bytes(64)),
    "row of half a block": _gguf(1, 0, TENSOR + struct.pack("<QQIQ", 16, 2, 2, 0) + bytes(64)),
    "a name twice": _gguf(2, 0, (TENSOR + struct.pack("<QQIQ", 2, 2, 0, 0)) * 2 + bytes(64)),
    "alignment is text": _gguf(0, 1, ALIGNMENT + struct.pack("<I", 8) + _string(b"32")),
    "alignment is nought": _gguf(0, 1, ALIGNMENT + struct.pack("<II", 4, 0)),
    "alignment is negative": _gguf(0, 1, ALIGNMENT + struct.pack("<Ii", 5, -32)),
    "alignment is a fraction": _gguf(0, 1, ALIGNMENT + struct.pack("<If", 6, 0.5)),
    "alignment is NaN": _gguf(0, 1, ALIGNMENT + struct.pack("<If", 6, float("nan"))),
    "alignment is true": _gguf(0, 1, ALIGNMENT + struct.pack("<IB", 7, 1)),
    "alignment is an array": _gguf(0, 1, ALIGNMENT + struct.pack("<IIQ", 9, 4, 0)),
    "a name with an escape sequence": _gguf(1, 0, _string(b"\x1b[2J\n") + struct.pack("<I", 99)),
}


@pytest.mark.parametrize("case", HOSTILE_GGUF)
@pytest.mark.usefixtures("little_memory")
def test_a_hostile_gguf_is_refused(tmp_path: Path, case: str) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(HOSTILE_GGUF[case])
    refusal(path)


def test_one_part_of_a_split_gguf(small_gguf: Path, tmp_path: Path) -> None:
    part = tmp_path / "m-00001-of-00002.gguf"
    part.write_bytes(small_gguf.read_bytes())
    assert "m-00002-of-00002.gguf" in refusal(part)
