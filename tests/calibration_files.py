"""Files of second moments as llama.cpp's imatrix tool and others write them."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import gguf
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

Floats = NDArray[np.float32]


class Stats(NamedTuple):
    """What the tool stores for a tensor: sums of squares, shape (matrices, input features), and the number of tokens by
    matrix; a single number for a dense stack.
    """

    sums: Floats
    counts: Sequence[float]


def stats(cols: int, counts: Sequence[int] = (1000,), *, matrices: int = 0, seed: int = 0) -> Stats:
    """Sums of as many squares of normal numbers as there are tokens, with sizes over six decades."""
    rng = np.random.default_rng([seed, cols, *counts])
    scales = 10.0 ** rng.uniform(-3, 3, (matrices or len(counts), cols))
    tokens = np.resize(np.asarray(counts, float), matrices or len(counts))[:, None]
    return Stats((scales * tokens * rng.chisquare(5, scales.shape) / 5).astype(np.float32), counts)


def write_gguf(
    file: Path,
    held: Mapping[str, Stats],
    *,
    chunk_size: int = 512,
    data_sets: Sequence[str] = (),
    plain: Mapping[str, Floats] | None = None,
    **said: str,
) -> Path:
    """Write as `save_imatrix` of tools/imatrix/imatrix.cpp, with the `plain` sums of x of newer versions too."""
    writer = gguf.GGUFWriter(str(file), "", endianess=gguf.GGUFEndian.LITTLE)
    writer.kv_data[0].pop("general.architecture", None)
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", list(data_sets) or ["data/wiki.train.raw"])
    writer.add_uint32("imatrix.chunk_count", chunks(held, chunk_size))
    writer.add_uint32("imatrix.chunk_size", chunk_size)
    for key, text in said.items():
        writer.add_string(f"general.{key}", text)
    for name, (sums, counts) in sorted(held.items()):
        writer.add_tensor(f"{name}.in_sum2", sums.reshape(len(counts), -1))
        writer.add_tensor(f"{name}.counts", np.array(counts, np.float32).reshape(-1, 1))
        if plain is not None:
            writer.add_tensor(f"{name}.in_sum", plain[name].reshape(len(counts), -1))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def chunks(held: Mapping[str, Stats], chunk_size: int) -> int:
    return int(np.nanmax([max(counts) for _, counts in held.values()]) // chunk_size)


def legacy(held: Mapping[str, Stats], *, chunk_size: int = 512, trailer: bool = True) -> bytes:
    """The bytes that `save_imatrix_legacy` writes, computed in the same steps of float32."""
    out = [struct.pack("<i", len(held))]
    for name, (sums, counts) in sorted(held.items()):
        calls = int(-(-max(counts) // chunk_size))
        count = np.repeat(np.array(counts, np.float32), sums.size // len(counts))
        value = np.where(count == 0, np.float32(1), sums.reshape(-1))
        values = value / np.where(count == 0, np.float32(1), count) * np.float32(calls)
        assert values.dtype == np.float32
        out += [struct.pack("<i", len(name)), name.encode(), struct.pack("<ii", calls, values.size), values.tobytes()]
    if trailer:
        data_set = b"data/wiki.train.raw"
        out.append(struct.pack("<ii", chunks(held, chunk_size), len(data_set)) + data_set)
    return b"".join(out)


def converted(held: Mapping[str, Stats], *, chunk_size: int = 512) -> dict[str, Stats]:
    """What the tool holds after reading a legacy file: one count for all experts (`load_imatrix_legacy`)."""
    found = {}
    for name, (sums, counts) in held.items():
        calls = int(-(-max(counts) // chunk_size))
        single = legacy({name: Stats(sums, counts)}, chunk_size=chunk_size, trailer=False)
        values = np.frombuffer(single[-4 * sums.size :], "<f4")
        found[name] = Stats((values * np.float32(chunk_size))[None], (calls * chunk_size,))
    return found


def write_moments(file: Path, sums: Mapping[str, Any], **metadata: str) -> Path:
    """Write a file of moments."""
    save_file({name: np.asarray(array, order="C") for name, array in sums.items()}, file, metadata or None)
    return file
