"""Running a model over sequences of tokens, and summing the second moments of its projections' inputs."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from ..errors import InputError, printable
from .running import Fed, Take, forward
from .sums import WIDEST, Sums, bytes_of

if TYPE_CHECKING:
    import torch

HELD_OUT = 8
"""Every HELD_OUT-th sequence is held out."""
_TRIED = 8
"""How many tokens are run to see which modules they reach, in which order, and which of these share an input."""
_SHARE = 0.6
"""The share of a GPU's free memory that sums may take: the activations of a sequence need room too."""


@dataclass(frozen=True)
class CollectionPlan:
    """The inputs that are summed in each pass, and those that text does not reach. `full`: see Sums."""

    passes: tuple[tuple[Fed, ...], ...]
    unreached: tuple[Fed, ...]
    full: Callable[[Fed], bool] = field(repr=False)

    @property
    def fed(self) -> list[Fed]:
        """All inputs, in the order in which the model computes them."""
        return [fed for group in self.passes for fed in group]

    @property
    def bytes(self) -> int:
        """How many bytes all sums take, including those of position 0 and of held-out sequences."""
        return sum(self.bytes_of(group) for group in self.passes)

    @property
    def device_bytes(self) -> int:
        """How many bytes the largest pass takes on the device, in addition to the model."""
        return max(map(self.bytes_of, self.passes), default=0)

    def bytes_of(self, group: Sequence[Fed]) -> int:
        """How many bytes the sums of some inputs take."""
        return sum(bytes_of(fed.cols, self.full(fed)) for fed in group)


def room(device: str) -> int | None:
    """How many bytes sums may take on a GPU; None on the CPU, where all of them are kept anyway."""
    if device == "cpu":
        return None
    import torch

    return int(_SHARE * torch.cuda.mem_get_info(device)[0])


def is_full(fed: Fed) -> bool:
    """Return whether all of x x^T is summed: up to 8192 input features. For experts, which are many, only x^2 is."""
    return fed.cols <= WIDEST and all(p.expert is None for p in fed.projections)


def make_plan(model: torch.nn.Module, fed: Sequence[Fed], ids: Sequence[int], most: int | None) -> CollectionPlan:
    """Run a few tokens to see what to sum, and divide it into passes that take at most `most` bytes on the device.

    Raises:
        InputError: the model does not run on text, or a single input needs more room.
    """
    calls: dict[int, list[tuple[Any, ...]]] = defaultdict(list)
    kept: list[torch.Tensor] = []  # keeps them alive, as a freed tensor's address may be used again

    def take(one: Fed, rows: torch.Tensor, _: torch.Tensor | None) -> None:
        kept.append(rows)
        calls[id(one)].append((rows.data_ptr(), rows.shape, rows._version))

    with _watching(fed, take):
        forward(model, ids[:_TRIED])
    order = {key: number for number, key in enumerate(calls)}
    reached = [one for one in fed if id(one) in calls or _is_expert(one)]
    reached.sort(key=lambda one: order.get(id(one), len(order)))
    shared: dict[object, list[Fed]] = defaultdict(list)
    for one in reached:
        shared[id(one) if _is_expert(one) else tuple(calls[id(one)])].append(one)
    merged = [_merged(group) for group in shared.values()]
    unreached = tuple(one for one in fed if id(one) not in calls and not _is_expert(one))
    return CollectionPlan(tuple(_passes(merged, most)), unreached, is_full)


def _is_expert(fed: Fed) -> bool:
    """Return whether it feeds an expert: a few tokens do not reach every expert, and each gets a part of them."""
    return any(p.expert is not None for p in fed.projections)


def _merged(group: Sequence[Fed]) -> Fed:
    names = dict.fromkeys(name for one in group for name in one.names)
    return replace(group[0], names=tuple(names), projections=tuple(p for one in group for p in one.projections))


def _passes(fed: Sequence[Fed], most: int | None) -> Iterator[tuple[Fed, ...]]:
    group: list[Fed] = []
    used = 0
    for one in fed:
        size = bytes_of(one.cols, is_full(one))
        if most is not None and size > most:
            raise InputError(
                f"the sums of {printable(one.names[0])} need {size / 1e9:.1f} GB, more than the device has: use "
                "--device cpu"
            )
        if group and most is not None and used + size > most:
            yield tuple(group)
            group, used = [], 0
        group.append(one)
        used += size
    if group:
        yield tuple(group)


class Collector:
    """Sums inputs over sequences as they are run; every eighth sequence is held out. `seen` may be read at any time
    under `lock`, so that counts and sums agree."""

    def __init__(self, model: torch.nn.Module, plan: CollectionPlan) -> None:
        self.lock = threading.Lock()
        self.seen: dict[Fed, Sums] = {}
        self._model, self._plan = model, plan

    def run(self, sequences: Sequence[Sequence[int]], tell: Callable[[int, int], None]) -> None:
        """Run all sequences, once for each pass; `tell` is called with how many runs are done, and how many there are.

        Raises:
            InputError: the model does not run on them.
        """
        device = next(self._model.parameters()).device
        total = len(sequences) * len(self._plan.passes)
        for number, group in enumerate(self._plan.passes):
            with self.lock:
                made = {fed: Sums(fed.cols, self._plan.full(fed), device) for fed in group}
                self.seen |= made
            for place, ids in enumerate(sequences):
                with _watching(group, partial(self._take, place % HELD_OUT == HELD_OUT - 1)):
                    forward(self._model, ids)
                tell(number * len(sequences) + place + 1, total)
            if len(self._plan.passes) > 1:
                self._move(made)

    def _take(self, held: bool, fed: Fed, rows: torch.Tensor, positions: torch.Tensor | None) -> None:
        with self.lock:
            self.seen[fed].add(rows, None if positions is None else positions == 0, held)

    def _move(self, made: dict[Fed, Sums]) -> None:
        with self.lock:
            for sums in made.values():
                for part in sums.parts.values():
                    part.move()


@contextmanager
def _watching(fed: Sequence[Fed], take: Take) -> Iterator[None]:
    """Within this context, `take` is called with all inputs of these modules."""
    from .routed import Routed  # imports torch, as it derives from a class of it

    stacks: dict[Any, dict[tuple[str, int], Fed]] = defaultdict(dict)
    with ExitStack() as hooks:
        for one in fed:
            if one.parameter and one.expert is not None:
                stacks[one.module][one.parameter, one.expert] = one
            else:
                hook = partial(_arrived, one, take)
                hooks.callback(one.module.register_forward_pre_hook(hook, with_kwargs=True).remove)
        for module, experts in stacks.items():
            watch = Routed(module, experts, take)
            hooks.callback(module.register_forward_pre_hook(watch.begin).remove)
            hooks.callback(module.register_forward_hook(watch.end, always_call=True).remove)
        yield


def _arrived(fed: Fed, take: Take, _: object, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Hand on the input of a module that is called. Unless it is an expert, rows of one sequence are in its order."""
    import torch

    x: torch.Tensor = args[0] if args else next(iter(kwargs.values()))
    rows = x.reshape(-1, x.shape[-1])
    is_in_order = not _is_expert(fed) and (x.dim() == 2 or (x.dim() == 3 and len(x) == 1))
    take(fed, rows, torch.arange(len(rows), device=rows.device) if is_in_order else None)
