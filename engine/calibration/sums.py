"""Sums of x x^T, or of x^2, and of x over the inputs of a matrix, kept where the model runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..weights import HostArray

if TYPE_CHECKING:
    import torch

PARTS = ("rest", "first", "held")
"""No token is in two of them: of the sequences that are not held out position 0 and the rest, and those held out."""
WIDEST = 8192
"""Input features up to which all of x x^T is summed: 268 MB for each part, and 822 MB for the 14,336 of Llama-3-8B."""


class PartialSums:
    """Sums over some of the tokens: of products, of x, and how many tokens they are."""

    def __init__(self, cols: int, full: bool, device: torch.device) -> None:
        import torch

        self.products = torch.zeros((cols, cols) if full else (cols,), dtype=torch.float32, device=device)
        self.x = torch.zeros(cols, dtype=torch.float32, device=device)
        self.count = 0

    def add(self, rows: torch.Tensor) -> None:
        """Take in the rows of (tokens, cols)."""
        if not len(rows):
            return
        x = rows.detach().float()
        if self.products.dim() == 2:
            self.products.addmm_(x.T, x)
        else:
            self.products += x.square().sum(0)
        self.x += x.sum(0)
        self.count += len(x)

    def second(self) -> HostArray:
        """The sums of products on the host, float32."""
        return self._host(self.products)

    def first(self) -> HostArray:
        """The sum of x on the host, float32."""
        return self._host(self.x)

    def move(self) -> None:
        """To the host: the device has the next ones to hold."""
        self.products, self.x = self.products.cpu(), self.x.cpu()

    @staticmethod
    def _host(held: torch.Tensor) -> HostArray:
        array: HostArray = held.cpu().numpy()
        return array


class Sums:
    """The three parts of one input of `cols` features: all of x x^T if `full`, else x^2."""

    def __init__(self, cols: int, full: bool, device: torch.device) -> None:
        self.cols, self.full = cols, full
        self.parts = {name: PartialSums(cols, full, device) for name in PARTS}

    def add(self, rows: torch.Tensor, first: torch.Tensor | None, held: bool) -> None:
        """Take in rows of one sequence; `first` is true for those of position 0, None where it is not known which."""
        if held or first is None:
            self.parts["held" if held else "rest"].add(rows)
            return
        self.parts["first"].add(rows[first])
        self.parts["rest"].add(rows[~first])

    @property
    def tokens(self) -> int:
        """Of sequences that are not held out."""
        return self.parts["rest"].count + self.parts["first"].count

    @property
    def held(self) -> int:
        """Tokens of sequences held out."""
        return self.parts["held"].count

    def whole(self) -> HostArray:
        """The sums of products over all tokens but those held out, on the host."""
        array: HostArray = self.parts["rest"].second() + self.parts["first"].second()
        return array


def bytes_of(cols: int, full: bool) -> int:
    """What the three parts take in memory."""
    return 4 * len(PARTS) * (cols * cols if full else cols) + 4 * len(PARTS) * cols
