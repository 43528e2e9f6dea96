"""Helpers for tests of PyTorch files on a server: the small Llama as such files, and the requests to the server."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from hub_server import HubServer
from opening import refused
from remote_models import CONFIG, FIRST, SECOND

from rankscope.engine.checkpoint.hub import Access
from rankscope.engine.checkpoint.open import Checkpoint

SHARD_1, SHARD_2 = (f"pytorch_model-0000{n}-of-00002.bin" for n in (1, 2))


def saved(held: Any, *, legacy: bool = False) -> bytes:
    data = io.BytesIO()
    torch.save(held, data, _use_new_zipfile_serialization=not legacy)
    return data.getvalue()


def pickled(weights: Mapping[str, np.ndarray]) -> bytes:
    return saved({name: torch.from_numpy(array) for name, array in weights.items()})


_MAP = dict.fromkeys(FIRST, SHARD_1) | dict.fromkeys(SECOND, SHARD_2)
SHARDED = {
    "config.json": json.dumps(CONFIG).encode(),
    "pytorch_model.bin.index.json": json.dumps({"metadata": {}, "weight_map": _MAP}).encode(),
    SHARD_1: pickled(FIRST),
    SHARD_2: pickled(SECOND),
}
WHOLE = pickled(FIRST | SECOND)
ONE_FILE = {"config.json": SHARDED["config.json"], "pytorch_model.bin": WHOLE}


def spans(hub: HubServer, file: str) -> list[tuple[int, int]]:
    """The ranges of a file that were requested: first byte and end."""
    asked = [r.range.removeprefix("bytes=").split("-") for r in hub.requests if r.path.endswith(file)]
    return [(int(first), int(last) + 1) for first, last in asked]


def served(hub: HubServer, data: bytes, name: str = "m.pt") -> str:
    """Serve a file; return its URL."""
    hub.static[f"/{name}"] = data
    return f"http://localhost:{hub.port}/{name}"


def line(url: str) -> str:
    return refused(url, Access.RANGES)


def places(checkpoint: Checkpoint) -> list[tuple[Any, ...]]:
    """The listed properties of each tensor, without its file."""
    return [(t.name, t.dtype, t.shape, t.begin, t.end, t.strides) for t in checkpoint.tensors]
