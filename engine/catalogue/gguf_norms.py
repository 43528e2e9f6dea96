"""The table of norms for GGUF files, whose tensors have other names: rows as in norm_families.py, by architecture.

If the gain of a family is 1 + w, its converter has added the 1. A test compares the rows with the `gguf` package's map
of names and with the rows of the families (tests/unit/engine/test_norms_gguf.py).
"""

from __future__ import annotations

from .norm_families import BARE, LAYER, RMS, FedBy, NormFamily, row

_TWO: FedBy = {"in": "attn_norm", "mlp": "ffn_norm", "query_b": "attn_q_a_norm", "kv_b": "attn_kv_a_norm"}
_ONE: FedBy = {"in": "attn_norm", "mlp": "ffn_norm attn_norm"}
_LATE: FedBy = {**_TWO, "mlp": "post_attention_norm"}
_SSM: FedBy = {"in": "attn_norm", "mlp": "ffn_norm", "ssm.output": "ssm_norm -"}
_BERT: FedBy = {"in": "<layer_output_norm ^token_embd_norm", "mlp": "attn_output_norm"}

GGUF_ROWS: tuple[NormFamily, ...] = (
    row(
        "llama llama4 deci baichuan refact qwen qwen2 qwen2moe qwen2vl qwen3 qwen3moe qwen3vl qwen3vlmoe eurobert phi3 "
        "internlm2 minicpm minicpm3 gemma gemma2 gemma3 gemma-embedding gemma3n xverse deepseek deepseek2 "
        "deepseek2-ocr glm-dsa chatglm glm4 exaone exaone-moe granite granitemoe bailingmoe arcee ernie4_5 "
        "ernie4_5-moe smollm3 mistral3 mistral4 olmoe openelm dots1 hunyuan-moe hunyuan-dense lfm2 lfm2moe apertus "
        "minimax-m2 afmoe step35 llada",
        RMS,
        _TWO,
    ),
    row("gemma4", RMS, {**_TWO, "expert.mlp": "pre_ffw_norm_2"}),
    row("gpt-oss seed_oss glm4moe", RMS, _LATE),
    row("qwen3next qwen35 qwen35moe", RMS, {**_LATE, "ssm.output": "ssm_norm"}),
    row("bitnet", RMS, {**_TWO, "attention.output": "attn_sub_norm", "down": "ffn_sub_norm"}),
    row("kimi-linear", RMS, {**_TWO, "output": "ssm_norm -"}),
    row("granitehybrid falcon-h1", RMS, _SSM),
    row("jamba", RMS, {**_SSM, "dt_b": "ssm_dt_norm"}),
    row("mamba mamba2 nemotron_h nemotron_h_moe", RMS, {**_SSM, "mlp": "attn_norm"}),
    row("olmo2 exaone4", RMS, {"in": "-", "mlp": "-"}),
    row("olmo", LAYER, {"in": BARE, "mlp": BARE}),
    row("gpt2 gptneox starcoder starcoder2 bloom mpt codeshell jais phimoe nemotron orion", LAYER, _TWO),
    row("phi2 gptj stablelm command-r cohere2", LAYER, _ONE),
    row("falcon", LAYER, {"in": "attn_norm_2 attn_norm", "mlp": "ffn_norm attn_norm"}),
    row("dbrx", LAYER, {"in": "attn_norm", "mlp": "attn_output_norm"}),
    row("bert nomic-bert nomic-bert-moe", LAYER, _BERT),
    row(
        "t5 t5encoder",
        RMS,
        {"in": "attn_norm", "mlp": "ffn_norm", "cross": "cross_attn_norm", "cross key": "/enc.output_norm"},
    ),
)
