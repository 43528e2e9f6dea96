"""The gaps of the table of norms in the families that run, and its entries in docs/FAMILIES.md."""

from __future__ import annotations

from family_builds import SPECS

from rankscope.engine.catalogue.norm_families import ROWS

_ATTENDED = "attention.query attention.key attention.value"
_ACROSS = "cross_attention.query cross_attention.key cross_attention.value"
UNKNOWN = {
    "albert": _ATTENDED,
    "cvt": _ATTENDED,
    "swinv2": _ATTENDED,
    **dict.fromkeys(("xlnet", "wav2vec2-conformer", "parakeet_encoder", "gemma4_audio"), "attention.pos_key"),
    **dict.fromkeys(("blip-2", "idefics", "granite_speech"), "cross_attention.key cross_attention.value"),
    **dict.fromkeys(("bridgetower", "lxmert"), f"{_ATTENDED} {_ACROSS} mlp.up"),
    "sam": f"{_ATTENDED} {_ACROSS} attention.output cross_attention.output mlp.up mlp.down",
    "xlstm": "linear_attention.output",
    "qwen4_exp": f"{_ATTENDED} attention.gate attention.indexer_query attention.indexer_key expert.gate expert.up "
    "shared_expert.gate shared_expert.up linear_attention.a linear_attention.b linear_attention.key "
    "linear_attention.query linear_attention.value linear_attention.z",
    "axk2": "attention.gate attention.indexer_key attention.indexer_weights attention.key_rope attention.kv_a "
    "attention.query_a attention.query_b expert.gate expert.up shared_expert.gate shared_expert.up",
}
"""Projections whose norm the table does not know in some layer of a family that runs here: norms of several streams
or of each head, gains that change with the token, weights that several layers share, positions, other towers."""

READ = frozenset(("cpmant",))
"""Families that cannot run on tokens alone: their rows were read from the code of the modules."""


def norms_of(family: str) -> str:
    """What the table has of a family: all that the running model shows, all but some, its code's, or nothing."""
    specs = [spec for spec in SPECS if spec.model_type == family]
    if specs and family not in READ:
        missing = sorted({role for spec in specs for role in UNKNOWN.get(spec.name, "").split()})
        return f"M, but not: {', '.join(missing)}" if missing else "M"
    return "S" if any(family in row.models for row in ROWS) else ""
