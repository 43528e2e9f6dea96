"""How well a running model predicts a text: its perplexity.

Perplexity is exp of the mean negative log likelihood of each next token, over windows that do not overlap. The first
token of a window has nothing before it and is not counted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable
from typing import TYPE_CHECKING, NamedTuple

from ..errors import InputError
from .running import forward
from .tokens_read import has_read

if TYPE_CHECKING:
    import torch

_TRIED = 8
"""How many tokens are run twice, the second time with another last one, to see whether the model looks ahead."""
_TOLERANCE = 1e-5
"""How far predictions before that token may change, relative to the largest logit, in types that are precise enough."""


class Windows(NamedTuple):
    """Sequences of tokens to be predicted, and how many were left out as a calibration has read them."""

    ids: list[list[int]]
    left_out: int

    @property
    def length(self) -> int:
        """The number of tokens in each window; a text may have only one, shorter window."""
        return len(self.ids[0])

    @property
    def predicted(self) -> int:
        """The number of tokens that count: all but the first of each window."""
        return sum(len(ids) - 1 for ids in self.ids)


def choose_windows(
    sequences: Iterable[list[int]], tokens: int, read: Collection[str], special: Collection[int]
) -> Windows:
    """The first sequences with `tokens` tokens in all, without those that share text with a calibration, whose digests
    are `read` (see tokens_read.py).

    Raises:
        InputError: nothing is left, or nothing to predict.
    """
    kept: list[list[int]] = []
    left_out = held = 0
    for ids in sequences:
        if held >= tokens:
            break
        if read and has_read(read, ids, special):
            left_out += 1
            continue
        kept.append(ids)
        held += len(ids)
    found = Windows(kept, left_out)
    if left_out and not kept:
        raise InputError("the second moments were made of all of this text: give another --text")
    if not found.predicted:
        raise InputError("the text is too short to predict a token from another: give a longer one")
    return found


def check_predicts(model: torch.nn.Module, windows: Windows) -> None:
    """Check that the model predicts the next token from only those before it.

    Raises:
        InputError: it does something else, or the tokenizer has tokens that it does not know.
    """
    import torch

    kind = type(model).__name__
    if getattr(model.config, "is_encoder_decoder", False):
        raise InputError(
            f"{kind} has an encoder, which reads what is to be predicted: perplexity needs a decoder-only model"
        )
    largest = max(max(ids) for ids in windows.ids)
    known = model.get_input_embeddings().weight.shape[0]  # type: ignore[operator]
    if largest >= known:
        raise InputError(
            f"the tokenizer makes token {largest}, and {kind} knows {known}: tokenizer and model do not belong "
            "together, name the model's own folder"
        )
    ids = windows.ids[0][:_TRIED]
    logits = getattr(forward(model, ids), "logits", None)
    if not isinstance(logits, torch.Tensor) or logits.shape[:2] != (1, len(ids)) or logits.shape[2:] <= (largest,):
        raise InputError(f"{kind} has no head that predicts tokens: name a model that has one, as ...ForCausalLM")
    other = forward(model, [*ids[:-1], (ids[-1] + 1) % known]).logits
    tolerance = max(_TOLERANCE, 4 * torch.finfo(logits.dtype).eps) * float(logits.abs().max())
    if len(ids) > 1 and float((logits - other)[:, :-1].abs().max()) > tolerance:
        raise InputError(f"{kind} also reads later tokens: perplexity needs a causal model, name one")


def mean_loss(model: torch.nn.Module, windows: Windows, tell: Callable[[int, int], None]) -> float:
    """The mean negative log likelihood of the tokens that count. `tell` is called with how many windows are done, and
    how many there are.

    Raises:
        InputError: see forward; or the result is not finite.
    """
    import torch

    total = 0.0
    for done, ids in enumerate(windows.ids, 1):
        logits = forward(model, ids).logits[0, :-1]
        wanted = torch.tensor(ids[1:], device=logits.device)
        losses = torch.nn.functional.cross_entropy(logits.float(), wanted, reduction="none")
        total += float(losses.double().sum())
        if not math.isfinite(total):
            raise InputError(
                f"window {done} of {len(windows.ids)} has no perplexity: the model gives NaN or infinity, see "
                "with  rankscope scan  which of its weights are not finite"
            )
        tell(done, len(windows.ids))
    return total / windows.predicted


def perplexity_of(loss: float) -> float:
    """exp of a mean loss; infinite if it exceeds the range of float64."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf
