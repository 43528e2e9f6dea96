"""PyTorch files: the same projections and spectra as their safetensors twins, and no code in them is executed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from lapack_reference import assert_same_spectrum, compute
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

from rankscope.engine.catalogue.tree import build_tree
from rankscope.engine.checkpoint.open import Checkpoint, open_checkpoint
from rankscope.engine.errors import InputError, WeightsError
from rankscope.store.listings import FileListings

SIZES: dict[str, Any] = {
    "vocab_size": 61, "hidden_size": 24, "intermediate_size": 35, "num_hidden_layers": 2, "num_attention_heads": 3,
    "num_key_value_heads": 1, "tie_word_embeddings": True,
}  # fmt: skip
QUERY = "model.layers.0.self_attn.q_proj.weight"
State = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def state() -> State:
    torch.manual_seed(5)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **SIZES), dtype=torch.bfloat16)
    return dict(model.state_dict())


def save(file: Path, held: object, *, legacy: bool = False) -> Path:
    torch.save(held, file, _use_new_zipfile_serialization=not legacy)
    return file


def configured(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", **SIZES}))
    return folder


def sharded(folder: Path, state: State, *, legacy: bool) -> Path:
    names = sorted(state)
    weight_map = {}
    for number, part in enumerate((names[::2], names[1::2]), 1):
        file = save(folder / f"pytorch_model-0000{number}-of-00002.bin", {n: state[n] for n in part}, legacy=legacy)
        weight_map |= dict.fromkeys(part, file.name)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


def refusal(model: Path) -> str:
    with pytest.raises(InputError) as caught:
        open_checkpoint(str(model))
    line = str(caught.value)
    assert line.isprintable()
    return line


def read(checkpoint: Checkpoint, name: str) -> torch.Tensor:
    weights, _ = checkpoint.read(next(t for t in checkpoint.tensors if t.name == name))
    return torch.as_tensor(weights)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("shards", [1, 2])
def test_a_model_is_its_safetensors_twin(tmp_path: Path, state: State, legacy: bool, shards: int) -> None:
    twin, folder = configured(tmp_path / "twin"), configured(tmp_path / "pickled")
    save_file({name: t.contiguous().clone() for name, t in state.items()}, twin / "model.safetensors")
    if shards == 1:
        save(folder / "pytorch_model.bin", state, legacy=legacy)
    else:
        sharded(folder, state, legacy=legacy)
    ours, theirs = open_checkpoint(str(folder)), open_checkpoint(str(twin))
    trees = [build_tree(c) for c in (ours, theirs)]
    described = [{(p.address, p.rows, p.cols, p.dtype, p.problem) for p in tree.projections} for tree in trees]
    assert described[0] == described[1]
    assert {t.name for t in ours.tensors} == state.keys()
    scanned = [{p.address: p for p in tree.scanned()} for tree in trees]
    assert len(scanned[0]) == 14
    for address, projection in scanned[0].items():
        twin_values = compute(theirs, scanned[1][address]).values
        assert (compute(ours, projection).values == twin_values).all()
    for name in state:
        assert torch.equal(read(ours, name).double(), state[name].double())


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_views_are_what_torch_makes_of_them(tmp_path: Path, legacy: bool) -> None:
    big = torch.randn(40, 30, generator=torch.Generator().manual_seed(1))
    held = OrderedDict(
        whole=big, tied=big, transposed=big.T, rows=big[10:30:2], columns=big[:, 3:21:3],
        permuted=big.view(4, 10, 30)[1], parameter=torch.nn.Parameter(big[3:9].T),
        half=big[:5, :7].half(), one=big[:1].expand(1, 30),
    )  # fmt: skip
    opened = open_checkpoint(str(save(tmp_path / "views.pt", held, legacy=legacy)))
    for name, wanted in held.items():
        assert torch.equal(read(opened, name), wanted.detach())
    spans = {t.name: (t.begin, t.end, t.shape, t.strides) for t in opened.tensors}
    assert spans["whole"] == spans["tied"]
    assert (spans["rows"][1] - spans["rows"][0], spans["rows"][3]) == (4 * (9 * 60 + 30), (60, 1))
    projections = {p.tensor: p for p in build_tree(opened).projections}
    assert len({p.key for p in projections.values()}) == len(held) - 1  # a view of the same bytes is another matrix
    for name in ("transposed", "columns"):
        assert_same_spectrum(compute(opened, projections[name]), held[name])


TYPES = [
    "float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz",
    "bool", "uint8", "int8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "complex64", "complex128",
]  # fmt: skip


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_the_bytes_of_every_type_are_where_torch_has_them(tmp_path: Path, legacy: bool) -> None:
    """torch itself loads no file of before 1.6 with the types that came later."""
    bits = torch.randint(0, 2, (48, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
    types = [
        name for name in TYPES if not legacy or ("float8" not in name and name not in ("uint16", "uint32", "uint64"))
    ]
    held = {name: bits.clone().view(getattr(torch, name)) for name in types}
    held["noted"] = torch.nn.Parameter(torch.randn(3, 4))
    held["noted"].origin = "tests"  # type: ignore[attr-defined]
    held |= torch.nn.BatchNorm1d(5).state_dict() | {"scalar": torch.tensor(2.5), "none": torch.zeros(0, 7)}
    file = save(tmp_path / "types.pt", held, legacy=legacy)
    loaded, data = torch.load(file), file.read_bytes()
    opened = open_checkpoint(str(file))
    assert [t.name for t in opened.tensors] == list(loaded)
    for tensor in opened.tensors:
        wanted = loaded[tensor.name].detach()
        assert tensor.shape == wanted.shape
        assert data[tensor.begin : tensor.end] == bytes(wanted.contiguous().reshape(-1).view(torch.uint8).tolist())


LIMITED = """
import resource, sys
import numpy
from pathlib import Path
from rankscope.engine.checkpoint.open import open_checkpoint
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 30_000_000,) * 2)
opened = open_checkpoint(sys.argv[1])
print(*(int(opened.read(tensor)[0].sum()) for tensor in opened.tensors))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="macOS does not limit the address space")
@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_a_file_larger_than_memory(tmp_path: Path, legacy: bool) -> None:
    held = {f"layers.{n}.w": torch.full((1024, 1024), n + 1.0) for n in range(16)}
    file = save(tmp_path / "m.bin", held, legacy=legacy)
    command = [sys.executable, "-c", LIMITED, str(file)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert done.stdout.split() == [str(n << 20) for n in range(1, 17)]


def test_a_pickle_cannot_change_the_functions_that_it_calls(tmp_path: Path, state: State) -> None:
    file = tmp_path / "m.pt"
    for change in (b"}U\x04makeNs", b"N}U\x04makeNs\x86", b"N}U\x08__call__Ns\x86"):
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("m/data.pkl", b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n" + change + b"b.")
        assert "is damaged or not a checkpoint" in refusal(file)
    assert len(open_checkpoint(str(save(file, state))).tensors) == len(state)


def test_elements_that_share_their_bytes_are_no_matrix(tmp_path: Path) -> None:
    opened = open_checkpoint(str(save(tmp_path / "m.pt", {"mask": torch.randn(1, 9).expand(7, 9)})))
    with pytest.raises(WeightsError, match="share their bytes"):
        read(opened, "mask")


@pytest.mark.parametrize("nests", [["state_dict"], ["model"], ["model_state_dict"], ["module"], ["model", "module"]])
def test_what_trainers_save_around_a_state_dict(tmp_path: Path, state: State, nests: list[str]) -> None:
    held: object = state
    for nest in reversed(nests):
        held = {nest: held, "optimizer": {"state": {}, "param_groups": []}, "epoch": 3, "loss": torch.tensor(0.5)}
    opened = open_checkpoint(str(save(tmp_path / "last.pth", held)))
    assert {t.name for t in opened.tensors} == state.keys()


class _Call:
    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("outer", [True, False])
def test_nothing_is_executed(tmp_path: Path, state: State, legacy: bool, outer: bool) -> None:
    proof = tmp_path / "executed"
    bad = _Call(os.system, f"touch {proof}")
    file = save(tmp_path / "m.bin", bad if outer else {**state, "x": bad}, legacy=legacy)
    assert "needs posix.system, which could execute code, and was not loaded" in refusal(file)
    assert not proof.exists()
    if not legacy:  # the file really is an attack
        torch.load(file, weights_only=False)
        assert proof.exists()


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_calls_that_torch_would_allow_and_that_fill_the_memory(tmp_path: Path, legacy: bool) -> None:
    file = save(tmp_path / "m.bin", {"x": _Call(bytearray, 10**13)}, legacy=legacy)
    assert "needs builtins.bytearray" in refusal(file) or "needs __builtin__.bytearray" in refusal(file)


@pytest.mark.parametrize(
    ("held", "reason"),
    [
        (torch.nn.Linear(2, 2), "needs torch.nn.modules.linear.Linear"),
        ({"epoch": 3, "best": [1.0]}, "holds no state dict (its keys are epoch, best)"),
        ([torch.zeros(2)], "holds no state dict (it is a list)"),
        (torch.zeros(2), "holds no state dict (it is a Tensor): save the model's state_dict()"),
        ({"\x1b[2J": 1}, r"\x1b[2J"),
        (torch.optim.Adam([torch.zeros(2)]).state_dict(), "holds the state of an optimiser"),
        ({"a.b": torch.zeros(2), "a": {"b": torch.zeros(2)}}, "occurs twice"),
        ({"\ud800": torch.zeros(2)}, "damaged or not a checkpoint"),
    ],
    ids=["module", "no state", "list", "tensor", "escape", "optimiser", "twice", "surrogate"],
)
def test_a_file_that_is_no_checkpoint(tmp_path: Path, held: object, reason: str) -> None:
    assert reason in refusal(save(tmp_path / "m.bin", held))


def test_another_pickle_protocol(tmp_path: Path, state: State) -> None:
    torch.save(state, tmp_path / "m.bin", pickle_protocol=4)
    assert "was saved with pickle protocol 4: save it with torch.save's own, 2" in refusal(tmp_path / "m.bin")


def test_a_dictionary_that_holds_itself(tmp_path: Path) -> None:
    held: dict[str, Any] = {"model": {}, "w": torch.zeros(2)}
    held["model"]["model"] = held["model"]["more"] = held
    refusal(save(tmp_path / "m.bin", held))


@pytest.mark.parametrize("name", ["training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state_3.pth", "scaler.pt"])
def test_the_state_of_a_trainer_is_no_checkpoint(tmp_path: Path, state: State, name: str) -> None:
    assert "state of a trainer or optimiser" in refusal(save(tmp_path / name, state))
    assert "no weights that can be read" in refusal(tmp_path)
    save(tmp_path / "weights.pth", state)
    assert len(open_checkpoint(str(tmp_path)).tensors) == len(state)


def test_archives_that_are_not_torch_saves(tmp_path: Path) -> None:
    whole = save(tmp_path / "m.bin", {"w": torch.randn(50, 50)})
    changes: dict[str, tuple[dict[str, bytes], int, str]] = {
        "compressed": ({}, zipfile.ZIP_DEFLATED, "compressed"),
        "byteorder": ({"m/byteorder": b"big"}, zipfile.ZIP_STORED, "big-endian"),
        "script": ({"m/constants.pkl": b""}, zipfile.ZIP_STORED, "TorchScript"),
        "unnamed": ({"m/data/7": b"1234"}, zipfile.ZIP_STORED, "damaged"),
        "longer": ({"m/data/0": bytes(10_004)}, zipfile.ZIP_STORED, "damaged"),
        "shorter": ({"m/data/0": bytes(9_996)}, zipfile.ZIP_STORED, "damaged"),
        "no pickle": ({"m/data.pkl": b""}, zipfile.ZIP_STORED, "damaged"),
    }
    with zipfile.ZipFile(whole) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    for case, (changed, method, reason) in changes.items():
        file = tmp_path / f"{case}.bin"
        with zipfile.ZipFile(file, "w", method) as archive:
            for name, data in (records | changed).items():
                archive.writestr(name, data)
        assert reason in refusal(file)
    (tmp_path / "pointer.bin").write_text("version https://git-lfs.github.com/spec/v1\n")
    assert "git lfs pull" in refusal(tmp_path / "pointer.bin")


def test_which_files_of_a_folder_are_the_model(tmp_path: Path, state: State) -> None:
    folder = configured(tmp_path / "m")
    some = dict(list(state.items())[:3])
    save(folder / "last.pt", some)
    save(folder / "other.pth", some)
    assert "holds 2 models (last.pt, other.pth): name one of the files" in refusal(folder)
    sharded(folder, state, legacy=False)
    assert len(open_checkpoint(str(folder)).tensors) == len(state)
    (folder / "pytorch_model.bin.index.json").unlink()
    assert len(open_checkpoint(str(folder)).tensors) == len(state)
    (folder / "pytorch_model-00002-of-00002.bin").unlink()
    assert "pytorch_model-00002-of-00002.bin (one of 2) is missing" in refusal(folder)
    save_file({QUERY: torch.zeros(4, 4)}, folder / "model.safetensors")
    assert [t.name for t in open_checkpoint(str(folder)).tensors] == [QUERY]


SECOND = """
import sys
from pathlib import Path
from rankscope.tui.data.model import open_model
model = open_model(sys.argv[1], Path(sys.argv[2]))
print(*(p.key for p in model.tree.projections))
print("torch" in sys.modules or "numpy" in sys.modules)
"""


def test_no_opening_needs_torch_or_numpy(tmp_path: Path, state: State) -> None:
    folder, root = configured(tmp_path / "m"), tmp_path / "store"
    file = save(folder / "pytorch_model.bin", state)
    first = build_tree(open_checkpoint(str(folder), listings=FileListings(root)))

    def again() -> tuple[list[str], str]:
        command = [sys.executable, "-c", SECOND, str(folder), str(root)]
        keys, imported = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
        return keys.split(), imported

    assert again() == ([p.key for p in first.projections], "False")
    save(file, {**state, "new": torch.zeros(2, 2)})
    keys, imported = again()
    assert (len(keys), imported) == (len(first.projections) + 1, "False")
    assert not {p.key for p in first.projections} & set(keys)


def test_a_file_that_changed_since_it_was_opened(tmp_path: Path, state: State) -> None:
    file = save(tmp_path / "m.bin", state)
    opened = open_checkpoint(str(file))
    save(file, state)
    with pytest.raises(WeightsError, match="changed since it was opened"):
        read(opened, QUERY)


def test_a_damaged_listing_is_made_again(tmp_path: Path, state: State) -> None:
    listings = FileListings(tmp_path / "store")
    file = save(tmp_path / "m.bin", state)
    first = open_checkpoint(str(file), listings=listings)
    (kept,) = (tmp_path / "store" / ".listings").iterdir()
    for damage in (b"", b"{}", kept.read_bytes().replace(b"BF16", b"BF61"), kept.read_bytes()[:-9]):
        kept.write_bytes(damage)
        assert open_checkpoint(str(file), listings=listings) == first
    blocked = FileListings(file)  # no folder can be made there
    assert open_checkpoint(str(file), listings=blocked) == first
