"""PyTorch files that are not downloaded: listed from their two ends, tensors by range, nothing in them executed."""

from __future__ import annotations

import io
import json
import os
import struct
import tempfile
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hub_server import Answer, HubServer, Odd
from opening import refused
from remote_models import CONFIG, FIRST, NAME, QUERY, SECOND, Clock, read, scan

from rankscope.engine.catalogue.tree import build_tree
from rankscope.engine.checkpoint import remote
from rankscope.engine.checkpoint.hub import Access
from rankscope.engine.checkpoint.open import Checkpoint, open_checkpoint
from rankscope.engine.errors import WeightsError
from rankscope.engine.formats import torch_zip
from rankscope.store.listings import FileListings

END = 4000
SHARD_1, SHARD_2 = (f"pytorch_model-0000{n}-of-00002.bin" for n in (1, 2))
LIST = "pytorch_model.bin.index.json"
PART = "cannot be read in part, use --download or name a copy of it here"
FINE = Odd()


@pytest.fixture(autouse=True)
def short_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """The files are small: what is asked for at first must not be all of them."""
    monkeypatch.setattr(remote, "FIRST", END)
    monkeypatch.setattr(torch_zip, "_MORE", END)
    monkeypatch.setattr(torch_zip, "_BEFORE", END // 4)


def saved(held: Any, *, legacy: bool = False) -> bytes:
    data = io.BytesIO()
    torch.save(held, data, _use_new_zipfile_serialization=not legacy)
    return data.getvalue()


def pickled(weights: Mapping[str, np.ndarray]) -> bytes:
    return saved({name: torch.from_numpy(array) for name, array in weights.items()})


@pytest.fixture(scope="module")
def sharded() -> dict[str, bytes]:
    weight_map = dict.fromkeys(FIRST, SHARD_1) | dict.fromkeys(SECOND, SHARD_2)
    return {
        "config.json": json.dumps(CONFIG).encode(),
        LIST: json.dumps({"metadata": {}, "weight_map": weight_map}).encode(),
        SHARD_1: pickled(FIRST),
        SHARD_2: pickled(SECOND),
    }


@pytest.fixture(scope="module")
def one_file(sharded: dict[str, bytes]) -> dict[str, bytes]:
    return {"config.json": sharded["config.json"], "pytorch_model.bin": pickled(FIRST | SECOND)}


def spans(hub: HubServer, file: str) -> list[tuple[int, int]]:
    """The ranges of a file that were asked for: first byte and end."""
    asked = [r.range.removeprefix("bytes=").split("-") for r in hub.requests if r.path.endswith(file)]
    return [(int(first), int(last) + 1) for first, last in asked]


def served(hub: HubServer, data: bytes, name: str = "m.pt") -> str:
    """The URL of a file."""
    hub.static[f"/{name}"] = data
    return f"http://localhost:{hub.port}/{name}"


def line(url: str) -> str:
    return refused(url, Access.RANGES)


def places(checkpoint: Checkpoint) -> list[tuple[Any, ...]]:
    """What is listed of each tensor, but for the file that it is in."""
    return [(t.name, t.dtype, t.shape, t.begin, t.end, t.strides) for t in checkpoint.tensors]


# A model


@pytest.mark.parametrize("shards", [1, 2])
def test_a_model_opens_from_the_ends_of_its_files(
    hub: HubServer, sharded: dict[str, bytes], one_file: dict[str, bytes], shards: int
) -> None:
    files = one_file if shards == 1 else sharded
    commit = hub.push(NAME, {**files, "README.md": b"# tiny"})
    opened = open_checkpoint(NAME)
    assert (opened.name, opened.commit, opened.location, opened.is_remote) == (NAME, commit, None, True)
    assert {t.name: t.shape for t in opened.tensors} == {n: a.shape for n, a in (FIRST | SECOND).items()}
    weights = [name for name in files if name.endswith(".bin")]
    assert len(weights) == shards
    for name in weights:
        assert spans(hub, name) == [(0, END), (len(files[name]) - END, len(files[name]))]
    assert len(hub.requests) == 1 + len(files) + shards  # one more a file than safetensors, which has a header alone
    hub.requests.clear()
    hub.sent.clear()
    np.testing.assert_array_equal(read(opened), FIRST[QUERY])
    tensor = next(t for t in opened.tensors if t.name == QUERY)
    assert [(r.file, r.range) for r in hub.requests] == [(weights[0], f"bytes={tensor.begin}-{tensor.end - 1}")]
    assert hub.sent == {weights[0]: FIRST[QUERY].nbytes}


def test_spectra_and_keys_are_those_of_the_downloaded_file(hub: HubServer, sharded: dict[str, bytes]) -> None:
    hub.push(NAME, sharded)
    far = open_checkpoint(NAME)
    there = scan(far, build_tree(far).scanned())
    assert (len(there.accepted), there.failed) == (14, {})
    assert there.progress.fetched == there.progress.to_fetch == far.bytes
    near = open_checkpoint(NAME, Access.DOWNLOAD)
    assert build_tree(near).projections == build_tree(far).projections
    assert scan(near, build_tree(near).scanned(), there.sink).accepted == []  # nothing is computed again
    for spectrum in there.sink.kept.values():
        exact = np.linalg.svd({**FIRST, **SECOND}[spectrum.projection.tensor].astype(np.float64), compute_uv=False)
        np.testing.assert_allclose(spectrum.values, exact, rtol=1e-9)


def test_a_kept_listing_needs_torch_neither_there_nor_here(
    hub: HubServer, sharded: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listings = FileListings(tmp_path / "store")
    hub.push(NAME, sharded)
    first = open_checkpoint(NAME, listings=listings)
    monkeypatch.setattr(torch, "load", None)
    assert open_checkpoint(NAME, listings=listings).tensors == first.tensors
    assert places(open_checkpoint(NAME, Access.DOWNLOAD, listings=listings)) == places(first)


# What an archive may hold, and how it may lie


def test_views_are_what_torch_makes_of_them(hub: HubServer) -> None:
    big = torch.randn(80, 60, generator=torch.Generator().manual_seed(1))
    held = OrderedDict(
        whole=big, tied=big, transposed=big.T, rows=big[10:30:2], columns=big[:, 3:21:3],
        parameter=torch.nn.Parameter(big[3:9].T), half=big[:5, :7].half(), narrow=big.bfloat16()[1:],
    )  # fmt: skip
    url = served(hub, saved({"state_dict": held, "epoch": 3}))
    opened = open_checkpoint(url)
    assert [t.name for t in opened.tensors] == list(held)
    hub.sent.clear()
    for name, wanted in held.items():
        assert torch.equal(torch.as_tensor(read(opened, name)), wanted.detach().to(torch.as_tensor(read(opened, name))))
    asked = {t.name: t.end - t.begin for t in opened.tensors}
    assert (asked["rows"], asked["columns"]) == (4 * (9 * 120 + 60), 4 * (79 * 60 + 16))
    assert hub.sent["/m.pt"] == 2 * sum(asked.values())


class Unseekable(io.RawIOBase):
    """A file to which zipfile writes as to a pipe: sizes and checksums stand behind each record."""

    def __init__(self) -> None:
        self.data = io.BytesIO()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        return self.data.write(data)


def streamed(records: Mapping[str, bytes], padding: Callable[[int], int]) -> bytes:
    """An archive as torch's own writer makes them, where each record is padded by so much, by its place without."""
    file = Unseekable()
    sizes = 20 if zipfile.ZIP64_LIMIT < 0 else 0
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in records.items():
            info = zipfile.ZipInfo(name)
            length = padding(file.data.tell() + 30 + len(name) + sizes + 4)
            info.extra = struct.pack("<2sH", b"FB", length) + b"Z" * length
            archive.writestr(info, data)
    return file.data.getvalue()


def zipped(records: Mapping[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, data in records.items():
            archive.writestr(name, data)
    return file.getvalue()


@pytest.fixture(scope="module")
def records() -> dict[str, bytes]:
    """Those of a file of torch's, one of them empty, of several types."""
    random = torch.Generator().manual_seed(2)
    held = {f"layers.{n}.w": torch.randn(30 + n, 40, generator=random) for n in range(6)}
    held |= {"none": torch.zeros(0, 5), "byte": held["layers.1.w"].char(), "last": held["layers.2.w"].double()}
    held |= {"eight": held["layers.3.w"].to(torch.float8_e4m3fn)}
    with zipfile.ZipFile(io.BytesIO(saved(held))) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def aligned(place: int) -> int:
    return -place % 64


LAID_OUT: dict[str, Callable[[Mapping[str, bytes]], bytes]] = {
    "torchs-way": lambda records: streamed(records, aligned),
    "page-by-page": lambda records: streamed(records, lambda place: -place % 4096),
    "zipped-again": zipped,
    "by-name": lambda records: zipped(dict(sorted(records.items()))),
    "pickle-last": lambda records: zipped(dict(sorted(records.items(), reverse=True))),
    "long-comment": lambda records: commented(zipped(records)),
}


def commented(data: bytes) -> bytes:
    file = io.BytesIO(data)
    with zipfile.ZipFile(file, "a") as archive:
        archive.comment = b"x" * (END + 100)
    return file.getvalue()


@pytest.mark.parametrize("bits", [32, 64])
def test_archives_of_any_layout_are_listed_as_local_ones(
    hub: HubServer, records: dict[str, bytes], tmp_path: Path, bits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if bits == 64:
        monkeypatch.setattr(zipfile, "ZIP64_LIMIT", -1)
    for layout, made in LAID_OUT.items():
        data = made(records)
        (tmp_path / "m.pt").write_bytes(data)
        near, far = open_checkpoint(str(tmp_path / "m.pt")), open_checkpoint(served(hub, data, f"{layout}.pt"))
        assert places(far) == places(near)
        assert len(far.tensors) == 10
        stored = sum(end - begin for begin, end in {(t.begin, t.end) for t in near.tensors})
        assert layout == "long-comment" or hub.sent[f"/{layout}.pt"] < len(data) - stored + 2 * END


def test_longer_ends_are_fetched_until_they_are_whole_and_no_byte_twice(hub: HubServer, tmp_path: Path) -> None:
    data = saved({f"model.layers.{n}.mlp.up_proj.weight": torch.zeros(9, 30) for n in range(150)})
    (tmp_path / "m.pt").write_bytes(data)
    far = open_checkpoint(served(hub, data))
    assert places(far) == places(open_checkpoint(str(tmp_path / "m.pt")))
    asked = sorted(spans(hub, "m.pt"))
    assert all(end <= begin for (_, end), (begin, _) in pairwise(asked))
    assert len(asked) == 4
    hub.requests.clear()
    open_checkpoint(served(hub, saved({"w": torch.zeros(30, 40)})))
    assert spans(hub, "m.pt")[1:] == [(END, len(hub.static["/m.pt"]))]  # the second end is what is left


# What cannot be read in part, and what may not be read


def moved(records: Mapping[str, bytes]) -> bytes:
    """The padding of the first storage states another length than it has room for."""
    data = bytearray(streamed(records, aligned))
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        first = next(info for info in archive.infolist() if "/data/" in info.filename)
    data[first.header_offset + 28] ^= 16
    return bytes(data)


def between(records: Mapping[str, bytes]) -> bytes:
    pickle = next(name for name in records if name.endswith("data.pkl"))
    last = next(name for name in reversed(records) if "/data/" in name)
    held = {name: data for name, data in records.items() if name not in (pickle, last)}
    first = next(n for n, name in enumerate(held) if "/data/" in name)
    listed = list(held.items())
    return zipped(dict([*listed[: first + 2], (pickle, records[pickle]), (last, records[last]), *listed[first + 2 :]]))


REFUSED: list[tuple[Callable[[Mapping[str, bytes]], bytes], str]] = [
    (lambda _: saved({"w": torch.zeros(90, 90)}, legacy=True), f"before torch 1.6, which has no directory: it {PART}"),
    (lambda records: streamed(records, lambda place: -place % 64 + 1), f"where its tensors begin: it {PART}"),
    (between, f"where its tensors begin: it {PART}"),
    (moved, f"lie elsewhere than its directory tells: it {PART}"),
    (lambda records: zipped(records, zipfile.ZIP_DEFLATED), "it is a compressed or encrypted zip file"),
    (lambda records: zipped({**records, "archive/constants.pkl": b""}), "is a TorchScript program"),
    (lambda records: zipped({**records, "archive/byteorder": b"big"}), "was saved on a big-endian machine"),
    (lambda records: zipped(dict(sorted({**records, "archive/data/99": b"1"}.items()))), "those that its pickle names"),
    (lambda records: zipped(records)[:-50], "is damaged or no checkpoint"),
    (lambda records: zipped(records)[: 2 * END], "is damaged or no checkpoint"),
    (lambda _: b"<html>" * 3000, "is a web page or a server's error"),
    (lambda _: saved({"epoch": 3}), "holds no state dict (its keys are epoch)"),
    (lambda _: saved({"state": {}, "param_groups": [{"lr": 0.1}]}), "holds the state of an optimiser"),
]


def test_files_that_are_not_read_in_part(hub: HubServer, records: dict[str, bytes]) -> None:
    for made, said in REFUSED:
        message = line(served(hub, made(records)))
        assert message.startswith("m.pt ")
        assert said in message


def test_a_directory_or_pickle_without_end_is_not_fetched(
    hub: HubServer, records: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch_zip, "MAX_HEADER", END)
    many = {**records, **{f"archive/data/{n}": b"" for n in range(100, 300)}}
    assert "has a directory of more than 4,000 bytes" in line(served(hub, zipped(many)))
    assert hub.sent["/m.pt"] == 2 * END
    long = {"archive/x": b"x" * END, **records}
    assert "holds more than 4,000 bytes that are no tensors" in line(served(hub, zipped(long)))


class Call:
    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def test_nothing_is_executed(hub: HubServer, tmp_path: Path) -> None:
    proof = tmp_path / "executed"
    for held in (Call(os.system, f"touch {proof}"), {"w": torch.zeros(90, 90), "x": Call(os.system, f"touch {proof}")}):
        url = served(hub, saved(held))
        assert "needs posix.system, which could execute code, and was not loaded" in line(url)
    assert "bytearray, which could execute code" in line(served(hub, saved({"x": Call(bytearray, 10**13)})))
    assert not proof.exists()


def test_the_stand_in_takes_no_room_and_is_gone(
    hub: HubServer, one_file: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, used = tmp_path / "temporary", []
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    load = torch.load

    def watched(path: str, **options: Any) -> Any:
        used.extend(file.stat() for file in folder.iterdir())
        return load(path, **options)

    monkeypatch.setattr(torch, "load", watched)
    data = one_file["pytorch_model.bin"]
    open_checkpoint(served(hub, data))
    (status,) = used
    assert status.st_size == len(data)
    assert list(folder.iterdir()) == []
    folder.rmdir()
    assert f"m.pt cannot be listed: No such file or directory in {folder}" in line(served(hub, data))


def test_a_file_larger_than_memory_is_mapped_without_any(
    hub: HubServer, one_file: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    mapped, usual = torch.UntypedStorage.from_file, torch.serialization.get_default_mmap_options()

    def from_file(path: str, shared: bool, size: int) -> Any:
        if not shared:
            raise RuntimeError(f"unable to mmap {size} bytes from file <{path}>: Cannot allocate memory (12)")
        return mapped(path, shared, size)

    monkeypatch.setattr(torch.UntypedStorage, "from_file", staticmethod(from_file))
    opened = open_checkpoint(served(hub, one_file["pytorch_model.bin"]))
    np.testing.assert_array_equal(read(opened), FIRST[QUERY])
    assert torch.serialization.get_default_mmap_options() == usual


def test_what_trainers_save_is_no_model(hub: HubServer, one_file: dict[str, bytes]) -> None:
    url = served(hub, one_file["pytorch_model.bin"], "optimizer.pt")
    assert "holds the state of a trainer or optimiser" in line(url)
    assert len(spans(hub, "optimizer.pt")) == 1


def test_a_part_of_a_tensor_parallel_model_is_named(hub: HubServer, one_file: dict[str, bytes]) -> None:
    data = one_file["pytorch_model.bin"]
    zero = "zero_pp_rank_0_mp_rank_00_model_states.pt"
    hub.push(
        NAME,
        {f"tp/mp_rank_0{n}/model.pt": data for n in (0, 1)}
        | {f"layer_01-model_0{n}-model_states.pt": data for n in (0, 1)},
    )
    assert "saved by GPT-NeoX" in line(f"{hub.url}/{NAME}/resolve/main/layer_01-model_00-model_states.pt")
    assert "saved by Megatron" in line(f"{hub.url}/{NAME}/resolve/main/tp/mp_rank_00/model.pt")
    assert "over which DeepSpeed's ZeRO-3 spreads a model" in line(served(hub, data, zero))


# Servers


def other_etag(status: int, body: bytes, headers: dict[str, str]) -> Answer:
    return status, body, headers | {"ETag": '"another"'}


WRONG = {
    "sends no ranges": Odd(lambda _, body, headers: (200, body, headers)),
    "is not on the server as it was listed": Odd(other_etag),
    "not on the server as it was": Odd(lambda s, b, h: (s, b, h | {"Content-Range": h["Content-Range"] + "0"})),
    "answered 404 for m.pt: no such file": Odd(lambda _, __, ___: (404, b"", {})),
    "cannot reach localhost": Odd(after=10),
}


@pytest.mark.usefixtures("clock")
def test_what_goes_wrong_at_the_second_end_or_later(hub: HubServer, one_file: dict[str, bytes]) -> None:
    url = served(hub, one_file["pytorch_model.bin"])
    for said, odd in WRONG.items():
        hub.odd["/m.pt"] = [FINE, odd]
        assert said in line(url)
        hub.odd.clear()
        opened = open_checkpoint(url)
        hub.odd["/m.pt"] = [odd]
        with pytest.raises(WeightsError, match=said):
            read(opened)


def test_an_answer_that_is_cut_off_goes_on_where_it_was(
    hub: HubServer, one_file: dict[str, bytes], clock: Clock
) -> None:
    url = served(hub, one_file["pytorch_model.bin"])
    hub.odd["/m.pt"] = [FINE, Odd(after=1000), FINE]
    assert len(open_checkpoint(url).tensors) == 14
    begin, end = spans(hub, "m.pt")[1]
    assert spans(hub, "m.pt")[2:] == [(begin + 1000, end)]
    assert clock.waits == []


# Meta's own files

PARAMS = {"dim": 64, "n_heads": 4, "n_kv_heads": 4, "vocab_size": 32, "hidden_dim": 96}


@pytest.fixture(scope="module")
def native() -> tuple[dict[str, torch.Tensor], dict[str, bytes]]:
    """Matrices, and the two parts of each as Meta's files hold them."""
    random = torch.Generator().manual_seed(3)
    shapes = {
        "attention.wq": (64, 64),
        "attention.wo": (64, 64),
        "feed_forward.w1": (96, 64),
        "feed_forward.w2": (64, 96),
    }
    whole = {f"layers.0.{name}.weight": torch.randn(shape, generator=random) for name, shape in shapes.items()}
    parts = {name: matrix.chunk(2, int(name[-8] in "o2")) for name, matrix in whole.items()}
    files = {
        f"original/consolidated.0{n}.pth": saved({name: cut[n].clone() for name, cut in parts.items()}) for n in (0, 1)
    }
    return whole, {"original/params.json": json.dumps(PARAMS).encode(), **files}


@pytest.mark.parametrize("named", ["folder", "URL of the Hub"])
def test_parts_of_meta_are_joined(
    hub: HubServer, native: tuple[dict[str, torch.Tensor], dict[str, bytes]], named: str
) -> None:
    whole, files = native
    hub.push(NAME, files)
    url = f"{hub.url}/{NAME}/resolve/main/original/consolidated.01.pth"
    opened = open_checkpoint(f"{NAME}/original" if named == "folder" else url)
    assert {t.name: t.shape for t in opened.tensors} == {name: tuple(matrix.shape) for name, matrix in whole.items()}
    for name, matrix in whole.items():
        np.testing.assert_array_equal(read(opened, name), matrix.numpy())


def test_a_part_of_meta_alone_is_no_model(
    hub: HubServer, native: tuple[dict[str, torch.Tensor], dict[str, bytes]]
) -> None:
    _, files = native
    hub.static |= {f"/{name}": data for name, data in files.items()}
    url = f"http://localhost:{hub.port}/original/consolidated.0"
    assert "consolidated.00.pth is missing" in line(f"{url}1.pth")
    assert "is part 1 of 2 of a tensor-parallel model by what params.json says" in line(f"{url}0.pth")
