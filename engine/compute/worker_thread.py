"""Solving the jobs of a batch in a worker thread: their matrices together, or one after the other."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeAlias

from ..catalogue.rules import cut
from ..errors import WeightsError, printable
from ..spectrum import LEADING, Projection, Provenance, Run, Spectrum
from ..weights import Packed
from . import devices
from .job import Job

if TYPE_CHECKING:
    from ..derive.weigh import ValuesCheck
    from ..solvers.batch import Outcome
    from ..solvers.ladder import Rung, Solution
    from ..weights import Weights

ProjectionJob: TypeAlias = tuple[Projection, Job]


def own_stream(device: str) -> AbstractContextManager[object]:
    """A CUDA stream for this thread, so that its copies and products run beside those of another thread."""
    if device == "cpu":
        return nullcontext()
    import torch

    try:
        return torch.cuda.stream(torch.cuda.Stream(device))  # type: ignore[no-untyped-call]
    except RuntimeError:  # a driver that does not answer: the ladder falls back to the CPU
        return nullcontext()


def groups(jobs: list[Job], limit_of: Callable[[int], int]) -> list[list[ProjectionJob]]:
    """The projections of the jobs, in groups of at most `limit_of(side)` with the same smaller side, in their order."""
    made: list[list[ProjectionJob]] = []
    open_ones: dict[int, list[ProjectionJob]] = {}
    for job in jobs:
        for projection in job.projections:
            if projection.is_directions:
                made.append([(projection, job)])
                continue
            group = open_ones.get(projection.count)
            if group is None or len(group) >= limit_of(projection.count):
                group = open_ones[projection.count] = []
                made.append(group)
            group.append((projection, job))
    return made


class Solver:
    """The solvers of one device, which import torch for a GPU; used by one thread.

    `limit_of(side)` is how many matrices with that smaller side are solved together. `tell` is called once if the
    device can solve none together any more, with the reason. With `stays`, a matrix that has no room on the device
    fails instead of being solved on the CPU.
    """

    def __init__(self, device: str, run: Run, tell: Callable[[str], None], stays: bool = False) -> None:
        from ..solvers.ladder import choose

        self.device = device
        self.limit_of = _limits(device) if devices.is_gpu(device) else _alone
        self._rungs = [rung for rung in choose(device) if not stays or rung.device == device]
        self._checks: dict[str, ValuesCheck] = {}  # by key: for weighted matrices that are made and not solved yet
        self._notes: dict[str, str] = {}  # by key: what was found while a derived matrix was made
        self._run = run
        self._tell = tell

    def solve(self, group: list[ProjectionJob]) -> Iterator[Spectrum | str]:
        """Yield for each projection its spectrum, or the sentence that says why it has none. All have the same smaller
        side.

        A matrix that the batch cannot prove goes through the ladder, as a single matrix does.
        """
        for (projection, job), outcome in zip(group, self._together(group), strict=True):
            try:
                yield self._spectrum(projection, job, outcome, self._rungs)
            except WeightsError as error:
                yield str(error)
            except Exception as error:  # noqa: BLE001 - one matrix must not end the scan
                yield f"cannot be computed: {type(error).__name__}: {error}"

    def solve_again(self, projection: Projection, job: Job) -> Spectrum | None:
        """The spectrum by the device's SVD, which also gets the smallest values right; None if that fails."""
        from ..solvers.ladder import by_svd

        try:
            return self._spectrum(projection, job, None, [by_svd(self.device)])
        except Exception:  # noqa: BLE001 - no room, not converged: the first result counts
            return None

    def _together(self, group: list[ProjectionJob]) -> list[Outcome]:
        count, small = len(group), group[0][0].count
        if count == 1:
            return [None]
        from ..solvers.batch import faster_together, solve_batch

        if not faster_together(self.device, small):
            return [None] * count
        return solve_batch((self._matrix(*item) for item in group), count, small, self.device, self._stop_batches)

    def _stop_batches(self, reason: str) -> None:
        """Solve one matrix at a time from now on."""
        self.limit_of = _alone
        line = printable(reason.splitlines()[0], 120)
        self._tell(f"{self.device} solves its matrices one by one, some ten times slower: {line}")

    def _spectrum(self, projection: Projection, job: Job, outcome: Outcome, rungs: list[Rung]) -> Spectrum:
        from ..solvers.ladder import solve

        if projection.is_directions:
            return self._directions(projection, job)
        if isinstance(outcome, WeightsError):
            raise outcome
        if outcome is None:
            matrix = self._matrix(projection, job)
            found: Solution = solve(matrix, self._accepting(projection, rungs))
        else:
            found = outcome
        check, note = self._checks.pop(projection.key, None), self._notes.pop(projection.key, "")
        proven = check.proven(found.values, found.provenance) if check else found.provenance
        return self._made(_noted(projection, note), job, found.values, proven)

    def _directions(self, projection: Projection, job: Job) -> Spectrum:
        """The leading directions of a projection, packed as the values of a spectrum."""
        import numpy as np

        from ..derive.directions import matrix_behind, packed
        from ..solvers import leading

        start = time.perf_counter()
        behind = matrix_behind(projection)
        matrix = self._matrix(behind, job)
        self._checks.pop(behind.key, None)
        self._notes.pop(behind.key, None)
        found = leading.leading_triplets(matrix.T if behind.transposed else matrix, LEADING, self.device)
        norm = float(np.linalg.norm(found.row_norms))
        seconds = time.perf_counter() - start
        by = Provenance(norm, found.solver, leading.VERSION, "float64", found.residual, 0.0, found.device, seconds)
        return self._made(projection, job, packed(found), by)

    def _made(self, projection: Projection, job: Job, values: Any, provenance: Provenance) -> Spectrum:
        seen = tuple(job.part(parent).seen for parent in projection.parents)
        return Spectrum(projection, values, provenance, devices.utc_now(), seen, self._run)

    def _matrix(self, projection: Projection, job: Job) -> Weights:
        """The projection's part of its stored tensor, or the matrix that a formula makes of its parents."""
        matrices = [_part(parent, job.part(parent).weights) for parent in projection.parents]
        made = projection.derived
        if made is None:
            return matrices[0]
        from ..derive.formulas import FORMULAS  # numpy
        from ..derive.weigh import NotedMatrix, Weighed

        turned = [m.T if parent.transposed else m for parent, m in zip(made.parents, matrices, strict=False)]
        if made.weighting:
            turned = [self._moved(m) for m in turned or matrices]
        found = FORMULAS[made.formula](projection, turned or matrices)
        if isinstance(found, NotedMatrix):
            self._notes[projection.key] = found.note
            found = found.matrix
        if not isinstance(found, Weighed):
            return found
        self._checks[projection.key] = found.check
        return found.matrix

    def _moved(self, matrix: Weights) -> Weights:
        """The matrix on the device, where it is weighted and solved; where it is if the device has no room."""
        from ..solvers.ladder import moved

        try:
            return moved(matrix, self.device)
        except RuntimeError:
            return matrix

    def _accepting(self, projection: Projection, rungs: list[Rung]) -> list[Rung]:
        """The rungs, none of which rejects small values if those carry errors of the second moments: another solver
        would not improve them."""
        check = self._checks.get(projection.key)
        if check is None or check.is_exact:
            return rungs
        return [replace(rung, reach=math.inf) for rung in rungs]


def _noted(projection: Projection, note: str) -> Projection:
    """The projection with what was found while its matrix was made at the end of its label."""
    made = projection.derived
    if made is None or not note or (made.weighting and not made.is_further):  # then the label names the weighting
        return projection
    return replace(projection, derived=replace(made, label=f"{made.label}; {note}"))


def _alone(_small: int) -> int:
    return 1


def _limits(device: str) -> Callable[[int], int]:
    from ..solvers.batch import limits

    return limits(device)


def _part(projection: Projection, held: Weights | Packed) -> Weights:
    """The projection's part of its tensor, as floats; made on the CPU if the device has no room for them."""
    try:
        return _taken(projection, held)
    except RuntimeError:
        if not isinstance(held, Packed):
            raise
        return _taken(projection, held.on_host())


def _taken(projection: Projection, held: Weights | Packed) -> Weights:
    if projection.slice is not None:
        part: Weights = cut(held, projection.slice)
        return part
    return held.reshape(*held.shape) if isinstance(held, Packed) else held
