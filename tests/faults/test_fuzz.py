"""Any bytes of a header, an index, a pickle or a configuration give one clear line or a sound tree.

Seeded (derandomize), so a failure repeats; each test also bounds the memory that its files may cost.
"""

from __future__ import annotations

import contextlib
import io
import json
import resource
import struct
import sys
import tempfile
import tracemalloc
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from opening import CONFIG, DOWN, KEY, QUERY, index, stored, tree_or_refusal, weights

from rankscope.engine.formats.pytorch import INDEX as TORCH_INDEX
from rankscope.engine.formats.safetensors import DTYPE_BITS, INDEX
from rankscope.tui.cli.main import main

fuzz = settings(
    derandomize=True, deadline=None, database=None, max_examples=100,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)  # fmt: skip

numbers = st.one_of(st.integers(-2, 70), st.sampled_from([2**31, 2**32, 2**63 - 1, 2**64, 10**30, 0.5, True, None]))
sizes = st.integers(0, 2**64 - 1)
texts = st.one_of(
    st.text(max_size=12),
    st.sampled_from(
        [QUERY, KEY, DOWN, "\x1b[2J", "\x9b31m", "\u202e", "\ud800", "[bold]x[/]", "../x", "/etc/passwd", ""]
    ),
)
values = st.recursive(
    st.one_of(numbers, texts), lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def little_memory() -> Iterator[None]:
    """Bound the memory of a test whose files have some kilobytes; torch's allocations by malloc count too."""
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    scale = 1 if sys.platform == "darwin" else 1024
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - resident) * scale < 400_000_000


@pytest.fixture
def ten_times_the_file() -> Iterator[list[int]]:
    """Bound the memory by the size of its files, which the test gives."""
    sizes: list[int] = []
    tracemalloc.start()
    yield sizes
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10 * max(sizes) + 10_000_000


def opened(name: str, content: bytes, **others: bytes) -> None:
    """Open the file, and the folder that has only this file."""
    with tempfile.TemporaryDirectory() as folder:
        for other, held in {**others, name: content}.items():
            (Path(folder) / other).write_bytes(held)
        tree_or_refusal(folder)
        if not name.endswith(".json"):
            tree_or_refusal(Path(folder) / name)


def mutated(data: st.DataObject, content: bytes, upto: int) -> bytes:
    """The data with some bytes changed, removed or added before `upto`."""
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, max(0, min(upto, len(content)) - 1)))
        cut = data.draw(st.sampled_from([0, 0, 1, 1, 1, 4, 8]))
        put = data.draw(st.binary(max_size=8) | st.sampled_from([b"\xff" * 8, b"\xff" * 4, bytes(8), b"."]))
        content = content[:at] + put + content[at + cut :]
    return content


@st.composite
def entries(draw: st.DrawFn) -> dict[str, Any]:
    """Header entries that are right but for the changes drawn."""
    made: dict[str, Any] = {}
    begin = 0
    for name in draw(st.lists(texts, max_size=4, unique=True)):
        dtype, shape = draw(st.sampled_from(sorted(DTYPE_BITS))), draw(st.lists(st.integers(0, 9), max_size=3))
        end = begin + DTYPE_BITS[dtype] * int(np.prod(shape, dtype=int)) // 8
        made[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
        if draw(st.integers(0, 5)) == 0:
            made[name][draw(st.sampled_from(["dtype", "shape", "data_offsets", "x"]))] = draw(values)
        begin = end
    return made


@fuzz
@given(entries(), st.integers(-4, 200), values)
def test_safetensors_headers(header: dict[str, Any], extra: int, metadata: object) -> None:
    size = max((e["data_offsets"][1] for e in header.values() if _plain(e)), default=0)
    whole = {**header, "__metadata__": metadata} if metadata else header
    opened("model.safetensors", stored(whole, bytes(max(0, size + (extra if extra < 20 else 0)))))


def _plain(entry: dict[str, Any]) -> bool:
    offsets = entry["data_offsets"]
    return isinstance(offsets, list) and len(offsets) == 2 and type(offsets[1]) is int and 0 <= offsets[1] < 10**5


@fuzz
@given(st.data())
def test_safetensors_bytes(data: st.DataObject) -> None:
    content = weights(QUERY, KEY, DOWN)
    opened("model.safetensors", mutated(data, content, len(content) - 300))


FILES_OPENED: set[str] = set()
_watching: list[bool] = []


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if _watching and event == "open" and isinstance(arguments[0], str | bytes):
        FILES_OPENED.add(str(Path(arguments[0] if isinstance(arguments[0], str) else arguments[0].decode()).resolve()))


sys.addaudithook(_watch)


@fuzz
@given(
    st.one_of(values, st.dictionaries(texts, st.one_of(texts, st.just("a.safetensors"), st.just("l.safetensors")))),
    st.sampled_from([INDEX, TORCH_INDEX]),
)
def test_indexes_never_read_outside_their_folder(weight_map: object, name: str) -> None:
    with tempfile.TemporaryDirectory() as outer:
        folder, secret = Path(outer).resolve() / "model", Path(outer).resolve() / "x.safetensors"
        folder.mkdir()
        secret.write_bytes(weights("secret"))
        (folder / "a.safetensors").write_bytes(weights(QUERY))
        (folder / "l.safetensors").symlink_to(secret)
        (folder / name).write_text(json.dumps({"weight_map": weight_map}))
        FILES_OPENED.clear()
        _watching.append(True)
        try:
            tree_or_refusal(folder)
        finally:
            _watching.clear()
        assert {file for file in FILES_OPENED if file.startswith(outer)} <= {
            str(folder / name),
            str(folder / "a.safetensors"),
        }


@pytest.mark.parametrize("linked", ["model.safetensors", "config.json", INDEX])
def test_a_link_out_of_the_folder_is_refused(tmp_path: Path, linked: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(weights(QUERY))
    (folder / linked).unlink(missing_ok=True)
    content = {
        "model.safetensors": weights(KEY),
        "config.json": b"{}",
        INDEX: index({"a": "b.safetensors"}),
    }
    (tmp_path / "elsewhere").write_bytes(content[linked])
    (folder / linked).symlink_to(tmp_path / "elsewhere")
    line = tree_or_refusal(folder)
    assert isinstance(line, str)
    assert "is a link out of its folder" in line


KEYS = [
    "model_type", "hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim", "num_hidden_layers",
    "text_config", "vision_config", "kv_lora_rank", "v_head_dim", "quantization_config", "architectures", "n_head",
]  # fmt: skip


@fuzz
@given(st.dictionaries(st.sampled_from(KEYS) | texts, values, max_size=6))
def test_configurations(config: dict[str, Any]) -> None:
    fused = weights(QUERY, "model.layers.0.self_attn.qkv_proj.weight", "model.layers.0.mlp.gate_up_proj.weight")
    opened("config.json", json.dumps({**CONFIG, **config}).encode(), **{"model.safetensors": fused})


@settings(fuzz, max_examples=25)
@given(st.dictionaries(st.sampled_from(KEYS) | texts, texts, max_size=5), st.lists(texts, min_size=1, max_size=5))
def test_no_escape_sequence_reaches_a_terminal(config: dict[str, Any], names: list[str]) -> None:
    header, begin = {}, 0
    for name in {*names, f"model.layers.0.{names[0]}.weight", f"{names[0]}.layers.1.self_attn.q_proj.weight"}:
        header[name] = {"dtype": "F32", "shape": [2, 2], "data_offsets": [begin, begin + 16]}
        begin += 16
    with tempfile.TemporaryDirectory() as outer:
        folder = Path(outer) / "m"
        folder.mkdir()
        whole = {**header, "__metadata__": {"format": "\x1b[2J", names[0]: "\x1b]0;title\x07"}}
        (folder / "model.safetensors").write_bytes(stored(whole, bytes(begin)))
        (folder / "config.json").write_text(json.dumps({"model_type": "\x1b[31m", **config}))
        written = io.StringIO()
        with contextlib.redirect_stdout(written), contextlib.redirect_stderr(written):
            for words in (["tree"], ["tree", "--json"]):
                assert main([*words, str(folder), "--store", outer]) in (0, 2)
    assert written.getvalue().replace("\n", "").isprintable()


@pytest.fixture(scope="module")
def small_gguf(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    file = tmp_path_factory.mktemp("gguf") / "small.gguf"
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_block_count(1)
    writer.add_token_list(["a", "bb"])
    writer.add_array("a.nested", [[1, 2], [3, 4]])
    writer.add_tensor("blk.0.attn_q.weight", np.ones((4, 8), np.float32))
    writer.add_tensor("blk.0.ffn_up_exps.weight", np.ones((2, 4, 8), np.float16))
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        step()
    return file.read_bytes()


@fuzz
@given(st.data())
def test_gguf_headers(small_gguf: bytes, data: st.DataObject) -> None:
    opened("model.gguf", mutated(data, small_gguf, len(small_gguf) - 256))


@fuzz
@given(
    st.lists(st.tuples(texts, st.lists(st.integers(0, 2**64 - 1), max_size=9), st.integers(0, 42), numbers), max_size=3)
)
def test_gguf_tensors(heads: list[tuple[str, list[int], int, Any]]) -> None:
    body = b""
    for name, shape, kind, offset in heads:
        text = name.encode("utf-8", "surrogatepass")
        place = offset % 2**64 if isinstance(offset, int) else 0
        body += struct.pack("<Q", len(text)) + text + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, place)
    opened("model.gguf", b"GGUF" + struct.pack("<IQQ", 3, len(heads), 0) + body + bytes(256))


def torch_save(held: object, *, legacy: bool) -> bytes:
    buffer = io.BytesIO()
    torch.save(held, buffer, _use_new_zipfile_serialization=not legacy)
    return buffer.getvalue()


HELD = {"model": {QUERY: torch.ones(4, 8), DOWN: torch.ones(8, 4).T}, "step": 3}


@fuzz
@given(st.data())
def test_torch_archives(data: st.DataObject) -> None:
    opened("pytorch_model.bin", mutated(data, torch_save(HELD, legacy=False), 4000))


@fuzz
@given(st.data())
def test_pickles_in_a_sound_archive(data: st.DataObject) -> None:
    image = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(torch_save(HELD, legacy=False))) as whole, zipfile.ZipFile(image, "w") as changed:
        for name in whole.namelist():
            held = whole.read(name)
            changed.writestr(name, mutated(data, held, len(held)) if name.endswith("data.pkl") else held)
    opened("pytorch_model.bin", image.getvalue())


@fuzz
@given(st.data())
def test_legacy_torch_files(data: st.DataObject) -> None:
    content = torch_save(HELD, legacy=True)
    opened("pytorch_model.bin", mutated(data, content, len(content)))


HOSTILE_PICKLES = {
    "lists": b"\x80\x02" + b"]" * 700_000 + b".",
    "tuples": b"\x80\x02)" + b"\x85" * 700_000 + b".",
    "marks": b"\x80\x02" + b"(" * 700_000 + b".",
    "endless text": b"\x80\x02X\xff\xff\xff\xff" + b"a" * 100,
    "endless": b"\x80\x02" + b"K\x01" * 100,
    "a high number": b"\x80\x02)r\x00\x00\x00\x02.",
    "a high number as text": b"\x80\x02)p33000000\n.",
}


@pytest.mark.parametrize(
    ("case", "legacy"), [*((case, False) for case in HOSTILE_PICKLES), ("tuples", True), ("endless text", True)]
)
def test_pickles_that_would_fill_the_memory(case: str, legacy: bool, ten_times_the_file: list[int]) -> None:
    pickle = HOSTILE_PICKLES[case]
    ten_times_the_file.append(len(pickle))
    if legacy:
        content = torch_save(HELD, legacy=True)
        opened("pytorch_model.bin", content[: content.index(b"}q", 60)] + pickle)
    else:
        image = io.BytesIO()
        with zipfile.ZipFile(image, "w") as archive:
            archive.writestr("m/data.pkl", pickle)
            archive.writestr("m/version", b"3")
        opened("pytorch_model.bin", image.getvalue())


N = 100_000
HOSTILE_JSON = {
    "lists": b'{"a":[' + b"[]," * 5 * N + b"[]]}",
    "objects": b'{"a":[' + b"{}," * 5 * N + b"{}]}",
    "numbers": b'{"a":[' + b"257," * 5 * N + b"1]}",
    "keys": b"{" + b",".join(b'"%05x":0' % n for n in range(N + N // 8)) + b"}",
}


@pytest.mark.parametrize("case", HOSTILE_JSON)
@pytest.mark.parametrize("name", ["model.safetensors", "config.json", INDEX])
def test_json_of_too_many_values(case: str, name: str, ten_times_the_file: list[int]) -> None:
    text = HOSTILE_JSON[case]
    ten_times_the_file.append(len(text))
    others = {} if name == "model.safetensors" else {"model.safetensors": weights(QUERY)}
    opened(name, stored(text) if name == "model.safetensors" else text, **others)
