"""What `huggingface-cli download --local-dir` left before huggingface_hub 0.23: small files copied, weights as links to the cache's blobs."""

import hashlib, os, sys, pathlib, numpy as np
from safetensors.numpy import save

out = pathlib.Path(sys.argv[1])
m = out / "work" / "tiny-llama"
m.mkdir(parents=True, exist_ok=True)
b = out / "cache" / "models--some-org--tiny-llama" / "blobs"
b.mkdir(parents=True, exist_ok=True)
r = np.random.default_rng(7)
q = r.standard_normal((32, 32)).astype("f4")
data = save({"model.layers.0.self_attn.q_proj.weight": q})
blob = b / hashlib.sha256(data).hexdigest()
blob.write_bytes(data)
link = m / "model.safetensors"
link.unlink(missing_ok=True)
link.symlink_to(os.path.relpath(blob, m))
(m / "config.json").write_text('{"model_type":"llama","hidden_size":32,"num_attention_heads":4}')
np.savez(out / "expected.npz", **{"layers.0.attention.query": np.linalg.svd(q.astype("f8"), compute_uv=False)})
# neighbours: one file that is a link, and a folder that is itself a link (both are opened)
far = out / "disk2"
far.mkdir(exist_ok=True)
(far / "model.safetensors").write_bytes(data)
for l, t in ((out / "work" / "single.safetensors", blob.resolve()), (out / "work" / "folderlink", far.resolve())):
    l.unlink(missing_ok=True)
    l.symlink_to(t)
