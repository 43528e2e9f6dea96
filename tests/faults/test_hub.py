"""Models by Hub id: the real huggingface_hub client against a stand-in server."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hub_server import STALL, HubServer, etag
from opening import CONFIG, DOWN, KEY, QUERY, index, refusal, weights

from rankscope.engine.catalogue.tree import build_tree
from rankscope.engine.checkpoint.hub import Access, cached_models
from rankscope.engine.checkpoint.open import Checkpoint, open_checkpoint
from rankscope.engine.formats.safetensors import INDEX

NAME = "org/tiny"
SHARD_1, SHARD_2 = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
SHARDED = {
    "config.json": json.dumps(CONFIG).encode(),
    INDEX: index({QUERY: SHARD_1, KEY: SHARD_1, DOWN: SHARD_2}),
    SHARD_1: weights(QUERY, KEY),
    SHARD_2: weights(DOWN),
}
OTHER_FILES = {
    "README.md": b"# tiny",
    "tokenizer.json": b"{}",
    "tokenizer_config.json": b"{}",
    "consolidated.safetensors": weights(QUERY, seed=1),
    "model-extra.safetensors": weights("extra.weight"),
    "original/config.json": b"{}",
    "original/consolidated.00.pth": b"not fetched",
    "original/model.safetensors": weights(QUERY, seed=2),
    "pytorch_model.bin": b"not fetched",
}
ONE_FILE = {"config.json": SHARDED["config.json"], "model.safetensors": weights(QUERY, KEY, DOWN)}


def snapshot_files(checkpoint: Checkpoint) -> set[str]:
    folder = next(iter(checkpoint.stamps)).parent
    assert folder.name == checkpoint.commit
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}


def names(checkpoint: Checkpoint) -> set[str]:
    return {t.name for t in checkpoint.tensors}


def test_an_uncached_model_downloads_its_weights_and_nothing_else(hub: HubServer) -> None:
    commit = hub.push(NAME, {**SHARDED, **OTHER_FILES})
    opened = open_checkpoint(NAME, Access.DOWNLOAD)
    assert (opened.commit, opened.name, opened.location) == (commit, NAME, None)
    assert opened.config == CONFIG
    assert names(opened) == {QUERY, KEY, DOWN}
    assert snapshot_files(opened) == set(SHARDED)
    assert hub.files() == sorted(SHARDED)  # each fetched once


def test_without_an_index_the_one_file_of_that_name_is_the_model(hub: HubServer) -> None:
    hub.push(NAME, {**ONE_FILE, **OTHER_FILES})
    opened = open_checkpoint(NAME, Access.DOWNLOAD)
    assert snapshot_files(opened) == set(ONE_FILE)
    assert names(opened) == {QUERY, KEY, DOWN}


def test_without_index_and_model_file_the_consolidated_copy_is_left_alone(hub: HubServer) -> None:
    hub.push(NAME, {SHARD_1: SHARDED[SHARD_1], SHARD_2: SHARDED[SHARD_2], "consolidated.safetensors": weights(QUERY)})
    assert snapshot_files(open_checkpoint(NAME, Access.DOWNLOAD)) == {SHARD_1, SHARD_2}


def test_a_file_name_with_glob_characters_is_fetched_and_brings_no_other(hub: HubServer) -> None:
    hub.push(NAME, {INDEX: index({QUERY: "m[1]*.safetensors"}), "m[1]*.safetensors": weights(QUERY), **OTHER_FILES})
    assert snapshot_files(open_checkpoint(NAME, Access.DOWNLOAD)) == {INDEX, "m[1]*.safetensors"}


@pytest.mark.parametrize("state", ["online", "offline", "gone"])
def test_a_cached_model_opens_without_a_request(hub: HubServer, state: str, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.push(NAME, SHARDED)
    first = open_checkpoint(NAME, Access.DOWNLOAD)
    hub.push(NAME, {"model-extra.safetensors": b"newer"})
    hub.requests.clear()
    if state == "offline":
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    if state == "gone":
        hub.stop()
    assert open_checkpoint(NAME, Access.DOWNLOAD) == first
    assert open_checkpoint(NAME, Access.CACHE) == first
    assert open_checkpoint(f"{NAME}@{first.commit}", Access.DOWNLOAD).tensors == first.tensors
    assert cached_models() == [NAME]
    assert hub.requests == []


SCRIPT = """
import sys
from rankscope.engine.checkpoint.open import open_checkpoint
from rankscope.engine.checkpoint.hub import Access
opened = open_checkpoint("org/tiny", Access.DOWNLOAD)
print(opened.commit, len(opened.tensors), "huggingface_hub.hf_api" in sys.modules)
"""


def test_a_new_process_obeys_the_environment(hub: HubServer, tmp_path: Path) -> None:
    commit = hub.push(NAME, SHARDED)
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))}
    environment |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "NO_PROXY": "127.0.0.1"}

    def run(**more: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", SCRIPT]
        return subprocess.run(command, env=environment | more, capture_output=True, text=True, check=True)

    assert run().stdout.split() == [commit, "3", "True"]
    assert (tmp_path / "home" / "hub" / "models--org--tiny" / "snapshots" / commit / SHARD_2).is_file()
    hub.requests.clear()
    offline = run(HF_HUB_OFFLINE="1")
    assert offline.stdout.split() == [commit, "3", "False"]  # the client was not imported at all
    assert offline.stderr == ""
    assert hub.requests == []


@pytest.mark.parametrize("branch", ["dev", "v1.0", "refs/pr/1"])
def test_a_revision_is_a_branch_a_tag_or_a_commit(hub: HubServer, branch: str) -> None:
    main = hub.push(NAME, ONE_FILE)
    other = hub.push(NAME, {"model.safetensors": weights(QUERY, seed=3)}, ref=branch)
    by_branch = open_checkpoint(f"{NAME}@{branch}", Access.DOWNLOAD)
    assert (by_branch.name, by_branch.commit, names(by_branch)) == (NAME, other, {QUERY})
    by_commit = open_checkpoint(f"{NAME}@{main}", Access.DOWNLOAD)
    assert (by_commit.commit, names(by_commit)) == (main, {QUERY, KEY, DOWN})
    hub.requests.clear()
    assert open_checkpoint(f"{NAME}@{branch}", Access.DOWNLOAD) == by_branch
    assert open_checkpoint(f"{NAME}@{main}", Access.DOWNLOAD) == by_commit
    assert hub.requests == []


def test_an_id_without_organisation(hub: HubServer) -> None:
    commit = hub.push("gpt2", ONE_FILE)
    opened = open_checkpoint("gpt2", Access.DOWNLOAD)
    assert (opened.name, opened.commit) == ("gpt2", commit)
    assert cached_models() == ["gpt2"]


def _lose_a_shard(hub: HubServer) -> Checkpoint:
    hub.push(NAME, SHARDED)
    whole = open_checkpoint(NAME, Access.DOWNLOAD)
    shard = next(file for file in whole.stamps if file.name == SHARD_2)
    shard.resolve().unlink()
    shard.unlink()
    hub.requests.clear()
    return whole


@pytest.mark.parametrize("by_commit", [False, True])
def test_a_missing_shard_is_fetched_alone(hub: HubServer, by_commit: bool) -> None:
    whole = _lose_a_shard(hub)
    again = open_checkpoint(f"{NAME}@{whole.commit}" if by_commit else NAME, Access.DOWNLOAD)
    assert (names(again), again.commit) == (names(whole), whole.commit)
    assert hub.files() == [SHARD_2]


def test_a_missing_shard_is_named_where_it_cannot_be_fetched(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    _lose_a_shard(hub)
    assert SHARD_2 in refusal(NAME, download=False)
    assert hub.requests == []
    hub.stop()
    assert SHARD_2 in refusal(NAME, download=True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    line = refusal(NAME, download=True)
    assert SHARD_2 in line
    assert "HF_HUB_OFFLINE" in line


@pytest.mark.usefixtures("hub")
def test_no_such_repo() -> None:
    assert "no model org/nothing on the Hub" in refusal("org/nothing", download=True)


def test_no_such_revision(hub: HubServer) -> None:
    hub.push(NAME, ONE_FILE)
    assert f"{NAME} has no revision v9" in refusal(f"{NAME}@v9", download=True)
    assert "has no revision" in refusal(f"{NAME}@{'0' * 40}", download=True)


@pytest.mark.parametrize("files", [ONE_FILE, SHARDED], ids=["one file", "sharded"])
def test_a_gated_repo(hub: HubServer, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    hub.push(NAME, files)
    hub.gated[NAME] = "hf_secret"
    line = refusal(NAME, download=True)
    assert f"https://huggingface.co/{NAME}" in line
    assert "hf auth login" in line
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert names(open_checkpoint(NAME, Access.DOWNLOAD)) == {QUERY, KEY, DOWN}


def test_no_network_and_not_cached(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.stop()
    line = refusal(NAME, download=True)
    assert f"{NAME} is neither a file nor a folder here, nor is it in the local cache" in line
    assert "; cannot reach the Hub (" in line
    assert line.endswith("): check the name and the connection")
    cure = f"check the name, or run  rankscope scan {NAME}  to read it from the Hub"
    here = f"{NAME} is neither a file nor a folder here, and not in the local Hub cache"
    assert refusal(NAME, download=False) == f"{here}: {cure}"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert refusal(NAME, download=True).endswith("; HF_HUB_OFFLINE is set: check the name, or unset it")
    assert hub.requests == []


@pytest.mark.parametrize(
    ("files", "held"),
    [
        ({"tf_model.h5": b"x"}, "tf_model.h5 of TensorFlow"),
        ({"training_args.bin": b"x", "onnx/m.onnx": b"x"}, "onnx/m.onnx of ONNX"),
        ({}, ""),
    ],
)
def test_a_repo_without_weights_says_what_it_holds(hub: HubServer, files: dict[str, bytes], held: str) -> None:
    hub.push(NAME, {"config.json": b"{}", "original/model.safetensors": weights(QUERY), **files})
    line = refusal(NAME, download=True)
    assert "no weights on the Hub that can be read" in line
    assert f"it holds {held}" in line if held else "it holds" not in line
    assert hub.files() == []


@pytest.mark.parametrize("path", ["/api/models/", "/tree/", "/resolve/"])
@pytest.mark.parametrize(
    ("status", "reason"),
    [(429, "answered 429"), (500, "answered 500"), (401, "hf auth login"), (403, "hf auth login")],
)
def test_a_hub_that_answers_with_an_error(hub: HubServer, path: str, status: int, reason: str) -> None:
    hub.push("org/offline-rl", ONE_FILE)  # the name must not be read as the reason
    hub.faults[path] = status
    assert reason in refusal("org/offline-rl", download=True)


def test_a_hub_that_fails_halfway_leaves_the_shard_to_be_named(hub: HubServer) -> None:
    hub.push(NAME, SHARDED)
    hub.faults["/tree/"] = 500  # after the index was fetched: the client then calls the snapshot complete
    assert SHARD_1 in refusal(NAME, download=True)
    assert hub.files() == [INDEX]
    hub.faults.clear()
    assert names(open_checkpoint(NAME, Access.DOWNLOAD)) == {QUERY, KEY, DOWN}


def test_a_hub_that_never_answers_is_given_up(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.push(NAME, ONE_FILE)
    hub.faults["/api/models/"] = STALL
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_ETAG_TIMEOUT", 0.05)
    assert "cannot reach the Hub" in refusal(NAME, download=True)


def test_an_answer_that_is_not_the_hubs(hub: HubServer) -> None:
    hub.push(NAME, ONE_FILE)
    hub.faults["/api/models/"] = 200  # such as the login page of a hotel's network
    assert NAME in refusal(NAME, download=True)


def test_an_index_whose_shard_the_repo_lacks(hub: HubServer) -> None:
    hub.push(NAME, {**SHARDED, SHARD_2: None})
    assert f"names shard {SHARD_2}" in refusal(NAME, download=True)


@pytest.mark.parametrize(
    "shard", ["../x.safetensors", "/etc/x.safetensors", "a/../../b.safetensors", "\x1b[2J.safetensors"]
)
def test_an_index_that_points_outside(hub: HubServer, shard: str) -> None:
    hub.push(NAME, {**SHARDED, INDEX: index({QUERY: shard}), "a/b.safetensors": weights(QUERY)})
    assert "is not a .safetensors file of its folder" in refusal(NAME, download=True)
    assert hub.files() == [INDEX]


def test_a_cache_that_cannot_be_written(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.push(NAME, ONE_FILE)
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "file" / "hub"))
    assert f"cannot write {tmp_path / 'file'}" in refusal(NAME, download=True)


NO_IDS = [
    "", "a/b//d", "a/b/../d", "a/b/./d", "a/b/c\\d", "a/b/c\x1b[2Jd", "a--b/c/d",
    "foo bar", "../x", "org/", "/nowhere", "@main", "org/tiny@", "org/tiny@../main",
    "org/tiny@/dev/zero", "org/tiny@a\x1b[2Jb", "a--b", "-a", "a.", "org/tiny.git", "[red]x[/red]", "modèle",
    "~nobody-of-this-name/x", "a\0b", "a\nb", "\ud800", "\u202eorg/tiny", "https://huggingface.co/org/tiny",
    "x" * 97, f"{'x' * 300}@{'0' * 40}", "x" * 5000,
]  # fmt: skip


@pytest.mark.parametrize("model", NO_IDS, ids=lambda model: ascii(model)[:40])
def test_an_id_that_is_none_is_refused_without_a_request(hub: HubServer, model: str) -> None:
    hub.push(NAME, ONE_FILE)
    Path("model.safetensors").write_bytes(weights(QUERY))  # an empty name must not open the current folder
    refusal(model, download=True)
    assert hub.requests == []


def test_a_blobs_name_is_the_identity_and_a_new_commit_keeps_the_keys(hub: HubServer, tmp_path: Path) -> None:
    first = hub.push(NAME, SHARDED)
    old = open_checkpoint(f"{NAME}@{first}", Access.DOWNLOAD)
    newer = hub.push(NAME, {"config.json": json.dumps(CONFIG | {"x": 1}).encode()})
    new = open_checkpoint(f"{NAME}@{newer}", Access.DOWNLOAD)
    assert old.commit != new.commit
    assert {t.source.identity for t in old.tensors} == {etag(n, SHARDED[n]) for n in (SHARD_1, SHARD_2)}
    assert all(t.source.content_addressed for t in (*old.tensors, *new.tensors))
    keys = {p.address: p.key for p in build_tree(old).projections}
    assert len(set(keys.values())) == 3
    assert {p.address: p.key for p in build_tree(new).projections} == keys
    assert {replace(p.source, commit=first) for p in build_tree(new).projections} == {t.source for t in old.tensors}

    changed = open_checkpoint(f"{NAME}@{hub.push(NAME, {SHARD_2: weights(DOWN, seed=9)})}", Access.DOWNLOAD)
    moved = {p.address for p in build_tree(changed).projections if p.key != keys[p.address]}
    assert moved == {"layers.0.mlp.down"}

    shutil.copytree(next(iter(old.stamps)).parent, tmp_path / "copy")  # follows the cache's links
    local = open_checkpoint(str(tmp_path / "copy"))
    assert not any(t.source.content_addressed for t in local.tensors)
    assert not {p.key for p in build_tree(local).projections} & set(keys.values())


def test_the_stand_in_answers_what_else_the_client_asks(hub: HubServer) -> None:
    """Ranges, paths, refs and a tree of several pages: what reading single tensors from the Hub needs."""
    from huggingface_hub import HfApi, HfFileSystem

    commit = hub.push(NAME, {**SHARDED, **OTHER_FILES})
    dev = hub.push(NAME, {"config.json": b"{}"}, ref="dev")
    api, files = HfApi(), HfFileSystem(skip_instance_cache=True)
    assert {ref.name: ref.target_commit for ref in api.list_repo_refs(NAME).branches} == {"main": commit, "dev": dev}
    assert len(SHARDED | OTHER_FILES) > 2 * hub.page
    assert set(api.list_repo_files(NAME)) == SHARDED.keys() | OTHER_FILES.keys()
    paths = api.get_paths_info(NAME, [SHARD_1, "original", "nothing"])
    assert [(type(p).__name__, p.path) for p in paths] == [("RepoFile", SHARD_1), ("RepoFolder", "original")]
    with files.open(f"{NAME}/{SHARD_1}", revision=commit, cache_type="none") as opened:
        opened.seek(8)
        assert opened.read(16) == SHARDED[SHARD_1][8:24]
    assert [r.range for r in hub.requests if r.file == SHARD_1 and r.method == "GET"] == ["bytes=8-23"]
