"""MLPs whose neurons can be scaled without changing the function: up by c, and down by its inverse."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from ..errors import WeightsError, printable
from ..spectrum import Projection
from .names import inner_config, locate, locate_in, numbered
from .norms import Norms
from .sizes import family_of
from .tree import ListedCheckpoint

BLOCKS_OF_NEURONS = frozenset(("mlp", "expert", "shared_expert"))
_ACTIVATIONS = (
    "mlp_hidden_act", "hidden_act", "hidden_activation", "activation_function", "feed_forward_proj", "dense_act_fn",
    "activation",
)  # fmt: skip
_DEGREES = {"relu": 1, "relu2": 2, "relu_squared": 2, "squared_relu": 2}
_DEFAULTS = {
    **dict.fromkeys(("opt", "t5", "t5encoder", "longt5", "switch_transformers", "m2m_100", "nllb_moe"), "relu"),
    **dict.fromkeys(("arcee", "nemotron", "nemotron_h", "nemotron_h_moe", "persimmon", "jais2", "nanochat"), "relu2"),
}
"""The activation if config.json does not state it; GGUF files never do."""
_ONE_MORE = "multiplies with up + 1 and clamps it"
_CLAMPS = "clamps what up gives"
_REFUSED = {
    **dict.fromkeys(("gpt_oss", "gpt-oss", "openai_privacy_filter", "minimax_m3_vl_text"), _ONE_MORE),
    **dict.fromkeys(("deepseek_v4", "glm5_next", "hy_v4", "step3p7"), _CLAMPS),
    "zamba2": "adds adapters of each layer to the matrices of a shared MLP",
}
_LIMIT = "swiglu_limit"
"""The prefix of settings that clamp a gated MLP: a number, or one for each layer; 0 or null mean no clamp."""


class Mlp(NamedTuple):
    """The matrices of an MLP, or of one expert; `gate` is None if there is none."""

    up: Projection
    down: Projection
    gate: Projection | None


class Neurons:
    """The MLPs of a checkpoint, and the effect of scaling their neurons. Uses only names and shapes."""

    def __init__(self, checkpoint: ListedCheckpoint, norms: Norms, projections: Iterable[Projection]) -> None:
        self._config = checkpoint.config
        self._norms = norms
        self._by_address = {p.address: p for p in projections if p.block in BLOCKS_OF_NEURONS}

    def mlp_of(self, projection: Projection) -> Mlp | None:
        """The MLP whose up or down this projection is; None for any other projection.

        Raises:
            WeightsError: the other matrix is not in the checkpoint, or does not fit.
        """
        if projection.block not in BLOCKS_OF_NEURONS or projection.role not in ("up", "down"):
            return None
        around = projection.address.rpartition(".")[0]
        up, down, gate = (self._by_address.get(f"{around}.{role}") for role in ("up", "down", "gate"))
        if up is None or down is None:
            raise WeightsError(f"there is no {around}.{'down' if down is None else 'up'}")
        if up.rows != down.cols or (gate is not None and (gate.rows, gate.cols) != (up.rows, up.cols)):
            raise WeightsError(f"{around}: up of {up.rows} neurons, down of {down.cols}")
        return Mlp(up, down, gate)

    def degree(self, mlp: Mlp) -> int:
        """The power of c > 0 by which a neuron's value is multiplied if its row of up, and its bias, are multiplied by
        c: 1 for a gated MLP, whose up is linear, and after ReLU; 2 after ReLU^2.

        Raises:
            WeightsError: it is no power, because of another activation, a clamp, or a norm before down.
        """
        config = self._config_of(mlp.up)
        family = family_of(config).partition("+")[0]
        limits = [value for key, value in config.items() if key.startswith(_LIMIT)]
        reason = _REFUSED.get(family) or (_CLAMPS if any(map(_any_number, limits)) else "")
        if reason:
            raise WeightsError(f"{printable(family)} {reason}")
        if (norm := self._norms.feeding(mlp.down)) is not None:
            raise WeightsError(f"{printable(family)} norms its neurons before down: {printable(norm.path)}")
        if mlp.gate is not None:
            return 1
        named = next((value for key in _ACTIVATIONS if isinstance(value := config.get(key), str)), "")
        activation = named or _DEFAULTS.get(family, "")
        if activation not in _DEGREES:
            raise WeightsError(f"its activation is {printable(activation) or 'not known'}, neither ReLU nor ReLU^2")
        return _DEGREES[activation]

    def _config_of(self, projection: Projection) -> Mapping[str, Any]:
        name = projection.tensor
        place = locate(name) or locate_in(name, frozenset(numbered(name)))
        return inner_config(self._config, place.prefix if place is not None else "")


def _any_number(value: object) -> bool:
    """True if a limit is set, for any layer."""
    return any(map(_any_number, value)) if isinstance(value, list) else bool(value)
