"""The weighting of a model's projections by a file of second moments, and opening such a file, whatever its layout."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..catalogue.names import inner_config
from ..catalogue.sizes import family_of, sizes
from ..checkpoint import hub
from ..derive.weighting import CENTRED_NAME, WEIGHED
from ..errors import InputError, WeightsError, cannot_read, printable
from ..formats import foreign
from ..formats.guarded import head_of, no_such, open_regular
from ..moment import Moment
from ..spectrum import Projection, Values
from .centred import centred_moment
from .channels import order_of
from .doubts import doubts
from .imatrix import read_gguf, read_legacy
from .inputs import Inputs
from .moment_reader import FeatureOrder, MomentReader, StackedMatrix
from .moments_read import read_moments
from .said import ENOUGH, Figures, Said, names_known, scarce_line

_WANTED = "an imatrix of llama.cpp or a file of moments"
ABOUT_MEAN = f"{CENTRED_NAME}:"
"""The prefix of the file's name in operands that hold moments about the mean."""
_ZIP = b"PK\x03\x04"  # foreign.content would tell how to open it as a model, which is no help here


class FileWeighting:
    """The Weighting (see moment.py) of a model by the second moments in a file.

    `named` is the file's name for the user, with its repo if it is on the Hub, `file` the one with which another
    process opens it. `model` is the name of the model, `config` its config.json ({} if not known), which gives the
    order in which GGUF has the input features of some matrices. `warnings` are lines for the user if the file may
    belong to another model. `is_centred`: take moments about the mean, only for display, as what factors cost is
    uncentred.
    """

    def __init__(
        self, named: str, file: str, held: MomentReader, model: str, config: Mapping[str, Any], is_centred: bool = False
    ) -> None:
        self.is_centred = is_centred
        self._named, self._held, self._config = printable(named, 100), held, config
        self.file = f"{ABOUT_MEAN}{file}" if is_centred else file
        self._inner = inner_config(config, "")
        self._inputs = Inputs(held.names, family_of(self._inner))
        lines = doubts(named, *held.said, self._inputs.layers, model, config)
        self.warnings = tuple(f"{self._named} may be of another model: {line}" for line in lines)

    @property
    def name(self) -> str:
        """See Weighting: "imatrix" or "moments", or CENTRED_NAME for either of them about its mean."""
        return CENTRED_NAME if self.is_centred else self._held.kind

    @property
    def label(self) -> str:
        """See Weighting."""
        about = f" ({self._held.about})" if self._held.about else ""
        centred = f"{CENTRED_NAME} " if self.is_centred else ""
        return f"{centred}{self._held.kind} {self._named}{about}"

    @property
    def tokens_read(self) -> frozenset[str] | None:
        """See MomentReader."""
        return self._held.tokens_read

    def said(self, projections: Iterable[Projection]) -> Said:
        """What the file tells of these projections under this weighting, in addition to their moments."""
        found = {p.address: made for p in projections if p.rows and not p.problem and (made := self._figures(p))}
        enough = 0 if self._held.kind == "imatrix" else ENOUGH  # an imatrix is only a diagonal, and needs fewer
        lines = filter(None, (self._on_position_0(), scarce_line(found.values(), enough)))
        is_split = self.is_centred or self._held.is_split
        known = {*names_known(found.values()), *([] if is_split else ["sink"])}
        return Said(found, tuple(lines), is_split, known, enough)

    def _figures(self, p: Projection) -> Figures | None:
        """The figures in the file if they fit what is shown: uncentred and in no gauge. Else only the tokens."""
        known = self._held.figures.get(p.address)
        if known is not None and known.cols == p.cols:
            is_meant = not self.is_centred and p.derived is not None and p.derived.formula.startswith(WEIGHED)
            return known if is_meant else Figures(known.tokens, known.cols)
        name, matrix, _ = self._place(p)
        tokens = self._held.tokens_of(name, matrix)
        return Figures(tokens, p.cols) if tokens else None

    def _on_position_0(self) -> str:
        """Why the energy of position 0 is not known, "" if it is or does not matter."""
        if self.is_centred:
            return ""
        if not self._held.is_split:
            what = "an imatrix" if self._held.kind == "imatrix" else self._named
            alone = "where it holds most of the energy, ranks describe only that"
            return f"{what} does not keep position 0 apart: {alone}"
        if any(made.sink is not None for made in self._held.figures.values()):
            return ""
        return f"{self._named} does not say how much energy position 0 holds: rankscope moments writes files that do"

    def moment(self, projection: Projection) -> Moment:
        """See Weighting.

        Raises:
            UnseenError: no token of the calibration reached it.
            WeightsError: the file has no usable moment for it.
        """
        name, matrix, order = self._place(projection)
        if self.is_centred:
            found = centred_moment(self._held, name, projection.cols, matrix, order)
        else:
            found = self._held.moment(name, projection.cols, matrix, order)
        return found.of_file(self.file)

    def mean(self, projection: Projection) -> Values:
        """The mean E[x] of a projection's input, shape (cols,).

        Raises:
            WeightsError: the file has no usable one.
        """
        name, matrix, order = self._place(projection)
        return self._held.mean(name, projection.cols, matrix, order)

    def tokens(self, projection: Projection) -> float:
        """How many tokens reached the input of a projection.

        Raises:
            WeightsError: the file does not tell.
        """
        name, matrix, _ = self._place(projection)
        tokens = self._held.tokens_of(name, matrix)
        if tokens is None:
            again = ": make it again with llama-imatrix, as GGUF" if self._held.kind == "imatrix" else ""
            raise WeightsError(f"{printable(name)} has no token count of its own in the file{again}")
        return tokens

    def _place(self, projection: Projection) -> tuple[str, StackedMatrix | None, FeatureOrder | None]:
        """The tensor of the file that has a projection's input, the matrix if it is a stack, and the feature order.

        Raises:
            WeightsError: no tensor has it.
        """
        if not projection.cols:
            raise WeightsError(f"{printable(projection.tensor)} is not a matrix")
        name, number = self._inputs.of(projection)
        experts = sizes(self._inner, projection.layer or 0).get("experts", 0) if projection.block == "expert" else 0
        matrix = None if number is None else StackedMatrix(number, experts)
        return name, matrix, order_of(projection, self._config, name)


def open_weighting(text: str, model: str, config: Mapping[str, Any], is_centred: bool = False) -> FileWeighting:
    """Open the file that a user names: one here, else `org/name/file` or `org/name@revision/file` on the Hub.

    Its layout is recognised by its content. `model`, `config` and `is_centred`: see FileWeighting.

    Raises:
        InputError: there is no such file, it cannot be read, or it holds something else.
    """
    path = _path(text)
    file = path or hub.file_of(text)
    head = head_of(file, foreign.HEAD)
    held: MomentReader | None = None
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
    named = path.name if path else text.removeprefix(hub.SCHEME)
    return FileWeighting(named, str(path.absolute()) if path else text, held, model, config, is_centred)


def _path(text: str) -> Path | None:
    """The file here that a user names, None if it may be one on the Hub."""
    try:
        path = Path(text).expanduser()
        if path.is_dir():
            raise InputError(f"{printable(text)} is a folder: name {_WANTED} in it")
        with open_regular(path):
            return path
    except (FileNotFoundError, NotADirectoryError, ValueError, RuntimeError):  # also a null character, ~nobody
        if text.startswith((".", "/", "~")):
            raise no_such("file", text, f"name {_WANTED}") from None
        return None
    except OSError as error:
        raise cannot_read(text, error) from None
