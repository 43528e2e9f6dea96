"""Two models to compare: the second has two more tokens in embedding and head, tied in one and untied in the other, one more layer, another head count, and torch/bf16 instead of f32."""

import json, sys, pathlib, numpy as np
from safetensors.numpy import save_file

out = pathlib.Path(sys.argv[1])
r = np.random.default_rng(34)
for name, v, L, dt in (("base", 100, 2, "f4"), ("tuned", 102, 3, "f2")):
    d = out / name
    d.mkdir(parents=True, exist_ok=True)
    t = {
        f"model.layers.{l}.self_attn.{x}_proj.weight": r.standard_normal((32, 32)).astype(dt)
        for l in range(L)
        for x in "qk"
    } | {"model.embed_tokens.weight": r.standard_normal((v, 32)).astype(dt)}
    if name == "tuned":
        t["lm_head.weight"] = r.standard_normal((v, 32)).astype(dt)
        t["model.layers.0.mlp.up_proj.weight"] = r.standard_normal((64, 32)).astype(dt)
        t["model.layers.1.self_attn.k_proj.weight"] = r.standard_normal((16, 32)).astype(dt)
    save_file(t, d / "model.safetensors")
    (d / "config.json").write_text(
        json.dumps(
            {"model_type": "llama", "hidden_size": 32, "num_attention_heads": 4, "tie_word_embeddings": name == "base"}
        )
    )
