"""The table of norms: which norm's output enters which projections, by family. Data only.

Names do not tell: `post_attention_layernorm` feeds the MLP in Llama and normalises the attention's output in
Gemma 2. The rows were read off running modules of transformers, and tests/unit/engine/test_norms.py compares them
with those; rows of remote code follow its published modules.

The key of a row says what is fed: `in`, the first matrices of attention, linear attention, state space or convolution;
`mlp`, gate and up, also of experts; `query_b` and `kv_b` of latent attention; `cross`, queries of cross-attention;
`cross key`, its keys and values; `dt_b`; `output` and `down`, which no norm feeds unless a row says so. A key with a
block or a role (`linear_attention.output`, `indexer_query_b`) takes precedence. Without a key the norm is unknown.

The value names places of norms, separated by blanks: the first that the checkpoint has is taken. `-` means none, `?`
unknown, `()` a norm of the row's kind without numbers. A path is searched in the projection's layer, from the
module around it outwards. Before a path, `<` means the layer before, which the first layer does not have; `^` a place
outside of the layers, for the first layer only; `/` outside, for all; `>` the last layer of the encoder beside it. In a
path {layer} and {before} are the numbers of the layer and of the one before, {n} is the first number in the
projection's path. `kind:` comes first if the kind is not the row's. `path!other` applies if there is no module `other`
in the place of `path`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, TypeAlias

from .layouts import models

RMS, RMS_1, LAYER, LAYER_1 = "rms", "1+rms", "layer", "1+layer"
"""Kinds of norms: root mean square or LayerNorm (which subtracts the mean), with gain w or 1 + w."""
NONE, UNKNOWN, BARE = "-", "?", "()"

FedBy: TypeAlias = Mapping[str, str]


class NormFamily(NamedTuple):
    """The norms that feed the projections of these families, and their kind."""

    models: frozenset[str]
    kind: str
    fed: FedBy


def row(names: str, kind: str, fed: FedBy) -> NormFamily:
    """A row for the families listed in `names`."""
    return NormFamily(models(names), kind, fed)


VARIANTS = {
    "opt": ("do_layer_norm_before", True),
    "wav2vec2": ("do_stable_layer_norm", False),
    "hubert": ("do_stable_layer_norm", False),
}
"""Settings that move norms, with the value that their absence means. If config.json has another value, the row of
`model_type+setting` is used."""

_LLAMA: FedBy = {"in": "input_layernorm", "mlp": "post_attention_layernorm"}
_LATENT: FedBy = {
    "query_b": "rms:self_attn.q_a_layernorm",
    "kv_b": "rms:self_attn.kv_a_layernorm rms:attention.kv_a_layernorm",
}
_PARALLEL: FedBy = {"in": "input_layernorm", "mlp": "post_attention_layernorm input_layernorm"}
_GEMMA2: FedBy = {"in": "input_layernorm", "mlp": "pre_feedforward_layernorm"}
_GPT2: FedBy = {"in": "ln_1", "mlp": "ln_2"}
_ONE: FedBy = {"in": "ln_1", "mlp": "ln_1"}
_BERT: FedBy = {
    "in": "<output.LayerNorm ^embeddings.LayerNorm",
    "mlp": "crossattention.output.LayerNorm attention.output.LayerNorm",
    "cross": "attention.output.LayerNorm",
}
_T5: FedBy = {"in": "layer_norm", "mlp": "layer_norm", "cross": "layer_norm", "cross key": "/encoder.final_layer_norm"}
_MBART: FedBy = {
    "in": "self_attn_layer_norm",
    "mlp": "final_layer_norm",
    "cross": "encoder_attn_layer_norm",
    "cross key": "/encoder.layer_norm",
}
_BART: FedBy = {
    "in": "<final_layer_norm ^layernorm_embedding",
    "mlp": "encoder_attn_layer_norm self_attn_layer_norm",
    "cross": "self_attn_layer_norm",
    "cross key": ">final_layer_norm",
}
_VIT: FedBy = {"in": "layernorm_before", "mlp": "layernorm_after"}
_CLIP: FedBy = {"in": "layer_norm1", "mlp": "layer_norm2"}
_NORM1: FedBy = {"in": "norm1", "mlp": "norm2"}
_STABLE: FedBy = {"in": "layer_norm", "mlp": "final_layer_norm"}
_CONFORMER: FedBy = {"in": "self_attn_layer_norm", "mlp": "ffn{n}_layer_norm"}
_JAMBA: FedBy = {"in": "input_layernorm", "mlp": "pre_ff_layernorm", "dt_b": "mamba.dt_layernorm"}
_MAMBA: FedBy = {"in": "norm", "mlp": "norm"}
_LFM: FedBy = {"in": "operator_norm", "mlp": "ffn_norm"}
_DELTA: FedBy = {**_LLAMA, "linear_attention.output": "rms:linear_attn.norm"}
_KDA: FedBy = {"linear_attention.output": "self_attn.o_norm attention.o_norm linear_attn.o_norm"}
_FALCON: FedBy = {"in": "ln_attn input_layernorm", "mlp": "ln_mlp post_attention_layernorm input_layernorm"}
_INKLING: FedBy = {"in": "input_layernorm attn_norm", "mlp": "post_attention_layernorm mlp_norm"}
_NATIVE: FedBy = {"in": "attention_norm", "mlp": "ffn_norm"}

ROWS = (
    row(
        "qwen2 qwen3 qwen2_moe qwen3_moe qwen3_vl_moe_text qwen2_vl qwen2_vl_text "
        "qwen2_5_vl qwen2_5_vl_text qwen3_vl_text smollm3 seed_oss granite helium hunyuan_v1_dense hunyuan_v1_moe "
        "ernie4_5 ernie4_5_moe ernie4_5_vl ernie4_5_vl_moe_text arcee glm glm4 eurobert phi3 phi4_multimodal phi4mm "
        "minimax_m2 olmoe dots1 granitemoe granitemoeshared granitemoe_swa jetmoe gpt_oss glm4_moe deepseek_v2 "
        "deepseek_v3 deepseek_v32 kimi_k2 glm4_moe_lite glm_moe_dsa llama4 llama4_text aria_text exaone_moe solar_open "
        "hy_v3 hy_v4 axk1 mellum kolibri1 cwm internlm3 iquestcoder flint laguna dots3_note_text unlimited_ocr_text "
        "deepseek_ocr2_text zaya moshi baichuan telechat bailing_moe "
        "chatglm+multi_query_attention",
        RMS,
        {**_LLAMA, **_LATENT},
    ),
    row(
        "llama mistral ministral3 mixtral",
        RMS,
        {"in": "input_layernorm attention_norm", "mlp": "post_attention_layernorm ffn_norm"},
    ),
    # Keys and values for what is seen come from another tower.
    row("idefics mllama_text_model", RMS, {**_LLAMA, "cross": "input_layernorm"}),
    row("gemma step3p5 minimax_m3_vl_text", RMS_1, _LLAMA),
    row("gemma2 gemma3_text vaultgemma", RMS_1, _GEMMA2),
    row("gemma3n_text gemma4_vision", RMS, _GEMMA2),
    row("gemma4_text", RMS, {**_GEMMA2, "expert.mlp": "pre_feedforward_layernorm_2"}),
    row(
        "t5gemma t5_gemma_module",
        RMS_1,
        {
            "in": "pre_self_attn_layernorm",
            "mlp": "pre_feedforward_layernorm",
            "cross": "pre_cross_attn_layernorm",
            "cross key": "/encoder.norm",
        },
    ),
    row("recurrent_gemma", RMS_1, {"in": "temporal_pre_norm", "mlp": "channel_pre_norm"}),
    row("qwen3_next qwen3_5_text qwen3_5_moe_text", RMS_1, _DELTA),
    # Its blocks are fed by a mixture of residual streams, each with a separate gain.
    row("qwen4_exp_text", RMS_1, {"linear_attention.output": "rms:linear_attn.norm"}),
    row("olmo2 olmo3 exaone4 flex_olmo", RMS, {"in": "-", "mlp": "-"}),
    row(
        "olmo_hybrid",
        RMS,
        {
            "linear_attention.in": "attention_layer_norm input_layernorm",
            "attention.in": "-",
            "linear_attention.output": "linear_attn.o_norm",
            "mlp": " ".join(
                (
                    "feedforward_layer_norm!post_feedforward_layernorm",
                    "post_attention_layernorm!post_feedforward_layernorm",
                    "-",
                )
            ),
        },
    ),
    row("diffllama", RMS, {**_LLAMA, "attention.output": BARE}),
    row("hrm_text", RMS, {"in": BARE, "mlp": BARE}),
    row("olmo", LAYER, {"in": BARE, "mlp": BARE}),
    row("minimax minimax_text_01", RMS, {**_LLAMA, "attention.output": "self_attn.norm -"}),
    row("kimi_linear glm5_next_text bailing_hybrid", RMS, {**_LLAMA, **_LATENT, **_KDA}),
    row(
        "deepseek_v4",
        RMS,
        {
            "in": "input_layernorm attn_norm",
            "mlp": "post_attention_layernorm ffn_norm",
            "query_b": "self_attn.q_a_norm attn.q_norm",
        },
    ),
    row(
        "mistral_large4_text",
        RMS,
        {
            "in": "input_layernorm attention_norm",
            "mlp": "post_attention_layernorm ffn_norm",
            "kv_b": "self_attn.kv_a_layernorm attention.kv_a_norm",
            "indexer_query_b": "layer:self_attn.indexer.q_input_norm layer:attention.indexer.q_input_norm",
        },
    ),
    row(
        "longcat_flash",
        RMS,
        {
            "in": "input_layernorm.{n}",
            "mlp": "post_attention_layernorm.{n}",
            "expert.mlp": "post_attention_layernorm.0",
            "query_b": "self_attn.{n}.q_a_layernorm",
            "kv_b": "self_attn.{n}.kv_a_layernorm",
        },
    ),
    row(
        "bitnet",
        RMS,
        {**_LLAMA, "attention.output": "self_attn.attn_sub_norm", "down": "mlp.ffn_sub_norm"},
    ),
    # In its gated norms, whose gain depends on the token, only the inner norm has a gain that is stored.
    row(
        "axk2",
        RMS,
        {
            "mlp": "post_attention_layernorm",
            "indexer_query_b": "self_attn.q_a_layernorm",
            "kv_b": "self_attn.kv_a_layernorm",
        },
    ),
    row("afmoe", RMS, {"in": "input_layernorm", "mlp": "pre_mlp_layernorm"}),
    row("apertus", RMS, {"in": "attention_layernorm", "mlp": "feedforward_layernorm"}),
    row("internlm2 pixtral", RMS, _NATIVE),
    row("openelm", RMS, {"in": "attn_norm", "mlp": "ffn_norm"}),
    row("llada", RMS, {"in": "attn_norm", "mlp": "ff_norm"}),
    row("qwen exaone", RMS, _GPT2),
    row("inkling_text", RMS, {**_INKLING, "pos_query": _INKLING["in"]}),
    row(
        "inkling2_text",
        RMS,
        {
            **_INKLING,
            "in": "q_input_layernorm q_input_norm input_layernorm attn_norm",
            "pos_query": "q_input_layernorm q_input_norm input_layernorm attn_norm",
            "key": "k_input_layernorm k_input_norm input_layernorm attn_norm",
            "value": "v_input_layernorm v_input_norm input_layernorm attn_norm",
        },
    ),
    row("molmo2_text", RMS, {"in": "input_layernorm attn_norm", "mlp": "post_attention_layernorm ff_norm"}),
    row("blt blt_patcher", RMS, {**_LLAMA, "cross": "q_norm", "cross key": "k_norm"}),
    row("lfm2 lfm2_moe lfm3", RMS, _LFM),
    row("jamba", RMS, _JAMBA),
    row("bamba falcon_h1", RMS, {**_JAMBA, "ssm.output": "mamba.norm -"}),
    row("granitemoehybrid", RMS, {**_LLAMA, "ssm.output": "mamba.norm"}),
    row("zamba", RMS, _JAMBA),
    row("zamba2", RMS, {**_JAMBA, "ssm.output": "mamba.norm"}),
    row("mamba falcon_mamba", RMS, _MAMBA),
    row("mamba2 nemotron_h", RMS, {**_MAMBA, "ssm.output": "mixer.norm"}),
    row("xlstm", RMS, {"in": "norm_mlstm", "mlp": "norm_ffn", "output": UNKNOWN}),
    row("stablelm phi", LAYER, _PARALLEL),
    row("cohere cohere2 cohere2_moe", LAYER, _PARALLEL),
    row("gpt_neox gpt_neox_japanese persimmon fuyu starcoder2 phimoe bloom phi3small", LAYER, _LLAMA),
    row("chatglm", LAYER, _LLAMA),
    row("nemotron", LAYER_1, _LLAMA),
    row("falcon RefinedWeb RefinedWebModel", LAYER, _FALCON),
    row("gpt2 gpt-sw3 gpt_bigcode gpt_neo codeshell jais", LAYER, _GPT2),
    row("gptj codegen", LAYER, _ONE),
    row("phi-msft", LAYER, {"in": "ln", "mlp": "ln"}),
    row("imagegpt", RMS, _GPT2),
    row("openai-gpt", LAYER, {"in": "<ln_2 ^-", "mlp": "ln_1"}),
    row("ctrl", LAYER, {"in": "layernorm1", "mlp": "layernorm2"}),
    row("mpt", LAYER, {"in": "norm_1", "mlp": "norm_2"}),
    row("dbrx", LAYER, {"in": "norm_1", "mlp": "norm_attn_norm.norm_2"}),
    row("opt biogpt xglm", LAYER, _MBART),
    row("bert roberta xlm-roberta camembert deberta deberta-v2", LAYER, _BERT),
    row("electra", LAYER, {**_BERT, "in": "<output.LayerNorm ^embeddings.LayerNorm!embeddings_project ^-"}),
    row("blip_2_qformer", LAYER, {**_BERT, "in": "<output_query.LayerNorm ^layernorm"}),
    row("esm", LAYER, {"in": "attention.LayerNorm", "mlp": "LayerNorm"}),
    row("mpnet", LAYER, {**_BERT, "mlp": "attention.LayerNorm"}),
    row("modernbert", LAYER, {"in": "attn_norm ^embeddings.norm", "mlp": "mlp_norm"}),
    row("distilbert", LAYER, {"in": "<output_layer_norm ^embeddings.LayerNorm", "mlp": "sa_layer_norm"}),
    # The first layer to run is fed by the embeddings, every other by the layer itself.
    row("albert", LAYER, {"mlp": "albert_layers.{n}.attention.LayerNorm"}),
    row("xlnet", LAYER, {"in": "<ff.layer_norm ^-", "mlp": "rel_attn.layer_norm"}),
    row(
        "nomic_bert",
        LAYER,
        {
            "in": "<post_mlp_layernorm <norm2 ^embeddings.LayerNorm ^emb_ln",
            "mlp": "post_attention_layernorm norm1",
        },
    ),
    row(
        "gte new",
        LAYER,
        {
            "in": "<post_mlp_layernorm <mlp_ln ^embeddings.LayerNorm",
            "mlp": "post_attention_layernorm attn_ln",
        },
    ),
    row("xlm", LAYER, {"in": "^layer_norm_emb /layer_norm2.{before}", "mlp": "/layer_norm1.{layer}"}),
    row("t5 mt5 umt5 longt5 switch_transformers", RMS, _T5),
    row("mbart pegasus m2m_100 blenderbot whisper", LAYER, _MBART),
    row(
        "nllb-moe",
        LAYER,
        {**_MBART, "mlp": "ff_layer_norm", "cross": "cross_attention_layer_norm"},
    ),
    row("bart led", LAYER, _BART),
    row("marian", LAYER, {**_BART, "in": "<final_layer_norm ^-"}),
    row("opt+do_layer_norm_before", LAYER, {"in": "<final_layer_norm ^-", "mlp": "self_attn_layer_norm"}),
    row(
        "prophetnet",
        LAYER,
        {
            "in": "<feed_forward_layer_norm ^embeddings_layer_norm",
            "mlp": "cross_attn_layer_norm self_attn_layer_norm",
            "cross": "self_attn_layer_norm",
            "cross key": ">feed_forward_layer_norm",
        },
    ),
    row("wav2vec2 hubert", LAYER, {"in": "<final_layer_norm ^layer_norm", "mlp": "layer_norm"}),
    row("wav2vec2+do_stable_layer_norm hubert+do_stable_layer_norm", LAYER, _STABLE),
    row("wav2vec2-conformer wav2vec2-bert", LAYER, _CONFORMER),
    row(
        "gemma4_audio",
        RMS,
        {
            "in": "norm_pre_attn",
            "mlp": "feed_forward{n}.pre_layer_norm",
            "conv.in": "lconv1d.pre_layer_norm",
        },
    ),
    row("parakeet_encoder", LAYER, {"in": "norm_self_att", "mlp": "norm_feed_forward{n}"}),
    row("vit deit swin videomae internvl_vision mobilevit", LAYER, _VIT),
    row("cvt", LAYER, {"mlp": "layernorm_after"}),
    row("swinv2", LAYER, {"mlp": "-"}),
    row("convnext", LAYER, {"mlp": "layernorm"}),
    row("step3p5_vision", LAYER, {"in": "layernorm_before ln_1", "mlp": "layernorm_after ln_2"}),
    row("videoprism videoprism_text_model videoprism_vision_model", LAYER_1, _VIT),
    row("dinov2 qwen2_vl_vision qwen3_vl_vision qwen3_5_moe_vision qwen4_exp_vision", LAYER, _NORM1),
    row("ernie4_5_vl_moe_vision", LAYER, _NORM1),
    # By their names on the Hub its norms are numbered from 0.
    row("kimi_k25_vision", LAYER, {"in": "norm0 norm1", "mlp": "norm2 norm1"}),
    row("qwen2_5_vl_vision glm5_next_vision", RMS, _NORM1),
    row("dots3_note_vision_encoder", RMS, {"in": "norm1 norm_1", "mlp": "norm2 norm_2"}),
    row("molmo2_vision", LAYER, {"in": "layer_norm1 attention_norm", "mlp": "layer_norm2 ffn_norm"}),
    row(
        "deepseek_ocr2_vision",
        LAYER,
        {"in": "layer_norm1 rms:input_layernorm", "mlp": "layer_norm2 rms:post_attention_layernorm"},
    ),
    row("bridgetower_vision_model", LAYER, _GPT2),
    # Link towers are between some of its layers.
    row("bridgetower bridgetower_text_model", LAYER, {key: _BERT[key] for key in ("mlp", "cross")}),
    # The first visual layer is fed by the mean of two norms.
    row("lxmert", LAYER, {"mlp": "attention.output.LayerNorm"}),
    row(
        "clvp clvp_encoder",
        RMS,
        {
            "in": "input_rmsnorm layer:input_layernorm",
            "mlp": "post_attention_rmsnorm layer:post_attention_layernorm",
        },
    ),
    row(
        "moonshine",
        LAYER,
        {
            "in": "input_layernorm",
            "mlp": "final_layernorm post_attention_layernorm",
            "cross": "post_attention_layernorm",
            "cross key": "/encoder.layer_norm",
        },
    ),
    row("perceiver", LAYER, {"in": "attention.self.layernorm1", "mlp": "layernorm"}),
    row("granite_speech_encoder", LAYER, {"in": "attn.pre_norm", "mlp": "ff{n}.pre_norm"}),
    row("cpmant", RMS, {"in": "self_att.layernorm_before_attention", "mlp": "ffn.layernorm_before_ffn"}),
    row("clip clip_text_model clip_vision_model siglip siglip_text_model siglip_vision_model", LAYER, _CLIP),
    row("idefics3_vision blip_2_vision_model idefics_vision sam_vision_model phi4_multimodal_vision", LAYER, _CLIP),
    row("unlimited_ocr_vision", LAYER, _CLIP),
)
