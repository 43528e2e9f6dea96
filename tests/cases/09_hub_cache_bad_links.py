"""Hub caches that a cleanup or an aborted download left: a link to a blob that is gone, a link relative to the wrong folder, only *.incomplete blobs, a refs file with a newline. HF_HUB_CACHE=<dir>/hub; models some-org/gone, /wrong, /partial, /noconfig."""

import sys, pathlib, numpy as np
from safetensors.numpy import save

out = pathlib.Path(sys.argv[1])
c = "0123456789abcdef0123456789abcdef01234567"
q = np.random.default_rng(9).standard_normal((32, 32)).astype("f4")
data = save({"model.layers.0.self_attn.q_proj.weight": q})


def repo(name):
    root = out / "hub" / f"models--some-org--{name}"
    for d in ("refs", "blobs", f"snapshots/{c}"):
        (root / d).mkdir(parents=True, exist_ok=True)
    (root / "refs/main").write_text(c + "\n")
    return root, root / "snapshots" / c


def link(at, to):
    at.unlink(missing_ok=True)
    at.symlink_to(to)


root, s = repo("gone")
link(s / "model.safetensors", "../../blobs/" + "a" * 64)
link(s / "config.json", "../../blobs/" + "b" * 40)
(root / "blobs" / ("b" * 40)).write_text('{"model_type":"llama"}')
root, s = repo("wrong")
(root / "blobs" / ("a" * 64)).write_bytes(data)
link(s / "model.safetensors", "tmp/cache/models--some-org--wrong/blobs/" + "a" * 64)
root, s = repo("partial")
(root / "blobs" / ("a" * 64 + ".incomplete")).write_bytes(data[:200])
link(s / "config.json", "../../blobs/" + "b" * 40)
(root / "blobs" / ("b" * 40)).write_text('{"model_type":"llama"}')
root, s = repo("noconfig")
(root / "blobs" / ("a" * 64)).write_bytes(data)
link(s / "model.safetensors", "../../blobs/" + "a" * 64)
link(s / "config.json", "../../blobs/" + "c" * 40)
