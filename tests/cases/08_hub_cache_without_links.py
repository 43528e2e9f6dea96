"""A Hub cache on a disk without symlinks (Windows, some NFS/SMB): the files lie in snapshots/, blobs/ is empty or holds copies. Run with HF_HUB_CACHE=<dir>/hub, model some-org/tiny."""

import sys, pathlib, numpy as np
from safetensors.numpy import save

out = pathlib.Path(sys.argv[1])
root = out / "hub" / "models--some-org--tiny"
c = "0123456789abcdef0123456789abcdef01234567"
for d in ("refs", "blobs", f"snapshots/{c}"):
    (root / d).mkdir(parents=True, exist_ok=True)
(root / "refs/main").write_text(c)
(root / "refs/refs/pr").mkdir(parents=True, exist_ok=True)
(root / "refs/refs/pr/1").write_text(c)
q = np.random.default_rng(8).standard_normal((32, 32)).astype("f4")
(root / f"snapshots/{c}/model.safetensors").write_bytes(save({"model.layers.0.self_attn.q_proj.weight": q}))
(root / f"snapshots/{c}/config.json").write_text('{"model_type":"llama","hidden_size":32,"num_attention_heads":4}')
np.savez(out / "expected.npz", **{"layers.0.attention.query": np.linalg.svd(q.astype("f8"), compute_uv=False)})
