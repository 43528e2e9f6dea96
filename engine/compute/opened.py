"""What a worker process opens for a batch: the checkpoints that it names, and the operands of its projections."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

from ..calibration.appended import APPENDED, AppendedWeighting
from ..calibration.file_weighting import ABOUT_MEAN, open_weighting
from ..calibration.pooled import POOLED, PooledWeighting
from ..catalogue.tree import build_tree
from ..checkpoint.open import Checkpoint
from ..derive.biases import Biases
from ..derive.gains import Gains
from ..derive.norm_weighting import NormWeighting
from ..errors import InputError, WeightsError, printable
from ..moment import Weighting
from ..spectrum import Operand, Projection
from .job import find, place_of


class RefusedError(Exception):
    """A worker can take neither this batch nor any other that needs the same files; the message is one sentence."""


class OpenedCheckpoints:
    """The checkpoints of a batch, opened by this process, and the sources of its projections' operands."""

    def __init__(self, checkpoints: Sequence[Checkpoint]) -> None:
        self.checkpoints = tuple(checkpoints)
        self._named = [(held, {tensor.name: tensor for tensor in held.tensors}) for held in checkpoints]
        self._weightings: dict[tuple[str, int], Weighting] = {}
        self._gains: dict[int, Gains] = {}
        self._biases: dict[int, Biases] = {}

    def whole(self, projection: Projection) -> Projection:
        """A projection that came from another process, with operands that can be loaded here.

        Raises:
            RefusedError: no file here holds its tensor, or its operands.
        """
        homes = [self._home(parent) for parent in projection.parents]
        made = projection.derived
        if made is None or not made.operands or projection.is_product:
            return projection
        here = {operand.digest: operand for operand in made.operands if operand.load is not None}
        for file in dict.fromkeys(operand.file for operand in made.operands if operand.load is None):
            here |= self._operands(file, projection, homes)
        lacking = [operand for operand in made.operands if operand.digest not in here]
        if lacking:
            raise RefusedError(f"{printable(lacking[0].file) or 'the norms of the model'} holds other numbers there")
        return replace(projection, derived=replace(made, operands=tuple(here[o.digest] for o in made.operands)))

    def _home(self, parent: Projection) -> Checkpoint:
        try:
            return find(place_of(parent), self._named)[0]
        except KeyError:
            named = printable(parent.source.file)
            raise RefusedError(f"{named} is another file there: a copy with a time or content of its own") from None

    def _operands(self, file: str, projection: Projection, homes: Sequence[Checkpoint]) -> dict[str, Operand]:
        """The operands, by digest, that a file of second moments, or ("") the norms and biases of the checkpoint, hold
        for the parents of a projection."""
        found: dict[str, Operand] = {}
        for parent, home in zip(projection.parents, homes, strict=True):
            for operands in (self._moment, *((self._gain, self._bias) if not file else ())):
                with suppress(WeightsError):
                    found |= {operand.digest: operand for operand in operands(file, parent, home)}
        return found

    def _moment(self, file: str, parent: Projection, home: Checkpoint) -> tuple[Operand, ...]:
        return self._weighting(file, home).moment(parent).operands

    def _gain(self, _: str, parent: Projection, home: Checkpoint) -> tuple[Operand, ...]:
        return (self._gains.setdefault(id(home), Gains(home)).before(parent),)

    def _bias(self, _: str, parent: Projection, home: Checkpoint) -> tuple[Operand, ...]:
        return (self._biases.setdefault(id(home), Biases(home)).operand(parent),)

    def _weighting(self, file: str, home: Checkpoint) -> Weighting:
        key = file, id(home)
        if key not in self._weightings:
            try:
                self._weightings[key] = _weighting_of(file, home)
            except InputError as error:
                raise RefusedError(str(error)) from None
        return self._weightings[key]


def _weighting_of(file: str, home: Checkpoint) -> Weighting:
    """The weighting that Operand.file names.

    Raises:
        InputError: it cannot be opened.
    """
    if not file:
        return NormWeighting(home)
    if file.startswith(APPENDED):
        return AppendedWeighting(open_weighting(file.removeprefix(APPENDED), home.name, home.config))
    if file.startswith(POOLED):
        opened = open_weighting(file.removeprefix(POOLED), home.name, home.config)
        return PooledWeighting(opened, build_tree(home).projections)
    return open_weighting(file.removeprefix(ABOUT_MEAN), home.name, home.config, file.startswith(ABOUT_MEAN))
