"""GGUF: for a converted model the table by architecture agrees with the families' table for the original."""

from __future__ import annotations

import re
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf.constants import MODEL_ARCH_NAMES

from rankscope.engine.catalogue.gguf_norms import GGUF_ROWS
from rankscope.engine.catalogue.norm_families import ROWS, NormFamily
from rankscope.engine.catalogue.tree import build_tree
from rankscope.engine.checkpoint.open import open_checkpoint
from rankscope.engine.derive.norm_weighting import NormWeighting

ARCHITECTURES = {name: arch for arch, name in MODEL_ARCH_NAMES.items()}
CONVERTED = {
    "model.layers.0": "llama qwen2 qwen3 gemma gemma2 phi3 olmo2 exaone4 granite granitemoe smollm3 arcee apertus "
    "seed_oss gemma4 glm4 olmoe dots1 nemotron afmoe lfm2 jamba deepseek2=deepseek_v3 qwen2moe=qwen2_moe "
    "qwen3moe=qwen3_moe gemma3=gemma3_text gpt-oss=gpt_oss glm4moe=glm4_moe qwen3next=qwen3_next cohere2 "
    "command-r=cohere starcoder2 phimoe stablelm internlm2 ernie4_5 ernie4_5-moe=ernie4_5_moe exaone-moe=exaone_moe "
    "hunyuan-moe=hunyuan_v1_moe hunyuan-dense=hunyuan_v1_dense minimax-m2=minimax_m2 phi2=phi bitnet "
    "falcon-h1=falcon_h1",
    "transformer.h.0": "gpt2 starcoder=gpt_bigcode gptj codeshell jais qwen exaone falcon",
    "gpt_neox.layers.0": "gptneox=gpt_neox",
    "h.0": "bloom",
    "transformer.blocks.0": "mpt dbrx",
    "backbone.layers.0": "mamba mamba2 nemotron_h",
    "transformer.layers.0": "openelm",
    "encoder.layers.0": "chatglm=chatglm+multi_query_attention",
    "encoder.layer.0": "bert",
}
"""Architectures and the families that are converted to them, under the names of their layers."""


def _row(rows: tuple[NormFamily, ...], model: str) -> NormFamily:
    return next(row for row in rows if model in row.models)


def _paths(written: str) -> list[tuple[str, str]]:
    """Mark and path of each place inside the layers."""
    found = re.findall(r"(?:[\w+]+:)?([<^/>]?)([^\s!]+)", written)
    return [(mark, path) for mark, path in found if mark not in ("^", "/")]


@pytest.mark.parametrize(
    ("layer", "pair"), [(layer, pair) for layer, pairs in CONVERTED.items() for pair in pairs.split()]
)
def test_converted_names_are_those_of_the_gguf_packages_map(layer: str, pair: str) -> None:
    architecture, _, family = pair.partition("=")
    names = gguf.get_tensor_name_map(ARCHITECTURES[architecture], 1)
    own, theirs = (
        _row(GGUF_ROWS, architecture),
        _row(ROWS, family or {"gemma4": "gemma4_text"}.get(architecture, architecture)),
    )
    assert own.kind == theirs.kind.removeprefix("1+")  # a converter adds the 1
    for fed in ("in", "mlp", "query_b", "kv_b", "attention.output", "down", "ssm.output"):
        places = _paths(theirs.fed.get(fed, "-"))
        found = (names.get_name(f"{layer}.{path}") or names.get_name(f"{layer}.{path}.weight") for _, path in places)
        mapped = {name.removesuffix(".weight") for name in found if name}
        assert mapped <= {f"blk.0.{path}" for _, path in _paths(own.fed.get(fed, "-"))}, fed
        assert mapped or fed not in ("in", "mlp") or ("", "-") in places, fed


def test_the_gain_of_a_gguf_file_is_what_it_holds(tmp_path: Path) -> None:
    """Gemma's converter has added the 1."""
    file, gain = tmp_path / "tiny.gguf", np.linspace(0.5, 2, 32, dtype=np.float32)
    writer = gguf.GGUFWriter(str(file), "gemma2")
    writer.add_block_count(1)
    writer.add_tensor("blk.0.attn_q.weight", np.eye(32, dtype=np.float32))
    writer.add_tensor("blk.0.attn_norm.weight", gain)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    checkpoint = open_checkpoint(str(file))
    query = next(p for p in build_tree(checkpoint).projections if p.role == "query")
    (operand,) = NormWeighting(checkpoint).moment(query).operands
    assert operand.load
    assert np.array_equal(operand.load(), gain.astype(np.float64) ** 2)
