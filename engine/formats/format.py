"""What every file format answers: one class a format, one row in the registry."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

from ..landing import Landing
from ..spectrum import Source
from ..weights import WIDENED, Packed, Weights
from .parts import grouped
from .tensor import FileAccess, FileStamp, Tensor, read_plain

TELLING = 1 << 14
"""As many first bytes of a file tell whether it goes along with a model."""


class Listings(Protocol):
    """Where listings are kept between two processes; losing one costs the time to make it again."""

    def get(self, key: str) -> str | None:
        """The text that was put under this key, None where there is none or it is damaged."""
        ...

    def put(self, key: str, text: str) -> None:
        """Keep a text under a key, if that is possible."""
        ...


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a file to be listed comes from: `repo` and `commit` as in Source, and the number of files, `parts`, that
    its model is split into. A listing that takes long is looked up and kept in `listings`.
    """

    repo: str
    commit: str
    parts: int = 1
    listings: Listings | None = None


class Listing(NamedTuple):
    """The tensors of a file in its order, what tells it from a changed one, and what its header says of the model
    under the names of config.json, None where it says nothing.
    """

    tensors: list[Tensor]
    stamp: FileStamp
    config: Mapping[str, Any] | None = None


class Parsed(NamedTuple):
    """What a header says: the tensors in its order, and what it says of the model, as in Listing."""

    tensors: list[Tensor]
    config: Mapping[str, Any] | None = None


class Format(Protocol):
    """A file format of weights. Formats derive from this class, whose answers are those of a format of plain numbers.

    `suffixes` are those of its files. `index` is what the file that says which shard holds which tensor is usually
    called, "" for a format without one. `stands_alone`: a file says everything itself, as GGUF does. So config.json
    beside it is not read, the families of the catalogue, which are those of transformers, are not its own, no matrix is
    made of several of its tensors, and whoever names one of its numbered parts names the model.
    """

    suffixes: tuple[str, ...]
    index: str = ""
    stands_alone: bool = False

    def recognises(self, head: bytes) -> bool:
        """Whether a file that begins with these bytes (512, or the whole file) is of this format.

        Asked where several formats have the suffix of a file.
        """
        ...

    def models(self, names: Collection[str]) -> list[list[str]]:
        """The models of a folder with files of these names: of each its files, or its index. One, where names tell
        which is the model; [] where none is of this format.
        """
        return grouped(self.named(names))

    def doubtful(self, names: Collection[str]) -> list[list[str]]:  # noqa: ARG002 - of most formats none is
        """Models as above that may as well be something else: opened where no format is sure of any."""
        return []

    def named(self, names: Iterable[str]) -> list[str]:
        """The names that have a suffix of this format, in the order of the suffixes, then sorted."""
        listed = sorted(names)
        return [name for suffix in self.suffixes for name in listed if name.lower().endswith(suffix)]

    def candidates(self, names: Iterable[str]) -> list[str]:
        """Those of `named` that may hold weights of a model, as far as names tell."""
        return self.named(names)

    def goes_along(self, name: str, head: Callable[[], bytes]) -> bool:  # noqa: ARG002 - most hold weights
        """Whether a file of this format goes with a model and is none: an adapter by its name, a table by its header.

        `head` fetches the first TELLING bytes, or the whole file where it is shorter. Asked of the files of a folder;
        where nothing else is there, it is opened, or refused with what it is.
        """
        return False

    def list_tensors(self, file: Path, origin: Origin) -> Listing:
        """The tensors of one file, from its header alone.

        Raises:
            InputError: the file cannot be read, is truncated or malformed.
        """
        ...

    def read_matrix(self, tensor: Tensor, stored: FileAccess, landing: Landing) -> tuple[Weights | Packed, str]:
        """The tensor where its bytes land (see weights.plain), and their digest (see read_bytes).

        Raises:
            WeightsError: the file changed or cannot be read, or the dtype is no floating-point type.
        """
        return read_plain(tensor, stored, landing)

    def dequantisation(self, dtype: str) -> str:  # noqa: ARG002 - most formats have no types of their own
        """How a stored type that is no number by itself becomes one, as it stands in the tree and in the provenance;
        "" where `read_matrix` does not know how.
        """
        return ""

    def vocabulary(self, file: Path) -> dict[int, str]:  # noqa: ARG002 - most files hold weights alone
        """The texts of the tokens that a file of a format that stands alone lists, by their numbers; {} for none.

        Raises:
            InputError: the file cannot be read or is malformed.
        """
        return {}

    def quantisation(self, tensors: Iterable[Tensor]) -> str:  # noqa: ARG002 - as above
        """The type of its own that most weights are stored in, "" where there is none."""
        return ""

    def bytes_on(self, device: str, tensor: Tensor) -> int:
        """What a tensor's weights take in a device's memory: on the CPU float32 for types that numpy does not know."""
        stored = tensor.end - tensor.begin
        return 4 * math.prod(tensor.shape) if device == "cpu" and tensor.dtype in WIDENED else stored


class Ends(Protocol):
    """The two ends of a file that is on a server: what is not there yet is fetched."""

    def first(self, count: int) -> bytes:
        """As many of its first bytes, or more, or all of a shorter file."""
        ...

    def last(self, count: int) -> bytes:
        """As many of its last bytes, or more, or all of a shorter file."""
        ...


@runtime_checkable
class Ranged(Format, Protocol):
    """A format whose files can be listed from their first and last bytes, and so on a server."""

    def header(self, ends: Ends, size: int, file: Path) -> bytes:
        """What is needed of a file of `size` bytes to list it.

        Raises:
            InputError: it would be longer than the file or than a header may be, or is malformed, or this file cannot
                be read in part.
        """
        ...

    def parse(self, header: bytes, file: Path, size: int, source: Source, origin: Origin) -> Parsed:
        """What a header says, of a file of `size` bytes. Of `origin` the number of parts and the listings count.

        Raises:
            InputError: the header is malformed, or does not fit the file.
        """
        ...
