"""Inputs after public reports: each script writes its folder, and what is opened of it is what was meant.

Spectra are held against the script's own expected.npz: LAPACK in float64 of the rows that are meant.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import re
import runpy
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from safetensors.numpy import load_file

from rankscope.engine.catalogue.tree import build_tree
from rankscope.engine.checkpoint.hub import Access
from rankscope.engine.checkpoint.open import open_checkpoint
from rankscope.engine.errors import InputError
from rankscope.tui.cli.main import main
from rankscope.tui.data.at_hand import choices
from rankscope.tui.data.model import open_model

HERE = Path(__file__).parent
PROGRAM = "import sys; from rankscope.tui.cli.main import main; sys.exit(main())"
Made = Callable[[str], Path]


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """The folder of a case, by its number; each script runs once."""
    folders: dict[str, Path] = {}

    def make(case: str) -> Path:
        if case not in folders:
            folders[case] = tmp_path_factory.mktemp(f"case{case}")
            (script,) = HERE.glob(f"{case}_*.py")
            named = patch.object(sys, "argv", [script.name, str(folders[case])])
            with named, contextlib.redirect_stdout(io.StringIO()), np.errstate(all="ignore"):
                runpy.run_path(str(script), run_name="__main__")
        return folders[case]

    return make


def refused(model: Path) -> str:
    with pytest.raises(InputError) as caught:
        open_checkpoint(str(model), Access.CACHE)
    return str(caught.value)


def problems(model: Path) -> list[str]:
    """What stands at each projection that is not computed, or is with a word on it."""
    tree = build_tree(open_checkpoint(str(model), Access.CACHE))
    return [p.problem or p.note for p in tree.projections if p.problem or p.note]


def scanned(model: Path, store: Path) -> tuple[Mapping[str, np.ndarray], dict[str, str]]:
    """Address -> spectrum as a scan keeps it, and the tensor that each address is the whole of."""
    rows, out = io.StringIO(), store / "all.npz"
    with contextlib.redirect_stdout(rows), contextlib.redirect_stderr(io.StringIO()):
        code = main(["scan", str(model), "--json", "--store", str(store), "--device", "cpu"])
        assert code in (0, 1)
        assert main(["export", str(model), "-o", str(out), "--store", str(store)]) in (0, 1)
    listed = [json.loads(line) for line in rows.getvalue().splitlines()]
    return np.load(out), {row["address"]: row["tensor"] for row in listed if row["slice"] is None}


RIGHT = [
    ("02", "model", 2), ("11", "adapter", 12), ("12", "adapter", 12), ("07", "work/single.safetensors", 1),
    ("16", "align64.gguf", 1), ("16", "nested.gguf", 1), ("16", "v2.gguf", 1), ("17", "pipe/transformer", 12),
    ("19", "one", 14), ("20", "index", 16), ("20", "noindex", 16), ("20", "native", 16),
    ("22", "model", 7), ("23", "model", 13), ("24", "model", 16), ("25", "svdllm", 16), ("25", "palu", 20),
    ("15", "lora.gguf", 12), ("25", "asvd", 16), ("25", "seq", 8),
    ("26", "fsdp", 2), ("26", "peft_base", 2), ("27", "bom", 8), ("27", "kvlist", 8), ("32", "reversed.safetensors", 1),
    ("33", "good", 4), ("33", "stray", 4), ("33", "wrong", 4), ("33", "partnames", 4), ("35", "adapter_beside", 2),
    ("35", "opt_safetensors", 2), ("35", "bin_trainer", 2), ("35", "run/checkpoint-40", 2),
    ("07", "work/tiny-llama", 1),
    ("17", "pipe/unet", 6),
    ("17", "pipe/transformer_var", 12),
    ("19", "two", 14),
    ("33", "dot", 4),
    ("33", "dup", 4),
    ("33", "stub_noindex", 4),
    ("35", "upper", 2),
    *(("26", name, 2) for name in ("actor", "ckpt", "compile", "ddp", "ds", "ema", "lightning", "nnmod", "pruned")),
    *(("16", f"{name}.gguf", 1) for name in ("align_u64", "split0")),
    *(("33", name, 4) for name in ("binindex", "both_noindex", "extra", "sizetext")),
    *(("35", name, 2) for name in ("pt_pair", "run/checkpoint-80", "sp ace é/модель")),
]  # fmt: skip
"""Case, model in its folder, and how many of the expected spectra it holds."""


def holds_spectra(folder: Path, model: str, count: int, store: Path) -> None:
    wanted = np.load(folder / "expected.npz")
    found, tensors = scanned(folder / model, store)
    right = 0
    for address in found:
        name = address if address in wanted else tensors.get(address, "")
        if name in wanted:
            sigma, expected = found[address], np.sort(wanted[name])[::-1]
            assert len(sigma) == len(expected), address
            assert abs(sigma - expected).max() <= 1e-9 * max(expected[0], 1e-300), address
            right += 1
    assert right == count


@pytest.mark.parametrize(("case", "model", "count"), RIGHT)
def test_spectra(made: Made, tmp_path: Path, case: str, model: str, count: int) -> None:
    holds_spectra(made(case), model, count, tmp_path)


@pytest.mark.parametrize(
    ("case", "model", "said"),
    [
        ("01", "comma", "header that is not JSON"),
        ("03", "many.safetensors", "too large for the 100,000,000 that safetensors allows"),
        ("04", "model.safetensors", "data offsets that overlap"),
        ("05", "one_byte.safetensors", "holds unlisted bytes"),
        ("05", "zeros.safetensors", "holds unlisted bytes"),
        ("05", "html.safetensors", "holds unlisted bytes"),
        ("10", "st", "is a pointer of Git LFS"),
        ("10", "bin", "is a pointer of Git LFS"),
        ("10", "gguf", "is a pointer of Git LFS"),
        ("10", "entry.safetensors", 'is text ("Entry not found")'),
        ("10", "entry.bin", 'is text ("Entry not found")'),
        ("10", "entry.gguf", 'is text ("Entry not found")'),
        ("10", "empty.bin", "is empty: download it again"),
        ("10", "empty.gguf", "is empty: download it again"),
        ("10", "empty.safetensors", "is empty: download it again"),
        ("15", "imatrix.gguf", "is an importance matrix of llama.cpp, not a model"),
        ("15", "control.gguf", "is a control vector, not a model"),
        ("15", "vocab.gguf", "is a vocabulary without weights, not a model"),
        ("16", "v1.gguf", "is GGUF of version 1"),
        ("16", "v4.gguf", "is GGUF of version 4"),
        ("16", "big.gguf", "is a big-endian GGUF"),
        ("16", "half.gguf", "is truncated"),
        ("16", "old.ggml", "is a GGML file, older than GGUF"),
        ("16", "old.bin", "is a GGML file, older than GGUF"),
        ("16", "parts", "a GGUF cut in pieces (join them with cat)"),
        ("27", "comment", "line 1, column 3: JSON has no comments"),
        ("27", "comma", "line 1, column 94: a comma before the closing bracket"),
        ("27", "empty", "is empty"),
        ("27", "latin1", "byte 101 is not UTF-8; save it as UTF-8"),
        ("27", "list", "is not a JSON object"),
        *(("32", f"dtype_{n}.safetensors", f"the unknown dtype {n}") for n in ("7", "BF8", "F32", "f32", "float32")),
        ("32", "float_offsets.safetensors", "a shape or offsets that are not whole numbers"),
        ("32", "dtype_I4.safetensors", "the unknown dtype I4"),
        ("33", "one_of_two_noindex", "shard model-00002-of-00002.safetensors (one of 2) is missing"),
        ("35", "dcp", "of torch.distributed"),
        ("35", "ema_pair", "is both in diffusion.safetensors and in ema.safetensors, and no index says which counts"),
        ("17", "pipe", "text_encoder"),
        ("35", "run", "checkpoint-40"),
        ("19", "hf", "original"),
    ],
)
def test_refusals(made: Made, case: str, model: str, said: str) -> None:
    assert said in refused(made(case) / model)


@pytest.mark.parametrize(
    ("case", "model", "said"),
    [
        ("14", "type4.gguf", "GGUF type 4 (Q4_2, which llama.cpp removed): unsupported quantisation"),
        ("14", "type31.gguf", "GGUF type 31 (Q4_0_4_4, which llama.cpp removed): unsupported quantisation"),
        ("14", "type42.gguf", "GGUF type 42 (Q2_0 of a newer llama.cpp): unsupported quantisation"),
        ("32", "all", "BOOL holds true and false, as masks do, not weights"),
        ("32", "all", "C64 holds complex numbers, which are not computed"),
        ("32", "all", "F6_E2M3 holds floats of 6 bits, which are not read: unsupported quantisation"),
        ("32", "all", "I64 holds whole numbers, not weights"),
        ("36", "gptq_nothing", "qweight may be GPTQ or AWQ: config.json names no quantization_config that tells which"),
        ("36", "bnb_nostate", "bitsandbytes' weight.quant_state, which holds the shape, is missing"),
        ("36", "fp8_noconfig", "a scale of 2 x 2 for 256 x 256, but config.json names no block size"),
        ("36", "fp8_some_unscaled", "F8_E4M3 under fp8 quantisation, but its scale is missing"),
        ("36", "fp8_wrong_block", "the scale has shape 3 x 2, which 256 x 256 in blocks of 128 x 128 does not need"),
        ("36", "int8_plain", "I8 holds packed integers, not weights: unsupported quantisation"),
    ],
)
def test_lines_on_tensors(made: Made, case: str, model: str, said: str) -> None:
    assert said in problems(made(case) / model)


@pytest.mark.parametrize(
    ("case", "model", "shape"),
    [
        ("11", "adapter", (48, 32)),
        ("12", "adapter", (48, 32)),
        ("15", "lora.gguf", (64, 64)),
        ("25", "svdllm", (64, 64)),
        ("25", "asvd", (64, 64)),
        ("25", "palu", (64, 64)),
        ("25", "seq", (64, 64)),
    ],
)
def test_the_product_of_two_factors_is_in_the_tree(made: Made, case: str, model: str, shape: tuple[int, int]) -> None:
    tree = build_tree(open_checkpoint(str(made(case) / model), Access.CACHE))
    assert shape in {(p.rows, p.cols) for p in tree.projections}


def table_of(model: Path, store: Path) -> list[dict[str, str]]:
    """The metric table of what is stored, as CSV gives it."""
    table = io.StringIO()
    with contextlib.redirect_stdout(table), contextlib.redirect_stderr(io.StringIO()):
        assert main(["show", str(model), "--view", "table", "--csv", "--store", str(store)]) == 0
    return list(csv.DictReader(io.StringIO(table.getvalue())))


@pytest.mark.parametrize(
    ("case", "model", "said"),
    [
        (
            "17",
            "pipe/transformer_var",
            "files beside the model that are not read: diffusion_pytorch_model-00001-of-00002.fp16",
        ),
        (
            "33",
            "both_noindex",
            "files beside the model that are not read: model-00001-of-00002.safetensors, model-00002",
        ),
        (
            "33",
            "dup",
            "1 tensor in two files, of which the index names one: e.g. model.layers.0.self_attn.q_proj.weight",
        ),
        ("33", "extra", "1 tensor that the index does not name, e.g. model.layers.9.self_attn.q_proj.weight: left out"),
        ("33", "stray", "files beside the model that are not read: model-old.safetensors, model.safetensors"),
        ("33", "stub_noindex", "files beside the model that are not read: model.safetensors"),
        ("35", "adapter_beside", "files beside the model that are not read: adapter_model.safetensors"),
    ],
)
def test_what_is_left_out_is_said(made: Made, case: str, model: str, said: str) -> None:
    (line,) = open_checkpoint(str(made(case) / model), Access.CACHE).warnings
    assert line.startswith(said)


@pytest.mark.parametrize("model", ["wn", "wn2"])
def test_a_direction_of_length_1_is_the_matrix_that_is_used(made: Made, tmp_path: Path, model: str) -> None:
    plain = load_file(made("26") / "compile" / "model.safetensors")
    found, _ = scanned(made("26") / model, tmp_path)
    assert len(found) == 2
    for layer, weight in enumerate(plain.values()):
        rows = weight / np.linalg.norm(weight.astype("f8"), axis=1, keepdims=True)
        wanted = np.linalg.svd(rows, compute_uv=False)
        assert abs(found[f"layers.{layer}.attention.query"] - wanted).max() <= 1e-9 * wanted[0]


def test_queries_of_transformer_engine_are_whole(made: Made, tmp_path: Path) -> None:
    folder = made("26")
    _, tensors = scanned(folder / "te", tmp_path)
    assert sorted(tensors.values()) == [
        f"model.layers.{layer}.self_attention.layernorm_qkv.query_weight" for layer in range(2)
    ]
    found = np.load(tmp_path / "all.npz")
    wanted = np.load(folder / "expected.npz")
    for address, tensor in tensors.items():
        expected = wanted[f"layers.{tensor.split('.')[2]}.attention.query"]
        assert abs(found[address] - expected).max() <= 1e-9 * expected[0]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("gone", "shard model.safetensors (one of 1) is missing"),
        ("wrong", "shard model.safetensors (one of 1) is missing"),
        ("partial", "no weights that can be read"),
        ("noconfig", ""),
    ],
)
def test_broken_entries_of_a_hub_cache(made: Made, monkeypatch: pytest.MonkeyPatch, name: str, said: str) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(made("09") / "hub"))
    listed = {found.name: found.kind for found in choices(made("09") / "store")}
    assert (listed.get(f"some-org/{name}") == "in the Hub cache, incomplete") is (name in ("gone", "wrong"))
    if said:
        with pytest.raises(InputError, match=re.escape(said)):
            open_checkpoint(f"some-org/{name}", Access.CACHE)
    else:
        assert len(open_checkpoint(f"some-org/{name}", Access.CACHE).tensors) == 1


def test_zero_points_of_gptq_stay_in_their_bits(made: Made, tmp_path: Path) -> None:
    """Version 1 stores zero - 1, and the script adds 1 without the mask: of a stored 15 it makes 16, where auto_gptq
    (qlinear_cuda_old.py) and its kernels keep 4 bits, 0. Right is the script's formula with that mask.
    """
    packed = load_file(made("36") / "gptq_old" / "model.safetensors")
    words = {name.rpartition(".")[2]: part for name, part in packed.items()}
    shifts = 4 * np.arange(8)
    values = ((words["qweight"][:, None] >> shifts[None, :, None]) & 15).reshape(256, 256)
    zeros = (((words["qzeros"][:, :, None] >> shifts) & 15).reshape(2, 256) + 1) & 15
    groups = words["g_idx"]
    weight = (values - zeros[groups]).astype("f8") * words["scales"].astype("f8")[groups]
    wanted = np.linalg.svd(weight, compute_uv=False)
    found, _ = scanned(made("36") / "gptq_old", tmp_path)
    assert abs(found["layers.0.attention.query"] - wanted).max() <= 1e-9 * wanted[0]


@pytest.mark.parametrize(("case", "count"), [("22", 8), ("23", 13), ("24", 16)])
def test_no_more_spikes_than_the_numerical_rank(made: Made, tmp_path: Path, case: str, count: int) -> None:
    scanned(made(case) / "model", tmp_path)
    rows = [row for row in table_of(made(case) / "model", tmp_path) if row["numerical_rank"]]
    assert len(rows) == count  # the others failed: NaN, infinity, squares beyond float64
    assert all(float(row["spikes"]) <= float(row["numerical_rank"]) for row in rows)


def test_a_ratio_of_different_shapes_is_marked(made: Made, tmp_path: Path) -> None:
    one, other = (str(made("34") / name) for name in ("base", "tuned"))
    for model in (one, other):
        scanned(Path(model), tmp_path)

    def shown(*options: str) -> str:
        out = io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()):
            models = [one, "--against", other, "--pair", "address"]  # B has another layer
            assert main(["show", *models, "--store", str(tmp_path), *options]) == 0
        return out.getvalue()

    assert "32x32 \u2260 16x32  \u22600." in shown("--view", "table")
    assert shown().count("\u2260") == 3  # the key of layer 1, at three thresholds
    shape = next(line for line in shown("--view", "compare", "--filter", "layers.1").splitlines() if "shape" in line)
    assert shape.split() == ["shape", "32x32", "32x32", "32x32", "16x32"]
    rows = csv.DictReader(io.StringIO(shown("--view", "table", "--csv")))
    differ = {row["address"]: (row["rows"], row["shapes_differ"]) for row in rows}
    assert differ.pop("layers.1.attention.key") == ("32", "True")
    assert set(differ.values()) == {("32", "False")}


@pytest.mark.parametrize("model", ["notype", "typenull"])
def test_a_fused_tensor_without_a_model_type_is_split_where_that_is_proven(
    made: Made, tmp_path: Path, model: str
) -> None:
    found, _ = scanned(made("27") / model, tmp_path)
    for address, wanted in np.load(made("27") / "expected.npz").items():
        assert abs(found[address] - wanted).max() <= 1e-9 * wanted[0]
    assert open_model(str(made("27") / model), tmp_path).warnings == (
        "there is no model_type: qkv_proj split as the heads and the shape of the output matrix prove it",
    )


def test_a_fused_tensor_without_a_config_says_so(made: Made) -> None:
    assert (
        problems(made("27") / "nothing")
        == ["no model_type says how it is fused, and there is no number of heads: not split"] * 2
    )


def addresses(model: Path) -> list[str]:
    return [p.address for p in build_tree(open_checkpoint(str(model), Access.CACHE)).projections]


def test_configs_that_differ_in_what_does_not_count(made: Made) -> None:
    names = ("crlf", "headsfloat", "nan", "quantempty", "quantnull", "sizetext", "textnull", "utf16")
    plain = addresses(made("27") / "plain")
    assert len(plain) == 8
    assert {name: addresses(made("27") / name) for name in names} == dict.fromkeys(names, plain)
    assert addresses(made("01") / "good") == []


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("fp8_config", "block"),
        ("fp8_bare", "plain8"),
        ("fp8_some_unscaled", "block"),
        ("fp8_says_bf16_is", "bf16"),
        ("fp8_tensor_scale_weight", "tensor"),
        ("fp8_tensor_weight_scale", "tensor"),
    ],
)
def test_quantised_spectra(made: Made, tmp_path: Path, model: str, expected: str) -> None:
    found, _ = scanned(made("36") / model, tmp_path)
    wanted = np.load(made("36") / "E.npz")[expected]
    assert abs(found["layers.0.attention.query"] - wanted).max() <= 1e-9 * wanted[0]


@pytest.mark.parametrize(
    ("case", "model", "code", "said"),
    [
        ("08", "hub:some-org/tiny", 0, ""),
        ("09", "hub:some-org/gone", 2, "shard model.safetensors (one of 1) is missing"),
        ("10", "st", 2, "is a pointer of Git LFS"),
        ("22", "model", 1, "failed: layers.0.attention.query"),
        ("34", "base", 0, ""),
    ],
)
def test_through_the_command_line(made: Made, tmp_path: Path, case: str, model: str, code: int, said: str) -> None:
    folder = made(case)
    name = model.removeprefix("hub:")
    command = [sys.executable, "-c", PROGRAM, "scan", name if name != model else str(folder / model), "--json"]
    env = os.environ | {"HF_HUB_CACHE": str(folder / "hub"), "HF_HUB_OFFLINE": "1"}
    ran = subprocess.run(
        [*command, "--store", str(tmp_path)], env=env, capture_output=True, text=True, timeout=60, check=False
    )
    assert ran.returncode == code, ran.stderr
    assert said in ran.stderr
    assert "Traceback" not in ran.stderr
