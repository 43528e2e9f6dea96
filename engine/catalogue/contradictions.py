"""What the shapes of a layer say against its names: up and gate take the hidden columns, down gives the hidden rows."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

from .sizes import Shapes


class MlpMember(NamedTuple):
    """A tensor of an MLP: its roles by name, and the shape (out, in) of each of them; 0 x 0 where it tells nothing."""

    block: str
    path: str
    roles: tuple[str, ...]
    rows: int
    cols: int

    @property
    def parent(self) -> str:
        """The module that holds it, by its path in the layer."""
        return self.path.rpartition(".")[0]


class Verdict(NamedTuple):
    """The role that shapes prove against a name; or a line that says what contradicts it, `nameless` where the tensor
    then has no role at all: its name is also another's, or it would have to be split."""

    role: str = ""
    line: str = ""
    nameless: bool = False


@lru_cache(maxsize=4096)  # most layers of a model are alike
def judge(members: tuple[MlpMember, ...], hidden: int, stated: int) -> Mapping[str, Verdict]:
    """Of the MLPs of a layer, each path whose name its shapes contradict.

    `hidden` is the width that the layer's attention takes, 0 where unknown; `stated` is that of config.json, which
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
    """Where shapes tell nothing: a gate that has a down and no up beside it is an up."""
    roles = [role for member in group for role in member.roles]
    if sorted(roles) != ["down", "gate"] or len(group) != 2:
        return {}
    return {member.path: Verdict("up") for member in group if member.roles == ("gate",)}


def _by_shapes(group: Sequence[MlpMember], hidden: int) -> dict[str, Verdict]:
    """The only roles that fit; or a line on each, which keeps the role of its name where that is no other's."""
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
    """Whether the roles by name fit together, stored as (out, in) or as (in, out)."""
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
    """The only roles that the shapes allow, by path; None where they allow none or several."""
    if len(group) == 1:
        (member,) = group
        if any(role in member.path.rpartition(".")[2] for role in ("up", "gate", "down")):
            return None  # a name that means nothing else; `fc1` or `w2` do
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
    """What stands beside a down: gate and up, or up alone; None where names do not tell the two apart."""
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
    """How many rows queries have that fit a layer's latent keys: alone, and with an output gate as wide as its values.

    None where a shape or the number of heads is unknown.
    """
    names = ("attention.kv_a+key_rope", "attention.key_b+value_b", "attention.output")
    latent, expanded, output = (shapes.get(name, ()) for name in names)
    if not heads or not len(latent) == len(expanded) == len(output) == 2:
        return None
    gated = expanded[0] + heads * (latent[0] - expanded[1])
    return gated - output[1], gated
