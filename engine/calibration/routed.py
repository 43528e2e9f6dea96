"""The inputs of each matrix of experts that transformers holds as one module with stacks of matrices."""

from __future__ import annotations

from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from .running import Fed, Take

_PRODUCTS = (torch.nn.functional.linear, torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__)


class Routed(TorchFunctionMode):
    """Between `begin` and `end`, calls `take` with the rows that are multiplied with each of the matrices in `experts`,
    which are named by parameter and number. It needs the implementation that transformers calls eager: one expert after
    the other, each after torch.where has found its tokens."""

    def __init__(self, module: torch.nn.Module, experts: dict[tuple[str, int], Fed], take: Take) -> None:
        super().__init__()
        self._experts, self._take = experts, take
        self._stacks = {name: getattr(module, name) for name, _ in experts}
        self._tokens: torch.Tensor | None = None

    def begin(self, *_: object) -> None:
        """Begin watching: the module is called."""
        super().__enter__()  # type: ignore[no-untyped-call]

    def end(self, *_: object) -> None:
        """Stop watching: the module has returned or failed."""
        super().__exit__(None, None, None)  # type: ignore[no-untyped-call]

    def __torch_function__(
        self, func: Any, _types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        if func is torch.where and len(args) == 1:
            self._tokens = made[-1]  # which tokens the next expert takes, in its order
        elif func in _PRODUCTS and (fed := self._which(args[1])):
            known = self._tokens is not None and len(self._tokens) == len(args[0])
            self._take(fed, args[0], self._tokens if known else None)
        return made

    def _which(self, matrix: torch.Tensor) -> Fed | None:
        for name, stack in self._stacks.items():
            expert, rest = divmod(matrix.data_ptr() - stack.data_ptr(), stack.stride(0) * stack.element_size())
            if 0 <= expert < len(stack) and not rest and matrix.dim() == 2:
                return self._experts.get((name, expert))
        return None
