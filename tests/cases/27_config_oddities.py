"""config.json as it comes: with BOM (Windows editor), UTF-16, NaN/Infinity, comments or trailing comma, no model_type, model_type null / list, quantization_config null or without quant_method, hidden_size as text, text_config null, empty file, a list, CRLF, duplicated keys, named only params.json / configuration.json; a fused Phi-3 qkv needs it to be read."""

import json, sys, pathlib, numpy as np
from safetensors.numpy import save_file

out = pathlib.Path(sys.argv[1])
r = np.random.default_rng(27)
a = r.standard_normal((64 + 2 * 32, 64)).astype("f4")
o = r.standard_normal((64, 64)).astype("f4")
base = {"model_type": "phi3", "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
texts = {
    "plain": json.dumps(base),
    "bom": b"\xef\xbb\xbf" + json.dumps(base).encode(),
    "utf16": json.dumps(base).encode("utf-16"),
    "nan": json.dumps(base | {"rope": float("nan"), "eps": float("inf")}),
    "comment": "{ // mine\n" + json.dumps(base)[1:],
    "comma": json.dumps(base)[:-1] + ",}",
    "notype": json.dumps({k: v for k, v in base.items() if k != "model_type"}),
    "typenull": json.dumps(base | {"model_type": None}),
    "typelist": json.dumps(base | {"model_type": ["phi3"]}),
    "quantnull": json.dumps(base | {"quantization_config": None}),
    "quantempty": json.dumps(base | {"quantization_config": {}}),
    "sizetext": json.dumps(base | {"hidden_size": "64"}),
    "headsfloat": json.dumps(base | {"num_attention_heads": 4.0}),
    "textnull": json.dumps(base | {"text_config": None}),
    "empty": "",
    "list": "[1]",
    "crlf": json.dumps(base, indent=1).replace("\n", "\r\n"),
    "kvnull": json.dumps(base | {"num_key_value_heads": None}),
    "kvlist": json.dumps(base | {"num_key_value_heads": [2, 2]}),
    "nothing": None,
    "latin1": json.dumps(base | {"x": "?"}).encode().replace(b"?", b"\xe9"),
}
for n, t in texts.items():
    d = out / n
    d.mkdir(parents=True, exist_ok=True)
    save_file(
        {f"model.layers.{l}.self_attn.{k}.weight": v for l in range(2) for k, v in (("qkv_proj", a), ("o_proj", o))},
        d / "model.safetensors",
    )
    if t is not None:
        (d / "config.json").write_bytes(t if isinstance(t, bytes) else t.encode())
sv = lambda x: np.linalg.svd(x.astype("f8"), compute_uv=False)
np.savez(
    out / "expected.npz",
    **{
        f"layers.{l}.attention.{n}": sv(x)
        for l in range(2)
        for n, x in (("query", a[:64]), ("key", a[64:96]), ("value", a[96:]), ("output", o))
    },
)
