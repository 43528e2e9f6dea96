"""`git clone` without git-lfs: every weight file is a text of three lines. Also what a failed download saves under the name of the weights: a line of text, a HTML page."""

import sys, pathlib

out = pathlib.Path(sys.argv[1])
p = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"ab" * 32 + b"\nsize 4976698672\n"
import json

for name, fn in (("st", "model.safetensors"), ("bin", "pytorch_model.bin"), ("gguf", "model.gguf")):
    d = out / name
    d.mkdir(parents=True, exist_ok=True)
    (d / "config.json").write_text('{"model_type":"llama"}')
    if fn:
        (d / fn).write_bytes(p)
    else:
        for i in (1, 2):
            (d / f"model-0000{i}-of-00002.safetensors").write_bytes(p)
        (d / "model.safetensors.index.json").write_text(
            json.dumps(
                {
                    "weight_map": {
                        "model.layers.0.self_attn.q_proj.weight": "model-00001-of-00002.safetensors",
                        "lm_head.weight": "model-00002-of-00002.safetensors",
                    }
                }
            )
        )
for name, text in (("entry", b"Entry not found"), ("empty", b"")):
    for ext in ("safetensors", "bin", "gguf"):
        (out / f"{name}.{ext}").write_bytes(text)
