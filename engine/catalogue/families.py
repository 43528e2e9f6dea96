"""The table of model families: which tensor of a layer is which projection. Data only.

A rule without models applies to its names in every family, a rule with models only in those (a
model_type, or `model_type+flag` if a flag of config.json decides). FUSED is searched before PLAIN,
and in both the first match wins. A new family is a line here, or none if its names are in PLAIN.
"""

from __future__ import annotations

import re

from .layouts import (
    CAT,
    CONV,
    CONV1D_KV,
    CONV1D_THIRDS,
    DELTA,
    DELTA_BA,
    DELTA_CAT,
    GQKV,
    GROUP,
    HALVES,
    HALVES_REVERSED,
    HEAD,
    INDEXER,
    INTERLEAVE,
    KV_CAT,
    KV_HEAD,
    LATENT,
    LATENT_ALONE,
    LATENT_B,
    LATENT_QUERY_GATE,
    MULTI_QUERY,
    QUERY_GATE,
    SSM1,
    SSM1_INTERLEAVE,
    SSM2,
    SSM_X,
    THIRDS,
    TP4,
    Layout,
    Rule,
    models,
)

FLAGS = {
    "falcon": (("new_decoder_architecture", False), ("multi_query", True)),
    "gpt_bigcode": (("multi_query", True),),
    "chatglm": (("multi_query_attention", False),),
}
"""Flags of config.json that decide a family's layout, with the value that their absence means. The first flag that is
set is appended to the model_type."""

_GPT2 = models("gpt2 gpt-sw3 openai-gpt imagegpt decision_transformer jais")
_QWEN = models("qwen")
_MOONSHINE = models("moonshine moonshine_streaming clvp clvp_encoder")
_MOON_VIT = models("kimi_vl kimi_k25 kimi_k25_vision moonvit")
_DOTS = models("dots3_note dots3_note_vision_encoder dots3_note_audio_encoder")
_INKLING = models("inkling_mm_model inkling_text inkling2 inkling2_text")


def _attention(path: str, *layouts: Layout, of: str = "") -> Rule:
    return Rule(path, "attention", layouts=layouts, models=models(of))


def _experts(path: str, role: str = "", *layouts: Layout, of: str = "") -> Rule:
    """A 3-D stack of experts."""
    return Rule(path, "expert", role, layouts, models(of), stack="planes")


_ANY = r"(?!\w*(?:linear|cross|multihead|enc))\w*[aA]tt(?:n|ention)\w*(?:\.(?:self|attention|attn))?"

FUSED = (
    # Query, key and value
    _attention(r"qkv_proj", CAT, of="phi3 phi4_multimodal phi4mm openelm"),
    _attention(r"qkv_proj", HEAD, of="minimax minimax_text_01"),
    _attention(r"qkv_proj", TP4, of="codegen"),
    _attention(r"qkv_proj", THIRDS, of="new gte deepseek_vl_v2 unlimited_ocr unlimited_ocr_vision"),
    _attention(r"query_key_value", GROUP, of="falcon+new_decoder_architecture RefinedWeb phi3small"),
    _attention(r"query_key_value", MULTI_QUERY, of="falcon+multi_query RefinedWebModel"),
    _attention(r"query_key_value", CAT, of="chatglm+multi_query_attention bailing_moe bailing_moe_v2 sarvam_moe"),
    _attention(r"query_key_value", HEAD, of="gpt_neox gpt_neox_japanese bloom persimmon fuyu falcon chatglm"),
    Rule(r"(?<!cross)attn\.c_attn", "attention", "", (CONV1D_THIRDS,), _GPT2, transposed=True),
    _attention(r"attn\.c_attn", THIRDS, of="qwen"),
    _attention(r"attn\.c_attn", CAT, of="codeshell"),
    _attention(r"attn\.c_attn", MULTI_QUERY, of="gpt_bigcode+multi_query"),
    _attention(r"attn\.c_attn", HEAD, of="gpt_bigcode"),
    Rule(r"(?<!cross)attn\.c_attn", "attention", "", (CAT, GROUP, HEAD), proven=True),
    Rule(r"crossattention\.c_attn", "cross_attention", "", (CONV1D_KV,), _GPT2, transposed=True),
    Rule(r"crossattention\.q_attn", "cross_attention", "query", (), _GPT2, transposed=True),
    Rule(r"crossattention\.c_proj", "cross_attention", "output", (), _GPT2, transposed=True),
    _attention(r"attention\.wqkv", GROUP, of="internlm2"),
    Rule(r"wqkv", "attention", "", (THIRDS,), _MOON_VIT),
    _attention(r"attention\.self\.in_proj", HEAD, of="deberta"),
    Rule(r"(?:attn|mixer|attention)\.Wqkv", "attention", "", (CAT, THIRDS), by_output=True),
    Rule(r"(?:self_attn|attn|attention)\.qkv", "attention", "", (THIRDS, CAT), by_output=True),
    _attention(r"(?:attn|attention)\.in_proj_weight", THIRDS),
    Rule(r"(?:multihead_attn|\w*cross_?att(?:n|ention)\w*)\.in_proj_weight", "cross_attention", "", (THIRDS,)),
    Rule(rf"{_ANY}\.(?:qkv|w_qkv)", "attention", "", (THIRDS, CAT), by_output=True),
    _attention(rf"{_ANY}\.to_kv", KV_CAT),
    Rule(rf"{_ANY}\.qkv_proj", "attention", "", (CAT, THIRDS, HEAD, TP4), proven=True),
    Rule(rf"{_ANY}\.(?:query_key_value|wqkv)", "attention", "", (CAT, GROUP, HEAD, MULTI_QUERY), proven=True),
    Rule(rf"{_ANY}\.Wqkv", "attention", "", (CAT, THIRDS), proven=True),
    Rule(rf"{_ANY}\.in_proj", "attention", "", (CAT, THIRDS, HEAD), proven=True),
    _attention(rf"{_ANY}\.in_proj_weight", THIRDS),
    _attention(r"W_pack", THIRDS),
    Rule(r"att_proj", "attention", "", (CAT, THIRDS), by_output=True),
    _attention(r"gqkv_proj", GQKV),
    _attention(r"self_attention\.key_value", KV_HEAD),
    _attention(r"self_attention\.kv_proj", KV_CAT, of="jetmoe"),
    Rule(r"self_attn\.q_proj", "attention", "", (QUERY_GATE,), when="gated"),
    Rule(r"q_b_proj|wq_b|^attn_q_b", "attention", "", (LATENT_QUERY_GATE,), when="latent gated"),
    _attention(r"q_gate_proj", LATENT_QUERY_GATE),
    _attention(r"kv_a_proj_with_mqa|wkv_a_with_mqa", LATENT, LATENT_ALONE),
    _attention(r"kv_b_proj|wkv_b", LATENT_B),
    _attention(r"indexer\.index_qk_proj", INDEXER),
    Rule(r"wo_a|o_a_proj", "attention", "output_a", (), models("deepseek_v4"), stack="rows", count="o_groups"),
    Rule(r"rel_attn\.q", "attention", "query", stack="flat", transposed=True),
    Rule(r"rel_attn\.k", "attention", "key", stack="flat", transposed=True),
    Rule(r"rel_attn\.v", "attention", "value", stack="flat", transposed=True),
    Rule(r"rel_attn\.r", "attention", "pos_key", stack="flat", transposed=True),
    Rule(r"rel_attn\.o", "attention", "output", stack="flat"),
    # Linear attention, state spaces and convolutions
    Rule(r"linear_attn\.in_proj_qkvz", "linear_attention", "", (DELTA,)),
    Rule(r"linear_attn\.in_proj_ba", "linear_attention", "", (DELTA_BA,)),
    Rule(r"linear_attn\.in_proj_qkv", "linear_attention", "", (DELTA_CAT,)),
    Rule(r"linear_att(?:n|ention)\.in_proj", "linear_attention", proven=True),
    Rule(r"mamba\.in_proj", "ssm", "", (SSM1_INTERLEAVE,), models("zamba")),
    Rule(r"(?:mamba|mixer)\.in_proj|^ssm_in", "ssm", "", (SSM1, SSM2)),
    Rule(r"(?:mamba|mixer)\.x_proj|^ssm_x", "ssm", "", (SSM_X,)),
    Rule(r"(?:short)?conv\.in_proj", "conv", "", (CONV,)),
    Rule(r"lconv1d\.linear_start|conv\.pointwise_lin1", "conv", "", (HALVES_REVERSED,)),  # of a Conformer
    # Gate and up
    Rule(r"mlp\.up_proj", "mlp", "", (INTERLEAVE,), models("phi3small")),
    Rule(r"feed_forward_(?:in|out)\.gate_up_proj", "mlp", "", (HALVES_REVERSED,)),
    Rule(r"gate_up_proj|input_linear|Wi|proj_1|weights_in|w12", "mlp", "", (HALVES,)),
    Rule(r"mlp\.fc1", "mlp", "", (HALVES,), models("moshi kyutai_speech_to_text"), when="doubled"),
    Rule(r"mlp\.fc1(?:\.proj)?", "mlp", "", (HALVES_REVERSED,), _MOONSHINE, when="doubled"),
    Rule(r"up_gate_proj", "mlp", "", (HALVES_REVERSED,)),
    Rule(r"ff_proj", "mlp", "", (HALVES_REVERSED,), when="doubled"),
    Rule(r"^ffn_up", "mlp", "", (HALVES,), models("phi3")),  # GGUF
    Rule(r"dense_h_to_4h|^ffn_up", "mlp", "", (HALVES,), when="doubled"),
    Rule(r"attn\.c_proj", "attention", "output", (), _GPT2, transposed=True),
    Rule(r"mlp\.c_fc", "mlp", "up", (), _GPT2 | {"clvp"}, transposed=True),
    Rule(r"mlp\.c_fc2", "mlp", "gate", (), _GPT2, transposed=True),
    Rule(r"mlp\.c_proj", "mlp", "down", (), _GPT2 | {"clvp"}, transposed=True),
    Rule(r"^wo", "attention", "output", (), _MOON_VIT),
    Rule(r"mlp\.fc0", "mlp", "up", (), _MOON_VIT),
    Rule(r"mlp\.fc1", "mlp", "down", (), _MOON_VIT),
    Rule(r"mlp(?:\.experts)?\.fc1", "mlp", "gate", (), _DOTS),
    Rule(r"mlp(?:\.experts)?\.fc3", "mlp", "up", (), _DOTS),
    Rule(r"^fc1", "mlp", "", (HALVES,), _DOTS, when="doubled"),
    Rule(r"mlp\.w1", "mlp", "up", (), _QWEN),
    Rule(r"mlp\.w2", "mlp", "gate", (), _QWEN),
    # Experts in one tensor
    Rule(r"ffn\.experts\.mlp\.w1", "expert", "gate", stack="rows"),
    Rule(r"ffn\.experts\.mlp\.v1", "expert", "up", stack="rows"),
    Rule(r"ffn\.experts\.mlp\.w2", "expert", "down", stack="rows", transposed=True),
    Rule(r"self_attention\.experts\.input_linear", "attention", "query", stack="planes"),
    Rule(r"self_attention\.experts\.output_linear", "attention", "output", stack="planes"),
    _experts(r"experts\.gate_up_proj", "", INTERLEAVE, of="gpt_oss"),
    Rule(r"w13_dn", "mlp", "", (INTERLEAVE,), _INKLING),
    Rule(r"shared_w13", "shared_expert", "", (INTERLEAVE,), _INKLING),
    Rule(r"shared_w13", "shared_expert", "", (INTERLEAVE,), _INKLING, stack="planes"),
    Rule(r"shared_w2", "shared_expert", "down", (), _INKLING),
    Rule(r"shared_w2", "shared_expert", "down", (), _INKLING, stack="planes"),
    Rule(r"experts\.w13", "expert", "", (INTERLEAVE,), _INKLING, stack="planes"),
    _experts(r"gate_up_proj|input_linear|^ffn_gate_up_exps", "", HALVES),
    _experts(r"experts\.fc1", "", HALVES, of="aria aria_text"),
    _experts(r"experts\.fc2", "down", of="aria aria_text"),
    _experts(r"down_proj|output_linear|^ffn_down_exps|experts\.w2", "down"),
    _experts(r"gate_proj|^ffn_gate_exps|experts\.w1", "gate"),
    _experts(r"up_proj|^ffn_up_exps|experts\.w3", "up"),
    # GGUF: its converters put every family's heads in the order q | k | v
    _attention(r"^attn_qkv", CAT, THIRDS),
    Rule(r"^attn_q", "attention", "", (QUERY_GATE,), when="gated"),
    _attention(r"^attn_kv_a_mqa", LATENT, LATENT_ALONE),
    _attention(r"^attn_kv_b", LATENT_B),
    # Since April 2025 llama.cpp stores these instead: for each head the matrix of its queries, and that of its values.
    Rule(r"^attn_k_b", "attention", "key_b", stack="turned heads"),
    Rule(r"^attn_v_b", "attention", "value_b", stack="heads"),
)

_INNER = r"(?:\.(?:self|attention|attn|att|longformer_self_attn|qkv_proj))?"
_SELF = r"self_attn|self_attention|\w*SelfAttention|attentions?|attn|multi_head_attention|temporal_block"
_ATTENTION = (
    rf"(?<!bottleneck\.)(?:{_SELF}|\w+_(?:self_)?att(?:n|ention)?|\w*attn_blocks|attn1|first_sub_layer){_INNER}"
)
_CROSS = (
    r"(?:\w*cross_?att(?:n|ention)(?:_\w+)?|encoder_attn(?:_\w+)?|EncDecAttention|encoder_decoder_attention"
    rf"|multihead_attn|visual_attention|attn2|src_attn|second_sub_layer){_INNER}"
)
_SELF_OR_LINEAR = r"(?:(?:self_|linear_)?att(?:n|ention))"
_GATES = "gate_proj|output_gate|g_proj|linear_gate|gate_attn"
_FFN = (
    r"(?:(?!\w*(?:router|gate|pos|time|norm|bias))\w*mlps?|feed_?forward(?:\d|_in|_out)?|ffns?\d?|ff\d?|DenseReluDense"
    r"|experts|shared?_experts?|block_sparse_moe|mlp_block|moe|mixer)"
)


def _roles(block: str, parent: str, **roles: str) -> tuple[Rule, ...]:
    return tuple(Rule(rf"{parent}(?:{names})", block, role) for role, names in roles.items())


_ATTENTION_ROLES = {
    "query": "q_proj|query|query_proj|q_lin|q|wq|Wq|linear_q|to_q|to_query|query_net|q_head|project_q|projection_query"
    "|wq_du",
    "key": "k_proj|key|key_proj|k_lin|k|wk|Wk|linear_k|to_k|to_key|key_net|k_head|project_k|projection_key|wk_dv",
    "value": "v_proj(?:_current|_delayed)?|value|value_proj|v_lin|v|wv|Wv|linear_v|to_v|to_value|value_net|v_head"
    "|project_v|projection_value|wv_dv",
    "output": r"o_proj|out_proj|linear_out|to_out(?:\.0)?|out_lin|c_proj|o|wo|Wo|dense|output\.dense|output|proj"
    r"|projection|linear|output_proj|out_projection|output_projection(?:\.o_proj)?|projection_layer|post|post_proj"
    r"|attn_out|attention_out|wo_ud",
}
_POSITIONS = r"(?:relative_position_embedding\.)?pos_proj|relative_k_proj|linear_pos"
# Names that mean the same in every family that uses them; the first match wins.
PLAIN = (
    Rule(r"mixer\.out_proj", "attention", "output", (), models("phi-msft mixformer-sequential xlm-roberta")),
    Rule(r"(?:mamba|mixer)\.out_proj|^ssm_out", "ssm", "output"),
    Rule(r"(?:mamba|mixer)\.dt_proj|^ssm_dt", "ssm", "dt_b"),
    *_roles("ssm", r"temporal_block\.", x="linear_x", y="linear_y", output="linear_out"),
    Rule(r"(?:short)?conv\.out_proj|lconv1d\.linear_end|conv\.pointwise_lin2", "conv", "output"),
    *_roles("linear_attention", r"linear_attn\.", z="in_proj_z", a="in_proj_a", b="in_proj_b", output="out_proj"),
    *_roles("linear_attention", r"linear_att(?:n|ention)\.", a="a_proj", gate=_GATES, **_ATTENTION_ROLES),
    *_roles("linear_attention", rf"{_SELF_OR_LINEAR}\.(?:forget_gate\.)?", f="f_proj", f_a="f_a_proj", f_b="f_b_proj"),
    *_roles("linear_attention", rf"{_SELF_OR_LINEAR}\.", gate_a="g_a_proj", gate_b="g_b_proj", b="b_proj"),
    *_roles("cross_attention", rf"{_CROSS}\.", **_ATTENTION_ROLES),
    *_roles("attention", rf"{_ATTENTION}\.", **_ATTENTION_ROLES),
    *_roles("attention", rf"{_ATTENTION}\.", query_global="query_global", key_global="key_global"),
    *_roles("attention", rf"{_ATTENTION}\.", value_global="value_global", pos_key=_POSITIONS),
    *_roles("attention", rf"{_ATTENTION}\.", pos_query="pos_q_proj|r_proj|wr_du"),
    *_roles("attention", rf"{_ATTENTION}\.", query_a="q_a_proj|wq_a", query_b="q_b_proj|wq_b", kv="kv_proj|wkv"),
    *_roles("attention", rf"{_ATTENTION}\.", output_b="o_b_proj|wo_b"),
    *_roles("attention", r"(?:self_attn|attn|attention)\.", gate=_GATES),
    *_roles("attention", r"(?:self_attn|attn|attention)\.", gate=r"output_projection\.gate_proj|receptance"),
    *_roles("attention", r"indexer\.", indexer_key="wk", indexer_query_b="wq_b", indexer_weights="weights_proj"),
    *_roles("attention", r"mixer\.", query="q_proj", key="k_proj", value="v_proj", output="o_proj"),
    *_roles("linear_attention", r"mlstm_layer\.", query="q", key="k", value="v", output="out_proj"),
    *_roles("linear_attention", r"mlstm_layer\.", gate="ogate_preact"),
    *_roles("attention", "^", query="q_proj", key="k_proj", value="v_proj", output="attn_out|o_proj"),
    *_roles(
        "mlp",
        rf"{_FFN}\.",
        gate="gate_proj|linear_gate|w1|wi_0|fc12|c_fc_0|ff_proj",
        up="up_proj|w3|wi_1|wi|fc11|c_fc_1",
    ),
    *_roles("mlp", rf"{_FFN}\.", down="down_proj|w2|w2_md|wo|Wo|output_linear|weights_out|proj_2|output_dense|ff_out"),
    *_roles(
        "mlp",
        rf"{_FFN}\.",
        up="fc0|fc1|fc_in|c_fc|lin1|linear1|proj_in|dense_h_to_4h|linear_fc1|layer_1|intermediate_dense|dense1|ff0",
        down="fc2|fc_out|c_proj|lin2|linear2|proj_out|dense_4h_to_h|linear_fc2|layer_2|dense2|ff1",
    ),
    *_roles("mlp", r"ffn\.", gate=r"w_in\.w_0|proj_up_gate", up=r"w_in\.w_1|proj_up", down="w_out|proj_down"),
    *_roles("mlp", r"(?:ffn|mlp)\.", up="linear_1|in_proj", down="linear_2|out_proj"),
    *_roles("mlp", r"feed_forward\.", up="intermediate|key", down="output|value"),
    *_roles("mlp", r"\w+_sub_layer\.", up="dense_in", down="dense_out"),
    *_roles("mlp", r"feed_?forward\d\.", up="ffw_layer_1", down="ffw_layer_2"),
    *_roles("mlp", r"ffw_layer_(?:start|end)\.", up="ffw_layer_1", down="ffw_layer_2"),
    *_roles("mlp", r"(?:ffn?|mlp|feed_forward)\.(?:net\.)?", up="0", down="2|3"),
    *_roles("mlp", r"moe\.", gate="linear", up="linear_v", down="linear_1"),
    *_roles("mlp", r"^(?:albert_layers\.)?", up="ffn", down="ffn_output"),
    *_roles("mlp", r"^(?:mlp\.)?", gate="ff_proj", down="ff_out"),
    *_roles("mlp", r"^(?:\w+_layer\.|intermediate\.)?", up="up_proj|fc1|linear1", down="fc2|linear2"),
    *_roles("mlp", "^", up="pwconv1|pointwise_conv1", down="pwconv2|pointwise_conv2"),
    *_roles("mlp", r"^(?:ffn\.)?", up=r"intermediate(?:_query)?\.dense", down=r"output(?:_query)?\.dense"),
    *_roles("mlp", "^", up=r"(?!layout_)\w+_inter\.dense", down=r"(?!layout_)\w+_output\.dense"),
    # GGUF
    *_roles("cross_attention", "^cross_attn_", query="q", key="k", value="v", output="o|out|output"),
    *_roles("attention", "^attn_", query="q", key="k", value="v", output="o|out|output", gate="gate"),
    *_roles("attention", "^attn_", query_a="q_a", query_b="q_b"),
    *_roles("attention", "^indexer\\.", indexer_key="attn_k", indexer_query_b="attn_q_b", indexer_weights="proj"),
    *_roles("shared_expert", "^ffn_", gate="gate_shexp", up="up_shexp", down="down_shexp"),
    *_roles("mlp", "^ffn_", gate="gate", up="up", down="down"),
)

NOT_PROJECTIONS = re.compile(
    r"(?:^|\.)(?:"
    r"(?:mlp|block_sparse_moe|feed_forward|ffn|\w*moe|mixer)\.gate(?:_weight|(?:\.\w+)*)|gate\.wg|gate\.tid2eid"
    r"|router(?:\.\w+)*|modality_router"
    r"|ffn_gate_inp(?:_shexp)?|shared_expert_gate|e_score_correction_bias|exp_probs_b|\w+_proj_bias"
    r"|\w*rel\w*_bias(?:_table)?|attn_rel_b|seg_embed|r_[rsw]_bias|bias|masked_bias|rg_lru\.\w+"
    r"|\w*rel\w*_(?:pos_[hw]|emb\w*|index)|rel_pos_[hw]|distance_embedding|\w*bias_[uv]|attention_biases"
    r"|continuous_position_bias_mlp\.\d|codebook\.\w+|[if]gate_preact"
    r"|weight_scale(?:_inv)?|\w+_scale_inv|eh_proj|shared_head\.head|embed_tokens|nextn\.\w+"
    r"|A_log|mamba\.D|^ssm_[ad]|dt_proj_bias|(?:[qkv]_)?conv_?1d|conv\.conv|^ssm_conv1d\w*|shortconv\.conv"
    r"|altup\.\w+|^altup_\w+|laurel\.\w+|^laurel_[lr]|per_layer_\w+|^inp_gate|^proj|^linear"
    r"|\w*norm\d*\.(?:mlp\.\w+|W_(?:down|up))|\w*hyper_connection\.\w+|index_kpool_\w+|\w*rel_pos_[hw]"
    r"|\w+_sconv(?:\.\w+)*|\w*sink_proj|rel_logits_proj\.proj|\w+_l2_clip\.scale|attention_input\.query"
    r"|(?:\w+\.)*hc_fn|hc_\w+_fn|\w+_hc\.fn|compressor\.\w+|downsample\.reduction|\w+_adapter_list\.\d+\.[01]"
    r")$"
)
"""Matrices inside layers that are known to be no projections: routers, gates of one row, tables, scales, mixtures of
residual streams, low-rank adapters, and additions of multi-token-prediction layers."""

KNOWN_FAMILIES = models(
    "RefinedWeb RefinedWebModel afmoe albert apertus arcee arctic aria_text axk1 axk2 baichuan bailing_hybrid "
    "bailing_moe bamba bart bert biogpt bitnet blenderbot blip-2 bloom blt bridgetower camembert chatglm clip "
    "clvp codegen codeshell cohere cohere2 cohere2_moe convnext cpmant ctrl cvt cwm dbrx deberta deberta-v2 "
    "deepseek_ocr2 deepseek_v2 deepseek_v3 deepseek_v32 deepseek_v4 deit diffllama dinov2 distilbert dory dots1 "
    "dots3_note electra ernie4_5 ernie4_5_moe ernie4_5_vl ernie4_5_vl_moe esm eurobert exaone exaone4 exaone_moe "
    "falcon falcon_h1 falcon_mamba flex_olmo flint fuyu gemma gemma2 gemma3 gemma3_text gemma3n_text gemma4 "
    "gemma4_audio gemma4_text gemma4_vision glm glm4 glm4_moe glm4_moe_lite glm5_next glm_moe_dsa gpt-sw3 gpt2 "
    "gpt_bigcode gpt_neo gpt_neox gpt_neox_japanese gpt_oss gptj granite granite_speech granitemoe "
    "granitemoe_swa granitemoehybrid granitemoeshared grok-1 gte helium hf_olmo hrm_text hubert hunyuan_v1_dense "
    "hunyuan_v1_moe hy_v3 hy_v4 idefics idefics3 imagegpt inkling2 inkling_mm_model internlm2 internlm3 internvl "
    "iquestcoder jais jamba jetmoe kimi_k25 kimi_linear kolibri1 laguna lara_mini led lfm2 lfm2_moe lfm3 llada "
    "llama llama4 llama4_text llava longcat_flash longt5 lxmert m2m_100 mamba mamba2 marian mbart mellum minimax "
    "minimax_m2 ministral3 mistral mistral_large4 mixtral mllama mobilevit modernbert molmo molmo2 moonshine "
    "moshi mpnet mpt mt5 nemotron nemotron_h new nllb-moe nomic_bert olmo olmo2 olmo3 olmo_hybrid olmoe "
    "openai-gpt openelm opt paligemma parakeet_encoder pegasus perceiver persimmon phi phi-msft phi3 phi3small "
    "phi4_multimodal phimoe prophetnet qwen qwen2 qwen2_5_vl qwen2_moe qwen2_vl qwen3 qwen3_5_moe "
    "qwen3_5_moe_text qwen3_5_text qwen3_moe qwen3_next qwen3_vl qwen3_vl_moe_text qwen4_exp recurrent_gemma "
    "roberta sam sarvam_moe seed_oss siglip smollm3 solar_open stablelm starcoder2 step3p7 swin swinv2 "
    "switch_transformers t5 t5gemma telechat umt5 unlimited_ocr vaultgemma videomae videoprism vit wav2vec2 "
    "wav2vec2-bert wav2vec2-conformer whisper xglm xlm xlnet xlstm zamba zamba2 zaya"
)
"""Families in which the rules name every projection (GGUF files have other names): a scan leaves out whatever
else their layers hold. In other families a matrix without a rule may be a projection, so a scan computes it under
its tensor's name."""
