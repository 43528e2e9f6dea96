"""A safetensors file that has metadata and no tensors at all (what saving an empty dict leaves), once right, once with the comma fault."""

import json, struct, sys, pathlib

out = pathlib.Path(sys.argv[1])
out.mkdir(parents=True, exist_ok=True)
for name, head in (
    ("good", b'{"__metadata__":{"note":"nothing"}}'),
    ("comma", b'{},"__metadata__":{"note":"nothing"}}'),
):
    head += b" " * (-len(head) % 8)
    d = out / name
    d.mkdir(exist_ok=True)
    (d / "model.safetensors").write_bytes(struct.pack("<Q", len(head)) + head)
    (d / "config.json").write_text('{"model_type":"llama"}')
