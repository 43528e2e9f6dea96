"""The numbers of latent attention (MLA): kv_lora_rank and q_lora_rank by layer, and what their cache would save."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

from rankscope.engine.derive.latent import KeyValueNorms, Way, is_latent, norms_of

from .latent_layers import QUERY, LatentLayer
from .session import Session, State

if TYPE_CHECKING:
    from rankscope.engine.spectrum import Projection, Values

DEEPSEEK = {"kv_lora_rank": 512, "rope": 64, "q_lora_rank": 1536}
"""DeepSeek-V2's choice (arXiv 2405.04434)."""
SCHEMA = 1
PRODUCT_NAME, QUERIES_NAME = "kv_b kv_a", "q_b q_a"
WHAT_RANK_IS_NOT = (
    "A rank is not quality: k says how much energy is lost, not what the model writes without it. Measure that, or "
    "train on, before a checkpoint is made of these numbers."
)
POSITION_FREE = (
    "What has left RoPE no longer knows its position: an approximation that no rank measures. rope: the share of the "
    "keys' energy that keeps it."
)


@dataclass(frozen=True, slots=True)
class Ranks:
    """The ranks of one layer at one threshold, None where nothing is stored: `k` for its joint row, `others` by the
    label of the rows beside it. `norms` are those under the weighting."""

    layer: LatentLayer
    k: int | None
    others: Mapping[str, int | None]
    norms: KeyValueNorms | None
    has_failed: bool = False

    @property
    def mark(self) -> str:
        """The mark for a missing number: `!` if computing failed, `?` if it is known to be impossible, `.` if it is not
        computed, `-` if there is none."""
        if self.k is not None:
            return "-"
        return "?" if self.layer.joint.problem else "!" if self.has_failed else "."

    @property
    def cache(self) -> int | None:
        """Numbers that the latent attention would cache per token."""
        return None if self.k is None else self.k + self.layer.roped

    @property
    def saved(self) -> float | None:
        """The share of the present cache that would be saved."""
        return None if self.cache is None or not self.layer.full else 1 - self.cache / self.layer.full

    @property
    def roped(self) -> float | None:
        """The share of the keys' energy that keeps RoPE, for a way that takes RoPE from the rest."""
        if self.norms is None or not self.norms.keys or self.layer.roped == 0:
            return None
        return 1 - (self.norms.rest / self.norms.keys) ** 2

    @property
    def query(self) -> int | None:
        """The q_lora_rank."""
        return self.others.get(QUERY)


def ranks_of(session: Session, layers: Sequence[LatentLayer], chosen: Way, threshold: float) -> list[Ranks]:
    """The ranks of these layers. Reads files."""
    session.load_ranks([p for layer in layers for p in layer.others if session.has(p)], threshold)
    values = session.read([layer.joint.key for layer in layers if session.has(layer.joint)])
    found = []
    for layer in layers:
        entry = session.entry(layer.joint) if session.has(layer.joint) else None
        made = entry.projection.derived if entry is not None else None
        norms = norms_of(made.label) if made is not None else None
        sigma = values.get(layer.joint.key)
        k = None if sigma is None else _rank(layer.joint, sigma, norms, chosen, threshold)
        others = {_name(p): session.rank(p, threshold) if session.has(p) else None for p in layer.others}
        has_failed = session.state(layer.joint) is State.FAILED
        found.append(Ranks(layer, k, others, norms, has_failed))
    return found


def _name(p: Projection) -> str:
    made = p.derived
    return QUERIES_NAME if made is not None and made.is_further else p.role


def _rank(joint: Projection, sigma: Values, norms: KeyValueNorms | None, chosen: Way, threshold: float) -> int:
    """The smallest k that loses at most (1 - threshold) of the energy of all keys and values, balanced as chosen. For
    the part of the keys without RoPE the loss allowed is the same as if all keys were without it."""
    from rankscope.engine.metrics import rank_losing, threshold_rank

    if not is_latent(joint) or norms is None:
        return threshold_rank(sigma, threshold)
    keys, rest, values = norms
    if chosen.balance == "none":
        return rank_losing(sigma, (1 - threshold) * (keys**2 + values**2))
    parts = (keys, values) if chosen.balance == "whole" else (rest, values)
    return rank_losing(sigma, (1 - threshold) * sum(part > 0 for part in parts))


@dataclass(frozen=True, slots=True)
class RanksColumn:
    """One number of every layer: its heading, how to get it, and how to write it."""

    heading: str
    number: Callable[[Ranks], float | None]
    written: Callable[[float], str]


def columns_of(found: Sequence[Ranks]) -> list[RanksColumn]:
    """The columns of a table of these layers, which are either all latent already or all not."""
    if any(r.layer.is_latent for r in found):
        names = dict.fromkeys(name for r in found for name in r.others)
        return [RanksColumn(PRODUCT_NAME, _k, _whole), *(RanksColumn(name, _other(name), _whole) for name in names)]
    columns = [
        RanksColumn("kv_lora_rank", _k, _whole),
        RanksColumn("cache", lambda r: r.cache, _whole),
        RanksColumn("of", lambda r: r.layer.full, _whole),
        RanksColumn("saved %", lambda r: r.saved, lambda share: f"{100 * share:.1f}"),
    ]
    if any(r.roped is not None for r in found):
        columns.append(RanksColumn("rope", lambda r: r.roped, lambda share: f"{share:.2f}"))
    return [*columns, RanksColumn("q_lora_rank", lambda r: r.query, _whole)]


def _k(ranks: Ranks) -> float | None:
    return ranks.k


def _other(name: str) -> Callable[[Ranks], float | None]:
    return lambda r: r.others.get(name)


def _whole(number: float) -> str:
    return f"{number:g}"


def over(found: Iterable[Ranks], number: Callable[[Ranks], float | None]) -> dict[str, float] | None:
    """Minimum, median and maximum over the layers; None if no layer has the number."""
    known = [x for r in found if (x := number(r)) is not None]
    return {"min": min(known), "median": median(known), "max": max(known)} if known else None


def beside(found: Sequence[Ranks]) -> dict[str, str]:
    """The row that the columns are compared with, by heading: what DeepSeek-V2 chose, and what it would save of the
    median layer's cache (negative if it needs more); for latent attention the present size of the factors."""
    latent = [r.layer for r in found if r.layer.is_latent]
    if not latent:
        kept, rope, queries = DEEPSEEK.values()
        full = median(r.layer.full for r in found)
        said = {"kv_lora_rank": str(kept), "cache": f"{kept}+{rope}", "of": _whole(full)}
        return said | {"saved %": f"{100 * (1 - (kept + rope) / full):.1f}", "q_lora_rank": str(queries)}
    said = {PRODUCT_NAME: str(max(layer.joint.count for layer in latent))}
    return said | {_name(p): str(p.count) for layer in latent for p in layer.others}


def totals(found: Sequence[Ranks]) -> Iterator[str]:
    """The lines below a table: the whole cache; for latent attention what its ranks need."""
    known = [(r.layer, r.cache) for r in found if r.cache is not None and not r.layer.is_latent]
    if known:
        kept, full = sum(cache for _, cache in known), sum(layer.full for layer, _ in known)
        saved = f"{100 * (1 - kept / full):.1f} % saved"
        keep = "layer keeps" if len(known) == 1 else "layers keep"
        yield f"{len(known)} {keep} {kept} of {full} numbers a token{_bytes(known)}, {saved}"
    yield from _of_factors(found)


def remarks(layers: Sequence[LatentLayer]) -> Iterator[str]:
    """The lines below all tables: what is left out, and last what a rank does not tell."""
    if any(layer.leaves_bias for layer in layers):
        yield "Biases of keys and values are left out: --bias append includes them, under moments that have means"
    if any(layer.roped for layer in layers if not layer.is_latent):
        yield POSITION_FREE
    yield WHAT_RANK_IS_NOT


def _of_factors(found: Sequence[Ranks]) -> Iterator[str]:
    """For latent attention: how much of its ranks the products need."""
    for name, number in ((PRODUCT_NAME, _k), (QUERIES_NAME, _other(QUERIES_NAME))):
        span, held = over([r for r in found if r.layer.is_latent], number), beside(found).get(name)
        if span is not None and held is not None:
            rank = "kv_lora_rank" if name == PRODUCT_NAME else "q_lora_rank"
            yield f"{rank} is {held}: the product {name} takes {span['median']:g} of it in the median layer"


def _bytes(known: Sequence[tuple[LatentLayer, int]]) -> str:
    """The total in bytes, if the size of a stored number is known."""
    sizes = [layer.bits for layer, _ in known if layer.bits is not None]
    if len(sizes) < len(known):
        return ""
    stored = known[0][0].joint.parents[0]
    kind = stored.dequantisation.removeprefix("gguf ") or stored.dtype
    kept = sum(cache * bits for (_, cache), bits in zip(known, sizes, strict=True)) / 8
    whole = sum(layer.full * bits for (layer, _), bits in zip(known, sizes, strict=True)) / 8
    return f" ({kept:.10g} of {whole:.10g} bytes at {kind})"


def record(r: Ranks, threshold: float) -> dict[str, object]:
    """The numbers of a layer at a threshold for CSV and mla.json."""
    joint = r.layer.joint
    made = joint.derived
    numbers: dict[str, object] = {"address": r.layer.address, "tower": joint.tower, "layer": joint.layer}
    numbers |= {"threshold": threshold, "k": r.k, "of": joint.count}
    if not r.layer.is_latent:
        norms = r.norms or (None, None, None)
        numbers |= {"rope_rows": r.layer.roped, "cache": r.cache, "full": r.layer.full, "saved": r.saved}
        rope = r.layer.heads.rope if r.layer.heads is not None else None
        numbers |= {"rotated": rope and rope.dims, "interleaved": rope and rope.is_interleaved}
        numbers |= {"theta": rope and rope.theta, "kv_heads": r.layer.heads and r.layer.heads.count}
        numbers |= {"bits": r.layer.bits, "rope_share": r.roped, "norm_key": norms[0], "norm_key_rest": norms[1]}
        numbers |= {"norm_value": norms[2], "q_lora_rank": r.query}
    else:
        numbers |= {f"{name}_k": k for name, k in r.others.items()}
        numbers |= {f"{_name(p)}_of": p.count for p in r.layer.others}
    numbers |= {"formula": made.formula if made else "", "version": made.version if made else 0, "key": joint.key}
    return numbers | {"parents": " ".join(p.key for p in joint.parents), "problem": joint.problem}


def report(
    name: str, weighting: tuple[str, str], chosen: Way, found: Mapping[float, Sequence[Ranks]]
) -> dict[str, object]:
    """The whole content of mla.json: see docs/MLA.md."""
    return {
        "schema": SCHEMA,
        "model": name,
        "weighting": {"name": weighting[0], "label": weighting[1]},
        "rope": {"way": chosen.rope, "rows": chosen.dims, "choice": chosen.choice, "real": chosen.is_real},
        "balance": chosen.balance,
        "bias": "append" if chosen.bias else "leave",
        "deepseek_v2": DEEPSEEK,
        "thresholds": [
            {
                "threshold": threshold,
                "over_layers": {column.heading: over(ranks, column.number) for column in columns_of(ranks)},
                "layers": [record(r, threshold) for r in ranks],
            }
            for threshold, ranks in found.items()
        ],
        "what_rank_is_not": WHAT_RANK_IS_NOT,
    }
