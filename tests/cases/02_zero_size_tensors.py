"""Several tensors of no bytes (shapes [0], [2, 0], [0, 64]) beside ordinary ones, all sharing one offset; written by safetensors itself."""

import sys, pathlib, numpy as np
from safetensors.numpy import save_file

out = pathlib.Path(sys.argv[1])
m = out / "model"
m.mkdir(parents=True, exist_ok=True)
r = np.random.default_rng(2)
q = r.standard_normal((64, 64)).astype("f4")
k = r.standard_normal((16, 64)).astype("f4")
save_file(
    {
        "model.layers.0.self_attn.q_proj.weight": q,
        "model.layers.0.self_attn.k_proj.weight": k,
        "model.layers.0.self_attn.v_proj.weight": np.zeros((0, 64), "f4"),
        "model.layers.0.self_attn.o_proj.weight": np.zeros((64, 0), "f4"),
        "device_probe": np.zeros((0,), "f4"),
        "model.layers.0.mlp.empty": np.zeros((2, 0), "f4"),
    },
    m / "model.safetensors",
)
(m / "config.json").write_text('{"model_type":"llama","hidden_size":64,"num_attention_heads":4}')
sv = lambda a: np.linalg.svd(a.astype("f8"), compute_uv=False)
np.savez(out / "expected.npz", **{"layers.0.attention.query": sv(q), "layers.0.attention.key": sv(k)})
