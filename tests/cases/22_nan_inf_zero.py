"""Merges and broken trainings: NaN in one matrix, inf in another, an all-zero one (LoRA B before training), one zero row block, one constant matrix; bf16 and f16 too."""

import struct, json, sys, pathlib, numpy as np

out = pathlib.Path(sys.argv[1])
m = out / "model"
m.mkdir(parents=True, exist_ok=True)
r = np.random.default_rng(22)
f = lambda *s: r.standard_normal(s).astype("f4")
t = {}
exp = {}


def add(l, n, a, dt="F32"):
    t[f"model.layers.{l}.self_attn.{n}_proj.weight"] = (dt, a)


a = f(48, 32)
a[3, 5] = np.nan
add(0, "q", a)
b = f(48, 32)
b[0, 0] = np.inf
add(0, "k", b)
add(0, "v", np.zeros((48, 32), "f4"))
add(0, "o", f(32, 48))
c = f(48, 32)
c[10:] = 0
add(1, "q", c)
add(1, "k", np.ones((48, 32), "f4"))
add(1, "v", f(48, 32).astype("f2"), "F16")
e = f(48, 32).astype("f2")
e[1, 1] = np.float16(65504)
e[2, 2] = np.inf
add(1, "o", e, "F16")
bf = (f(48, 32).view("<u4") >> 16).astype("<u2")
bf[0, 0] = 0x7FC0
add(2, "q", bf, "BF16")
add(2, "k", np.zeros((48, 32), "<u2"), "BF16")
neg = np.full((48, 32), -0.0, "f4")
add(2, "v", neg)
add(2, "o", f(32, 48))
data = b""
head = {}
for n, (dt, a) in t.items():
    head[n] = {"dtype": dt, "shape": list(a.shape), "data_offsets": [len(data), len(data) + a.nbytes]}
    data += a.tobytes()
h = json.dumps(head).encode()
h += b" " * (-len(h) % 8)
(m / "model.safetensors").write_bytes(struct.pack("<Q", len(h)) + h + data)
(m / "config.json").write_text('{"model_type":"llama","hidden_size":32,"num_attention_heads":4}')
roles = dict(q="query", k="key", v="value", o="output")
for n, (dt, a) in t.items():
    if dt != "BF16" and np.isfinite(a.astype("f8")).all():
        w = n.split(".")
        exp[f"layers.{w[2]}.attention.{roles[w[4][0]]}"] = np.linalg.svd(a.astype("f8"), compute_uv=False)
np.savez(out / "expected.npz", **exp)
