"""Meta's own download: consolidated.00.pth and .01.pth (two halves of a tensor-parallel model: columns or rows of each matrix in each), params.json, no config.json; also the one-file 8B; and original/ inside an HF folder."""

import json, sys, pathlib, numpy as np, torch

out = pathlib.Path(sys.argv[1])
r = np.random.default_rng(19)
f = lambda *s: r.standard_normal(s).astype("f4")
exp = {}
w = {}
for l in range(2):
    for n, s in (
        ("attention.wq", (64, 64)),
        ("attention.wk", (16, 64)),
        ("attention.wv", (16, 64)),
        ("attention.wo", (64, 64)),
        ("feed_forward.w1", (96, 64)),
        ("feed_forward.w2", (64, 96)),
        ("feed_forward.w3", (96, 64)),
    ):
        w[f"layers.{l}.{n}.weight"] = f(*s)
w["tok_embeddings.weight"], w["norm.weight"], w["output.weight"] = f(100, 64), f(64), f(100, 64)
names = {
    "attention.wq": "attention.query",
    "attention.wk": "attention.key",
    "attention.wv": "attention.value",
    "attention.wo": "attention.output",
    "feed_forward.w1": "mlp.gate",
    "feed_forward.w2": "mlp.down",
    "feed_forward.w3": "mlp.up",
}
for k, v in w.items():
    if k.startswith("layers."):
        _, l, a, b, _ = k.split(".")
        exp[f"layers.{l}.{names[a + '.' + b]}"] = np.linalg.svd(v.astype("f8"), compute_uv=False)
params = json.dumps({"dim": 64, "n_layers": 2, "n_heads": 4, "n_kv_heads": 1, "vocab_size": 100})
for name, parts in (("one", 1), ("two", 2)):
    d = out / name
    d.mkdir(parents=True, exist_ok=True)
    (d / "params.json").write_text(params)
    (d / "tokenizer.model").write_bytes(b"x")
    for p in range(parts):

        def cut(k, v):
            if v.ndim < 2 or parts == 1:
                return v
            ax = 1 if any(s in k for s in ("wo.", "w2.", "tok_emb")) else 0
            return np.split(v, parts, ax)[p]

        torch.save({k: torch.from_numpy(cut(k, v).copy()) for k, v in w.items()}, d / f"consolidated.{p:02d}.pth")
d = out / "hf"
(d / "original").mkdir(parents=True, exist_ok=True)
(d / "config.json").write_text(
    '{"model_type":"llama","hidden_size":64,"num_attention_heads":4,"num_key_value_heads":1}'
)
torch.save({k: torch.from_numpy(v) for k, v in w.items()}, d / "original/consolidated.00.pth")
(d / "original/params.json").write_text(params)
np.savez(out / "expected.npz", **exp)
