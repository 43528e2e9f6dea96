"""How one stored tensor holds several projections, and the rule that says which tensors do.

Singular values do not change under transposition or permutation of rows. So head order, RoPE
permutations and (in, out) storage only matter for deciding which rows belong to which projection.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Layout:
    """`axis` is divided into `groups` equal groups, each with the parts (role, width) in order.

    Widths and groups are names of numbers in `sizes.resolve`. If all widths are plain numbers instead,
    they are shares of the group, whatever its size, and no config is needed.
    """

    axis: int
    groups: int | str
    parts: tuple[tuple[str, int | str], ...]

    @property
    def roles(self) -> tuple[str, ...]:
        """The roles of its parts, in order."""
        return tuple(role for role, _ in self.parts)


def _shares(axis: int, groups: int | str, *roles: str) -> Layout:
    return Layout(axis, groups, tuple((role, 1) for role in roles))


QKV = ("query", "key", "value")
THIRDS = _shares(0, 1, *QKV)
CONV1D_THIRDS = _shares(1, 1, *QKV)
CAT = Layout(0, 1, (("query", "queries"), ("key", "keys"), ("value", "keys")))
MULTI_QUERY = Layout(0, 1, (("query", "queries"), ("key", "head_dim"), ("value", "head_dim")))
HEAD = _shares(0, "heads", *QKV)
GROUP = Layout(0, "kv_heads", (("query", "group_queries"), ("key", "head_dim"), ("value", "head_dim")))
TP4 = _shares(0, 4, "query", "value", "key")
GQKV = _shares(0, 1, "gate", *QKV)
KV_CAT = _shares(0, 1, "key", "value")
CONV1D_KV = _shares(1, 1, "key", "value")
KV_HEAD = Layout(0, "kv_heads", (("key", "head_dim"), ("value", "head_dim")))
QUERY_GATE = _shares(0, "heads", "query", "gate")
LATENT_QUERY_GATE = Layout(0, "heads", (("query_b", "latent_query"), ("gate", "v_head_dim")))
LATENT = Layout(0, 1, (("kv_a", "kv_lora_rank"), ("key_rope", "qk_rope_head_dim")))
LATENT_ALONE = Layout(0, 1, (("kv_a", "kv_lora_rank"),))
INDEXER = Layout(0, 1, (("indexer_query", "indexer_queries"), ("indexer_key", "indexer_keys")))
LATENT_B = Layout(0, "heads", (("key_b", "qk_nope_head_dim"), ("value_b", "v_head_dim")))

HALVES = _shares(0, 1, "gate", "up")
HALVES_REVERSED = _shares(0, 1, "up", "gate")
INTERLEAVE = Layout(0, "pairs", (("gate", 1), ("up", 1)))

_DELTA_KEYS = (("query", "delta_key"), ("key", "delta_key"))
DELTA = Layout(0, "delta_heads", (*_DELTA_KEYS, ("value", "delta_value"), ("z", "delta_value")))
DELTA_BA = _shares(0, "delta_heads", "b", "a")
DELTA_CAT = Layout(0, 1, (("query", "delta_keys"), ("key", "delta_keys"), ("value", "delta_values")))

SSM1 = Layout(0, 1, (("x", "inner"), ("z", "inner")))
SSM1_INTERLEAVE = Layout(0, "pairs", (("x", 1), ("z", 1)))
SSM2 = Layout(0, 1, (("z", "inner"), ("x", "inner"), ("B", "states"), ("C", "states"), ("dt", "ssm_heads")))
SSM_X = Layout(0, 1, (("dt_a", "dt_rank"), ("B", "state"), ("C", "state")))
CONV = _shares(0, 1, "conv_B", "conv_C", "conv_x")

NAMES = {
    "CAT": CAT, "THIRDS": THIRDS, "CONV1D-THIRDS": CONV1D_THIRDS, "CAT, one key head": MULTI_QUERY, "HEAD": HEAD,
    "GROUP": GROUP, "TP4": TP4, "GQKV": GQKV, "KV-CAT": KV_CAT, "CONV1D-KV": CONV1D_KV, "KV-HEAD": KV_HEAD,
    "Q+GATE": QUERY_GATE, "LATENT": LATENT, "LATENT, no rope": LATENT_ALONE, "LATENT-B": LATENT_B,
    "LATENT-Q+GATE": LATENT_QUERY_GATE, "INDEXER": INDEXER, "HALVES": HALVES, "HALVES-REVERSED": HALVES_REVERSED,
    "INTERLEAVE": INTERLEAVE, "DELTA": DELTA, "DELTA-BA": DELTA_BA, "DELTA-CAT": DELTA_CAT, "SSM1": SSM1,
    "SSM1, interleaved": SSM1_INTERLEAVE, "SSM2": SSM2, "SSM-X": SSM_X, "CONV": CONV,
}  # fmt: skip
"""The layouts by the names that the documentation gives them."""


THREE_AXES = frozenset(("planes", "flat", "heads", "turned heads"))
"""The values of Rule.stack for 3-D tensors."""


@dataclass(frozen=True, slots=True)
class Rule:
    """Tensors whose path in the layer ends with `path` (a regular expression over whole names).

    `layouts` are tried in order, and the first that fits the shapes is taken; without any, the tensor is one
    projection. `when` is a condition on the shapes of the layer: "doubled", twice as many rows as the
    MLP's last matrix has columns; "gated", twice as many as the queries need; "latent gated", as many as
    latent queries with an output gate. `stack` says how matrices are stacked: "planes" of a 3-D
    tensor; "rows", in equal blocks whose number is the size named by `count`; "flat", one matrix whose columns are all
    axes of a 3-D tensor but the first; "heads", one matrix of the planes of a 3-D tensor below one another;
    "turned heads", the same with each plane transposed. A `proven` rule splits only if the output matrix and the heads
    are known, and all its layouts that fit cut the same way; without layouts it never splits. A rule that is
    `by_output`, for names that always mean the same order, splits tensors of an unknown family only if the output
    matrix is known, which tells how many rows are queries.
    """

    path: str
    block: str
    role: str = ""
    layouts: tuple[Layout, ...] = ()
    models: frozenset[str] = frozenset()
    transposed: bool = False
    when: str = ""
    stack: str = ""
    count: str = "experts"
    proven: bool = False
    by_output: bool = False

    @property
    def holds(self) -> str:
        """The role, or for a fused tensor its roles joined by plus signs."""
        return self.role or "+".join(self.layouts[0].roles if self.layouts else ())


def models(names: str) -> frozenset[str]:
    """The model types of a rule, from words."""
    return frozenset(names.split())
