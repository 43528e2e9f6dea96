"""GGUF files that are not downloaded: headers of unstated length, parts, several models in a repo, the same keys."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Quant
from hub_server import HubServer
from opening import refused
from remote_models import NAME, read, scan

from rankscope.engine.catalogue.tree import build_tree
from rankscope.engine.checkpoint.hub import Access
from rankscope.engine.checkpoint.open import demo_file, open_checkpoint
from rankscope.engine.checkpoint.urls import stored_name
from rankscope.engine.errors import WeightsError
from rankscope.engine.formats import gguf as ours

pytestmark = pytest.mark.usefixtures("short_first_range")
KINDS = {"attn_q": Quant.Q8_0, "attn_k": Quant.Q4_0, "ffn_up": Quant.F32, "ffn_down": Quant.Q5_1}
TENSORS = [f"blk.{layer}.{leaf}.weight" for layer in range(2) for leaf in KINDS]
FILE = "tiny.Q4_0.gguf"
PARTS = [f"tiny-0000{n}-of-00003.gguf" for n in (1, 2, 3)]


def written(folder: Path, seed: int = 0, per_part: int = 0, words: int = 900) -> dict[str, bytes]:
    """The files of a small llama, whose vocabulary makes its header longer than what is asked for at first."""
    rng = np.random.default_rng(seed)
    folder.mkdir()
    writer = gguf.GGUFWriter(folder / "tiny.gguf", "llama", split_max_tensors=per_part)
    writer.add_block_count(2)
    writer.add_embedding_length(64)
    writer.add_head_count(2)
    writer.add_token_list([f"word {n}" for n in range(words)])
    for name in TENSORS:
        kind = KINDS[name.split(".")[2]]
        writer.add_tensor(name, gguf.quantize(rng.standard_normal((48, 64), np.float32), kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return written(tmp_path_factory.mktemp("gguf") / "whole")["tiny.gguf"]


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    held = written(tmp_path_factory.mktemp("gguf") / "split", per_part=3)
    assert sorted(held) == PARTS
    return held


@pytest.fixture
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ours, "_MORE", 1500)


def spans(hub: HubServer, file: str) -> list[tuple[int, int]]:
    """The ranges of a file that were asked for: first byte and end."""
    asked = [r.range.removeprefix("bytes=").split("-") for r in hub.requests if r.path.endswith(file)]
    return [(int(first), int(last) + 1) for first, last in asked]


def line(model: str, access: Access = Access.RANGES) -> str:
    return refused(model, access)


@pytest.mark.usefixtures("small_steps")
def test_its_header_is_fetched_until_it_ends_and_no_byte_twice(hub: HubServer, whole: bytes) -> None:
    commit = hub.push(NAME, {FILE: whole, "README.md": b"# tiny"})
    opened = open_checkpoint(NAME)
    assert (opened.name, opened.commit, opened.location, opened.is_remote) == (NAME, commit, None, True)
    assert (opened.config["model_type"], opened.config["hidden_size"]) == ("llama", 64)
    header = min(t.begin for t in opened.tensors)
    asked = spans(hub, FILE)
    assert asked[0] == (0, 1000)
    assert [begin for begin, _ in asked[1:]] == [end for _, end in asked[:-1]]
    assert asked[-2][1] < header <= asked[-1][1] < 2 * header
    assert 3 < len(asked) < 8  # the list of 900 words is known to be no shorter than 7,200 bytes
    assert hub.sent[FILE] == asked[-1][1]


def test_spectra_and_keys_are_those_of_the_downloaded_file(hub: HubServer, whole: bytes) -> None:
    hub.push(NAME, {FILE: whole})
    far = open_checkpoint(NAME)
    hub.sent.clear()
    there = scan(far, build_tree(far).scanned())
    assert (len(there.accepted), there.failed) == (8, {})
    stored = sum(t.end - t.begin for t in far.tensors)
    assert there.progress.fetched == there.progress.to_fetch == hub.sent[FILE] == stored == far.bytes
    near = open_checkpoint(NAME, Access.DOWNLOAD)
    assert (near.config, near.quantisation, near.name) == (far.config, far.quantisation, far.name)
    assert build_tree(near).projections == build_tree(far).projections
    assert scan(near, build_tree(near).scanned(), there.sink).accepted == []
    here = scan(near, build_tree(near).scanned())
    for key, spectrum in here.sink.kept.items():
        np.testing.assert_array_equal(spectrum.values, there.sink.kept[key].values)


def test_the_demo_from_a_server(hub: HubServer) -> None:
    near, data = open_checkpoint("demo"), demo_file().read_bytes()
    hub.static["/demo.gguf"] = data
    far = open_checkpoint(f"http://localhost:{hub.port}/demo.gguf")
    header = min(t.begin for t in near.tensors)
    assert header <= hub.sent["/demo.gguf"] <= 2 * header
    assert (far.config, far.quantisation, far.bytes) == (near.config, near.quantisation, near.bytes)
    assert [t[:3] + t[4:6] for t in far.tensors] == [t[:3] + t[4:6] for t in near.tensors]
    address = "layers.7.attention.key"
    found = [
        scan(each, [p for p in build_tree(each).scanned() if p.address == address]).sink.kept for each in (near, far)
    ]
    (here,), (there,) = (list(kept.values()) for kept in found)
    np.testing.assert_array_equal(here.values, there.values)
    assert here.weights_digests == there.weights_digests != ("",)


@pytest.mark.parametrize("named", [NAME, f"hf://{NAME}/{PARTS[1]}", "URL of the Hub", "URL"])
def test_a_model_in_parts_is_opened_by_any_of_them(hub: HubServer, split: dict[str, bytes], named: str) -> None:
    hub.push(NAME, {**split, "other.Q8_0.gguf": b"x"} if named != NAME else split)
    hub.static |= {f"/files/{name}": data for name, data in split.items()}
    urls = {
        "URL of the Hub": f"{hub.url}/{NAME}/blob/main/{PARTS[2]}",
        "URL": f"http://localhost:{hub.port}/files/{PARTS[1]}?x=1",
    }
    opened = open_checkpoint(urls.get(named, named))
    assert [t.name for t in opened.tensors] == TENSORS
    assert [file.name for file in opened.stamps] == PARTS
    assert len({t.source.repo for t in opened.tensors}) == 1
    assert (opened.config["num_hidden_layers"], opened.quantisation) == (2, "Q8_0")
    assert opened.name == stored_name(urls.get(named, named))
    if named != NAME:
        assert opened.name.endswith(f"/{PARTS[0]}")
    assert [read(opened, name).shape for name in TENSORS] == [(48, 64)] * 8
    again = open_checkpoint(opened.elsewhere)
    assert (again.name, again.tensors) == (opened.name, opened.tensors)


def test_a_model_in_a_folder_of_a_repo(hub: HubServer, split: dict[str, bytes], whole: bytes) -> None:
    hub.push(NAME, {f"UD-Q4/{name}": data for name, data in split.items()} | {"UD-Q8/TINY.GGUF": whole})
    assert "has no weights on the Hub that can be read except in its folders (UD-Q4, UD-Q8)" in line(NAME)
    opened = open_checkpoint(f"{NAME}/UD-Q4")
    assert (opened.name, len(opened.stamps), len(opened.tensors)) == (f"{NAME}/UD-Q4", 3, 8)
    assert open_checkpoint(f"hf://{NAME}/UD-Q4/{PARTS[2]}").name == f"{NAME}/UD-Q4/{PARTS[0]}"
    other = open_checkpoint(f"{NAME}/UD-Q8")
    for name in TENSORS:
        np.testing.assert_array_equal(read(opened, name), read(other, name))


def test_a_part_that_is_not_there(hub: HubServer, split: dict[str, bytes], whole: bytes) -> None:
    hub.push(NAME, {name: data for name, data in split.items() if name != PARTS[1]})
    for named in (NAME, f"hf://{NAME}/{PARTS[0]}"):
        assert f"does not hold shard {PARTS[1]}" in line(named)
    assert f"has no {PARTS[1]}" in line(f"hf://{NAME}/{PARTS[1]}")
    hub.static |= {f"/files/{PARTS[0]}": split[PARTS[0]]}
    assert f"answered 404 for {PARTS[1]}" in line(f"http://localhost:{hub.port}/files/{PARTS[0]}")
    hub.push(NAME, {PARTS[1]: whole, PARTS[2]: None, PARTS[0]: None, "part.gguf": split[PARTS[0]]})
    assert "is one of 3 parts, which must be named NAME-00001-of-00003.gguf" in line(f"hf://{NAME}/part.gguf")


def test_one_of_several_models_in_a_repo_is_named_by_its_file(hub: HubServer, tmp_path: Path, whole: bytes) -> None:
    other = written(tmp_path / "other", seed=1)["tiny.gguf"]
    first = hub.push(NAME, {"a.Q4_0.gguf": whole, "b/b.Q8_0.gguf": other, "b.Q8_0.gguf": other})
    said = f"{NAME} holds 2 models (a.Q4_0.gguf, b.Q8_0.gguf): name one of the files, as hf://{NAME}/a.Q4_0.gguf"
    assert {line(NAME, access) for access in (Access.RANGES, Access.DOWNLOAD)} == {said}
    assert line(f"{NAME}@{first}").endswith(f"as hf://{NAME}/a.Q4_0.gguf@{first}")
    hub.push(NAME, {"a.Q4_0.gguf": other})
    names = [f"hf://{NAME}/{model}" for model in (f"a.Q4_0.gguf@{first}", "b.Q8_0.gguf", "b/b.Q8_0.gguf")]
    opened = [open_checkpoint(name) for name in names]
    assert [each.name for each in opened] == [f"{NAME}/{f}" for f in ("a.Q4_0.gguf", "b.Q8_0.gguf", "b/b.Q8_0.gguf")]
    assert [each.name for each in opened] == [stored_name(name) for name in names]  # apart from one another
    first_weights, second, third = (read(each, TENSORS[0]) for each in opened)
    np.testing.assert_array_equal(second, third)
    assert not np.array_equal(first_weights, second)
    assert [{t.source.repo for t in each.tensors} for each in opened] == [{each.name} for each in opened]
    assert "has no c.gguf" in line(f"hf://{NAME}/c.gguf")


@pytest.mark.parametrize("files", [1, 3])
def test_one_of_several_is_downloaded(hub: HubServer, split: dict[str, bytes], whole: bytes, files: int) -> None:
    hub.push(NAME, {"a.gguf": whole, **split})
    name = f"hf://{NAME}/{'a.gguf' if files == 1 else PARTS[1]}"
    far = open_checkpoint(name)
    near = open_checkpoint(name, Access.DOWNLOAD)
    assert (near.name, near.is_remote, len(near.stamps)) == (far.name, False, files)
    assert build_tree(near).projections == build_tree(far).projections
    hub.requests.clear()
    assert not open_checkpoint(name).is_remote
    assert hub.files() == []
    assert f"{NAME} has no file c.gguf" in line(f"hf://{NAME}/c.gguf", Access.DOWNLOAD)


def test_a_file_that_changes_is_not_read(hub: HubServer, tmp_path: Path, whole: bytes) -> None:
    hub.static["/tiny.gguf"] = whole
    opened = open_checkpoint(f"http://localhost:{hub.port}/tiny.gguf")
    hub.static["/tiny.gguf"] = written(tmp_path / "other", seed=1)["tiny.gguf"]
    with pytest.raises(WeightsError, match=r"tiny.gguf changed on the server since it was listed"):
        read(opened, TENSORS[0])


def _states_words(data: bytes, count: int) -> bytes:
    """The header with another number of words in its vocabulary, as no writer would."""
    at = data.index(b"tokenizer.ggml.tokens") + len("tokenizer.ggml.tokens") + 8
    return data[:at] + struct.pack("<Q", count) + data[at + 8 :]


@pytest.mark.parametrize(
    ("change", "said", "requests"),
    [
        (lambda data: _states_words(data, 2**40), "has a malformed header (the header runs past the end", 1),
        (lambda data: _states_words(data, 3), "has a malformed header", 2),
        (lambda data: data[:-9], "is truncated: ", 2),
        (lambda data: data[:5000], "has a malformed header (the header runs past the end", 1),
        (lambda _: b"<html>" * 3000, "is a web page or a server's error", 1),
        (lambda data: data[:4] + data[7:3:-1] + data[8:], "is a big-endian GGUF", 1),
    ],
)
def test_a_header_is_checked_as_in_a_local_file(
    hub: HubServer, whole: bytes, change: Callable[[bytes], bytes], said: str, requests: int
) -> None:
    hub.push(NAME, {FILE: change(whole)})
    message = line(NAME)
    assert said in message
    assert FILE in message
    assert len(spans(hub, FILE)) <= requests


def test_a_header_that_does_not_end_is_not_fetched_for_ever(
    hub: HubServer, whole: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ours, "MAX_HEADER", 4000)
    hub.push(NAME, {FILE: whole})
    assert "has a header of more than 4,000 bytes: download it" in line(NAME)
    assert hub.sent[FILE] <= 4000
