"""Archives of torch.save on a server: listed as local ones however they are laid out, or refused in a line."""

from __future__ import annotations

import io
import os
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hub_server import HubServer
from remote_models import END, read
from remote_pickles import line, places, saved, served, spans

from rankscope.engine.checkpoint.open import open_checkpoint
from rankscope.engine.formats import torch_zip

pytestmark = pytest.mark.usefixtures("short_ends")
PART = "cannot be read in part, use --download or name a copy of it here"


# What an archive may hold, and its layouts


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
    """A file to which zipfile writes as to a pipe: sizes and checksums come after each record."""

    def __init__(self) -> None:
        self.data = io.BytesIO()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        return self.data.write(data)


def streamed(records: Mapping[str, bytes], padding: Callable[[int], int]) -> bytes:
    """An archive by torch's writer, with each record padded by an amount that depends on its place."""
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
    """The records of a file by torch, one of them empty, of several types."""
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
    assert spans(hub, "m.pt")[1:] == [(END, len(hub.static["/m.pt"]))]  # the second end is the rest


# What cannot be read in part, and what must not be read


def moved(records: Mapping[str, bytes]) -> bytes:
    """An archive whose first storage states a padding of another length than it has room for."""
    data = bytearray(streamed(records, aligned))
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        first = next(info for info in archive.infolist() if "/data/" in info.filename)
    data[first.header_offset + 28] ^= 16
    return bytes(data)


def shifted(records: Mapping[str, bytes]) -> bytes:
    """An archive whose directory states a later begin than it has, so that every record would begin before the file."""
    data = zipped(records)
    (begin,) = struct.unpack_from("<I", data, len(data) - 6)
    return data[:-6] + struct.pack("<I", begin + 10**6) + data[-2:]


def doubtful(records: Mapping[str, bytes]) -> bytes:
    """An archive whose directory says that nothing comes after the data of one storage."""
    data = bytearray(streamed(records, aligned))
    at = data.rindex(b"archive/data/2") - 46
    assert data[at : at + 4] == b"PK\1\2"
    data[at + 8] ^= 8
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
    (shifted, f"where its tensors begin: it {PART}"),
    (doubtful, f"where its tensors begin: it {PART}"),
    (moved, f"lie elsewhere than its directory tells: it {PART}"),
    (lambda records: zipped(records, zipfile.ZIP_DEFLATED), "it is a compressed or encrypted zip file"),
    (lambda records: zipped({**records, "archive/constants.pkl": b""}), "is a TorchScript program"),
    (lambda records: zipped({**records, "archive/byteorder": b"big"}), "was saved on a big-endian machine"),
    (lambda records: zipped(dict(sorted({**records, "archive/data/99": b"1"}.items()))), "those that its pickle names"),
    (lambda records: zipped(records)[:-50], "is damaged or not a checkpoint"),
    (lambda records: zipped(records)[: 2 * END], "is damaged or not a checkpoint"),
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
