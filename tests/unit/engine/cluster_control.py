"""Two worker processes under a test's control, and small models in every state that is computed."""

from __future__ import annotations

import os
import select
from pathlib import Path
from typing import Any

import engine_fakes
import torch
from calibration_files import stats, write_gguf
from engine_fakes import MemorySink, saved
from hub_server import HubServer
from lapack_reference import lapack
from safetensors.torch import load_file

from rankscope.engine.calibration.file_weighting import open_weighting
from rankscope.engine.catalogue.attention import attentions
from rankscope.engine.catalogue.tree import build_tree
from rankscope.engine.checkpoint.open import Checkpoint
from rankscope.engine.compute import cluster
from rankscope.engine.compute.devices import Device
from rankscope.engine.derive.directions import directions_of
from rankscope.engine.derive.fixing import Gauge
from rankscope.engine.derive.flip import flipped
from rankscope.engine.derive.gauge import as_stored
from rankscope.engine.derive.head_matrices import KINDS, heads_of
from rankscope.engine.derive.norm_weighting import NormWeighting
from rankscope.engine.derive.weighting import noise_of, weighted
from rankscope.engine.spectrum import Projection

HERE = Path(__file__).parent
TWO = [Device("cpu:0", "a core"), Device("cpu:1", "another")]
BOTH = "cuda:98,cuda:99"
"""A list of devices that no driver has, which the tests replace by TWO."""


class Control:
    """Controls the worker processes through a folder (see cluster_gate.py); holds the Hub that they use."""

    def __init__(self, folder: Path, hub: HubServer) -> None:
        self.folder, self.hub = folder, hub
        self._options = cluster.nanny_options
        self._held: tuple[int, ...] = ()

    def options(self, *args: Any) -> dict[str, Any]:
        made = self._options(*args)
        made["env"] |= {"RANKSCOPE_TEST_GATE": str(self.folder), "OMP_NUM_THREADS": "1"}
        made["env"] |= {"HF_ENDPOINT": self.hub.url, "HF_HOME": str(self.folder / "hf"), "HF_HUB_OFFLINE": "0"}
        made["env"] |= {"NO_PROXY": "127.0.0.1", "HF_TOKEN": ""}
        return made | {"preload": [str(HERE / "cluster_gate.py"), *made["preload"]]}

    def say(self, name: str, word: str) -> None:
        (self.folder / name).write_text(word)

    def hold(self) -> None:
        """Make batches that begin from now on wait for `release`."""
        for name in ("gate", "reached"):
            os.mkfifo(self.folder / name)
        self._held = tuple(os.open(self.folder / name, os.O_RDWR) for name in ("gate", "reached"))

    def wait_until_held(self, count: int) -> None:
        """Wait until this many more batches have begun and are held."""
        for _ in range(count):
            assert select.select([self._held[1]], [], [], engine_fakes.PATIENCE)[0]
            os.read(self._held[1], 1)

    def hold_no_more(self) -> None:
        """Let batches that begin from now on run."""
        (self.folder / "gate").unlink()

    def release(self) -> None:
        (self.folder / "gate").unlink(missing_ok=True)
        for held in self._held:
            os.close(held)
        self._held = ()

    def clear(self) -> None:
        self.release()
        for file in self.folder.iterdir():
            if not file.is_dir():
                file.unlink()


def assert_lapacks(sink: MemorySink, projections: list[Projection], file: Path) -> None:
    weights = load_file(file)
    for projection in projections:
        wanted = lapack(weights[projection.tensor])
        assert abs(sink.kept[projection.key].values - wanted).max() <= 1e-10 * wanted[0]


NAMES = {
    "self_attn.q_proj": (12, 12),
    "self_attn.k_proj": (6, 12),
    "self_attn.v_proj": (6, 12),
    "self_attn.o_proj": (12, 12),
    "mlp.up_proj": (20, 12),
    "mlp.gate_proj": (20, 12),
    "mlp.down_proj": (12, 20),
}


def block(folder: Path, seed: int, layers: int = 2) -> tuple[Checkpoint, list[Projection]]:
    """Layers of attention and MLP, with a norm with gains before each."""
    random = torch.Generator().manual_seed(seed)
    path = "model.layers.{}.{}.weight"
    tensors = {
        path.format(n, name): torch.randn(shape, generator=random)
        for n in range(layers)
        for name, shape in NAMES.items()
    }
    for n in range(layers):
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[path.format(n, norm)] = torch.rand(12, generator=random) + 0.5
    folder.mkdir()
    return saved(folder, tensors, {"model_type": "llama", "num_attention_heads": 2})


def states(checkpoint: Checkpoint, raw: list[Projection], folder: Path) -> list[Projection]:
    """Everything computed for a checkpoint's projections: twins, weighted ones, noise, gauge, directions."""
    names = [p.tensor for p in raw]
    file = write_gguf(folder / "i.gguf", {name: stats(20 if "down" in name else 12, seed=3) for name in names})
    weightings = (NormWeighting(checkpoint), open_weighting(str(file), checkpoint.name, checkpoint.config))
    under = [weighted(p, weighting) for weighting in weightings for p in raw]
    gauge = Gauge(checkpoint, build_tree(checkpoint).projections)
    fixed = [as_stored(gauge.fixed(p, weighting)) for weighting in (None, weightings[1]) for p in raw]
    assert not any(p.problem for p in (*under, *fixed))
    (attention, *_), _ = attentions(checkpoint, raw)
    shown: list[dict[str, Projection]] = [{}, {p.address: p for p in under[len(raw) :]}, {p.address: p for p in fixed}]
    heads = [p for state in shown for kind in KINDS for p in heads_of(attention, kind, state)]
    every = [*raw, *map(flipped, raw), *under, *map(noise_of, under), *fixed, *map(directions_of, raw), *heads]
    return list({p.key: p for p in every}.values())
