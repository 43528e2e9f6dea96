"""The tokens at the two ends of a first direction: in the embedding that it reads or the unembedding it writes to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np

from ..catalogue.embeddings import Embeddings
from ..checkpoint.vocabulary import token_texts
from ..errors import WeightsError, printable
from ..formats.tensor import Tensor
from ..spectrum import Projection, Values
from ..weights import Weights, host_array
from .directions import READS, WRITES, Directions
from .norm_weighting import NormWeighting
from .slabs import slabs

if TYPE_CHECKING:
    from ..checkpoint.open import Checkpoint

MOST = 6
"""The most tokens at each end."""


@dataclass(frozen=True, slots=True)
class Token:
    """A token: its number, its text if known, and its score, see token_ends."""

    number: int
    text: str | None
    score: float


@dataclass(frozen=True, slots=True)
class TokenEnds:
    """The tokens with the highest and the lowest scores, the most extreme first. `vector` is v_1 or u_1, `matrix` the
    tensor whose rows were scored, `unnamed` a line that says why tokens have no texts, "" if they have. The sign of a
    direction is arbitrary: neither end is the positive one."""

    vector: str
    matrix: str
    high: tuple[Token, ...]
    low: tuple[Token, ...]
    unnamed: str


def token_ends(checkpoint: Checkpoint, gains: NormWeighting, projection: Projection, found: Directions) -> TokenEnds:
    """The tokens at the ends of a projection's first direction. Reads files.

    For a projection that reads the residual stream, the score of a token is the product of its row of the embedding
    with gain times v_1; for one that writes to it, of its row of the unembedding with the final gain times u_1. A
    LayerNorm also takes away the mean.

    Raises:
        WeightsError: it neither reads nor writes the residual stream, or embedding, unembedding or norm are missing,
            not on this machine, or do not fit.
    """
    embeddings = Embeddings(checkpoint)
    if projection.role in READS and projection.block == "cross_attention" and projection.role != "query":
        raise WeightsError("it reads the output of an encoder, where tokens are no longer those of the embedding")
    if projection.role in READS:
        name, tensor = "v_1", embeddings.embedding(projection)
        vector = gains.folded(projection, found.right[:, :1])[:, 0]
    elif projection.role in WRITES:
        name, tensor = "u_1", embeddings.unembedding(projection)
        vector = gains.unfolded(projection, found.left[:, :1])[:, 0]
    else:
        raise WeightsError(f"tokens can be named for {', '.join(READS + WRITES)}, which meet the residual stream")
    scores = _scores(checkpoint, tensor, vector)
    order = np.argsort(-scores, kind="stable")
    count = min(MOST, -(-len(order) // 2))
    texts, why = token_texts(checkpoint, tensor.file.parent)
    high, low = (tuple(_token(n, texts, scores) for n in numbers) for numbers in (order[:count], order[::-1][:count]))
    return TokenEnds(name, printable(tensor.name), high, low, why)


def _token(number: np.intp, texts: Mapping[int, str], scores: Values) -> Token:
    return Token(int(number), texts.get(int(number)), float(scores[number]))


def _scores(checkpoint: Checkpoint, tensor: Tensor, vector: Values) -> Values:
    """The product of each row of a matrix with a vector."""
    name = printable(tensor.name)
    if tensor.problem:
        raise WeightsError(f"{name}: {tensor.problem}")
    if 0 in tensor.shape or tensor.shape[1] != len(vector):
        shape = "x".join(map(str, tensor.shape))
        raise WeightsError(f"{name} is {shape}, and the direction has {len(vector)} channels: tokens cannot be named")
    if checkpoint.bytes_to_fetch((tensor.name,)):
        raise WeightsError(f"{name} is not on this machine: name the model with --download")
    read, _ = checkpoint.read(tensor)
    matrix = host_array(cast("Weights", read))
    scores = np.concatenate([rows @ vector for rows in slabs(matrix)])
    if not np.isfinite(scores).all():
        raise WeightsError(f"{name} holds NaN or infinite values: tokens cannot be named")
    return scores
