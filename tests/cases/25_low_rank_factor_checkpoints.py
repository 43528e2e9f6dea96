"""Checkpoints of low-rank compression, factors in the place of the matrix: SVD-LLM (q_u_proj, q_v_proj), ASVD (q_proj.ALinear/.BLinear), Palu (k_proj.VT, k_proj.U.0...), nested linear (q_proj.0/.1), transformers' MLA conversions with kv_a_proj_with_mqa; one folder each."""

import json, sys, pathlib, numpy as np
from safetensors.numpy import save_file

out = pathlib.Path(sys.argv[1])
r = np.random.default_rng(25)
f = lambda *s: r.standard_normal(s).astype("f4")
exp = {}


def put(name, t, mt="llama"):
    d = out / name
    d.mkdir(parents=True, exist_ok=True)
    save_file(t, d / "model.safetensors")
    (d / "config.json").write_text(
        json.dumps({"model_type": mt, "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 4})
    )
    exp.update({f"{k}": np.linalg.svd(v.astype("f8"), compute_uv=False) for k, v in t.items() if v.ndim == 2})


L = lambda l: f"model.layers.{l}.self_attn."
put(
    "svdllm",
    {
        L(l) + f"{x}_{y}_proj.weight": f(64, 20) if y == "u" else f(20, 64)
        for l in range(2)
        for x in "qkvo"
        for y in "uv"
    },
)
put(
    "asvd",
    {
        L(l) + f"{x}_proj.{y}Linear.weight": f(64, 20) if y == "A" else f(20, 64)
        for l in range(2)
        for x in "qkvo"
        for y in "AB"
    },
)
put(
    "palu",
    {
        L(l) + f"{x}_proj.{y}.weight": f(20, 64) if y == "VT" else f(16, 5)
        for l in range(2)
        for x in "kv"
        for y in ("VT", "U.0", "U.1", "U.2", "U.3")
    },
)
put(
    "seq",
    {L(l) + f"{x}_proj.{y}.weight": f(20, 64) if y == 0 else f(64, 20) for l in range(2) for x in "qv" for y in (0, 1)},
)
np.savez(out / "expected.npz", **exp)
