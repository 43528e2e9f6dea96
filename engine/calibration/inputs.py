"""Finding the tensor of a file that has the input of a projection: by its name, else by its place in the catalogue."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from ..catalogue.members import block_of
from ..catalogue.names import Location, locate, modality
from ..catalogue.rules import find_rules
from ..errors import WeightsError, printable
from ..spectrum import Projection

_Key = tuple[int, str, int | None, str]
_LINEAR = {
    "query": ("attn_qkv", "attn_q", "ssm_in"),
    "key": ("attn_qkv", "attn_k", "ssm_in"),
    "value": ("attn_qkv", "attn_v", "ssm_in"),
    "z": ("attn_gate", "ssm_in"),
    "a": ("ssm_alpha", "ssm_ba"),
    "b": ("ssm_beta", "ssm_ba"),
    "f_a": ("ssm_f_a",),
    "f_b": ("ssm_f_b",),
    "gate_a": ("ssm_g_a",),
    "gate_b": ("ssm_g_b",),
    "output": ("ssm_out", "attn_output"),
}
"""GGUF's names for the tensors of linear attention, by role. The names alone could be those of other attention."""
_ABSORBED = {"key_b": "attn_k_b", "value_b": "attn_v_b"}
"""The halves of latent attention's expansion as llama.cpp multiplies by them: head by head, one of them transposed."""
_HEAD, _HEAD_IN_GGUF = "lm_head.weight", "output.weight"


class Input(NamedTuple):
    """The name of a tensor in a file, and the number of a projection's matrix in it, None if it is no stack."""

    name: str
    matrix: int | None


class Inputs:
    """The tensors for which a file has moments, found by projection."""

    def __init__(self, names: Iterable[str], family: str) -> None:
        self._names = frozenset(names)
        self._placed: dict[_Key, list[tuple[int, str]]] = defaultdict(list)
        for name in sorted(name for name in self._names if not _is_absorbed(name)):
            place = locate(name)
            if place is not None and not place.lora and not modality(place.prefix):
                for rank, block, role in _roles(place, family):
                    self._placed[place.layer, block, place.expert, role].append((rank, name))

    @property
    def layers(self) -> int:
        """The number of layers: one more than the highest one."""
        return max((layer + 1 for layer, *_ in self._placed), default=0)

    def of(self, projection: Projection) -> Input:
        """The tensor that has the projection's input.

        Raises:
            WeightsError: there is none, or it is not known which one; the message names the projection's tensor.
        """
        p = projection
        if p.tensor in self._names and not _is_absorbed(p.tensor):
            return Input(p.tensor, _matrix(p) if p.slice is not None and p.slice.index is not None else None)
        if p.layer is None and p.tensor.endswith(_HEAD) and _HEAD_IN_GGUF in self._names:
            return Input(_HEAD_IN_GGUF, None)
        if found := self._placed_as(p):
            return found
        if _is_absorbed(p.tensor) or f"blk.{p.layer}.{_ABSORBED.get(p.role)}.weight" in self._names:
            raise _absorbed(p)
        raise WeightsError(f"{printable(p.tensor)} has no moments in the file")

    def _placed_as(self, p: Projection) -> Input | None:
        """The tensor to which the catalogue gives the same layer, block and role. None if the model has several such
        projections, which these do not tell apart.
        """
        words = ("layers", p.layer, p.block, p.expert, p.role)
        if p.layer is None or p.address != ".".join(str(word) for word in words if word is not None):
            return None
        stems = _LINEAR.get(p.role, ()) if p.block == "linear_attention" else ()
        for name in (f"blk.{p.layer}.{stem}.weight" for stem in stems):
            if name in self._names:
                return Input(name, None)
        if p.expert is not None and (name := _first(self._placed.get((p.layer, p.block, p.expert, p.role), ()))):
            return Input(name, None)
        name = _first(self._placed.get((p.layer, p.block, None, p.role), ()))
        return Input(name, _matrix(p)) if name else None


def _is_absorbed(name: str) -> bool:
    return name.endswith(tuple(f".{stem}.weight" for stem in _ABSORBED.values()))


def _absorbed(p: Projection) -> WeightsError:
    return WeightsError(
        f"{printable(p.tensor)} is not weighted: an imatrix has attn_k_b and attn_v_b as llama.cpp multiplies by them, "
        "which is not proven to be the input of the model's own matrix"
    )


def _first(found: Iterable[tuple[int, str]]) -> str:
    """The name with the lowest rank, "" if there is none or more than one."""
    ranked = sorted(found)
    names = {name for rank, name in ranked if rank == ranked[0][0]}
    return names.pop() if len(names) == 1 else ""


def _matrix(p: Projection) -> int | None:
    if p.expert is not None:
        return p.expert
    return p.slice.index if p.slice is not None else None


def _roles(place: Location, family: str) -> Iterator[tuple[int, str, str]]:
    """Yield rank, block and role of all projections that a tensor may hold; they have one input. The meaning that its
    name has for any shape has the lowest rank.
    """
    rules = find_rules(place.path, family, 2) or find_rules(place.path, family, 3)
    for rank, rule in enumerate(reversed(rules)):
        block = block_of(rule.block, place.path)
        block = "expert" if block == "mlp" and place.expert is not None else block
        if rule.role:
            yield rank, block, rule.role
        for further, layout in enumerate(rule.layouts):
            yield from ((rank + further, block, role) for role in layout.roles)
