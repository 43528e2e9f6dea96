"""The rows of its weights that a running model uses as queries, keys, values, gates and so on.

Every product with a weight is answered with numbers that name the rows of that weight ("tags"); the model's own
code then splits, reshapes and passes them on, and where they arrive says what they are. Norms and depthwise
convolutions pass tags on, the first position is not rotated, biases are zero, an activation answers one. Nothing
of the product under test takes part.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

Running: TypeAlias = Any
_BASE = 1000
_LAYER = re.compile(r"(?:^|\.)(?:layers?|h|blocks?|albert_layer_groups)\.(\d+)\.(?!blocks\.)")
_ACTIVATION = re.compile(r"gelu|silu|relu|activation", re.IGNORECASE)
_MATMULS = (torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__, torch.bmm)
_ACTIVATIONS = (functional.silu, functional.gelu, functional.relu, torch.relu)
_SPLITS = (torch.split, torch.Tensor.split, torch.chunk, torch.Tensor.chunk)
_OTHERS = {torch.sigmoid: "sigmoid", torch.Tensor.sigmoid: "sigmoid", functional.softplus: "softplus"}


class Used(NamedTuple):
    """Rows of a weight that a layer uses together: their `use`, layer and expert, and the matrix."""

    use: str
    layer: int
    expert: int | None
    matrix: torch.Tensor


class Tracer(TorchFunctionMode):
    """While active, records the uses of tags: `seen[use][parameter]`, flat indices of the rows' first weights."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.seen: dict[str, dict[str, set[int]]] = defaultdict(lambda: defaultdict(set))
        tagged = ((name, p.data) for name, p in model.named_parameters() if p.dim() > 1 and "adapter" not in name)
        self._weights = dict(tagged)
        self._by_storage = {w.untyped_storage().data_ptr(): name for name, w in self._weights.items()}
        sizes = torch.tensor([_BASE, *(w.numel() for w in self._weights.values())], dtype=torch.float64).cumsum(0)
        self._first, self._last = sizes[:-1], float(sizes[-1])
        self._names = list(self._weights)
        self._columns: set[str] = set()
        self._convolved = False
        self._calls = 0

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        with torch._C.DisableTorchFunction():
            answer = self._answer(function, args, kwargs)
        return function(*args, **kwargs) if answer is None else answer

    def _answer(self, function: Any, args: Any, kwargs: Any) -> torch.Tensor | None:
        """The replacement for the result of a function; None to compute it."""
        self._calls += 1
        if function is functional.linear:
            return self._product(args[0], args[1].T)
        if function in _MATMULS:
            return self._product(args[0], args[1])
        if function in (torch.addmm, torch.baddbmm, torch.Tensor.baddbmm):
            given = (*args, *kwargs.values())
            return self._product(kwargs.get("batch1", given[1]), kwargs.get("batch2", given[2]))
        if function is torch.einsum:
            return self._einsum(*args)
        if function is functional.scaled_dot_product_attention:
            return self._attend(*args[:3], **{k: v for k, v in kwargs.items() if k in ("query", "key", "value")})
        if function is torch.conv1d:
            return self._convolve(args[0], args[1] if len(args) > 1 else kwargs["weight"])
        if function in _ACTIVATIONS:
            return self.activate(args[0])
        if function in _SPLITS:
            for number, part in enumerate(function(*args, **kwargs)):
                self.note(f"part {self._calls} {number}", part)
        if function in _OTHERS and self.note(_OTHERS[function], args[0]):
            return torch.ones_like(args[0])
        return None

    def _convolve(self, values: torch.Tensor, weight: torch.Tensor) -> torch.Tensor | None:
        """The result of a depthwise convolution, which passes tags on, padded as causal ones are."""
        if weight.shape[:2] != (values.shape[1], 1) or not self._names_of(values):
            return None
        self._convolved = True
        return functional.pad(values, (0, weight.shape[-1] - 1))

    def activate(self, values: torch.Tensor) -> torch.Tensor | None:
        """One, so that the other factor of its product passes alone; behind a convolution, the tags."""
        if self._convolved and self._names_of(values):
            self._convolved = False
            return values
        return torch.ones_like(values) if self.note(f"activation {self._calls}", values) else None

    def _attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        for use, states in (("query", query), ("key", key), ("value", value)):
            self._note_states(use, states[..., :1, :], states.shape[-1])
        return torch.zeros(*query.shape[:-1], value.shape[-1], dtype=query.dtype)

    def delta_rule(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **_rest: Any) -> tuple[Any, None]:
        """A replacement for the gated delta rule of linear attention."""
        for use, states in (("query", query), ("key", key), ("value", value)):
            self.note(use, states)
        return torch.zeros_like(value), None

    def _product(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor | None:
        """(..., in) @ (in, out): tags where b is a weight; queries @ keys, and weights @ values."""
        name = self._by_storage.get(b.untyped_storage().data_ptr())
        if name is not None:
            self.note(f"input {self._calls}", a[:, :1] if b.dim() == 3 else a.reshape(-1, a.shape[-1])[:1])
            line = b[..., :1, :]
            if b.stride(-1) == 1 and b.shape[-1] > 1:
                self._columns.add(name)
            flat = torch.arange(self._weights[name].numel()).as_strided(line.shape, line.stride(), b.storage_offset())
            return (flat + self._first_of(name)).to(a.dtype).expand(*a.shape[:-1], b.shape[-1]).clone()
        if b.shape[-1] == 1:
            self._note_states("query", a[..., :1, :], a.shape[-1])
            self._note_states("key", b, a.shape[-1])
        elif b.shape[-2] == 1:
            self.note("value", b)
        return None

    def _einsum(self, equation: str, a: torch.Tensor, *others: Any) -> torch.Tensor | None:
        """XLNet: weights of (d_model, heads, head_dim), queries and keys as ibnd."""
        if equation not in ("ibh,hnd->ibnd", "ibnd,jbnd->bnij", "bnij,jbnd->ibnd"):
            return None
        (b,) = others
        name = self._by_storage.get(b.untyped_storage().data_ptr())
        if name is not None and equation == "ibh,hnd->ibnd":
            self._columns.add(name)
            tags = torch.arange(b[0].numel()).reshape(b.shape[1:]) + self._first_of(name)
            return tags.to(a.dtype).expand(*a.shape[:2], *b.shape[1:]).clone()
        uses = {"ibnd,jbnd->bnij": ("query", "key"), "bnij,jbnd->ibnd": ("", "value")}.get(equation, ("", ""))
        for use, states in zip(uses, (a, b), strict=True):
            if use:
                self.note(use, states)
        return None

    def _first_of(self, name: str) -> int:
        return int(self._first[self._names.index(name)])

    def _names_of(self, values: Any) -> bool:
        if not isinstance(values, torch.Tensor) or not values.is_floating_point() or not values.numel():
            return False
        return bool(((values >= _BASE) & (values < self._last) & (values == values.round())).all())

    def _note_states(self, use: str, states: torch.Tensor, width: int) -> None:
        """Note queries and keys; some models scale queries (or keys) before their product."""
        scaled = states * width**0.5
        if not self.note(use, states) and bool((scaled - scaled.round()).abs().max() < 1e-6):
            self.note(use, scaled.round())

    def note(self, use: str, values: Any) -> bool:
        """Record the tags in `values`; return False where there are none."""
        if not self._names_of(values):
            return False
        tags = values.detach().double().unique()
        owners = torch.searchsorted(self._first, tags, right=True) - 1
        for owner in owners.unique().tolist():
            self.seen[use][self._names[owner]].update((tags[owners == owner] - self._first[owner]).long().tolist())
        return True

    def used(self) -> Iterator[Used]:
        """Everything recorded, as matrices (out, in)."""
        for use, parameters in self.seen.items():
            for name, flat in parameters.items():
                if (layer := _LAYER.search(name)) is None:
                    continue
                weight = self._weights[name]
                if weight.dim() == 3 and "rel_attn" in name:
                    weight = weight.reshape(weight.shape[0], -1)
                planes = weight if weight.dim() == 3 else weight[None]
                size = planes[0].numel()
                for number in sorted({index // size for index in flat}):
                    inside = sorted(index % size for index in flat if index // size == number)
                    plane, width = planes[number], planes.shape[2]
                    rows = plane.T[inside] if name in self._columns else plane[[index // width for index in inside]]
                    yield Used(use.split()[0], int(layer[1]), number if weight.dim() == 3 else None, rows)


def traced(model: nn.Module, run: Callable[[Running], object]) -> list[Used]:
    """The uses of a model's weights while it runs on one token; the model is changed for good."""
    model = model.double().eval()
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1 or "bias" in name or "adapter" in name:
            nn.init.zeros_(parameter)
    tracer = Tracer(model)

    def pass_on(*args: Any, **named: Any) -> Any:
        tracer.note("norm_gate", args[1] if len(args) > 1 else named.get("gate"))
        return args[0] if args else next(iter(named.values()))

    for module in model.modules():
        kind = type(module).__name__
        if "Norm" in kind and not list(module.children()) and "Weight" not in kind:
            module.forward = pass_on
        elif _ACTIVATION.search(kind) and not list(module.children()):
            module.register_forward_hook(lambda _, args, out: None if out is args[0] else tracer.activate(args[0]))
        for rule in ("chunk_gated_delta_rule", "recurrent_gated_delta_rule"):
            if hasattr(module, rule):
                setattr(module, rule, tracer.delta_rule)
    with torch.no_grad(), tracer:
        run(model)
    return list(tracer.used())
