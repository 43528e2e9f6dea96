"""The modules of a model in transformers and the projections that each holds, for LoRA adapters.

Names are those of the instantiated model, which is made without weights. transformers fuses and stacks what a
checkpoint holds in parts, so a module's matrix may be several projections.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..calibration.running import Fed, fed_of, skeleton
from ..checkpoint.open import Checkpoint
from ..spectrum import Projection

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, slots=True)
class LoraModule:
    """A module or parameter that an entry of target_modules or target_parameters names.

    `name` is the module's or, with `is_parameter`, that of a parameter that is a stack of experts. `matrices` are the
    projections that make up each of its matrices: one, or one for each expert. `is_turned`: it is stored as
    (input, output), as in Conv1D.
    """

    name: str
    is_parameter: bool
    is_turned: bool
    matrices: tuple[tuple[Projection, ...], ...]


@dataclass(frozen=True, slots=True)
class LoraModules:
    """The modules of some projections. `left` has the other projections, with the reason why they get no adapter.
    `names` are all modules and parameters of the model, in its order, which PEFT matches against. `has_stacks`: some
    are stacks of experts, and PEFT takes modules with certain names for parts of these."""

    kind: str
    modules: tuple[LoraModule, ...]
    left: tuple[tuple[Projection, str], ...]
    names: tuple[str, ...]
    has_stacks: bool = False


def modules_of(checkpoint: Checkpoint, projections: Sequence[Projection]) -> LoraModules:
    """The modules that hold these projections of a checkpoint.

    Raises:
        InputError: transformers is not installed, or cannot make a model of the checkpoint.
    """
    model = skeleton(checkpoint)
    paths = {id(module): path for path, module in model.named_modules()}
    fed, lost = fed_of(model, projections, checkpoint)
    left = [(p, "no module of the instantiated model is known to hold it") for p in lost]
    found: dict[tuple[str, bool], list[Fed]] = defaultdict(list)
    for one in fed:
        path = paths[id(one.module)]
        found[f"{path}.{one.parameter}" if one.parameter else path, bool(one.parameter)].append(one)
    modules = []
    for (name, is_parameter), parts in found.items():
        if reason := _why_not(parts):
            left += [(p, f"{name} {reason}") for one in parts for p in one.projections]
        else:
            matrices = tuple(one.projections for one in sorted(parts, key=lambda one: one.expert or 0))
            modules.append(LoraModule(name, is_parameter, _is_turned(parts[0]), matrices))
    stacks = (name for name, parameter in model.named_parameters() if parameter.dim() == 3)
    has_stacks = any("experts" in name.split(".") for name in stacks)
    return LoraModules(type(model).__name__, tuple(modules), tuple(left), tuple(_names(model)), has_stacks)


def _names(model: nn.Module) -> Iterator[str]:
    yield from (path for path, _ in model.named_modules() if path)
    yield from (name for name, parameter in model.named_parameters() if parameter.dim() > 1)


def _why_not(parts: Sequence[Fed]) -> str:
    """Why a module gets no adapter, "" if it can have one."""
    for one in parts:
        if sum(p.rows for p in one.projections) != _rows(one):
            return "holds more than these projections"
    count = _stack(parts[0])
    return f"holds {count} experts, of which {len(parts)} are compared" if count and len(parts) != count else ""


def _stack(one: Fed) -> int:
    """How many experts a parameter stacks, 0 for a module."""
    return int(_parameter(one).shape[0]) if one.parameter else 0


def _rows(one: Fed) -> int:
    """The number of output features of one of its matrices."""
    shape = _parameter(one).shape[-2:]
    return int(shape[1] if shape[0] == one.cols and _is_turned(one) else shape[0])


def _parameter(one: Fed) -> Any:
    return getattr(one.module, one.parameter or "weight")


def _is_turned(one: Fed) -> bool:
    return bool(getattr(one.module, "is_transposed", type(one.module).__name__ == "Conv1D"))


def suffixed(names: Iterable[str], targets: Mapping[str, int]) -> list[str]:
    """The names that are no targets but end in a dot and a target's name: PEFT would match them as well."""
    return [name for name in names if name not in targets and any(ending in targets for ending in _endings(name))]


def _endings(name: str) -> Iterator[str]:
    while name:
        _, _, name = name.partition(".")
        yield name
