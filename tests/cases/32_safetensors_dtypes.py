"""Every dtype that safetensors 0.8 can name, one 32 x 64 'weight' of each in its own layer (F8 FNUZ of AMD, F6, F4, C64, BOOL, U8 ...), and an unknown one (I4, BF8, lower-case f32) in files of their own; metadata that is not text; a header with leading blank / trailing newline padding."""

import json, struct, sys, pathlib, numpy as np

out = pathlib.Path(sys.argv[1])
m = out / "all"
m.mkdir(parents=True, exist_ok=True)
r = np.random.default_rng(32)
bits = {
    "BOOL": 8,
    "U8": 8,
    "I8": 8,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "F8_E5M2": 8,
    "F8_E4M3": 8,
    "F8_E8M0": 8,
    "F8_E5M2FNUZ": 8,
    "F8_E4M3FNUZ": 8,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "C64": 64,
    "F64": 64,
    "I64": 64,
    "U64": 64,
}


def write(p, head, data, pre=b"", post=b" "):
    h = pre + (head if isinstance(head, bytes) else json.dumps(head).encode())
    h += post * (-len(h) % 8)
    p.write_bytes(struct.pack("<Q", len(h)) + h + data)


head = {}
data = b""
for i, (d, b) in enumerate(bits.items()):
    n = 32 * 64 * b // 8
    raw = (
        r.integers(0, 48, n).astype("u1").tobytes()
        if b == 8
        else r.standard_normal(n // 2).astype("f2").tobytes()
        if d == "F16"
        else r.standard_normal(n // 8).astype("f8").tobytes()
        if d == "F64"
        else r.standard_normal(n // 4).astype("f4").tobytes()
        if b >= 32
        else r.integers(0, 60, n).astype("u1").tobytes()
    )
    head[f"model.layers.{i}.self_attn.q_proj.weight"] = {
        "dtype": d,
        "shape": [32, 64],
        "data_offsets": [len(data), len(data) + n],
    }
    data += raw
write(m / "model.safetensors", head, data)
(m / "config.json").write_text('{"model_type":"llama"}')
one = lambda d, n=4: {
    "model.layers.0.self_attn.q_proj.weight": {"dtype": d, "shape": [32, 64], "data_offsets": [0, 32 * 64 * n]}
}
w = r.standard_normal((32, 64)).astype("f4").tobytes()
for d in ("I4", "BF8", "f32", "float32", "F32 ", 7):
    write(out / f"dtype_{str(d).strip()}.safetensors", one(d), w)
write(out / "meta_number.safetensors", {"__metadata__": {"step": 5, "nested": {"a": 1}}, **one("F32")}, w)
write(out / "meta_null.safetensors", {"__metadata__": None, **one("F32")}, w)
write(out / "lead_space.safetensors", one("F32"), w, pre=b" ")
write(out / "newline_pad.safetensors", one("F32"), w, post=b"\n")
write(
    out / "extra_key.safetensors",
    {
        "model.layers.0.self_attn.q_proj.weight": one("F32")["model.layers.0.self_attn.q_proj.weight"]
        | {"requires_grad": False}
    },
    w,
)
write(
    out / "unaligned.safetensors",
    {
        "pad": {"dtype": "U8", "shape": [3], "data_offsets": [0, 3]},
        "model.layers.0.self_attn.q_proj.weight": {"dtype": "F32", "shape": [32, 64], "data_offsets": [3, 3 + len(w)]},
    },
    b"abc" + w,
)
e = one("F32")
e["model.layers.0.self_attn.q_proj.weight"]["data_offsets"] = [0.0, float(len(w))]
write(out / "float_offsets.safetensors", e, w)
write(
    out / "reversed.safetensors",
    {"b": {"dtype": "F32", "shape": [2, 4], "data_offsets": [len(w), len(w) + 32]}, **one("F32")},
    w + bytes(32),
)
np.savez(
    out / "expected.npz",
    **{
        "layers.0.attention.query": np.linalg.svd(np.frombuffer(w, "f4").reshape(32, 64).astype("f8"), compute_uv=False)
    },
)
