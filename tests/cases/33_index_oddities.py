"""index.json that disagrees with its shards: a tensor that is in two shards (index names one), maps to the wrong shard, './' before names, extra tensors not in the index, total_size as text, one stray shard beside; model.safetensors and numbered shards in one folder without an index; an index over one file; index of .bin naming .safetensors."""

import json, sys, pathlib, numpy as np
from safetensors.numpy import save_file

out = pathlib.Path(sys.argv[1])
r = np.random.default_rng(33)
q = {l: r.standard_normal((32, 32)).astype("f4") for l in range(4)}
n = "model.layers.{}.self_attn.q_proj.weight".format
S = "model-0000{}-of-00002.safetensors".format


def d(name, wm=None, meta=None, index="model.safetensors.index.json"):
    x = out / name
    x.mkdir(parents=True, exist_ok=True)
    (x / "config.json").write_text('{"model_type":"llama","hidden_size":32,"num_attention_heads":4}')
    if wm:
        (x / index).write_text(json.dumps({"metadata": meta or {}, "weight_map": wm}))
    return x


def shards(x, sub="", extra={}):
    (x / sub).mkdir(exist_ok=True)
    [
        save_file({n(l): q[l] for l in (2 * s - 2, 2 * s - 1)} | (extra if s == 2 else {}), x / sub / S(s))
        for s in (1, 2)
    ]


wm = {n(l): S(l // 2 + 1) for l in q}
shards(d("good", wm))
shards(d("dup", wm), extra={n(0): q[0] * 3})
shards(d("wrong", {n(l): S(2 - l // 2) for l in q}))
shards(d("dot", {k: "./" + v for k, v in wm.items()}))
shards(d("extra", wm), extra={"model.layers.9.self_attn.q_proj.weight": q[1]})
shards(d("sizetext", wm, {"total_size": "16384"}))
x = d("stray", wm)
shards(x)
save_file({n(l): q[l] * 7 for l in q}, x / "model-old.safetensors")
save_file({n(0): q[0] * 9}, x / "model.safetensors")
x = d("both_noindex")
shards(x)
save_file({n(l): q[l] for l in q}, x / "model.safetensors")
x = d("stub_noindex")
shards(x)
save_file({"lm_head.weight": q[0]}, x / "model.safetensors")
x = d("one_of_two_noindex")
shards(x)
(x / S(2)).unlink()
x = d("binindex", {k: v for k, v in wm.items()}, index="pytorch_model.bin.index.json")
shards(x)
x = d("partnames")
[
    save_file(
        {n(2 * s - 2): q[2 * s - 2], n(2 * s - 1): q[2 * s - 1]}, x / f"model.safetensors-0000{s}-of-00002.safetensors"
    )
    for s in (1, 2)
]
np.savez(
    out / "expected.npz",
    **{f"layers.{l}.attention.query": np.linalg.svd(a.astype("f8"), compute_uv=False) for l, a in q.items()},
)
