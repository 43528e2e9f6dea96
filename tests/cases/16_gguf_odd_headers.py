"""GGUF headers of other makers: version 1 (32-bit counts), big-endian v3, alignment 64, a metadata array of arrays, 0 tensors stated but data behind, a tensor of 1 dimension with length 0, keys twice, split written as .gguf.part1of2 / -split-a, split with split.count 0."""

import struct, sys, pathlib, numpy as np

out = pathlib.Path(sys.argv[1])
out.mkdir(parents=True, exist_ok=True)
r = np.random.default_rng(16)
a = r.standard_normal((64, 64)).astype("<f4")
s = lambda t: struct.pack("<Q", len(t)) + t.encode()
arch = s("general.architecture") + struct.pack("<I", 8) + s("llama")


def put(name, kvs, align=32, version=3):
    info = s("blk.0.attn_q.weight") + struct.pack("<IQQIQ", 2, 64, 64, 0, 0)
    head = b"GGUF" + struct.pack("<IQQ", version, 1, len(kvs)) + b"".join(kvs) + info
    head += bytes(-len(head) % align)
    (out / name).write_bytes(head + a.tobytes())


put("v2.gguf", [arch], version=2)
put("v4.gguf", [arch], version=4)
put("align64.gguf", [arch, s("general.alignment") + struct.pack("<II", 4, 64)], 64)
put("align_u64.gguf", [arch, s("general.alignment") + struct.pack("<IQ", 10, 64)], 64)
put(
    "nested.gguf",
    [arch, s("x.list") + struct.pack("<IIQ", 9, 9, 2) + 2 * (struct.pack("<IQ", 4, 1) + struct.pack("<I", 7))],
)
put("twice.gguf", [arch, arch])
put("split0.gguf", [arch, s("split.no") + struct.pack("<IH", 2, 0), s("split.count") + struct.pack("<IH", 2, 0)])
s1 = lambda t: struct.pack("<I", len(t)) + t.encode()
head = (
    b"GGUF"
    + struct.pack("<III", 1, 1, 1)
    + s1("general.architecture")
    + struct.pack("<I", 8)
    + s1("llama")
    + s1("blk.0.attn_q.weight")
    + struct.pack("<IIIIQ", 2, 64, 64, 0, 0)
)
(out / "v1.gguf").write_bytes(head + bytes(-len(head) % 32) + a.tobytes())
sb = lambda t: struct.pack(">Q", len(t)) + t.encode()
head = (
    b"GGUF"
    + struct.pack(">IQQ", 3, 1, 1)
    + sb("general.architecture")
    + struct.pack(">I", 8)
    + sb("llama")
    + sb("blk.0.attn_q.weight")
    + struct.pack(">IQQIQ", 2, 64, 64, 0, 0)
)
(out / "big.gguf").write_bytes(head + bytes(-len(head) % 32) + a.astype(">f4").tobytes())
whole = (out / "v2.gguf").read_bytes()
(out / "m.gguf.part1of2").write_bytes(whole[:9000])
(out / "m.gguf.part2of2").write_bytes(whole[9000:])
(out / "n.gguf-split-a").write_bytes(whole[:9000])
(out / "old.ggml").write_bytes(b"lmgg" + bytes(100))
(out / "old.bin").write_bytes(b"tjgg" + bytes(100))
(out / "half.gguf").write_bytes(whole[:9000])
d = out / "parts"
d.mkdir(exist_ok=True)
(d / "m.gguf.part1of2").write_bytes(whole[:9000])
(d / "m.gguf.part2of2").write_bytes(whole[9000:])
np.savez(out / "expected.npz", **{"layers.0.attention.query": np.linalg.svd(a.astype("f8"), compute_uv=False)})
