"""Tensors -> the projections in each: rules chosen by name, split as the shapes of their layer allow."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any, NamedTuple

from ..errors import printable
from ..formats.tensor import Tensor
from ..spectrum import Slice
from .contradictions import Verdict, latent_query_rows
from .layouts import Rule
from .members import MlpGroup, MlpTensor, block_of, verdicts
from .names import Location, attention_of, inner_config, is_linear_part, locate, locate_in, tower_labels
from .rules import KNOWN_FAMILIES, NOT_PROJECTIONS, find_rules
from .sizes import Shapes, Sizes, family_of, resolve, sizes
from .slices import slices_of
from .structure import layer_lists

# Vectors and tables whose shapes tell how their layer is split.
_VECTORS = frozenset(
    ("q_norm", "q_layernorm", "attn_q_norm", "kv_a_layernorm", "kv_a_norm", "attn_kv_a_norm", "A_log", "ssm_a")
)
_ROUTERS = frozenset(("router.layer", "mlp.router", "mlp.gate", "block_sparse_moe.gate", "feed_forward.router"))
_MLPS = frozenset(("mlp", "shared_expert", "expert"))
_INPUT_FIRST = frozenset(("gpt_oss", "llama4", "llama4_text", "aria", "aria_text", "qwen3_vl_moe"))


class FoundProjection(NamedTuple):
    """A projection before it has an address."""

    tensor: Tensor
    place: Location | None
    tower: str
    block: str
    role: str
    part: Slice | None = None
    expert: int | None = None
    transposed: bool = False
    note: str = ""

    def as_other(self, note: str = "") -> FoundProjection:
        """The whole tensor as no projection: its role is the tensor's name."""
        return other(self.tensor, self.place, note)


def other(tensor: Tensor, place: Location | None, note: str = "") -> FoundProjection:
    """A tensor that is no projection: its role is the tensor's name."""
    role = place.path if place and place.expert is None and not place.lora else tensor.name
    return FoundProjection(tensor, place, "", "other", printable(role), note=note)


class _MatchedTensor(NamedTuple):
    """A tensor in a layer, with the rules that fit its name."""

    tensor: Tensor
    place: Location
    rules: tuple[Rule, ...]


class CheckpointLayers:
    """The layers of a checkpoint: the rules that fit their names, and the shapes of their tensors."""

    def __init__(self, config: Mapping[str, Any], tensors: Sequence[Tensor]) -> None:
        self._config = config
        self._outside: list[FoundProjection] = []
        self._named: list[_MatchedTensor] = []
        self._shapes: dict[tuple[str, int], dict[str, tuple[int, ...]]] = defaultdict(dict)
        self._linear: set[tuple[str, int, str]] = set()
        self._experts: set[tuple[str, int, str]] = set()
        self._held: dict[tuple[str, int, str], _MatchedTensor] = {}
        self._uneven: set[tuple[str, int]] = set()
        self.proven: dict[str, None] = {}
        """The names of fused tensors that `found` split by their shapes only, in order; empty before."""
        self.family = lru_cache(maxsize=None)(lambda prefix: family_of(inner_config(config, prefix)))
        self._known = lru_cache(maxsize=None)(lambda prefix, layer: sizes(inner_config(config, prefix), layer))
        unplaced = [tensor for tensor in tensors if not self._record(tensor, locate(tensor.name))]
        self._lists = lists = layer_lists((t.name for t in unplaced if _is_matrix(t)), self._holds_projection)
        for tensor in unplaced:
            place = locate_in(tensor.name, lists) if lists else None
            if not self._record(tensor, place):
                self._outside.append(other(tensor, None))
        self._verdicts = dict(verdicts(self._mlp_groups(), self._widths))
        self._towers = tower_labels(item.place.prefix for item in self._named)

    def _holds_projection(self, place: Location) -> bool:
        return any(find_rules(place.path, self.family(place.prefix), dims) for dims in (2, 3))

    def _record(self, tensor: Tensor, place: Location | None) -> bool:
        """Record a tensor by its place; False if it is in no layer."""
        if place is None:
            return False
        rules: tuple[Rule, ...] = ()
        if _is_matrix(tensor):
            rules = find_rules(place.path, self.family(place.prefix), len(tensor.shape)) or _stack(tensor, place)
        if place.expert is None:
            self._remember_shapes(tensor, place, rules)
        if rules or place.lora:
            self._named.append(item := _MatchedTensor(tensor, place, rules))
            if _is_of_mlp(item):
                first = self._held.setdefault((place.prefix, place.layer, place.path), item)
                if first is item:
                    self._experts.add((place.prefix, place.layer, place.path.partition("experts.")[0]))
                elif first.tensor.shape != tensor.shape:
                    self._uneven.add((place.prefix, place.layer))
        else:
            self._outside.append(other(tensor, place))
        return True

    def _remember_shapes(self, tensor: Tensor, place: Location, rules: tuple[Rule, ...]) -> None:
        """Record the shapes that tell how fused tensors of the layer are split."""
        shapes = self._shapes[place.prefix, place.layer]
        if is_linear_part(place.path) or (rules and rules[0].block == "linear_attention"):
            self._linear.add((place.prefix, place.layer, attention_of(place.path)))
        if rules and not place.lora:
            rule = rules[-1]
            name = f"{block_of(rule.block, place.path)}.{rule.holds}"
            shape = tensor.shape[::-1] if rule.transposed else tensor.shape
            # Two tensors of one name (as in LongCat's two attentions) tell nothing unless they agree.
            shapes[name] = shape if shapes.get(name, shape) == shape else ()
            return
        parent, _, leaf = place.path.rpartition(".")
        if parent.endswith("indexer"):
            if leaf in ("k_layernorm", "k_norm"):
                shapes["indexer_norm"] = tensor.shape
        elif leaf in _VECTORS:
            shapes[leaf] = tensor.shape
        elif len(tensor.shape) == 2 and ".".join(place.path.split(".")[-2:]) in _ROUTERS:
            shapes["router"] = tensor.shape

    def _mlp_groups(self) -> dict[MlpGroup, list[MlpTensor]]:
        """The tensors of MLPs that are judged together: those of a layer, or of each expert if experts differ."""
        uneven: list[_MatchedTensor] = []
        if self._uneven:
            uneven = [item for item in self._named if self._group(item.place)[2] is not None and _is_of_mlp(item)]
        even = [item for item in self._held.values() if self._group(item.place)[2] is None]
        groups: dict[MlpGroup, list[MlpTensor]] = defaultdict(list)
        for item in (*even, *uneven):
            if rule := self._rule(item):
                groups[self._group(item.place)].append(MlpTensor(item.place.path, item.tensor, rule, False))
        return {group: self._with_turned(group, held) for group, held in groups.items()}

    def _with_turned(self, group: MlpGroup, held: list[MlpTensor]) -> list[MlpTensor]:
        """The tensors, with `turned` set if a fused stack shows that the planes of its module are (in, out)."""
        prefix, layer, _ = group
        modules: set[str] = set()
        for fused in held:
            if fused.rule.stack == "planes" and not fused.rule.role:
                shapes = {f"expert.{h.rule.holds}": h.tensor.shape for h in held if h.module == fused.module}
                if self._is_input_first(prefix, layer, fused.tensor, fused.rule, shapes):
                    modules.add(fused.module)
        return [h._replace(turned=h.rule.stack == "planes" and h.module in modules) for h in held] if modules else held

    def _group(self, place: Location) -> MlpGroup:
        apart = (place.prefix, place.layer) in self._uneven
        return MlpGroup(place.prefix, place.layer, place.expert if apart else None)

    def _widths(self, prefix: str, layer: int) -> tuple[int, int]:
        return _attention_width(self._shapes[prefix, layer]), self._known(prefix, layer).get("hidden", 0)

    def _rule(self, item: _MatchedTensor) -> Rule | None:
        """The rule that applies to a tensor, among those that fit its name."""
        if item.rules and not item.rules[0].when:
            return item.rules[0]
        shapes = self._shapes[item.place.prefix, item.place.layer]
        known = self._known(item.place.prefix, item.place.layer)
        return next((r for r in item.rules if not r.when or _condition_holds(r, item.tensor, shapes, known)), None)

    def found(self) -> list[FoundProjection]:
        """The content of every tensor: its projections, or the tensor itself as block `other`."""
        result = self._outside.copy()
        for item in self._named:
            try:
                result += self._parts(item)
            except ValueError as error:
                result.append(other(item.tensor, item.place, str(error)))
        return result

    def _parts(self, item: _MatchedTensor) -> list[FoundProjection]:
        """The projections of a tensor.

        Raises:
            ValueError: it is fused, and config or shapes do not allow the split.
        """
        tensor, place, rules = item
        tower = self._tower(place)
        if place.lora:
            role = (rules[-1].role if rules else "") or place.path.rpartition(".")[2]
            return [FoundProjection(tensor, place, tower, "lora", f"{role}_{place.lora}", None, place.expert)]
        rule = self._rule(item)
        if rule is None:
            return [other(tensor, place)]
        note = ""
        if self._verdicts and (verdict := self._verdicts.get((self._group(place), place.path))):
            rule, note = _corrected(rule, place, verdict), verdict.line
        if rule.block == "attention" and rule.holds in ("query_b", "key_b+value_b"):
            heads = self._known(place.prefix, place.layer).get("heads", 0)
            _check_latent(self._shapes[place.prefix, place.layer], heads)
        whole = FoundProjection(
            tensor, place, tower, self._block(rule, place), rule.role, None, place.expert, rule.transposed, note
        )
        return [whole] if rule.role and not rule.layouts and not rule.stack else self._cut(whole, place, rule)

    def _cut(self, whole: FoundProjection, place: Location, rule: Rule) -> list[FoundProjection]:
        """The projections of a tensor that holds several.

        Raises:
            ValueError: config or shapes do not allow the split.
        """
        shapes, known = self._shapes[place.prefix, place.layer], self._known(place.prefix, place.layer)
        if rule.by_output and not shapes.get("attention.output") and not self._is_known(place):
            raise ValueError("no known model_type says how it is fused, and there is no output matrix: not split")
        is_stack = rule.block == "expert" and rule.stack == "planes"
        turned = is_stack and self._is_input_first(place.prefix, place.layer, whole.tensor, rule, shapes)
        slices = list(slices_of(whole.tensor.shape, rule, turned, partial(resolve, known, shapes, rule.block)))
        if rule.proven and len(slices) > 1:
            self.proven[place.path.rpartition(".")[2]] = None
        transposed = rule.transposed or turned
        tensor, _, tower, block, *_ = whole
        return [
            FoundProjection(
                tensor, place, tower, block, role, part, place.expert if n is None else n, transposed, whole.note
            )
            for n, role, part in slices
        ]

    def whole(self, tensor: Tensor, name: str, role: str = "", number: int | None = None) -> FoundProjection | None:
        """A tensor as one projection in the place of the tensor called `name`, even if that one may be fused.

        Its role is `role`, in a stack with its number, else the last word of `name`. None if no rule knows `name`.
        """
        place = locate(name) or (locate_in(name, self._lists) if self._lists else None)
        if place is None or place.prefix not in self._towers:
            return None
        rules = find_rules(place.path, self.family(place.prefix), 3 if number is not None else 2)
        if not rules:
            return None
        named = role or rules[-1].role or printable(place.path.rpartition(".")[2])
        expert = place.expert if number is None else number
        return FoundProjection(tensor, place, self._tower(place), self._block(rules[-1], place), named, None, expert)

    def _is_known(self, place: Location) -> bool:
        return self.family(place.prefix).partition("+")[0] in KNOWN_FAMILIES

    def is_router(self, place: Location) -> bool:
        """True if it is the bare `gate` that chooses among the experts beside it (Mistral's own files)."""
        head, _, leaf = place.path.rpartition(".")
        return leaf == "gate" and (place.prefix, place.layer, f"{head}." if head else "") in self._experts

    def _block(self, rule: Rule, place: Location) -> str:
        block = block_of(rule.block, place.path)
        if block == "mlp" and place.expert is not None:
            return "expert"
        # Kimi-Linear: both kinds of attention have the same names.
        is_linear = block == "attention" and (place.prefix, place.layer, attention_of(place.path)) in self._linear
        return "linear_attention" if is_linear else block

    def _is_input_first(self, prefix: str, layer: int, tensor: Tensor, rule: Rule, shapes: Shapes) -> bool:
        """True if a stack is stored as (experts, in, out), judged by its shapes, else the hidden size, else the
        family."""
        fused, down = shapes.get("expert.gate+up", ()), shapes.get("expert.down", ())
        if len(fused) == len(down) == 3:
            if fused[1:] == (2 * down[2], down[1]):
                return False
            if fused[1:] == (down[2], 2 * down[1]):
                return True
        hidden = self._known(prefix, layer).get("hidden", 0)
        _, first, last = tensor.shape
        inputs, outputs = (first, last) if rule.role == "down" else (last, first)
        if (inputs == hidden) != (outputs == hidden):
            return outputs == hidden
        return self.family(prefix) in _INPUT_FIRST

    def _tower(self, place: Location) -> str:
        tower = self._towers[place.prefix]
        # Multi-token-prediction layers come after the last ordinary one (DeepSeek-V3, GLM-4.5). For an encoder
        # with a decoder, config.json may count the layers of only one.
        last = self._known(place.prefix, 0).get("layers", place.layer + 1)
        return "mtp" if not tower and place.layer >= last else tower


def _is_matrix(tensor: Tensor) -> bool:
    """True for a matrix, or a stack of matrices."""
    return len(tensor.shape) in (2, 3) and 0 not in tensor.shape


def _stack(tensor: Tensor, place: Location) -> tuple[Rule, ...]:
    """The rule for a stack under `experts` that the table does not name: each plane is a projection of the stack's
    name."""
    if len(tensor.shape) != 3 or 1 in tensor.shape[1:]:
        return ()
    words = place.path.split(".")
    if "experts" not in words or NOT_PROJECTIONS.search(place.path):
        return ()
    return (_own_name(place),)


def _own_name(place: Location) -> Rule:
    """A rule by which each plane of a stack is one projection, whose role is the stack's name."""
    return Rule("", "expert", printable(place.path.rpartition(".")[2].removesuffix("_weight")), stack="planes")


def _corrected(rule: Rule, place: Location, verdict: Verdict) -> Rule:
    """The rule with the role that the shapes prove, or for a nameless stack one without a known role.

    Raises:
        ValueError: the tensor has no role, and is no stack.
    """
    if verdict.nameless and rule.stack != "planes":
        raise ValueError(verdict.line)
    return _own_name(place) if verdict.nameless else replace(rule, role=verdict.role or rule.role)


def _is_of_mlp(item: _MatchedTensor) -> bool:
    return bool(item.rules) and item.rules[0].block in _MLPS and not item.place.lora


def _attention_width(shapes: Shapes) -> int:
    """The input width of a layer's attention; 0 if it is not known."""
    names = ("attention.query", "attention.query+key+value")
    return next((shapes[name][1] for name in names if len(shapes.get(name, ())) == 2), 0)


def _check_latent(shapes: Shapes, heads: int) -> None:
    """Check that latent queries and keys have rows for the same heads.

    Raises:
        ValueError: they do not.
    """
    expected, queries = latent_query_rows(shapes, heads), shapes.get("attention.query_b", ())
    if expected and len(queries) == 2 and queries[0] not in expected:
        alone, gated = expected
        raise ValueError(
            f"expected {alone} rows of latent queries for {heads} heads, or {gated} with an output gate, "
            f"not {queries[0]}: heads or shapes are wrong"
        )


def _condition_holds(rule: Rule, tensor: Tensor, shapes: Shapes, known: Sizes) -> bool:
    """True if the condition of a rule is met by the shapes of its layer."""
    if rule.when == "latent gated":
        expected = latent_query_rows(shapes, known.get("heads", 0))
        return expected is not None and tensor.shape[0] == expected[1]
    if rule.when == "doubled":
        down = shapes.get("mlp.down", ())
        return len(down) == 2 and tensor.shape[0] == 2 * down[1]
    output, key, value = (shapes.get(f"attention.{role}", ()) for role in ("output", "key", "value"))
    if not (len(output) == len(key) == len(value) == 2):
        return False
    # Value heads may have another size than key heads.
    return tensor.shape[0] * value[0] == 2 * output[1] * key[0]
