"""Two names with the very same data_offsets (tied weights written by a hand-made encoder). The reference reader refuses this by design."""

import json, struct, sys, pathlib, numpy as np

out = pathlib.Path(sys.argv[1])
out.mkdir(parents=True, exist_ok=True)
w = np.random.default_rng(4).standard_normal((40, 16)).astype("f4").tobytes()
e = {"dtype": "F32", "shape": [40, 16], "data_offsets": [0, len(w)]}
head = json.dumps({"model.embed_tokens.weight": e, "lm_head.weight": e}).encode()
head += b" " * (-len(head) % 8)
(out / "model.safetensors").write_bytes(struct.pack("<Q", len(head)) + head + w)
