"""The embedding and the unembedding of tokens, by their names: how tokens enter and leave the residual stream."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ..errors import WeightsError, printable
from ..formats.tensor import Tensor
from ..spectrum import Projection
from .names import inner_config, locate, locate_in, modality, numbered, words_of
from .tree import ListedCheckpoint

_EMBEDDINGS = (
    "embed_tokens", "wte", "tok_embeddings", "word_embeddings", "word_embedding", "embed_in", "token_embd", "shared",
    "token_embedding", "embeddings", "embedding",
)  # fmt: skip
_UNEMBEDDINGS = ("lm_head", "embed_out", "output_layer", "output")
_ENCODERS, _DECODERS = frozenset(("encoder", "enc")), frozenset(("decoder", "dec"))


class Embeddings:
    """The embeddings and unembeddings of a checkpoint; two towers may have two of each."""

    def __init__(self, checkpoint: ListedCheckpoint) -> None:
        self._config = checkpoint.config
        self._matrices = {".".join(words_of(t.name)): t for t in checkpoint.tensors if len(t.shape) == 2}

    def embedding(self, projection: Projection) -> Tensor:
        """The matrix whose rows are the tokens' vectors in the residual stream that a projection reads.

        Raises:
            WeightsError: its tower has none.
        """
        found = self._nearest(_EMBEDDINGS, _tower(projection))
        if found is None:
            raise WeightsError("no token embedding has a known name: tokens cannot be named")
        return found

    def unembedding(self, projection: Projection) -> Tensor:
        """The matrix whose rows measure each token in the residual stream that a projection writes to: the embedding if
        the two are tied.

        Raises:
            WeightsError: its tower has none.
        """
        tower = _tower(projection)
        if _ENCODERS & set(tower) and any(_DECODERS & set(name.split(".")) for name in self._matrices):
            raise WeightsError("it is in an encoder, whose output goes to a decoder and to no unembedding")
        is_tied = inner_config(self._config, ".".join(tower)).get("tie_word_embeddings")
        found = None if is_tied is True else self._nearest(_UNEMBEDDINGS, tower)
        if found is None and is_tied is False:
            raise WeightsError("the checkpoint has no unembedding, and config.json says that it is not the embedding")
        return found or self.embedding(projection)

    def _nearest(self, leaves: Iterable[str], tower: Sequence[str]) -> Tensor | None:
        """The matrix with one of these names, outside of layers, whose preceding words agree longest with those of the
        tower; None if there is none."""
        listed = tuple(leaves)
        found: dict[str, tuple[int, int]] = {}
        for name in self._matrices:
            module, _, last = name.rpartition(".")
            *words, leaf = module.split(".")
            if last != "weight" or leaf not in listed or locate(name) is not None or modality(".".join(words)):
                continue
            is_other = any(kind & set(words) and other & set(tower) for kind, other in _OPPOSITE)
            if not is_other:
                found[name] = _shared(words, tower), -listed.index(leaf)
        return self._matrices[max(found, key=found.__getitem__)] if found else None


_OPPOSITE = ((_ENCODERS, _DECODERS), (_DECODERS, _ENCODERS))


def _tower(projection: Projection) -> list[str]:
    """The words before the list of layers in a projection's name.

    Raises:
        WeightsError: it is in no layer, or in a tower that is not for text.
    """
    name = projection.tensor
    place = locate(name) or locate_in(name, frozenset(numbered(name)))
    if place is None or projection.layer is None:
        raise WeightsError("it is in no layer: tokens cannot be named")
    if kind := modality(place.prefix):
        raise WeightsError(f"it is in the {printable(kind)} tower, which reads no text")
    return place.prefix.split(".") if place.prefix else []


def _shared(words: Sequence[str], tower: Sequence[str]) -> int:
    """The number of first words that are equal."""
    pairs = zip(words, tower, strict=False)
    return next((count for count, (a, b) in enumerate(pairs) if a != b), min(len(words), len(tower)))
