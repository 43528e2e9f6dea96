"""Servers that refuse, limit, drop, lie or go away: one clear line, a retry where it helps, and the rest goes on."""

from __future__ import annotations

import itertools
import struct
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from hub_server import HubServer, Odd
from hub_server import refused as refusing
from opening import refused
from remote_models import (
    FIRST,
    INDEX,
    NAME,
    ONE_FILE,
    QUERY,
    SECOND,
    SHARD_1,
    SHARD_2,
    SHARDED,
    Clock,
    read,
    scan,
)

from rankscope.engine.catalogue.tree import build_tree
from rankscope.engine.checkpoint import ranges, retries
from rankscope.engine.checkpoint.hub import Access
from rankscope.engine.checkpoint.open import Checkpoint, open_checkpoint
from rankscope.engine.checkpoint.retries import Watch
from rankscope.engine.compute.events import Notice
from rankscope.engine.errors import WeightsError
from rankscope.engine.formats import registry
from rankscope.engine.formats.format import Format

pytestmark = pytest.mark.usefixtures("short_first_range")
FINE = Odd()


def line(model: str = NAME) -> str:
    """The line that says why a model does not open by ranges."""
    return refused(model, Access.RANGES)


def failure(checkpoint: Checkpoint, name: str = QUERY) -> str:
    with pytest.raises(WeightsError) as caught:
        read(checkpoint, name)
    assert str(caught.value).isprintable()
    return str(caught.value)


def changed(**headers: str) -> Odd:
    return Odd(lambda status, body, old: (status, body, old | {k.replace("_", "-"): v for k, v in headers.items()}))


def dripping(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    """Make servers send a byte every five seconds, so that the client never waits long for the next byte."""
    real = ranges.stream

    @contextmanager
    def stream(url: str, headers: Mapping[str, str]) -> Iterator[tuple[Any, Iterator[bytes]]]:
        with real(url, headers) as (response, chunks):
            yield response, drip(b"".join(chunks))

    def drip(body: bytes) -> Iterator[bytes]:
        for byte in body:
            clock.now += 5
            yield bytes([byte])

    monkeypatch.setattr(ranges, "stream", stream)


# Opening


@pytest.mark.usefixtures("hub")
def test_no_such_repo(clock: Clock) -> None:
    assert "no model org/nothing on the Hub, or it is private" in line("org/nothing")
    assert clock.waits == []


@pytest.mark.parametrize("revision", ["v9", "0" * 40])
def test_no_such_revision(hub: HubServer, revision: str) -> None:
    hub.push(NAME, SHARDED)
    assert f"{NAME} has no revision {revision}" in line(f"{NAME}@{revision}")


def test_a_gated_repo(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.push(NAME, SHARDED)
    hub.gated[NAME] = "hf_secret"
    assert f"{NAME} is gated: ask for access at https://huggingface.co/{NAME}" in line()
    monkeypatch.setenv("HF_TOKEN", "hf_wrong_one")
    assert "hf_wrong_one" not in line()
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    np.testing.assert_array_equal(read(open_checkpoint(NAME)), FIRST[QUERY])


def test_without_a_network(hub: HubServer, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.stop()
    assert f"{NAME} is neither a file nor a folder here, nor is it in the local cache; cannot reach the Hub" in line()
    assert clock.waits == [1, 2]
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in line()
    assert clock.waits == [1, 2]


def test_a_model_that_is_cached_in_part_says_what_is_missing(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.push(NAME, SHARDED)
    lost = next(file for file in open_checkpoint(NAME, Access.DOWNLOAD).stamps if file.name == SHARD_2)
    lost.unlink()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert SHARD_2 in line()


def test_a_repo_without_safetensors_says_what_it_holds(hub: HubServer) -> None:
    hub.push(NAME, {"config.json": b"{}", "model.onnx": b"x"})
    assert "no weights on the Hub that can be read (it holds model.onnx of ONNX)" in line()
    assert hub.files() == []


class Whole(Format):
    """A format that is not read in part."""

    suffixes = (".whole",)
    index = "model.whole.index.json"


@pytest.mark.parametrize("file", ["model.whole", Whole.index])
def test_a_repo_of_another_format_says_its_suffix(hub: HubServer, file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "FORMATS", (Whole(),))
    monkeypatch.setattr(Whole, "models", lambda _, names: [[name] for name in names if ".whole" in name])
    hub.push(NAME, {"config.json": b"{}", file: b"x"})
    assert line() == f"{NAME} has .whole weights, which cannot be read in part: use --download"
    assert hub.files() == []


def test_a_shard_that_the_repo_lacks(hub: HubServer) -> None:
    hub.push(NAME, {**SHARDED, SHARD_2: None})
    assert f"shard {SHARD_2}" in line()
    hub.push(NAME, {INDEX: None})
    assert f"shard {SHARD_2}" in line()  # the other shard's name says that there are two


@pytest.mark.parametrize("path", ["/api/models/", "/config.json", INDEX, SHARD_2])
@pytest.mark.parametrize("status", [429, 503])
def test_a_refusal_that_passes_is_waited_for(hub: HubServer, clock: Clock, path: str, status: int) -> None:
    hub.push(NAME, SHARDED)
    hub.odd[path] = [refusing(status, Retry_After="7"), FINE]
    assert len(open_checkpoint(NAME).tensors) == 14
    assert clock.waits == [7]


@pytest.mark.parametrize("path", ["/api/models/", "/config.json", INDEX, SHARD_2])
def test_a_refusal_that_lasts(hub: HubServer, clock: Clock, path: str) -> None:
    hub.push(NAME, SHARDED)
    hub.odd[path] = [refusing(500)]
    assert f"the Hub answered 500 for {NAME}: try again later" in line()
    assert clock.waits == [1, 2]


@pytest.mark.parametrize("headers", [{"Retry_After": "290"}, {"RateLimit": '"resolvers";r=0;t=290'}])
def test_a_limit_that_lasts_longer_than_a_user_waits(hub: HubServer, clock: Clock, headers: dict[str, str]) -> None:
    hub.push(NAME, SHARDED)
    hub.odd["/api/models/"] = [refusing(429, **headers)]
    assert "the Hub answered 429 (too many requests): try again in 290 s" in line()
    assert clock.waits == []


# Headers and answers that are wrong


def states(length: int) -> bytes:
    return struct.pack("<Q", length) + SHARDED[SHARD_1][8:]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (states(10**15), "states a header of 1000000000000000 bytes"),
        (states(len(SHARDED[SHARD_1]) - 8), "header that is not JSON"),
        (states(3), "header that is not JSON"),
        (b"\x00" * 5000, "header that is not JSON"),
        (b"\x01", "too short for a header"),
        (SHARDED[SHARD_1][:-9], "truncated"),
        (b"<html>" * 1000, "is a web page or a server's error"),
    ],
)
def test_a_header_is_checked_as_in_a_local_file(hub: HubServer, data: bytes, said: str) -> None:
    hub.push(NAME, {**SHARDED, SHARD_1: data})
    message = line()
    assert said in message
    assert SHARD_1 in message


@pytest.mark.parametrize(
    ("odd", "said"),
    [
        (Odd(lambda _, body, headers: (200, body, headers)), "does not support range requests"),
        (changed(Content_Range="bytes 5-9/100"), "sends other bytes"),
        (changed(Content_Range="bytes 0-9999999/999999999"), "sends other bytes"),
        (changed(Content_Range="garbage"), "does not support range requests"),
        (
            Odd(lambda s, b, h: (s, b, h | {"Content-Range": h["Content-Range"] + "0"})),
            "changed on the server since it was listed",
        ),
        (changed(Content_Encoding="gzip"), "compressed"),
        (Odd(lambda s, b, h: (s, b + b"more", h | {"Content-Length": str(len(b) + 4)})), "sends more of"),
        (Odd(lambda _, __, ___: (302, b"", {"Location": f"/{NAME}/resolve/main/{SHARD_1}"})), "cannot reach the Hub"),
        (Odd(lambda _, __, ___: (302, b"", {"Location": "ftp://example.org/x"})), "cannot reach the Hub"),
        (Odd(lambda _, __, ___: (204, b"", {})), "does not support range requests"),
        (Odd(after=10), "cannot reach the Hub"),
    ],
)
@pytest.mark.usefixtures("clock")
def test_an_answer_that_contradicts_itself(hub: HubServer, odd: Odd, said: str) -> None:
    hub.push(NAME, SHARDED)
    hub.odd[SHARD_1] = [odd]
    assert said in line()
    hub.odd.clear()
    opened = open_checkpoint(NAME)
    hub.odd[SHARD_1] = [odd]
    assert said in failure(opened)
    np.testing.assert_array_equal(
        read(opened, "model.layers.1.mlp.up_proj.weight"), SECOND["model.layers.1.mlp.up_proj.weight"]
    )


def test_an_index_that_is_too_long_is_not_read(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.push(NAME, {**SHARDED, INDEX: b" " * 5000})
    monkeypatch.setattr("rankscope.engine.checkpoint.remote._MAX_JSON", 2000)
    assert "too long" in line()


# Reading


def test_a_dropped_connection_goes_on_where_it_was(hub: HubServer, clock: Clock) -> None:
    hub.push(NAME, SHARDED)
    opened = open_checkpoint(NAME)
    hub.requests.clear()
    hub.sent.clear()
    hub.odd[SHARD_1] = [Odd(after=1000), Odd(after=5000), FINE]
    np.testing.assert_array_equal(read(opened), FIRST[QUERY])
    starts = [int(r.range.removeprefix("bytes=").partition("-")[0]) for r in hub.requests]
    assert [b - a for a, b in itertools.pairwise(starts)] == [1000, 5000]
    assert hub.sent == {SHARD_1: FIRST[QUERY].nbytes}  # no byte twice
    assert clock.waits == [1]  # the first time at once


def test_a_connection_that_always_drops_is_given_up(hub: HubServer, clock: Clock) -> None:
    hub.push(NAME, SHARDED)
    opened = open_checkpoint(NAME)
    hub.odd[SHARD_1] = [Odd(after=1)]
    assert f"cannot fetch {SHARD_1}: cannot reach the Hub" in failure(opened)
    assert clock.waits == list(retries.READING.waits[1:])


def test_progress_is_what_begins_the_count_anew(hub: HubServer, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "_WORTH", 1000)
    hub.push(NAME, SHARDED)
    opened = open_checkpoint(NAME)
    hub.odd[SHARD_1] = [Odd(after=1000)]  # 17 connections for 16 kB, each of which brings something
    np.testing.assert_array_equal(read(opened), FIRST[QUERY])
    assert clock.waits == []


def test_a_limit_of_requests_is_kept_by_all_readers(hub: HubServer, clock: Clock) -> None:
    hub.push(NAME, SHARDED)
    opened = open_checkpoint(NAME)
    hub.odd["/resolve/"] = [refusing(429, Retry_After="120"), FINE]
    found = scan(opened, build_tree(opened).scanned())
    assert (len(found.sink.kept), found.failed) == (14, {})
    assert max(clock.waits) == 120
    assert [e.text for e in found.events if isinstance(e, Notice)] == [
        "the Hub answered 429 (too many requests): try again in 120 s; waiting 120 s"
    ]


@pytest.mark.usefixtures("clock")
def test_a_shard_that_cannot_be_had_fails_alone(hub: HubServer) -> None:
    hub.push(NAME, SHARDED)
    opened = open_checkpoint(NAME)
    hub.odd[SHARD_2] = [refusing(503)]
    found = scan(opened, build_tree(opened).scanned())
    assert {s.projection.layer for s in found.sink.kept.values()} == {0}
    assert set(found.failed.values()) == {f"cannot fetch {SHARD_2}: the Hub answered 503 for {NAME}: try again later"}
    assert len(found.failed) == 7
    assert found.progress.failed == 7


def test_a_server_that_goes_away_in_the_middle(hub: HubServer, clock: Clock) -> None:
    hub.push(NAME, SHARDED)
    opened = open_checkpoint(NAME)
    projections = build_tree(opened).scanned()
    near = scan(opened, projections[:4])
    hub.stop()
    far = scan(opened, projections, near.sink)
    assert any("waiting 8 s" in event.text for event in far.events if isinstance(event, Notice))
    assert (len(near.sink.kept), len(far.failed)) == (4, 10)
    assert all("cannot reach the Hub" in reason for reason in far.failed.values())
    clock.now += 60
    clock.waits.clear()
    assert "cannot reach the Hub" in failure(opened)
    assert "cannot reach the Hub" in failure(opened, "model.layers.1.mlp.up_proj.weight")
    assert clock.waits == []  # later requests do not wait for it again


def test_a_server_that_comes_back_is_asked_again(hub: HubServer, clock: Clock) -> None:
    hub.push(NAME, SHARDED)
    opened = open_checkpoint(NAME)
    hub.odd[SHARD_1] = [refusing(503)]
    assert "503" in failure(opened)
    hub.odd.clear()
    hub.requests.clear()
    assert "503" in failure(opened)
    assert hub.requests == []  # it has just failed to answer
    clock.now += 60
    np.testing.assert_array_equal(read(opened), FIRST[QUERY])


def test_a_commit_that_is_gone(hub: HubServer, clock: Clock) -> None:
    commit = hub.push(NAME, SHARDED)
    opened = open_checkpoint(NAME)
    hub.push(NAME, {"README.md": b"rewritten"})
    del hub.repos[NAME].commits[commit]
    assert "has no revision" in failure(opened)
    assert clock.waits == []


def test_access_that_is_withdrawn(hub: HubServer, clock: Clock) -> None:
    hub.push(NAME, SHARDED)
    opened = open_checkpoint(NAME)
    hub.gated[NAME] = "hf_secret"
    assert f"{NAME} is gated" in failure(opened)
    assert clock.waits == []


def test_a_wait_ends_when_nobody_wants_the_tensor(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.push(NAME, SHARDED)
    opened = open_checkpoint(NAME)
    withdrawn = threading.Event()
    asked: list[float] = []

    def pause(cancelled: threading.Event, seconds: float) -> None:
        asked.append(seconds)
        withdrawn.set()
        assert cancelled.wait(0)

    monkeypatch.setattr(retries, "pause", pause)
    hub.odd[SHARD_1] = [refusing(429, Retry_After="200")]
    with pytest.raises(WeightsError, match="stopped"):
        opened.read(next(t for t in opened.tensors if t.name == QUERY), watch=Watch(cancelled=withdrawn))
    assert len(asked) == 1


def test_a_fetch_ends_when_nobody_wants_the_tensor(hub: HubServer) -> None:
    hub.push(NAME, ONE_FILE)
    opened = open_checkpoint(NAME)
    withdrawn = threading.Event()
    watch = Watch(fetched=lambda _: withdrawn.set(), cancelled=withdrawn)
    with pytest.raises(WeightsError, match="stopped"):
        opened.read(next(t for t in opened.tensors if t.name == QUERY), watch=watch)


def test_a_server_that_sends_a_byte_at_a_time_is_given_up(
    hub: HubServer, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.push(NAME, SHARDED)
    opened = open_checkpoint(NAME)
    begun = clock.now
    dripping(monkeypatch, clock)
    assert "4 bytes came in 20 s" in failure(opened)
    assert "4 bytes came in 20 s" in line()
    assert clock.now - begun < 600
