"""The norm that feeds a projection: the table of families -> tensors of a checkpoint. Uses only names, no weights."""

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
# Projections behind another matrix, an activation or the attention: no norm, unless a row says so.
_KEYS_BY_ROLE = {
    **dict.fromkeys(("output", "output_a", "output_b"), "output"),
    **dict.fromkeys(("f_b", "gate_b"), "inner"),
    "down": "down",
    "dt_b": "dt_b",
}
_LATENT = {"query_b": "query_b", "indexer_query_b": "query_b", "key_b": "kv_b", "value_b": "kv_b"}
_POSITIONS = frozenset(("pos_key", "pos_query"))
_SCANNED = frozenset(("x_proj", "ssm_x"))  # Mamba-1: these come after its convolution
_UNFED = frozenset(("output", "down", "inner", "dt_b"))
# Routers have the same input as the experts: those in the MLP, and in a GGUF file.
_ROUTER = re.compile(
    r"(?:^|\.)(?:mlp|block_sparse_moe|feed_forward|ffn|mixer)\.(?:shared_expert_)?(?:gate|router)"
    r"(?:\.wg|\.layer|\.gate|\.classifier)?$|^ffn_gate_inp(?:_shexp)?$"
)
# The names in Meta's own files, which have no config.json with a model_type beside them.
_META = re.compile(r"^(?:attention\.w[qkvo]|feed_forward\.(?:experts\.)?w[123])$")
_FINAL = (
    "norm", "ln_f", "final_layer_norm", "final_layernorm", "final_norm", "norm_f", "output_norm", "layer_norm",
    "ln_final",
)  # fmt: skip
"""Names of the norm after the last layer."""
_MLPS = frozenset(("mlp", "expert", "shared_expert"))


@dataclass(frozen=True, slots=True)
class Norm:
    """The norm whose output a projection takes as input.

    `gain` and `bias` are its tensors, None if it has no such numbers: a gain of 1, a bias of 0. `plus_one`: the
    gain is 1 + w. `centred`: it subtracts the mean of its input (LayerNorm), else it is an RMS norm. A gain shorter
    than the input is repeated, as for a norm of each head. Factors between the norm and the projection (a constant, an
    activated gate) are ignored.
    """

    path: str
    gain: Tensor | None
    bias: Tensor | None
    plus_one: bool
    centred: bool


class Norms:
    """The norms of a checkpoint, and the projections that each of them feeds."""

    def __init__(self, checkpoint: ListedCheckpoint) -> None:
        self._config = checkpoint.config
        self._is_gguf = checkpoint.format.stands_alone
        self._tensors = {".".join(words_of(tensor.name)): tensor for tensor in checkpoint.tensors}
        self._modules = {name.rpartition(".")[0] for name in self._tensors}
        self._found: dict[tuple[Location, str, str], Norm | None] = {}
        self._family = lru_cache(maxsize=None)(self._family_of)

    def feeding(self, projection: Projection) -> Norm | None:
        """The norm that feeds a projection; None if it is known that none does, so that C = I up to a constant.

        That is so after an activation or the attention (`down` and `output` of most families), and in families that
        norm outputs instead (query, key, value, gate and up of OLMo 2).

        Raises:
            WeightsError: it is not known which norm feeds it, or that norm is not in the checkpoint.
        """
        name = projection.tensor
        place = None if projection.layer is None else locate(name) or locate_in(name, frozenset(numbered(name)))
        if place is None:
            raise _refusal(projection, "no norm is known to feed it")
        key = (place._replace(expert=None), projection.block, projection.role)  # one answer for all experts of a layer
        if key not in self._found:
            self._found[key] = self._find(_PlacedProjection.of(projection, place))
        return self._found[key]

    def _find(self, placed: _PlacedProjection) -> Norm | None:
        projection, place = placed.projection, placed.place
        block = "expert" if projection.block == "other" and _ROUTER.search(place.path) else projection.block
        if block in ("other", "lora"):
            raise _refusal(projection, "no norm is known to feed it")
        family, row = self._row(projection, place)
        if (written := _places_in_row(row, block, projection.role, placed.words[-1])) == UNKNOWN:
            raise _refusal(projection, f"no norm is known to feed it in {printable(family)}")
        return self._first_present(placed, row.kind, written)

    def final(self, projection: Projection) -> Norm:
        """The norm after the last of the layers that a projection is in, before the unembedding.

        Raises:
            WeightsError: it is not known.
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
        """The family of a projection's tower, and the row for its norms."""
        family = self._family(place.prefix) or ("llama" if _META.search(place.path) else "")
        row = _row_of(family, self._is_gguf)
        if row is None:
            raise _refusal(projection, f"no norms are known for {printable(family) or 'a model without model_type'}")
        return family, row

    def _family_of(self, prefix: str) -> str:
        config = inner_config(self._config, prefix)
        family = family_of(config)
        setting, default = VARIANTS.get(family, ("", None))
        moved = setting and not self._is_gguf and config.get(setting, default) != default
        return f"{family}+{setting}" if moved else family

    def _first_present(self, placed: _PlacedProjection, kind: str, written: str) -> Norm | None:
        """The norm in the first place of a row that has one, None if the row says that there is none."""
        missing = ""
        for own, where, path, other in _SITE.findall(written):
            if (where == "^" and placed.place.layer) or (where == "<" and not placed.place.layer):
                continue
            if path == NONE:
                return None
            if path == BARE:
                return Norm("", None, None, False, "layer" in (own or kind))
            modules = [
                self._in_last_layer(module)
                for module in placed.modules(where, path)
                if not other or f"{module.removesuffix(path)}{other}" not in self._modules
            ]
            missing = missing or "".join(modules[-1:])
            if found := next(filter(None, (self._norm(module, own or kind) for module in modules)), None):
                if found.bias and not found.centred:  # a tower that config.json does not distinguish
                    raise _refusal(placed.projection, f"{printable(found.path)} has a bias, which no RMS norm has")
                return found
        name = f"{printable(missing)}, which feeds it," if missing else "the norm that feeds it"
        raise _refusal(placed.projection, f"{name} is not in the checkpoint")

    def _norm(self, module: str, kind: str) -> Norm | None:
        gain, bias = (self._vector(module, words) for words in (("weight", "gamma"), ("bias", "beta")))
        if gain is None:
            return None
        return Norm(module, gain, bias, kind.startswith("1+"), kind.endswith("layer"))

    def _in_last_layer(self, module: str) -> str:
        """The name of the module with {last} replaced by the number of the last layer."""
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
class _PlacedProjection:
    """A projection and its place: the words of its tensor's name, and the number of words up to its layer."""

    projection: Projection
    place: Location
    words: tuple[str, ...]
    head: int

    @classmethod
    def of(cls, projection: Projection, place: Location) -> _PlacedProjection:
        """The projection at its place, with the words of its tensor's name."""
        words = words_of(projection.tensor)
        if words[-1] == "weight":
            words.pop()
        prefix = place.prefix.split(".") if place.prefix else []
        same = next((i for i, pair in enumerate(zip(words, prefix, strict=False)) if pair[0] != pair[1]), len(prefix))
        if prefix[same:] and prefix[same].startswith("stage"):
            same += 2  # Swin and similar: the number of a stage, then that of the layer
        numbers = (i for i, word in enumerate(words) if i >= same and word.isdigit() and int(word) == place.layer)
        head = next(numbers, len(words) - 1) + 1
        return cls(projection, place, tuple(words), head)

    def modules(self, where: str, path: str) -> Iterator[str]:
        """Yield modules that a path of a row may name, nearest first (see norm_families)."""
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
            # Start beside the module that holds the matrix, not in it: Mamba-2's mixer contains another norm.
            start = max(len(self.words) - 2, self.head)
            yield from (".".join((*self.words[:count], path)) for count in range(start, self.head - 1, -1))


def _places_in_row(row: NormFamily, block: str, role: str, leaf: str) -> str:
    """The places of the norm that feeds a projection, as in the row; `leaf` is the last word of its module."""
    fed = _row_key(block, role, leaf)
    found = (row.fed.get(key) for key in (f"{block}.{role}", role, f"{block}.{fed}", fed))
    return next(filter(None, found), NONE if fed in _UNFED else UNKNOWN)


def _row_key(block: str, role: str, leaf: str) -> str:
    """The key in norm_families for a projection."""
    if role in _POSITIONS:
        return ""
    if leaf in _SCANNED:
        return "inner"
    if group := _LATENT.get(role) or _KEYS_BY_ROLE.get(role):
        return group
    if block == "cross_attention":
        return "cross" if role == "query" else "cross key"
    return "mlp" if block in _MLPS else "in"


@lru_cache(maxsize=1)
def _rows() -> tuple[dict[str, NormFamily], dict[str, NormFamily]]:
    """The rows by family, and the rows for GGUF by architecture."""
    families, architectures = ({model: row for row in rows for model in row.models} for rows in (ROWS, GGUF_ROWS))
    return families, architectures


def _row_of(family: str, is_gguf: bool) -> NormFamily | None:
    families, architectures = _rows()
    return architectures.get(family) if is_gguf else families.get(family, families.get(family.partition("+")[0]))


def _refusal(projection: Projection, reason: str) -> WeightsError:
    return WeightsError(f"{projection.address}: {reason}")
