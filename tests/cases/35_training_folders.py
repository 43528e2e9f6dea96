"""What trainers leave: checkpoint-40/ with model shards, optimizer.pt, scheduler.pt, rng_state_0.pth, training_args.bin; an output folder with only checkpoint-*/ inside; adapter_model.safetensors beside whole shards; adapter with its own optimizer.bin; torch.distributed checkpoint (__0_0.distcp, .metadata); accelerate's pytorch_model_fsdp_0/; optimizer.safetensors beside model.safetensors; ema.safetensors beside; ComfyUI style upper-case suffix."""

import sys, pathlib, numpy as np, torch
from safetensors.numpy import save_file

out = pathlib.Path(sys.argv[1])
r = np.random.default_rng(35)
q = {l: r.standard_normal((32, 32)).astype("f4") for l in range(2)}
t = {f"model.layers.{l}.self_attn.q_proj.weight": a for l, a in q.items()}
tt = {k: torch.from_numpy(v) for k, v in t.items()}


def d(n):
    x = out / n
    x.mkdir(parents=True, exist_ok=True)
    (x / "config.json").write_text('{"model_type":"llama","hidden_size":32,"num_attention_heads":4}')
    return x


opt = {"state": {0: {"exp_avg": torch.zeros(4)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}
x = d("run/checkpoint-40")
save_file(t, x / "model.safetensors")
(out / "run/config.json").unlink(missing_ok=True)
for f in ("optimizer.pt", "scheduler.pt"):
    torch.save(opt, x / f)
torch.save({"python": 1}, x / "rng_state_0.pth")
torch.save({"lr": 1}, x / "training_args.bin")
(out / "run/checkpoint-80").mkdir(exist_ok=True)
save_file(t, out / "run/checkpoint-80/model.safetensors")
x = d("bin_trainer")
torch.save(tt, x / "pytorch_model.bin")
torch.save(opt, x / "optimizer.bin")
torch.save(opt, x / "optimizer_1.bin")
torch.save({"a": 1}, x / "random_states_0.pkl")
torch.save(opt, x / "scheduler.bin")
x = d("adapter_beside")
[
    save_file({k: v for k, v in t.items() if f".{s - 1}." in k}, x / f"model-0000{s}-of-00002.safetensors")
    for s in (1, 2)
]
save_file(
    {"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": q[0][:4].copy()}, x / "adapter_model.safetensors"
)
x = d("opt_safetensors")
save_file(t, x / "model.safetensors")
save_file({k + ".exp_avg": v for k, v in t.items()}, x / "optimizer.safetensors")
x = d("pt_pair")
torch.save(tt, x / "model.pt")
torch.save(opt, x / "optim.pt")
torch.save({"epoch": 1}, x / "train.pt")
x = d("ema_pair")
save_file(t, x / "diffusion.safetensors")
save_file(t, x / "ema.safetensors")
x = d("dcp")
(x / "__0_0.distcp").write_bytes(b"x" * 100)
(x / ".metadata").write_bytes(b"x")
x = d("upper")
save_file(t, x / "MODEL.SAFETENSORS")
x = d("sp ace é/модель")
save_file(t, x / "my model (1).safetensors")
np.savez(
    out / "expected.npz",
    **{f"layers.{l}.attention.query": np.linalg.svd(a.astype("f8"), compute_uv=False) for l, a in q.items()},
)
