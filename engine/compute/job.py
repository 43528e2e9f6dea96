"""The jobs that the queue orders: a stored tensor to be read, and the projections to be solved from it."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from ..checkpoint.open import Checkpoint
from ..checkpoint.ranges import RemoteFile
from ..formats.tensor import Tensor
from ..spectrum import Projection

URGENT, SCAN, SECOND = 0, 1, 2
"""Priorities, in order; SECOND is for solving a projection a second time, after all else."""

_NOT_READ = threading.Event()
"""Shared by all jobs that nobody reads yet: an event for each of 45,000 jobs would take a third of the queueing."""

TensorPlace: TypeAlias = tuple[str, str]
"""Where a tensor lies: the identity of the file, and the tensor's name in it."""


@dataclass(slots=True)
class Job:
    """The wanted projections of one stored tensor, which is read once for all of them, to one device.

    Derived projections may need more tensors, from this checkpoint or others. Each of these is a job in `beside`: its
    projections are the parents in that tensor, and it is read and freed with this one. `seen` is the digest of the
    tensor's bytes, `fault` the sentence that says why it could not be read. `withdrawn` is set once none of its
    projections is wanted any more. `kills` counts the worker processes that died while they had it, `no_room` names
    those that had too little memory.
    """

    priority: int
    number: int
    checkpoint: Checkpoint
    tensor: Tensor
    projections: list[Projection]
    device: str = ""
    weights: Any = field(default=None, repr=False)
    seen: str = ""
    withdrawn: threading.Event = field(default=_NOT_READ, repr=False)
    beside: tuple[Job, ...] = ()
    fault: str = ""
    kills: int = 0
    no_room: set[str] = field(default_factory=set, repr=False)

    @property
    def checkpoints(self) -> tuple[Checkpoint, ...]:
        """The checkpoints that it reads, each once, first that of its tensor."""
        return tuple({id(part.checkpoint): part.checkpoint for part in (self, *self.beside)}.values())

    @property
    def needs(self) -> tuple[str, ...]:
        """The names of the checkpoints and files of second moments that another process has to open for it."""
        made = (p.derived.operands for p in self.projections if p.derived is not None)
        files = dict.fromkeys(operand.file for operands in made for operand in operands if operand.file)
        return (*(checkpoint.elsewhere for checkpoint in self.checkpoints), *files)

    @property
    def is_doubtful(self) -> bool:
        """Whether a worker process died with it or had no room for it; it is then sent in a batch without others."""
        return bool(self.kills or self.no_room)

    @property
    def rank(self) -> tuple[int, int]:
        return self.priority, self.number

    @property
    def place(self) -> TensorPlace:
        """Where its tensor lies."""
        return self.tensor.source.identity, self.tensor.name

    @property
    def parts(self) -> tuple[Job, ...]:
        """This job and those in `beside` that its projections still need: an urgent job may have taken some over."""
        if not self.beside:
            return (self,)
        needed = {place for p in self.projections for place in places_of(p)}
        return tuple(job for job in (self, *self.beside) if job.place in needed)

    def part(self, parent: Projection) -> Job:
        """The job, this one or one in `beside`, whose tensor holds this parent."""
        if not self.beside:
            return self
        return next(job for job in (self, *self.beside) if job.place == place_of(parent))

    def fault_of(self, projection: Projection) -> str:
        """Why the weights of a projection, or of a named parent of it, could not be read; "" if they could."""
        for parent in projection.parents:
            if fault := self.part(parent).fault:
                return fault if parent is projection else f"{parent.label}: {fault}"
        return ""

    def let_go(self) -> None:
        """Free the memory of its weights."""
        for job in (self, *self.beside):
            job.weights = None

    def room_on(self, device: str) -> int:
        """How many bytes the weights of all its tensors take in a device's memory."""
        return sum(job.bytes_on(device) for job in self.parts)

    def bytes_on(self, device: str) -> int:
        """How many bytes the weights of its first tensor take in a device's memory."""
        return self.checkpoint.bytes_on(device, self.tensor)

    @property
    def bytes_to_fetch(self) -> int:
        """How many bytes of its tensors come from a server."""
        files = ((part.tensor, part.checkpoint.stamps.get(part.tensor.file)) for part in self.parts)
        return sum(tensor.stored_bytes for tensor, file in files if isinstance(file, RemoteFile))

    @property
    def cost(self) -> float:
        """The sum of Projection.cost over its projections."""
        return sum(p.cost for p in self.projections)

    @property
    def sides(self) -> tuple[int, ...]:
        """The smaller side of each projection, in ascending order; jobs with equal sides fit into one batch."""
        return tuple(sorted(p.count for p in self.projections))


def place_of(projection: Projection) -> TensorPlace:
    return projection.source.identity, projection.tensor


def places_of(projection: Projection) -> tuple[TensorPlace, ...]:
    """The places of the tensors that a projection needs, each once."""
    return tuple(dict.fromkeys(map(place_of, projection.parents)))


def grouped(projections: Iterable[Projection]) -> Iterator[tuple[tuple[TensorPlace, ...], list[Projection]]]:
    """Group projections by the tensor that they need; if one needs several tensors, these make one group."""
    groups: dict[TensorPlace, list[Projection]] = {}
    joined: dict[TensorPlace, tuple[TensorPlace, ...]] = {}  # each place of a group of several -> all of them
    for projection in projections:
        first, *more = (place_of(projection),) if projection.derived is None else places_of(projection)
        members = groups.setdefault(first, [])
        for place in more:
            if groups.get(place) is not members:
                members.extend(groups.get(place, ()))
                together = joined.get(first, (first,)) + joined.get(place, (place,))
                joined.update(dict.fromkeys(together, together))
                groups.update(dict.fromkeys(together, members))
        members.append(projection)
    done: set[TensorPlace] = set()
    for place, members in groups.items():
        if place not in joined:
            yield (place,), members
        elif place not in done:
            done.update(joined[place])
            yield joined[place], members


def find(place: TensorPlace, opened: Sequence[tuple[Checkpoint, Mapping[str, Tensor]]]) -> tuple[Checkpoint, Tensor]:
    identity, name = place
    for checkpoint, tensors in opened:
        if name in tensors and tensors[name].source.identity == identity:
            return checkpoint, tensors[name]
    raise KeyError(place)


def beside_of(job: Job, checkpoint: Checkpoint, tensor: Tensor) -> Job:
    """The job for one more tensor that the projections of `job` need."""
    parents = {parent.key: parent for p in job.projections for parent in p.parents}
    here = tensor.source.identity, tensor.name
    return Job(job.priority, job.number, checkpoint, tensor, [p for p in parents.values() if place_of(p) == here])
