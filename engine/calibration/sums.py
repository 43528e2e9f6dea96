"""Sums of x x^T, or of x^2, and of x over the inputs of a matrix, on the device where the model runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..weights import HostArray

if TYPE_CHECKING:
    import torch

PARTS = ("rest", "first", "held")
"""The parts of the tokens: `held` for held-out sequences; in the others, `first` for position 0 and `rest`."""
WIDEST = 8192
"""The most input features for which all of x x^T is summed: 268 MB a part. Llama-3-8B's 14,336 would take 822 MB."""


class PartialSums:
    """Sums over one part of the tokens: of products and of x, and how many tokens they have."""

    def __init__(self, cols: int, full: bool, device: torch.device) -> None:
        import torch

        self.products = torch.zeros((cols, cols) if full else (cols,), dtype=torch.float32, device=device)
        self.x = torch.zeros(cols, dtype=torch.float32, device=device)
        self.count = 0

    def add(self, rows: torch.Tensor) -> None:
        """Add rows, shape (tokens, cols)."""
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
        """Move the sums to the host, to make room on the device."""
        self.products, self.x = self.products.cpu(), self.x.cpu()

    @staticmethod
    def _host(held: torch.Tensor) -> HostArray:
        array: HostArray = held.cpu().numpy()
        return array


class Sums:
    """The sums of one input with `cols` features, in three parts: all of x x^T if `full`, else x^2."""

    def __init__(self, cols: int, full: bool, device: torch.device) -> None:
        self.cols, self.full = cols, full
        self.parts = {name: PartialSums(cols, full, device) for name in PARTS}

    def add(self, rows: torch.Tensor, first: torch.Tensor | None, held: bool) -> None:
        """Add rows of one sequence; `first` is true for those of position 0, None if it is not known which they are."""
        if held or first is None:
            self.parts["held" if held else "rest"].add(rows)
            return
        self.parts["first"].add(rows[first])
        self.parts["rest"].add(rows[~first])

    @property
    def tokens(self) -> int:
        """How many tokens of sequences that are not held out were added."""
        return self.parts["rest"].count + self.parts["first"].count

    @property
    def held(self) -> int:
        """How many tokens of held-out sequences were added."""
        return self.parts["held"].count

    def whole(self) -> HostArray:
        """The sums of products over all tokens that are not held out, on the host."""
        array: HostArray = self.parts["rest"].second() + self.parts["first"].second()
        return array


def bytes_of(cols: int, full: bool) -> int:
    """How many bytes the three parts take."""
    return 4 * len(PARTS) * (cols * cols if full else cols) + 4 * len(PARTS) * cols
