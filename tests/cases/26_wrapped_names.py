"""State dicts saved through wrappers: torch.compile (_orig_mod.), DDP (module.), FSDP (_fsdp_wrapped_module., _flat_param), Lightning (model.model.), PEFT with base_layer, activation checkpointing (_checkpoint_wrapped_module.), pruning (weight_orig + weight_mask), weight_norm (weight_g, weight_v; parametrizations.weight.original0/1), spectral norm, TransformerEngine fused LN (layernorm_qkv.query_weight)."""

import json, sys, pathlib, numpy as np
from safetensors.numpy import save_file

out = pathlib.Path(sys.argv[1])
r = np.random.default_rng(26)
q = {l: r.standard_normal((32, 32)).astype("f4") for l in range(2)}
pat = {
    "compile": "_orig_mod.model.layers.{}.self_attn.q_proj.weight",
    "ddp": "module.model.layers.{}.self_attn.q_proj.weight",
    "fsdp": "_fsdp_wrapped_module.model.layers.{}._fsdp_wrapped_module.self_attn.q_proj.weight",
    "lightning": "model.model.layers.{}.self_attn.q_proj.weight",
    "peft_base": "base_model.model.model.layers.{}.self_attn.q_proj.base_layer.weight",
    "ckpt": "model.layers.{}._checkpoint_wrapped_module.self_attn.q_proj.weight",
    "nnmod": "_forward_module.model.layers.{}.self_attn.q_proj.weight",
    "pruned": "model.layers.{}.self_attn.q_proj.weight_orig",
    "wn": "model.layers.{}.self_attn.q_proj.weight_v",
    "wn2": "model.layers.{}.self_attn.q_proj.parametrizations.weight.original1",
    "te": "model.layers.{}.self_attention.layernorm_qkv.query_weight",
    "ds": "module.module.model.layers.{}.self_attn.q_proj.weight",
    "ema": "ema_model.model.layers.{}.self_attn.q_proj.weight",
    "actor": "actor_module.model.layers.{}.self_attn.q_proj.weight",
}
for n, p in pat.items():
    d = out / n
    d.mkdir(parents=True, exist_ok=True)
    t = {p.format(l): a for l, a in q.items()}
    for l in q:
        t |= (
            {p.format(l).replace("weight_orig", "weight_mask"): np.ones((32, 32), "f4")}
            if n == "pruned"
            else {p.format(l).replace("weight_v", "weight_g"): np.ones((32, 1), "f4")}
            if n == "wn"
            else {p.format(l).replace("original1", "original0"): np.ones((32, 1), "f4")}
            if n == "wn2"
            else {}
        )
    if n == "pruned":
        t |= {p.format(l): a for l, a in q.items()}
    save_file(t, d / "model.safetensors")
    (d / "config.json").write_text('{"model_type":"llama","hidden_size":32,"num_attention_heads":4}')
np.savez(
    out / "expected.npz",
    **{f"layers.{l}.attention.query": np.linalg.svd(a.astype("f8"), compute_uv=False) for l, a in q.items()},
)
