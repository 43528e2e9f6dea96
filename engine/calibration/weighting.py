"""A file of second moments as what weights a model's projections; and opening it, whatever its layout."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ..catalogue.names import inner_config
from ..catalogue.sizes import family_of, sizes
from ..checkpoint import hub
from ..errors import InputError, WeightsError, printable
from ..formats import foreign
from ..formats.guarded import head_of, open_regular
from ..moment import Moment
from ..spectrum import Projection, Values
from .channels import order_of
from .doubts import doubts
from .held import Held, Matrix, Order
from .imatrix import read_gguf, read_legacy
from .inputs import Inputs
from .moments import read_moments
from .said import sink_lines

_WANTED = "an imatrix of llama.cpp or a file of moments"
_ZIP = b"PK\x03\x04"  # of which foreign.content says how to open it as a model


class FileWeighting:
    """See moment.Weighting: the second moments that a file holds of a model's inputs.

    `named` is the file's name, on the Hub with its repo. `model` is the name of the model, `config` its config.json
    ({} where it is not known), which tells in which order GGUF has the input features of some matrices. `warnings` are
    lines the user should see: that the file may be of another model.
    """

    def __init__(self, named: str, held: Held, model: str, config: Mapping[str, Any]) -> None:
        self._named, self._held, self._config = printable(named, 100), held, config
        self._inner = inner_config(config, "")
        self._inputs = Inputs(held.names, family_of(self._inner))
        lines = doubts(named, *held.said, self._inputs.layers, model, config)
        self.warnings = tuple(f"{self._named} may be of another model: {line}" for line in lines)

    @property
    def name(self) -> str:
        """See Weighting: "imatrix" or "moments"."""
        return self._held.kind

    @property
    def label(self) -> str:
        """See Weighting."""
        about = f" ({self._held.about})" if self._held.about else ""
        return f"{self._held.kind} {self._named}{about}"

    def notes(self, projections: Iterable[Projection]) -> Iterator[str]:
        """Lines on ranks of these that say less than they seem to: position 0 may hold nearly all of the energy."""
        yield from sink_lines(self._held.figures, [p.address for p in projections])

    def moment(self, projection: Projection) -> Moment:
        """See Weighting.

        Raises:
            UnseenError: no token of the calibration reached it.
            WeightsError: there is none that can be used.
        """
        return self._held.moment(*self._input(projection))

    def mean(self, projection: Projection) -> Values:
        """The mean E[x] of a projection's input, shape (cols,).

        Raises:
            WeightsError: the file has none that can be used.
        """
        return self._held.first(*self._input(projection))

    def _input(self, projection: Projection) -> tuple[str, int, Matrix | None, Order | None]:
        """The input of a projection in the file: the tensor's name there, how many features, which matrix of a stack,
        and their order."""
        if not projection.cols:
            raise WeightsError(f"{printable(projection.tensor)} is no matrix")
        name, number = self._inputs.of(projection)
        experts = sizes(self._inner, projection.layer or 0).get("experts", 0) if projection.block == "expert" else 0
        matrix = None if number is None else Matrix(number, experts)
        return name, projection.cols, matrix, order_of(projection, self._config, name)


def open_weighting(text: str, model: str, config: Mapping[str, Any]) -> FileWeighting:
    """Open what a user names: a file, else `org/name/file` or `org/name@revision/file` on the Hub; told by its content.

    `model` and `config`: see FileWeighting.

    Raises:
        InputError: no such file, it cannot be had, or it holds something else.
    """
    path = _path(text)
    file = path or hub.file_of(text)
    head = head_of(file, foreign.HEAD)
    held: Held | None = None
    if head.startswith(b"GGUF"):
        held = read_gguf(file)
    elif foreign.is_imatrix(head):
        held = read_legacy(file)
    elif head[8:9] == b"{":
        held = read_moments(file)
    elif not head.startswith(_ZIP) and (told := foreign.content(head, _WANTED)):
        raise InputError(f"{printable(text)} {told}")
    if held is None:
        raise InputError(f"{printable(text)} holds no second moments: name {_WANTED}")
    return FileWeighting(path.name if path else text.removeprefix(hub.SCHEME), held, model, config)


def _path(text: str) -> Path | None:
    """The file here that a user names, None where it may be one on the Hub."""
    try:
        path = Path(text).expanduser()
        if path.is_dir():
            raise InputError(f"{printable(text)} is a folder: name {_WANTED} in it")
        with open_regular(path):
            return path
    except (FileNotFoundError, NotADirectoryError, ValueError, RuntimeError):  # also a null character, ~nobody
        if text.startswith((".", "/", "~")):
            raise InputError(f"no such file: {printable(text)}") from None
        return None
    except OSError as error:
        raise InputError(f"cannot read {printable(text)}: {error.strerror}") from None
