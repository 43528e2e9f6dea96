"""The tensors of the MLPs of a layer, judged together; those of each expert by itself if the experts differ."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

from ..formats.tensor import Tensor
from .contradictions import MlpMember, Verdict, judge
from .layouts import Rule

_SHARED = frozenset(("share_expert", "shared_expert", "shared_experts", "shared_mlp"))
_INTEGERS = re.compile(r"[IU]\d+|BOOL")


class MlpGroup(NamedTuple):
    """Identifies tensors that are judged together: a layer's, or one expert's if the layer's experts differ in
    shape."""

    prefix: str
    layer: int
    expert: int | None


class MlpTensor(NamedTuple):
    """A tensor of an MLP, its path in the layer and the rule that applies to it; `turned`: its planes are (in, out)."""

    path: str
    tensor: Tensor
    rule: Rule
    turned: bool

    @property
    def module(self) -> str:
        """The path in the layer of the module that holds it."""
        return self.path.rpartition(".")[0]

    @property
    def member(self) -> MlpMember:
        """Its roles and shape; without a shape if it is a stack of row blocks, packed, or fused with odd rows."""
        tensor, rule = self.tensor, self.rule
        roles = (rule.role,) if rule.role else rule.layouts[0].roles
        rows, cols = tensor.shape[-2:]
        if rule.transposed or self.turned:
            rows, cols = cols, rows
        if rule.stack == "rows" or tensor.problem or _INTEGERS.fullmatch(tensor.dtype) or rows % len(roles):
            rows = cols = 0
        return MlpMember(block_of(rule.block, self.path), self.path, roles, rows // len(roles), cols)


@lru_cache(maxsize=65536)
def block_of(block: str, path: str) -> str:
    """A rule's block, or "shared_expert" for MLPs that all tokens share beside experts."""
    shared = any(word in _SHARED for word in path.split("."))
    return "shared_expert" if shared and block in ("mlp", "expert") else block


def verdicts(
    groups: Mapping[MlpGroup, Sequence[MlpTensor]], widths: Callable[[str, int], tuple[int, int]]
) -> Iterator[tuple[tuple[MlpGroup, str], Verdict]]:
    """Yield group and path of each tensor whose name the shapes of its layer contradict, with the verdict.

    `widths` returns for a layer the last two arguments of `judge`.
    """
    members = {group: [held.member for held in tensors] for group, tensors in groups.items()}
    named: dict[tuple[str, str, str], set[str]] = defaultdict(set)
    for (prefix, _, _), own in members.items():
        for member in own:
            named[prefix, member.block, member.parent].update(member.roles)
    for group, own in members.items():
        held: dict[tuple[str, str], set[str]] = defaultdict(set)
        for member in own:
            held[member.block, member.parent].update(member.roles)
        # A module that has fewer roles than in other layers may be continued in another file: it is not judged.
        whole = tuple(m for m in own if held[m.block, m.parent] == named[group[0], m.block, m.parent])
        for path, verdict in judge(whole, *widths(group[0], group[1])).items():
            yield (group, path), verdict
