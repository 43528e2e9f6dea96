"""Where the settings of a quantised model are missing or elsewhere: FP8 blocks whose config has no quantization_config, FP8 of which some layers have no scale, GPTQ with only quantize_config.json, AWQ with only quant_config.json, bnb nf4 without quant_state, config that says fp8 over bf16 weights, config that says gptq over plain weights, scale named weight_scale vs weight_scale_inv vs scale_weight (ComfyUI: scaled_fp8 marker), int8 SmoothQuant."""

import json, struct, sys, pathlib, numpy as np, torch
from safetensors.torch import save_file

out = pathlib.Path(sys.argv[1])
g = torch.Generator().manual_seed(36)
exp = {}
N = "model.layers.{}.self_attn.q_proj.{}".format
base = {"model_type": "llama", "hidden_size": 256, "num_attention_heads": 4}


def put(name, t, cfg=None, **files):
    d = out / name
    d.mkdir(parents=True, exist_ok=True)
    save_file({k: v.contiguous().clone() for k, v in t.items()}, d / "model.safetensors")
    (d / "config.json").write_text(json.dumps(base | (cfg or {})))
    [(d / (k + ".json")).write_text(json.dumps(v)) for k, v in files.items()]


w = torch.randn(256, 256, generator=g)
s = torch.rand(2, 2, generator=g) * 0.01 + 0.001
f8 = w.to(torch.float8_e4m3fn)
deq = f8.double() * s.double().repeat_interleave(128, 0).repeat_interleave(128, 1)
sv = lambda a: np.linalg.svd(a.double().numpy(), compute_uv=False)
E = {"block": sv(deq), "plain8": sv(f8.double()), "tensor": sv(f8.double() * 0.5), "bf16": sv(w.bfloat16().double())}
q = {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}
put("fp8_noconfig", {N(0, "weight"): f8, N(0, "weight_scale_inv"): s})
put("fp8_config", {N(0, "weight"): f8, N(0, "weight_scale_inv"): s}, q)
put("fp8_some_unscaled", {N(0, "weight"): f8, N(0, "weight_scale_inv"): s, N(1, "weight"): f8}, q)
put("fp8_says_bf16_is", {N(0, "weight"): w.bfloat16()}, q)
put(
    "fp8_tensor_scale_weight",
    {N(0, "weight"): f8, N(0, "scale_weight"): torch.tensor(0.5), "scaled_fp8": torch.zeros(2).to(torch.float8_e4m3fn)},
)
put(
    "fp8_tensor_weight_scale",
    {N(0, "weight"): f8, N(0, "weight_scale"): torch.tensor(0.5), N(0, "input_scale"): torch.tensor(1.0)},
)
put("fp8_wrong_block", {N(0, "weight"): f8, N(0, "weight_scale_inv"): torch.ones(3, 2)}, q)
qw = torch.randint(-(2**31), 2**31 - 1, (32, 256), generator=g, dtype=torch.int64).to(torch.int32)
qz = torch.randint(-(2**31), 2**31 - 1, (2, 32), generator=g, dtype=torch.int64).to(torch.int32)
sc = torch.rand(2, 256, generator=g).half() * 0.01
gi = torch.arange(256, dtype=torch.int32) // 128
gp = {N(0, "qweight"): qw, N(0, "qzeros"): qz, N(0, "scales"): sc, N(0, "g_idx"): gi}
put("gptq_old", gp, None, quantize_config={"bits": 4, "group_size": 128, "desc_act": False})
put("gptq_nothing", gp)
put(
    "gptq_over_plain",
    {N(0, "weight"): w},
    {"quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 128}},
)
n = torch.arange(8) * 4
W = ((qw.unsqueeze(1) >> n.view(1, 8, 1)) & 15).reshape(256, 256)
Z = ((qz.unsqueeze(2) >> n.view(1, 1, 8)) & 15).reshape(2, 256) + 1
E["gptq"] = sv((W - Z[gi.long()]).double() * sc.double()[gi.long()])
put(
    "bnb_nostate",
    {
        N(0, "weight"): torch.randint(0, 255, (256 * 128, 1), generator=g).to(torch.uint8),
        N(0, "weight.absmax"): torch.rand(1024, generator=g),
    },
    {"quantization_config": {"load_in_4bit": True, "quant_method": "bitsandbytes"}},
)
put("int8_plain", {N(0, "weight"): torch.randint(-127, 127, (256, 256), generator=g).to(torch.int8)})
put("fp8_bare", {N(0, "weight"): f8})
np.savez(out / "E.npz", **E)
