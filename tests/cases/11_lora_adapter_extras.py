"""A PEFT adapter folder as people save it: rank_pattern, DoRA magnitudes, a whole lm_head and embedding (modules_to_save), embedding LoRA, a conv LoRA."""

import json, sys, pathlib, numpy as np
from safetensors.numpy import save_file

out = pathlib.Path(sys.argv[1])
m = out / "adapter"
m.mkdir(parents=True, exist_ok=True)
r = np.random.default_rng(11)
t = {}
exp = {}
sv = lambda a: np.linalg.svd(a.astype("f8"), compute_uv=False)
for l in range(2):
    for mod, role, rank in (
        ("self_attn.q_proj", "query", 8),
        ("self_attn.v_proj", "value", 4 + 4 * l),
        ("mlp.down_proj", "down", 16),
    ):
        p = f"base_model.model.model.layers.{l}.{mod}"
        t[p + ".lora_A.weight"] = r.standard_normal((rank, 32)).astype("f4")
        t[p + ".lora_B.weight"] = r.standard_normal((48, rank)).astype("f4")
        t[p + ".lora_magnitude_vector"] = np.ones(48, "f4")
        for s in "AB":
            exp[f"layers.{l}.lora.{role}_{s}"] = sv(t[f"{p}.lora_{s}.weight"])
t["base_model.model.lm_head.weight"] = r.standard_normal((100, 32)).astype("f4")
t["base_model.model.model.embed_tokens.weight"] = r.standard_normal((100, 32)).astype("f4")
t["base_model.model.model.embed_tokens.lora_embedding_A"] = r.standard_normal((8, 100)).astype("f4")
t["base_model.model.model.embed_tokens.lora_embedding_B"] = r.standard_normal((32, 8)).astype("f4")
save_file(t, m / "adapter_model.safetensors", metadata={"format": "pt"})
(m / "adapter_config.json").write_text(
    json.dumps(
        {
            "peft_type": "LORA",
            "r": 8,
            "lora_alpha": 16,
            "use_dora": True,
            "base_model_name_or_path": "some-org/base",
            "rank_pattern": {"model.layers.1.self_attn.v_proj": 8, "mlp.down_proj": 16},
        }
    )
)
np.savez(out / "expected.npz", **exp)
