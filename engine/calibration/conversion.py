"""How transformers makes each parameter of a model of a checkpoint's tensors: one parameter, or one expert, at a time.

transformers renames, stacks, cuts and transposes tensors when it loads them. Its own conversions are used here, on only
the tensors of one parameter.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

from ..checkpoint.open import Checkpoint
from ..formats.tensor import Tensor
from . import gguf_conversion

if TYPE_CHECKING:
    import torch

Read: TypeAlias = Callable[[Tensor, "int | None"], "torch.Tensor"]
"""Reads a stored tensor in its shape; or of a stack only the matrix of this number, as a stack of one."""
Source: TypeAlias = tuple[str, Tensor]
"""A stored tensor, and the name under which a conversion takes it: several tensors may have the same."""
_SEPARABLE = frozenset(("Concatenate", "ConcatenateRows", "Transpose", "Interleave", "Chunk"))
"""The operations of transformers that treat every matrix of a stack by itself if they do not act on axis 0."""
_AXES = ("dim", "dim0", "dim1")


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a parameter is made: `convert` makes it of the numbers of its `sources`, each with its name, in their order.
    With `separates` it makes one matrix of a stack of what is stored of that matrix."""

    sources: tuple[Source, ...]
    convert: Callable[[Sequence[tuple[str, torch.Tensor]]], torch.Tensor]
    separates: bool = True

    @property
    def is_copy(self) -> bool:
        """True if the parameter is a stored tensor as it is."""
        return self.convert is _copied

    def whole(self, read: Read) -> torch.Tensor:
        """The parameter."""
        return self.convert([(name, read(tensor, None)) for name, tensor in self.sources])

    def experts(self, count: int, read: Read) -> Iterator[torch.Tensor]:
        """The matrices of a parameter that is a stack of `count`, each read when it is taken where that is possible."""
        parts = self._by_expert(count)
        if parts is None:
            yield from self.whole(read)
            return
        for chosen in parts:
            yield self.convert([(name, read(tensor, number)) for name, tensor, number in chosen])[0]

    def keeps_order(self, shape: tuple[int, ...]) -> bool:
        """Whether rows and columns of a matrix keep their order; it may be transposed. `shape` is the stored one."""
        import torch

        ((name, _),) = self.sources
        probe = torch.arange(shape[0] * shape[1], dtype=torch.float64).reshape(shape)
        made = self.convert([(name, probe)])
        return torch.equal(made, probe) or torch.equal(made, probe.T)

    def _by_expert(self, count: int) -> list[list[tuple[str, Tensor, int | None]]] | None:
        """For each matrix of a stack what is read for it; None if the whole stack has to be converted."""
        grouped: dict[str, list[Tensor]] = defaultdict(list)
        for name, tensor in self.sources:
            grouped[name].append(tensor)
        chosen: list[list[tuple[str, Tensor, int | None]]] = [[] for _ in range(count)]
        for name, tensors in grouped.items():
            is_stack = len(tensors) == 1 and len(tensors[0].shape) == 3 and tensors[0].shape[0] == count
            if not self.separates or not (is_stack or len(tensors) == count):
                return None
            for number, parts in enumerate(chosen):
                parts.append((name, tensors[0], number) if is_stack else (name, tensors[number], None))
        return chosen


def recipes_of(checkpoint: Checkpoint, model: torch.nn.Module) -> Mapping[str, Recipe]:
    """The recipes of the parameters that a checkpoint holds, by their names in the `model` (see running.skeleton).

    Without those that this version of transformers does not tell.
    """
    try:
        if checkpoint.format.stands_alone:
            return _of_gguf(checkpoint, model)
        from transformers.conversion_mapping import get_model_conversion_mapping

        return _converted(get_model_conversion_mapping(model), checkpoint.tensors, model)  # type: ignore[arg-type]
    except ImportError:
        return {}


def _of_gguf(checkpoint: Checkpoint, model: torch.nn.Module) -> dict[str, Recipe]:
    file = next(iter(checkpoint.stamps))
    if (transforms := gguf_conversion.transforms_of(file, model)) is not None:
        return _converted(transforms, checkpoint.tensors, model)
    processing = gguf_conversion.Processing(file, model)
    grouped: dict[str, list[Source]] = defaultdict(list)
    for tensor in checkpoint.tensors:
        if target := processing.target(tensor.name):
            grouped[target].append((tensor.name, tensor))
    return {name: Recipe(tuple(sources), partial(processing.made, name)) for name, sources in grouped.items()}


def _converted(transforms: Sequence[Any], tensors: Iterable[Tensor], model: Any) -> dict[str, Recipe]:
    """The recipes by transformers' list of renamings and conversions, as its convert_and_load_state_dict_in_model
    applies them."""
    from transformers.core_model_loading import WeightConverter, dot_natural_key, rename_source_key

    converters = [one for one in transforms if isinstance(one, WeightConverter)]
    renamings = [one for one in transforms if not isinstance(one, WeightConverter)]
    by_pattern = {pattern: one for one in converters for pattern in one.source_patterns}
    state, prefix = model.state_dict(), getattr(model, "base_model_prefix", "")
    copies: dict[str, Tensor] = {}
    grouped: dict[str, list[Source]] = defaultdict(list)
    for tensor in sorted(tensors, key=lambda one: dot_natural_key(one.name)):  # some renamings need their order
        name, pattern = rename_source_key(tensor.name, renamings, converters, prefix, state)
        if name not in state and tensor.name in state:
            name, pattern = rename_source_key(tensor.name, [], [], prefix, state)
        if pattern is not None:
            grouped[name].append((pattern, tensor))
        else:
            copies.setdefault(name, tensor)
    made = {name: Recipe(((name, tensor),), _copied) for name, tensor in copies.items() if name in state}
    for first, sources in grouped.items():
        converter = by_pattern[sources[0][0]]
        for target in converter.target_patterns:  # the first one is in the name
            name = first.replace(converter.target_patterns[0], target)
            convert = partial(_by_converter, converter, model, first, name)
            made.setdefault(name, Recipe(tuple(sources), convert, _separates(converter)))
    return made


def _copied(numbers: Sequence[tuple[str, torch.Tensor]]) -> torch.Tensor:
    return numbers[0][1]


def _by_converter(
    converter: Any, model: Any, first: str, name: str, numbers: Sequence[tuple[str, torch.Tensor]]
) -> torch.Tensor:
    """One of the parameters that a WeightConverter makes; `first` is the one by which transformers calls it."""
    one = deepcopy(converter)
    for pattern, tensor in numbers:
        one.add_tensor(first, first, pattern, lambda tensor=tensor: tensor)
    made = one.convert(first, model=model, config=model.config)[name]
    found: torch.Tensor = made[0] if isinstance(made, list) else made
    return found


def _separates(converter: Any) -> bool:
    """Whether it treats every matrix of a stack by itself. A transposition that depends on the shape does not."""
    first, *others = converter.operations
    if type(first).__name__ != "MergeModulelist" or first.dim != 0:
        others = converter.operations
    return all(
        type(one).__name__ in _SEPARABLE
        and not getattr(one, "check_dims", False)
        and all(getattr(one, axis, 1) > 0 for axis in _AXES)
        for one in others
    )
