"""A good safetensors file with bytes behind its last tensor (a download tool or a merge tool padded it)."""

import json, struct, sys, pathlib, numpy as np

out = pathlib.Path(sys.argv[1])
out.mkdir(parents=True, exist_ok=True)
w = np.random.default_rng(5).standard_normal((40, 16)).astype("f4")
head = json.dumps(
    {"model.layers.0.self_attn.q_proj.weight": {"dtype": "F32", "shape": [40, 16], "data_offsets": [0, w.nbytes]}}
).encode()
head += b" " * (-len(head) % 8)
for name, tail in (("zeros", bytes(4096)), ("one_byte", b"\n"), ("html", b"<!-- 200 OK -->")):
    (out / f"{name}.safetensors").write_bytes(struct.pack("<Q", len(head)) + head + w.tobytes() + tail)
