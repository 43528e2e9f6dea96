"""GGUF tensor types that llama.cpp dropped or a fork added: 4/5 (Q4_2, Q4_3), 31-33 (Q4_0_4_4 ...), 42 (a fork's). One file each with one such tensor beside a plain one."""

import struct, sys, pathlib, numpy as np

out = pathlib.Path(sys.argv[1])
out.mkdir(parents=True, exist_ok=True)
s = lambda t: struct.pack("<Q", len(t)) + t.encode()
w = np.random.default_rng(14).standard_normal((64, 64)).astype("f4").tobytes()
for kind, size in ((4, 64 * 2 * 20), (31, 64 * 2 * 18), (42, 4096)):
    kv = (
        s("general.architecture")
        + struct.pack("<I", 8)
        + s("llama")
        + s("llama.block_count")
        + struct.pack("<II", 4, 1)
    )
    infos = (
        s("blk.0.attn_q.weight")
        + struct.pack("<IQQIQ", 2, 64, 64, 0, 0)
        + s("blk.0.attn_k.weight")
        + struct.pack("<IQQIQ", 2, 64, 64, kind, len(w))
    )
    head = b"GGUF" + struct.pack("<IQQ", 3, 2, 2) + kv + infos
    head += bytes(-len(head) % 32)
    (out / f"type{kind}.gguf").write_bytes(head + w + bytes(size))
