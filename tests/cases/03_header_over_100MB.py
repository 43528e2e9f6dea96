"""A safetensors file whose header is above 100 MB (1.3 million small tensors): the reference reader refuses it too."""

import json, struct, sys, pathlib

out = pathlib.Path(sys.argv[1])
out.mkdir(parents=True, exist_ok=True)
n = 1_300_000
head = (
    "{"
    + ",".join(
        f'"s.{i:07d}.embedding.value":{{"dtype":"F32","shape":[1],"data_offsets":[{4 * i},{4 * i + 4}]}}'
        for i in range(n)
    )
    + "}"
).encode()
head += b" " * (-len(head) % 8)
with open(out / "many.safetensors", "wb") as f:
    f.write(struct.pack("<Q", len(head)))
    f.write(head)
    f.truncate(8 + len(head) + 4 * n)
