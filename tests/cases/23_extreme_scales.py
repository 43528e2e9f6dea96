"""Matrices at the ends of their number range: 1e-40 (float32 subnormal), 1e-25, 1e30, float64 1e200 and 1e-200, one huge outlier among small weights, 1x1, 1xn, nx1, 2x5000, duplicate rows, graded values over 300 decades."""

import sys, pathlib, numpy as np
from safetensors.numpy import save_file

out = pathlib.Path(sys.argv[1])
m = out / "model"
m.mkdir(parents=True, exist_ok=True)
r = np.random.default_rng(23)
g = lambda *s: r.standard_normal(s)
o = g(64, 48)
o *= 1e-4
o[5, 7] = 1e6
u = np.linalg.qr(g(48, 48))[0]
v = np.linalg.qr(g(48, 48))[0]
mats = {
    "sub": (g(64, 48) * 1e-40).astype("f4"),
    "tiny": (g(64, 48) * 1e-25).astype("f4"),
    "huge": (g(64, 48) * 1e30).astype("f4"),
    "f64_huge": g(64, 48) * 1e200,
    "f64_tiny": g(64, 48) * 1e-200,
    "outlier": o.astype("f4"),
    "one": np.array([[3.5]], "f4"),
    "row": g(1, 500).astype("f4"),
    "col": g(500, 1).astype("f4"),
    "wide": g(2, 5000).astype("f4"),
    "dup": np.repeat(g(1, 48), 64, 0).astype("f4"),
    "graded": (u * np.logspace(0, -14, 48)) @ v,
    "f64_max": np.full((4, 4), 1e308),
    "mixed64": np.diag([1e300, 1.0, 1e-300]),
}
save_file(
    {f"model.layers.{i}.self_attn.q_proj.weight": a for i, a in enumerate(mats.values())}, m / "model.safetensors"
)
(m / "config.json").write_text('{"model_type":"llama"}')
exp = {}
for i, (n, a) in enumerate(mats.items()):
    s = np.abs(a.astype("f8")).max()
    exp[f"layers.{i}.attention.query"] = np.linalg.svd(a.astype("f8") / s, compute_uv=False) * s
np.savez(out / "expected.npz", **exp)
print(dict(enumerate(mats)))
