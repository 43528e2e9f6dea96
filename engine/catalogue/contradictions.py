"""Contradictions between shapes and names of an MLP: up and gate have the hidden columns, down the hidden rows."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

from .sizes import Shapes


class MlpMember(NamedTuple):
    """A tensor of an MLP: its roles by name, and the shape (out, in) of each; 0 x 0 if the shape tells nothing."""

    block: str
    path: str
    roles: tuple[str, ...]
    rows: int
    cols: int

    @property
    def parent(self) -> str:
        """The path in the layer of the module that holds it."""
        return self.path.rpartition(".")[0]


class Verdict(NamedTuple):
    """The role that shapes prove against a name; or a line about the contradiction. `nameless`: the tensor then has no
    role, as another has the same name, or it would have to be split."""

    role: str = ""
    line: str = ""
    nameless: bool = False


@lru_cache(maxsize=4096)  # most layers of a model are alike
def judge(members: tuple[MlpMember, ...], hidden: int, stated: int) -> Mapping[str, Verdict]:
    """The verdict on each path in a layer's MLPs whose name contradicts the shapes.

    `hidden` is the input width of the layer's attention, 0 if unknown; `stated` is the width in config.json, which
    may be another tower's: it only decides between readings that both fit.
    """
    groups: dict[tuple[str, str], list[MlpMember]] = defaultdict(list)
    for member in members:
        groups[member.block, member.parent].append(member)
    found: dict[str, Verdict] = {}
    for group in groups.values():
        if not all(member.rows for member in group):
            found |= _by_names(group)
        elif not _agrees(group, hidden):
            found |= _by_shapes(group, hidden or stated)
    return found


def _by_names(group: Sequence[MlpMember]) -> dict[str, Verdict]:
    """Without usable shapes: a gate beside a down without an up is an up."""
    roles = [role for member in group for role in member.roles]
    if sorted(roles) != ["down", "gate"] or len(group) != 2:
        return {}
    return {member.path: Verdict("up") for member in group if member.roles == ("gate",)}


def _by_shapes(group: Sequence[MlpMember], hidden: int) -> dict[str, Verdict]:
    """The only roles that fit; else a line for each tensor, which keeps its role by name if no other has that."""
    if roles := _reading(group, hidden):
        named = {member.path: member.roles for member in group}
        return {path: Verdict(role) for path, role in roles.items() if named[path] != (role,)}
    held = ", ".join(f"{m.path} {' + '.join(m.roles)} {m.rows} x {m.cols}" for m in group)
    line = f"shapes contradict the names of one block: {held}"
    distinct = len({member.roles for member in group}) == len(group) == sum(len(member.roles) for member in group)
    inner = {2 * member.cols for member in group if member.roles == ("down",)}
    fused = any(member.rows in inner for member in group if member.roles != ("down",))
    return {member.path: Verdict(line=line, nameless=fused or not distinct) for member in group}


def _agrees(group: Sequence[MlpMember], hidden: int) -> bool:
    """True if the roles by name fit together, with matrices stored as (out, in) or as (in, out)."""
    if len(group) == 1 and len(group[0].roles) == 1:
        (member,) = group
        given, taken = (member.cols, member.rows) if member.roles == ("down",) else (member.rows, member.cols)
        return not hidden or given != hidden or taken == hidden
    count = Counter(role for member in group for role in member.roles)
    if max(count.values()) > 1 or ("gate" in count and "down" in count and "up" not in count):
        return False
    inner = {m.cols if m.roles == ("down",) else m.rows for m in group}
    alike = {(m.rows, m.cols) for m in group if m.roles != ("down",)}
    return len(alike) < 2 and len(inner) == 1


def _reading(group: Sequence[MlpMember], hidden: int) -> dict[str, str] | None:
    """The only roles that the shapes allow, by path; None if they allow none or several."""
    if len(group) == 1:
        (member,) = group
        if any(role in member.path.rpartition(".")[2] for role in ("up", "gate", "down")):
            return None  # names with these words cannot mean anything else; `fc1` or `w2` can
        return {member.path: "up" if member.roles == ("down",) else "down"}
    fitting: list[tuple[MlpMember, dict[str, str]]] = []
    for down in (member for member in group if len(member.roles) == 1):
        others = [member for member in group if member is not down]
        if all((m.rows, m.cols) == (down.cols, down.rows) for m in others):
            roles = _inputs(others)
            if roles is not None:
                fitting.append((down, {**roles, down.path: "down"}))
    by_name = [roles for down, roles in fitting if down.roles == ("down",)]
    by_width = [roles for down, roles in fitting if down.rows == hidden]
    return next((found[0] for found in ([r for _, r in fitting], by_name, by_width) if len(found) == 1), None)


def _inputs(others: Sequence[MlpMember]) -> dict[str, str] | None:
    """The roles of the tensors beside a down: gate and up, or only up; None if names do not distinguish the two."""
    if len(others) == 1:
        return {} if len(others[0].roles) == 2 else {others[0].path: "up"}
    if len(others) != 2 or any(len(member.roles) == 2 for member in others):
        return None
    roles = [member.roles[0] for member in others]
    missing = [role for role in ("gate", "up") if role not in roles]
    if len(missing) == 1 and "down" in roles:
        roles[roles.index("down")] = missing[0]
    return {m.path: role for m, role in zip(others, roles, strict=True)} if set(roles) == {"gate", "up"} else None


def latent_query_rows(shapes: Shapes, heads: int) -> tuple[int, int] | None:
    """The number of query rows that fits a layer's latent keys: without and with an output gate as wide as its values.

    None if a shape or the number of heads is unknown.
    """
    names = ("attention.kv_a+key_rope", "attention.key_b+value_b", "attention.output")
    latent, expanded, output = (shapes.get(name, ()) for name in names)
    if not heads or not len(latent) == len(expanded) == len(output) == 2:
        return None
    gated = expanded[0] + heads * (latent[0] - expanded[1])
    return gated - output[1], gated
