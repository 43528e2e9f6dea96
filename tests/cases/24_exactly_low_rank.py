"""Dense matrices that are exactly (or to rounding) of low rank, as LASER / SVD-LLM rebuild and merged LoRA deltas are saved: rank 1, 8, 40 of 128, in float32, bfloat16 and float16."""

import json, struct, sys, pathlib, numpy as np

out = pathlib.Path(sys.argv[1])
m = out / "model"
m.mkdir(parents=True, exist_ok=True)
r = np.random.default_rng(24)
g = lambda *s: r.standard_normal(s)


def bf(a):
    u = a.astype("<f4").view("<u4")
    return ((u + 0x7FFF + ((u >> 16) & 1)) >> 16).astype("<u2")


data = b""
head = {}
exp = {}
i = 0
for k in (1, 8, 40, 70):
    for dt in ("F64", "F32", "F16", "BF16"):
        a = (g(128, k) @ g(k, 96)) / np.sqrt(k) * 0.02
        b = bf(a) if dt == "BF16" else a.astype({"F64": "f8", "F32": "f4", "F16": "f2"}[dt])
        w = (b.astype("<u4") << 16).view("<f4") if dt == "BF16" else b
        head[f"model.layers.{i}.self_attn.q_proj.weight"] = {
            "dtype": dt,
            "shape": [128, 96],
            "data_offsets": [len(data), len(data) + b.nbytes],
        }
        data += b.tobytes()
        exp[f"layers.{i}.attention.query"] = np.linalg.svd(w.astype("f8"), compute_uv=False)
        print(i, "rank", k, dt)
        i += 1
h = json.dumps(head).encode()
h += b" " * (-len(h) % 8)
(m / "model.safetensors").write_bytes(struct.pack("<Q", len(h)) + h + data)
(m / "config.json").write_text('{"model_type":"llama"}')
np.savez(out / "expected.npz", **exp)
