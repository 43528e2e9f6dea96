"""An MLX adapter: adapters.safetensors with lower-case lora_a (in, r) and lora_b (r, out), and DoRA's m."""

import json, sys, pathlib, numpy as np
from safetensors.numpy import save_file

out = pathlib.Path(sys.argv[1])
m = out / "adapter"
m.mkdir(parents=True, exist_ok=True)
r = np.random.default_rng(12)
t = {}
exp = {}
for l in range(2):
    for mod, role in (("self_attn.q_proj", "query"), ("self_attn.v_proj", "value"), ("mlp.down_proj", "down")):
        p = f"model.layers.{l}.{mod}"
        t[p + ".lora_a"] = r.standard_normal((32, 8)).astype("f4")
        t[p + ".lora_b"] = r.standard_normal((8, 48)).astype("f4")
        t[p + ".m"] = np.ones(48, "f4")
        for s in "ab":
            exp[f"{p}.lora_{s}"] = np.linalg.svd(t[f"{p}.lora_{s}"].astype("f8"), compute_uv=False)
save_file(t, m / "adapters.safetensors")
(m / "adapter_config.json").write_text(
    json.dumps(
        {"fine_tune_type": "lora", "lora_parameters": {"rank": 8}, "model": "some-org/base", "model_type": "llama"}
    )
)
np.savez(out / "expected.npz", **exp)
