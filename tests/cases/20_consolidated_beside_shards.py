"""Mistral's uploads: model-0000x-of-2 with index, and consolidated.safetensors with Mistral's names, in one folder; the same without an index; and consolidated-0000x shards with consolidated.safetensors.index.json only."""

import json, sys, pathlib, numpy as np
from safetensors.numpy import save_file

out = pathlib.Path(sys.argv[1])
r = np.random.default_rng(20)
f = lambda *s: r.standard_normal(s).astype("f4")
exp = {}
w = {(l, n): f(32, 32) for l in range(4) for n in ("q", "k", "v", "o")}
role = dict(q="query", k="key", v="value", o="output")
for (l, n), v in w.items():
    exp[f"layers.{l}.attention.{role[n]}"] = np.linalg.svd(v.astype("f8"), compute_uv=False)
cfg = '{"model_type":"mistral","hidden_size":32,"num_attention_heads":4}'
for name in ("index", "noindex", "native"):
    d = out / name
    d.mkdir(parents=True, exist_ok=True)
    wm = {}
    if name != "native":
        (d / "config.json").write_text(cfg)
        save_file({f"layers.{l}.attention.w{n}.weight": v for (l, n), v in w.items()}, d / "consolidated.safetensors")
        for s in (1, 2):
            t = {f"model.layers.{l}.self_attn.{n}_proj.weight": v for (l, n), v in w.items() if l // 2 == s - 1}
            fn = f"model-0000{s}-of-00002.safetensors"
            save_file(t, d / fn)
            wm |= dict.fromkeys(t, fn)
        if name == "index":
            (d / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": wm}))
    else:
        (d / "params.json").write_text('{"dim":32,"n_layers":4,"n_heads":4,"n_kv_heads":4}')
        for s in (1, 2):
            t = {f"layers.{l}.attention.w{n}.weight": v for (l, n), v in w.items() if l // 2 == s - 1}
            fn = f"consolidated-0000{s}-of-00002.safetensors"
            save_file(t, d / fn)
            wm |= dict.fromkeys(t, fn)
        (d / "consolidated.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": wm}))
np.savez(out / "expected.npz", **exp)
