"""The protocol of a file format: each format is one class, with one row in the registry."""

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
"""The number of first bytes from which it can be told whether a file is a model or goes with one."""


class Listings(Protocol):
    """A cache of listings that outlives the process; losing one costs the time to make it again."""

    def get(self, key: str) -> str | None:
        """The text that was put under this key; None if there is none or it is damaged."""
        ...

    def put(self, key: str, text: str) -> None:
        """Keep a text under a key, if possible."""
        ...


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a file to be listed comes from: `repo` and `commit` as in Source, and `parts`, the number of files that its
    model is split into. Listings that take long are looked up and kept in `listings`.
    """

    repo: str
    commit: str
    parts: int = 1
    listings: Listings | None = None


class Listing(NamedTuple):
    """The tensors of a file in its order, the stamp that shows whether the file changes, and what its header states
    about the model under the names of config.json, None if nothing.
    """

    tensors: list[Tensor]
    stamp: FileStamp
    config: Mapping[str, Any] | None = None


class Parsed(NamedTuple):
    """The content of a header: the tensors in its order, and the model's configuration, as in Listing."""

    tensors: list[Tensor]
    config: Mapping[str, Any] | None = None


class Format(Protocol):
    """A file format of weights. Formats derive from this class, whose methods are right for a format of plain numbers.

    `suffixes` are the endings of its files' names. `index` is the usual name of the file that says which shard holds
    which tensor, "" for a format without one. `stands_alone` is true if a file describes its model fully, as GGUF does.
    Then config.json beside it is not read, the families of the catalogue (those of transformers) do not apply, no
    matrix is made from several tensors, and naming one of its numbered parts names the whole model.
    """

    suffixes: tuple[str, ...]
    index: str = ""
    stands_alone: bool = False

    def recognises(self, head: bytes) -> bool:
        """True if a file that begins with `head` (512 bytes, or the whole file) is of this format.

        Called if several formats have the file's suffix.
        """
        ...

    def models(self, names: Collection[str]) -> list[list[str]]:
        """The models in a folder with files of these names: for each its files, or its index. A single one if the names
        tell which is the model; [] if none is of this format.
        """
        return grouped(self.named(names))

    def doubtful(self, names: Collection[str]) -> list[list[str]]:  # noqa: ARG002 - most formats have none
        """Like `models`, but these files may be something else: they are opened if no format is sure of any."""
        return []

    def named(self, names: Iterable[str]) -> list[str]:
        """The names that have a suffix of this format, in the order of the suffixes, then sorted."""
        listed = sorted(names)
        return [name for suffix in self.suffixes for name in listed if name.lower().endswith(suffix)]

    def candidates(self, names: Iterable[str]) -> list[str]:
        """The files of `named` that may hold a model's weights, judging by their names."""
        return self.named(names)

    def goes_along(self, name: str, head: Callable[[], bytes]) -> bool:  # noqa: ARG002 - most hold weights
        """True if a file of this format accompanies a model and is none: an adapter by its name, say.

        `head` fetches the first TELLING bytes, or the whole file if it is shorter. Called for the files of a folder;
        one that has nothing else is opened, or refused with what the file is.
        """
        return False

    def list_tensors(self, file: Path, origin: Origin) -> Listing:
        """List the tensors of one file, reading only its header.

        Raises:
            InputError: the file cannot be read, is truncated or malformed.
        """
        ...

    def read_matrix(self, tensor: Tensor, stored: FileAccess, landing: Landing) -> tuple[Weights | Packed, str]:
        """Read a tensor to where its bytes land (see weights.plain); with the digest of the bytes (see read_bytes).

        Raises:
            WeightsError: the file changed or cannot be read, or the dtype is no floating-point type.
        """
        return read_plain(tensor, stored, landing)

    def dequantisation(self, dtype: str) -> str:  # noqa: ARG002 - most formats have no types of their own
        """How a stored type that is no plain number becomes one, as shown in the tree and in the provenance; "" if
        `read_matrix` cannot convert it.
        """
        return ""

    def vocabulary(self, file: Path) -> dict[int, str]:  # noqa: ARG002 - most files hold only weights
        """The tokens' texts by number, from a file of a format that stands alone; {} if it lists none.

        Raises:
            InputError: the file cannot be read or is malformed.
        """
        return {}

    def quantisation(self, tensors: Iterable[Tensor]) -> str:  # noqa: ARG002 - as above
        """The format's own quantised type that most weights have, "" if there is none."""
        return ""

    def bytes_on(self, device: str, tensor: Tensor) -> int:
        """Memory that a tensor's weights take on a device; types that numpy does not know become float32 on the CPU."""
        stored = tensor.end - tensor.begin
        return 4 * math.prod(tensor.shape) if device == "cpu" and tensor.dtype in WIDENED else stored


class Ends(Protocol):
    """The two ends of a file on a server; bytes that are not here yet are fetched."""

    def first(self, count: int) -> bytes:
        """At least the first `count` bytes, or the whole file if it is shorter."""
        ...

    def last(self, count: int) -> bytes:
        """At least the last `count` bytes, or the whole file if it is shorter."""
        ...


@runtime_checkable
class Ranged(Format, Protocol):
    """A format whose files can be listed from their first and last bytes, and therefore on a server."""

    def header(self, ends: Ends, size: int, file: Path) -> bytes:
        """The bytes that are needed to list a file of `size` bytes.

        Raises:
            InputError: they would be longer than the file or than a header may be, or are malformed, or this file
                cannot be read in part.
        """
        ...

    def parse(self, header: bytes, file: Path, size: int, source: Source, origin: Origin) -> Parsed:
        """Parse the header of a file of `size` bytes. From `origin` only the number of parts and the listings are used.

        Raises:
            InputError: the header is malformed, or does not fit the file.
        """
        ...
