"""GGUF files that are no whole model: a LoRA adapter (lora_a/lora_b, a stray rope_freqs), an importance matrix, vocabulary only, a control vector; each by itself."""

import struct, sys, pathlib, numpy as np

out = pathlib.Path(sys.argv[1])
out.mkdir(parents=True, exist_ok=True)
r = np.random.default_rng(15)
exp = {}
s = lambda t: struct.pack("<Q", len(t)) + t.encode()


def st(k, v):
    return s(k) + struct.pack("<I", 8) + s(v)


def write(name, kvs, tensors):
    infos = data = b""
    for n, a in tensors.items():
        data += bytes(-len(data) % 32)
        infos += (
            s(n)
            + struct.pack("<I", a.ndim)
            + b"".join(struct.pack("<Q", d) for d in a.shape[::-1])
            + struct.pack("<IQ", 0, len(data))
        )
        data += a.astype("<f4").tobytes()
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(kvs)) + b"".join(kvs) + infos
    head += bytes(-len(head) % 32)
    (out / name).write_bytes(head + data)


f = lambda *sh: r.standard_normal(sh).astype("f4")
sv = lambda a: np.linalg.svd(a.astype("f8"), compute_uv=False)
lora = {
    f"blk.{l}.{m}.weight.lora_{x}": f(8, 64) if x == "a" else f(64, 8)
    for l in range(2)
    for m in ("attn_q", "attn_v", "ffn_down")
    for x in "ab"
} | {"rope_freqs.weight": np.ones(32, "f4")}
write(
    "lora.gguf",
    [
        st("general.architecture", "llama"),
        st("general.type", "adapter"),
        st("adapter.type", "lora"),
        s("adapter.lora.alpha") + struct.pack("<If", 6, 16.0),
    ],
    lora,
)
exp |= {n: sv(a) for n, a in lora.items() if a.ndim == 2}
write(
    "imatrix.gguf",
    [st("general.type", "imatrix"), s("imatrix.chunk_count") + struct.pack("<II", 4, 10)],
    {
        f"blk.{l}.{m}.weight.{x}": np.abs(f(1, 64)) if x == "in_sum2" else f(1, 1)
        for l in range(2)
        for m in ("attn_q", "ffn_down")
        for x in ("in_sum2", "counts")
    },
)
write("vocab.gguf", [st("general.architecture", "llama"), st("tokenizer.ggml.model", "gpt2")], {})
write(
    "control.gguf",
    [st("general.architecture", "controlvector"), st("controlvector.model_hint", "llama")],
    {f"direction.{i}": f(64) for i in range(1, 4)},
)
np.savez(out / "expected.npz", **exp)
