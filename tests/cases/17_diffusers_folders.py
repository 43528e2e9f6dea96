"""diffusers pipelines: root with model_index.json and no weights; unet/ with diffusion_pytorch_model in two variants; transformer/ sharded with its own index name; sharded variant in both spellings; text_encoder with model.fp16; both .bin and .safetensors."""

import json, sys, pathlib, numpy as np
from safetensors.numpy import save_file

out = pathlib.Path(sys.argv[1])
p = out / "pipe"
r = np.random.default_rng(17)
f = lambda *s: r.standard_normal(s).astype("f4")
exp = {}
sv = lambda a: np.linalg.svd(a.astype("f8"), compute_uv=False)
for d in ("unet", "transformer", "transformer_var", "text_encoder", "vae"):
    (p / d).mkdir(parents=True, exist_ok=True)
(p / "model_index.json").write_text(
    json.dumps({"_class_name": "FluxPipeline", "transformer": ["diffusers", "FluxTransformer2DModel"]})
)
u = {
    f"down_blocks.{i}.attentions.0.transformer_blocks.0.attn1.to_{x}.weight": f(32, 32) for i in range(2) for x in "qkv"
}
(p / "unet/config.json").write_text('{"_class_name":"UNet2DConditionModel"}')
save_file(u, p / "unet/diffusion_pytorch_model.safetensors")
save_file({k: v.astype("f2") for k, v in u.items()}, p / "unet/diffusion_pytorch_model.fp16.safetensors")
exp |= {k: sv(v) for k, v in u.items()}
t = {f"transformer_blocks.{i}.attn.to_{x}.weight": f(32, 32) for i in range(4) for x in "qkv"}
exp |= {k: sv(v) for k, v in t.items()}
(p / "transformer/config.json").write_text('{"_class_name":"FluxTransformer2DModel"}')
(p / "transformer_var/config.json").write_text('{"_class_name":"FluxTransformer2DModel"}')
wm = {}
for n in (1, 2):
    part = {k: v for k, v in t.items() if (int(k.split(".")[1]) < 2) == (n == 1)}
    name = f"diffusion_pytorch_model-0000{n}-of-00002.safetensors"
    save_file(part, p / "transformer" / name)
    wm |= dict.fromkeys(part, name)
    save_file(part, p / "transformer_var" / name)
    save_file(
        {k: v.astype("f2") for k, v in part.items()},
        p / "transformer_var" / f"diffusion_pytorch_model-0000{n}-of-00002.fp16.safetensors",
    )
(p / "transformer/diffusion_pytorch_model.safetensors.index.json").write_text(
    json.dumps({"metadata": {}, "weight_map": wm})
)
(p / "transformer_var/diffusion_pytorch_model.safetensors.index.json").write_text(
    json.dumps({"metadata": {}, "weight_map": wm})
)
(p / "transformer_var/diffusion_pytorch_model.safetensors.index.fp16.json").write_text(
    json.dumps({"metadata": {}, "weight_map": {k: v.replace(".safe", ".fp16.safe") for k, v in wm.items()}})
)
e = {f"text_model.encoder.layers.{i}.self_attn.{x}_proj.weight": f(32, 32) for i in range(2) for x in "qkv"}
save_file(e, p / "text_encoder/model.safetensors")
save_file({k: v.astype("f2") for k, v in e.items()}, p / "text_encoder/model.fp16.safetensors")
(p / "text_encoder/config.json").write_text('{"model_type":"clip_text_model"}')
save_file(
    {"encoder.mid_block.attentions.0.to_q.weight": f(16, 16), "encoder.conv_in.weight": f(16, 3, 3, 3)},
    p / "vae/diffusion_pytorch_model.safetensors",
)
np.savez(out / "expected.npz", **exp)
