"""Which norm feeds a projection: the table of families -> the tensors of a checkpoint. Names alone, no weights."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from ..errors import WeightsError, printable
from ..formats.tensor import Tensor
from ..spectrum import Projection
from .gguf_norms import GGUF_ROWS
from .names import Location, inner_config, locate, locate_in, numbered, words_of
from .norm_families import BARE, NONE, ROWS, UNKNOWN, VARIANTS, NormFamily
from .sizes import family_of
from .tree import ListedCheckpoint

_SITE = re.compile(r"(?:([\w+]+):)?([<^/>]?)([^\s!]+)(?:!(\S+))?")
# What stands behind another matrix, an activation or the attention: no norm, unless a row says so.
_BEHIND = {
    **dict.fromkeys(("output", "output_a", "output_b"), "output"),
    **dict.fromkeys(("f_b", "gate_b"), "inner"),
    "down": "down",
    "dt_b": "dt_b",
}
_LATENT = {"query_b": "query_b", "indexer_query_b": "query_b", "key_b": "kv_b", "value_b": "kv_b"}
_POSITIONS = frozenset(("pos_key", "pos_query"))
_SCANNED = frozenset(("x_proj", "ssm_x"))  # Mamba-1: what stands behind its convolution
_UNFED = frozenset(("output", "down", "inner", "dt_b"))
# Routers take what the experts take: those that stand in the MLP, and in a GGUF file.
_ROUTER = re.compile(
    r"(?:^|\.)(?:mlp|block_sparse_moe|feed_forward|ffn|mixer)\.(?:shared_expert_)?(?:gate|router)"
    r"(?:\.wg|\.layer|\.gate|\.classifier)?$|^ffn_gate_inp(?:_shexp)?$"
)
# The names of Meta's own files, beside which no config.json says a model_type.
_META = re.compile(r"^(?:attention\.w[qkvo]|feed_forward\.(?:experts\.)?w[123])$")
_FINAL = (
    *("norm", "ln_f", "final_layer_norm", "final_layernorm", "final_norm", "norm_f", "output_norm", "layer_norm"),
    "ln_final",
)
"""What the norm behind the last layer is called."""
_MLPS = frozenset(("mlp", "expert", "shared_expert"))


@dataclass(frozen=True, slots=True)
class Norm:
    """The norm whose output a projection takes as input.

    `gain` and `bias` are its tensors, None where it has no such numbers: a gain of 1, a bias of 0. `plus_one`: the
    gain is 1 + w. `centred`: it subtracts the mean of its input (LayerNorm), else it is an RMS norm. A gain shorter
    than the input is repeated, as of a norm of each head. What the model multiplies the norm's output with on the way
    (a constant, an activated gate) is left aside.
    """

    path: str
    gain: Tensor | None
    bias: Tensor | None
    plus_one: bool
    centred: bool


class Norms:
    """The norms of a checkpoint, and which projection each of them feeds."""

    def __init__(self, checkpoint: ListedCheckpoint) -> None:
        self._config = checkpoint.config
        self._alone = checkpoint.format.stands_alone
        self._tensors = {".".join(words_of(tensor.name)): tensor for tensor in checkpoint.tensors}
        self._modules = {name.rpartition(".")[0] for name in self._tensors}
        self._found: dict[tuple[Location, str, str], Norm | None] = {}
        self._family = lru_cache(maxsize=None)(self._family_of)

    def feeding(self, projection: Projection) -> Norm | None:
        """The norm that feeds a projection; None where it is known that none does, so that C = I up to a constant.

        That is so behind an activation or the attention (`down` and `output` of most families), and where a family
        norms outputs instead (query, key, value, gate and up of OLMo 2).

        Raises:
            WeightsError: it is not known which norm feeds it, or that norm is not in the checkpoint.
        """
        name = projection.tensor
        place = None if projection.layer is None else locate(name) or locate_in(name, frozenset(numbered(name)))
        if place is None:
            raise _refusal(projection, "no norm is known to feed it")
        key = (place._replace(expert=None), projection.block, projection.role)  # one answer for all experts of a layer
        if key not in self._found:
            self._found[key] = self._looked_up(_Stand.of(projection, place))
        return self._found[key]

    def _looked_up(self, stands: _Stand) -> Norm | None:
        projection, place = stands.projection, stands.place
        block = "expert" if projection.block == "other" and _ROUTER.search(place.path) else projection.block
        if block in ("other", "lora"):
            raise _refusal(projection, "no norm is known to feed it")
        family, row = self._row(projection, place)
        if (written := _written(row, block, projection.role, stands.words[-1])) == UNKNOWN:
            raise _refusal(projection, f"no norm is known to feed it in {printable(family)}")
        return self._first(stands, row.kind, written)

    def final(self, projection: Projection) -> Norm:
        """The norm behind the last of the layers that a projection stands in, before the unembedding.

        Raises:
            WeightsError: it is not known which that is.
        """
        name = projection.tensor
        place = locate(name) or locate_in(name, frozenset(numbered(name)))
        if place is None:
            raise _refusal(projection, "it is in no layer")
        _, row = self._row(projection, place)
        found = {}
        for module in self._modules:
            parent, _, leaf = module.rpartition(".")
            is_around = not parent or f"{place.prefix}.".startswith(f"{parent}.")
            if leaf in _FINAL and is_around and (norm := self._norm(module, row.kind)):
                found[module] = len(parent), -_FINAL.index(leaf), norm
        if not found and row.fed.get("in") == BARE:
            return Norm("", None, None, False, "layer" in row.kind)
        if not found:
            raise _refusal(projection, "no final norm before the unembedding is known")
        norm = max(found.values(), key=lambda each: each[:2])[2]
        if norm.bias and not norm.centred:
            raise _refusal(projection, f"{printable(norm.path)} has a bias, which no RMS norm has")
        return norm

    def _row(self, projection: Projection, place: Location) -> tuple[str, NormFamily]:
        """The family of the tower that a projection stands in, and what is known of its norms."""
        family = self._family(place.prefix) or ("llama" if _META.search(place.path) else "")
        row = _row_of(family, self._alone)
        if row is None:
            raise _refusal(projection, f"no norms are known for {printable(family) or 'a model without model_type'}")
        return family, row

    def _family_of(self, prefix: str) -> str:
        config = inner_config(self._config, prefix)
        family = family_of(config)
        setting, default = VARIANTS.get(family, ("", None))
        moved = setting and not self._alone and config.get(setting, default) != default
        return f"{family}+{setting}" if moved else family

    def _first(self, stands: _Stand, kind: str, written: str) -> Norm | None:
        """The norm in the first place of a row that holds one, None where the row says that there is none."""
        missing = ""
        for own, where, path, other in _SITE.findall(written):
            if (where == "^" and stands.place.layer) or (where == "<" and not stands.place.layer):
                continue
            if path == NONE:
                return None
            if path == BARE:
                return Norm("", None, None, False, "layer" in (own or kind))
            modules = [
                self._last(module)
                for module in stands.modules(where, path)
                if not other or f"{module.removesuffix(path)}{other}" not in self._modules
            ]
            missing = missing or "".join(modules[-1:])
            if found := next(filter(None, (self._norm(module, own or kind) for module in modules)), None):
                if found.bias and not found.centred:  # of a tower that config.json does not tell apart
                    raise _refusal(stands.projection, f"{printable(found.path)} has a bias, which no RMS norm has")
                return found
        name = f"{printable(missing)}, which feeds it," if missing else "the norm that feeds it"
        raise _refusal(stands.projection, f"{name} is not in the checkpoint")

    def _norm(self, module: str, kind: str) -> Norm | None:
        gain, bias = (self._vector(module, words) for words in (("weight", "gamma"), ("bias", "beta")))
        if gain is None:
            return None
        return Norm(module, gain, bias, kind.startswith("1+"), kind.endswith("layer"))

    def _last(self, module: str) -> str:
        """The module of the last layer, where {last} stands for its number."""
        before, found, after = module.partition("{last}")
        if not found:
            return module
        pattern = re.compile(rf"{re.escape(before)}(\d+){re.escape(after)}")
        numbers = (int(m[1]) for name in self._modules if (m := pattern.fullmatch(name)))
        return f"{before}{max(numbers, default=0)}{after}"

    def _vector(self, module: str, words: tuple[str, ...]) -> Tensor | None:
        found = (self._tensors.get(f"{module}.{word}") for word in words)
        return next((tensor for tensor in found if tensor and len(tensor.shape) == 1), None)


@dataclass(frozen=True, slots=True)
class _Stand:
    """A projection where it stands: the words of its tensor's name, and how many of them name its layer."""

    projection: Projection
    place: Location
    words: tuple[str, ...]
    head: int

    @classmethod
    def of(cls, projection: Projection, place: Location) -> _Stand:
        words = words_of(projection.tensor)
        if words[-1] == "weight":
            words.pop()
        prefix = place.prefix.split(".") if place.prefix else []
        same = next((i for i, pair in enumerate(zip(words, prefix, strict=False)) if pair[0] != pair[1]), len(prefix))
        if prefix[same:] and prefix[same].startswith("stage"):
            same += 2  # Swin and its like: the number of a stage, then that of the layer
        numbers = (i for i, word in enumerate(words) if i >= same and word.isdigit() and int(word) == place.layer)
        head = next(numbers, len(words) - 1) + 1
        return cls(projection, place, tuple(words), head)

    def modules(self, where: str, path: str) -> Iterator[str]:
        """Modules that a path of a row may name, nearest first (see norm_families)."""
        layer = self.place.layer
        number = re.search(r"\d+", ".".join(self.words[self.head :]))
        path = path.format(layer=layer, before=layer - 1, n=number[0] if number else "")
        lists = self.words[: self.head - 1]
        if where == "<":
            yield ".".join((*lists, str(layer - 1), path))
        elif where == ">":
            encoder = ["encoder" if word == "decoder" else word for word in lists]
            yield ".".join((*encoder, "{last}", path))
        elif where:
            yield from (".".join((*lists[:count], path)) for count in range(len(lists) - 1, -1, -1))
        else:
            # Beside the module that holds the matrix, not in it: Mamba-2's mixer has a norm of its own.
            start = max(len(self.words) - 2, self.head)
            yield from (".".join((*self.words[:count], path)) for count in range(start, self.head - 1, -1))


def _written(row: NormFamily, block: str, role: str, leaf: str) -> str:
    """The places of the norm that feeds a projection, as the row has them; `leaf` is the last word of its module."""
    fed = _fed(block, role, leaf)
    found = (row.fed.get(key) for key in (f"{block}.{role}", role, f"{block}.{fed}", fed))
    return next(filter(None, found), NONE if fed in _UNFED else UNKNOWN)


def _fed(block: str, role: str, leaf: str) -> str:
    """The key of norm_families that a projection goes under."""
    if role in _POSITIONS:
        return ""
    if leaf in _SCANNED:
        return "inner"
    if group := _LATENT.get(role) or _BEHIND.get(role):
        return group
    if block == "cross_attention":
        return "cross" if role == "query" else "cross key"
    return "mlp" if block in _MLPS else "in"


@lru_cache(maxsize=1)
def _rows() -> tuple[dict[str, NormFamily], dict[str, NormFamily]]:
    """The rows by family, and those for GGUF by architecture."""
    families, architectures = ({model: row for row in rows for model in row.models} for rows in (ROWS, GGUF_ROWS))
    return families, architectures


def _row_of(family: str, alone: bool) -> NormFamily | None:
    families, architectures = _rows()
    return architectures.get(family) if alone else families.get(family, families.get(family.partition("+")[0]))


def _refusal(projection: Projection, reason: str) -> WeightsError:
    return WeightsError(f"{projection.address}: {reason}")
