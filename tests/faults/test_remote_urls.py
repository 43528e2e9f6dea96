"""What a URL may name, and that no token, password or signature is shown, stored or sent elsewhere."""

from __future__ import annotations

import numpy as np
import pytest
from hub_server import HubServer, Odd
from hub_server import refused as refusing
from opening import refused
from remote_models import CONFIG, FIRST, NAME, ONE_FILE, QUERY, SECOND, SHARD_1, SHARDED, Clock, read, scan
from safetensors.numpy import save

from rankscope.engine.catalogue.tree import build_tree
from rankscope.engine.checkpoint.hub import Access
from rankscope.engine.checkpoint.open import open_checkpoint
from rankscope.engine.checkpoint.retries import short_message
from rankscope.engine.checkpoint.urls import stored_name
from rankscope.engine.compute.devices import make_run
from rankscope.engine.errors import WeightsError, printable, without_secrets

pytestmark = pytest.mark.usefixtures("short_first_range")
FILE = "/files/a%20b/tiny.safetensors"


def line(model: str) -> str:
    return refused(model, Access.RANGES)


def elsewhere(hub: HubServer, query: str = "") -> str:
    """A URL of a host that is not the Hub."""
    hub.static["/files/a b/tiny.safetensors"] = ONE_FILE["model.safetensors"]
    hub.static["/files/a b/config.json"] = ONE_FILE["config.json"]
    return f"http://localhost:{hub.port}{FILE}{query}"


def test_a_file_of_any_server_is_read_by_range(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    opened = open_checkpoint(elsewhere(hub))
    assert (opened.name, opened.commit, opened.config) == (f"localhost:{hub.port}{FILE}", "", CONFIG)
    found = scan(opened, build_tree(opened).scanned())
    assert (len(found.sink.kept), found.failed) == (14, {})
    for spectrum in found.sink.kept.values():
        weights = {**FIRST, **SECOND}[spectrum.projection.tensor].astype(np.float64)
        np.testing.assert_allclose(spectrum.values, np.linalg.svd(weights, compute_uv=False), rtol=1e-9)
        assert all(spectrum.weights_digests)  # nothing vouches for the bytes
    assert not any(request.token for request in hub.requests)
    again = open_checkpoint(elsewhere(hub))
    assert scan(again, build_tree(again).scanned(), found.sink).accepted == []


def test_a_redirect_may_have_another_etag_than_what_it_leads_to(hub: HubServer) -> None:
    url = elsewhere(hub)
    hub.static["/mirror/tiny.safetensors"] = ONE_FILE["model.safetensors"]
    where = {"Location": f"http://127.0.0.1:{hub.port}/mirror/tiny.safetensors", "ETag": '"of the redirect"'}
    hub.odd["/files/a b/tiny.safetensors"] = [Odd(lambda *_: (302, b"", where))]
    opened = open_checkpoint(url)
    np.testing.assert_array_equal(read(opened), FIRST[QUERY])
    hub.static["/mirror/tiny.safetensors"] = save({n: 2 * t for n, t in {**FIRST, **SECOND}.items()})
    with pytest.raises(WeightsError, match=r"tiny.safetensors changed on the server since it was listed"):
        read(opened)


def test_a_file_that_changes_is_not_read(hub: HubServer) -> None:
    url = elsewhere(hub)
    opened = open_checkpoint(url)
    hub.static["/files/a b/tiny.safetensors"] = save({n: 2 * t for n, t in {**FIRST, **SECOND}.items()})
    with pytest.raises(WeightsError, match=r"tiny.safetensors changed on the server since it was listed"):
        read(opened)
    keys = [{p.key for p in build_tree(each).projections} for each in (opened, open_checkpoint(url))]
    assert not keys[0] & keys[1]


@pytest.mark.parametrize(
    ("odd", "said"),
    [
        (
            Odd(lambda _, body, headers: (200, body, headers)),
            "does not support range requests: download the file and name it here",
        ),
        (refusing(403), "answered 403 for tiny.safetensors: access refused"),
        (refusing(404), "answered 404 for tiny.safetensors: no such file"),
        (refusing(503), "answered 503 for tiny.safetensors: try again later"),
    ],
)
@pytest.mark.usefixtures("clock")
def test_a_server_that_does_not_give_it(hub: HubServer, odd: Odd, said: str) -> None:
    url = elsewhere(hub, "?signature=secret")
    hub.odd["tiny.safetensors"] = [odd]
    message = line(url)
    assert said in message
    assert "secret" not in message


def test_a_server_that_is_not_there(hub: HubServer, clock: Clock) -> None:
    url = elsewhere(hub, "?signature=secret")
    opened = open_checkpoint(url)
    hub.stop()
    assert f"cannot reach localhost:{hub.port}" in line(url)
    with pytest.raises(WeightsError, match="cannot reach localhost") as caught:
        read(opened)
    assert "secret" not in str(caught.value)
    assert clock.waits


@pytest.mark.parametrize("page", ["resolve/main", "blob/main"])
def test_a_file_on_the_hub_is_a_part_of_its_repo(hub: HubServer, page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = hub.push(NAME, SHARDED)
    hub.gated[NAME] = "hf_secret"
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    whole, part = open_checkpoint(NAME), open_checkpoint(f"{hub.url}/{NAME}/{page}/{SHARD_1}?download=true")
    assert (part.name, part.commit, part.config) == (NAME, commit, CONFIG)
    assert {t.name for t in part.tensors} == FIRST.keys()
    assert set(part.tensors) < set(whole.tensors)  # so that spectra of one are found for the other
    np.testing.assert_array_equal(read(part), FIRST[QUERY])
    assert "no such" not in line(f"{hub.url}/{NAME}/{page}/other.safetensors")


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("hf://datasets/org/tiny", "hf://datasets/ holds no models"),
        ("hf://spaces/org/tiny/model.safetensors", "hf://spaces/ holds no models"),
        ("hf://org/tiny/model.safetensors", "is not a file, a folder or a Hub id"),
        ("hf://org/../model.gguf", "is not a file, a folder or a Hub id"),
        ("hf://org/tiny/model.gguf@", "is not a file, a folder or a Hub id"),
        ("https://huggingface.co/org/tiny", " or .gguf file: name a model on the Hub as org/name"),
        ("https://example.org/model.onnx", "is not a URL of a .safetensors, .bin, .pt, .pth, .ckpt or .gguf file"),
        ("https://example.org/model.safetensors.index.json", ".ckpt or .gguf file: name a model on the Hub"),
        ("ftp://example.org/model.safetensors", "is not an https:// URL"),
        ("s3://bucket/model.safetensors", "is not an https:// URL"),
        ("https:///model.safetensors", "is not an https:// URL"),
        ("https://[/model.safetensors", "is not a URL"),
        ("https://host:port/model.safetensors", "is not a URL"),
        ("https://host/\x1b[2J.safetensors", "is not an https:// URL"),
        ("https://user:secret@example.org/model.safetensors", "must not hold a user or password"),
    ],
)
def test_other_urls_are_refused_without_a_request(hub: HubServer, model: str, said: str) -> None:
    message = line(model)
    assert said in message
    assert "secret" not in message
    assert hub.requests == []


def test_a_prefixed_id_is_the_id(hub: HubServer) -> None:
    commit = hub.push(NAME, ONE_FILE)
    for model in (f"hf://{NAME}", f"hf://{NAME}@main", f"hf://{NAME}@{commit}"):
        assert (open_checkpoint(model).name, stored_name(model)) == (NAME, NAME)


def test_names_in_the_store_are_short_and_hold_no_secrets(hub: HubServer) -> None:
    url = elsewhere(hub, "?signature=secret")
    assert open_checkpoint(url).name == stored_name(url) == f"localhost:{hub.port}{FILE}"
    long = [stored_name(f"https://h/{'a' * 500}/{n}.safetensors") for n in range(2)]
    assert max(map(len, long)) < 150
    assert len(set(long)) == 2


@pytest.mark.parametrize(
    "text",
    [
        "HTTPSConnectionPool(host='cdn'): Max retries exceeded with url: /blob/1?X-Signature=secret (refused)",
        "cannot connect to https://user:secret@cdn/blob/1?X-Signature=secret",
    ],
)
def test_an_error_of_a_client_is_told_without_its_url(text: str) -> None:
    assert "secret" not in short_message(OSError(text))
    assert short_message(OSError(text))
    assert short_message(TimeoutError()) == "TimeoutError"


SECRET = "https://user:secret@host/a/b.safetensors?X-Signature=secret&x=1#secret"


def test_secrets_of_urls_are_cut_out_of_whatever_is_shown_or_stored() -> None:
    assert (
        printable(f"see {SECRET} and {SECRET}.") == "see https://host/a/b.safetensors and https://host/a/b.safetensors"
    )
    assert without_secrets("a?b#c user@host hf://org/name@main") == "a?b#c user@host hf://org/name@main"
    run = make_run([], ["rankscope", "scan", SECRET, f"--against={SECRET}"])
    assert run.command == "rankscope scan https://host/a/b.safetensors --against=https://host/a/b.safetensors"
