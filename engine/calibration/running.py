"""Loading a checkpoint into transformers, running it, and finding the modules that multiply with its projections."""

from __future__ import annotations

import inspect
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from importlib.util import find_spec
from io import StringIO
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from ..catalogue.names import inner_config
from ..catalogue.sizes import family_of
from ..checkpoint.open import Checkpoint
from ..errors import InputError, WeightsError, install_line, printable
from ..formats.gguf import Gguf
from ..spectrum import Projection
from .channels import is_gguf
from .inputs import Inputs
from .texts import LENGTH

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, eq=False)
class Fed:
    """An input of projections: the module that multiplies and, for a stack of experts, its parameter and the expert.

    `names` are the tensors that have this input: the checkpoint's, if it has them one by one.
    """

    module: torch.nn.Module
    parameter: str
    expert: int | None
    cols: int
    names: tuple[str, ...]
    projections: tuple[Projection, ...]


Take: TypeAlias = Callable[[Fed, "torch.Tensor", "torch.Tensor | None"], None]
"""Called with an input: rows (tokens, features), and the position of each token, None if not known."""


def require(what: str = "running a model") -> None:
    """Check that the extra `calibrate`, which `what` needs, is installed.

    Raises:
        InputError: transformers or accelerate is not installed.
    """
    if not (find_spec("transformers") and find_spec("accelerate")):
        raise InputError(f"{what} needs transformers and accelerate:  {install_line('calibrate')}")


def load(checkpoint: Checkpoint, device: str, dtype: str = "") -> tuple[torch.nn.Module, Any]:
    """Load the module and the tokenizer of a checkpoint whose files are here. Nothing in it is executed.

    `dtype` is torch's name for the type of its numbers; by default float32 on a CPU, the stored type on a GPU.

    Raises:
        InputError: transformers cannot load it, or would invent weights that are not in it; one line says why.
    """
    require()
    import transformers

    where, options = _place(checkpoint)
    with _silent_transformers(checkpoint):
        tokenizer = transformers.AutoTokenizer.from_pretrained(where, **options)
    return load_model(checkpoint, device, dtype), tokenizer


def load_model(checkpoint: Checkpoint, device: str, dtype: str = "") -> torch.nn.Module:
    """Load only the module, as `load` does; the checkpoint needs no tokenizer.

    Raises:
        InputError: as load.
    """
    require()
    import torch
    import transformers

    where, options = _place(checkpoint)
    fixed = {"experts_implementation": "eager", "output_loading_info": True}
    on: dict[str, Any] = {"dtype": torch.float32} if device == "cpu" else {"dtype": "auto", "device_map": device}
    on |= {"dtype": getattr(torch, dtype)} if dtype else {}
    if "gguf_file" in options and hasattr(transformers, "GgufConfig"):  # else some modules keep packed blocks
        on["quantization_config"] = transformers.GgufConfig(dequantize=True)
    with _silent_transformers(checkpoint):
        kind, _ = _kind_of(where, options)
        model, info = kind.from_pretrained(where, **fixed, **on, **options)
    if lacking := sorted(info["missing_keys"]):
        others = f" and {len(lacking) - 1} others" if len(lacking) > 1 else ""
        raise InputError(
            f"{printable(checkpoint.name)} cannot be run: {type(model).__name__} needs weights that are not in it, "
            f"{printable(lacking[0], 100)}{others}: name a checkpoint of the whole model"
        )
    loaded: torch.nn.Module = model.eval()
    return loaded


def skeleton(checkpoint: Checkpoint) -> torch.nn.Module:
    """The module that transformers makes from a checkpoint's configuration, without weights.

    Raises:
        InputError: transformers is not installed, or cannot make one.
    """
    require("naming the modules of a LoRA")
    import torch

    if not checkpoint.config:
        raise InputError(
            f"transformers cannot load {printable(checkpoint.name)}: there is no config.json beside its weights, which "
            "names its modules: add the model's, or leave out -o and --extract"
        )

    where, options = _place(checkpoint)
    with _silent_transformers(checkpoint):
        kind, config = _kind_of(where, options)
        with torch.device("meta"):
            made: torch.nn.Module = (getattr(kind, "from_config", None) or kind)(config)
    return made


def _kind_of(where: str, options: Mapping[str, Any]) -> tuple[Any, Any]:
    """The class of a model, by default that of language models, and its configuration."""
    import transformers

    config = transformers.AutoConfig.from_pretrained(where, **options)
    named = (config.architectures or [""])[0]
    return getattr(transformers, named, transformers.AutoModelForCausalLM), config


@contextmanager
def _silent_transformers(checkpoint: Checkpoint) -> Iterator[None]:
    """Run calls of transformers silently.

    Raises:
        InputError: they raised an error; the message is its first line.
    """
    import transformers

    logging: Any = transformers.utils.logging
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with redirect_stderr(StringIO()):  # some progress bars have no setting
            yield
    except Exception as error:  # noqa: BLE001 - transformers raises what its parts do
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(" :.")
        raise InputError(
            f"transformers cannot load {printable(checkpoint.name)}: {printable(reason, 300)}: check its "
            "config.json and tokenizer, or name another"
        ) from None


def _place(checkpoint: Checkpoint) -> tuple[str, dict[str, Any]]:
    """The arguments by which transformers finds a checkpoint: a folder, a GGUF file in one, or a commit on the Hub."""
    location = checkpoint.location
    if location is None:
        return checkpoint.name, {"revision": checkpoint.commit} if checkpoint.commit else {}
    if location.is_dir():
        files = [file for file in checkpoint.stamps if file.suffix in Gguf.suffixes]
        return str(location), {"gguf_file": files[0].name} if files else {}
    if location.suffix not in Gguf.suffixes:
        raise InputError(f"{printable(location.name)} alone cannot be run: name its folder, with config.json beside it")
    return str(location.parent), {"gguf_file": location.name}


def length_of(model: Any) -> int:
    """How many tokens a sequence has: LENGTH, or fewer if the model has fewer positions."""
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return min(LENGTH, positions) if isinstance(positions, int) and positions > 1 else LENGTH


def forward(model: torch.nn.Module, ids: Sequence[int]) -> Any:
    """The output of the model for one sequence; if it has an encoder and a decoder, both read the sequence.

    Raises:
        InputError: the model does not run on text, or the device has no room for the sequence.
    """
    import torch

    device = next(model.parameters()).device
    given: dict[str, Any] = {"input_ids": torch.tensor([list(ids)], device=device)}
    if getattr(model.config, "is_encoder_decoder", False):
        given["decoder_input_ids"] = given["input_ids"]
    if "use_cache" in inspect.signature(model.forward).parameters:
        given["use_cache"] = False
    try:
        with torch.no_grad():
            return model(**given)
    except torch.OutOfMemoryError as error:
        raise InputError(
            "the device has too little memory for one sequence: use --device cpu "
            f"({printable(str(error).splitlines()[0], 200)})"
        ) from None
    except Exception as error:  # noqa: BLE001 - it may need images or sound; the first line of its error is shown
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"the model does not run on text: {printable(reason, 300)}: name a language model") from None


class _RunningMatrix(NamedTuple):
    """A matrix of a running model: its module and, in a stack of experts, the parameter and the expert; and how many
    input features it has."""

    module: torch.nn.Module
    parameter: str
    expert: int | None
    cols: int


def fed_of(
    model: torch.nn.Module, tree: Sequence[Projection], checkpoint: Checkpoint
) -> tuple[list[Fed], list[Projection]]:
    """The inputs of a tree's projections, in the order of the modules, and the projections that no module is known to
    hold."""
    modules = dict(_modules(model, [tensor.name for tensor in checkpoint.tensors]))
    inputs = Inputs(modules, family_of(inner_config(checkpoint.config, "")))
    found: dict[str, list[Projection]] = defaultdict(list)
    lost: list[Projection] = []
    for p in tree:
        try:
            name, matrix = inputs.of(p)
        except WeightsError:
            lost.append(p)
            continue
        fits = matrix is None and modules[name].cols == p.cols
        (found[name] if fits else lost).append(p)
    places: dict[_RunningMatrix, list[str]] = defaultdict(list)
    for name in modules:
        if name in found:
            places[modules[name]].append(name)
    made = []
    for place, names in places.items():
        held = tuple(p for name in names for p in found[name])
        own = dict.fromkeys(_name(name, p) for name in names for p in found[name])
        made.append(Fed(*place, tuple(own), held))
    return made, lost


def _name(name: str, p: Projection) -> str:
    """The name of a projection's tensor in the checkpoint. For a stack, and for GGUF, where some input features have
    another order, the name of the module."""
    is_own = not is_gguf(p.tensor) and (p.slice is None or p.slice.index is None)
    return p.tensor if is_own else name


def _modules(model: torch.nn.Module, tensors: Iterable[str]) -> Iterator[tuple[str, _RunningMatrix]]:
    """Yield the matrices of a running model, with names that the catalogue can read."""
    stored = _by_ending(tensors)
    every = list(model.named_modules())
    names = {path: f"{path}.weight" for path, module in every if _linear(module)}
    claims = Counter(_stored(name, stored) for name in names.values())
    for path, module in every:
        if name := names.get(path):
            own = _stored(name, stored)  # if two modules claim a tensor, it is not known which one holds it
            yield own if claims[own] == 1 else name, _RunningMatrix(module, "", None, _linear(module))
            continue
        for own, parameter in module.named_parameters(recurse=False):
            if parameter.dim() != 3 or "experts" not in path.split("."):
                continue
            transposed = bool(getattr(module, "is_transposed", False))
            for expert in range(parameter.shape[0]):
                for role in _roles(own):
                    place = _RunningMatrix(module, own, expert, int(parameter.shape[1 if transposed else 2]))
                    yield f"{path}.{expert}.{role}_proj.weight", place


def _linear(module: torch.nn.Module) -> int:
    """How many input features a linear module has; 0 for any other module."""
    if type(module).__name__ == "Conv1D":
        return int(module.weight.shape[0])  # type: ignore[index]
    cols = getattr(module, "in_features", 0)
    return cols if isinstance(cols, int) else 0


def _roles(parameter: str) -> tuple[str, ...]:
    if "down" in parameter:
        return ("down",)
    return tuple(role for role in ("gate", "up") if role in parameter) or ("up",)


def _by_ending(tensors: Iterable[str]) -> Mapping[str, list[str]]:
    """Tensors by all endings of their names that contain a number: in a wrapper a module's name begins differently."""
    found: dict[str, list[str]] = defaultdict(list)
    for name in tensors:
        for ending in _endings(name):
            found[ending].append(name)
    return found


def _endings(name: str) -> Iterator[str]:
    """Yield the name, then its endings after each dot, as long as they begin at or before its last number."""
    words = name.split(".")
    yield name
    last = max((i for i, word in enumerate(words) if word.isdecimal()), default=0)
    for start in range(1, last):
        yield ".".join(words[start:])


def _stored(name: str, stored: Mapping[str, list[str]]) -> str:
    """The tensor that shares the longest ending with a module's name; that name itself if there is none, or several."""
    for ending in _endings(name):
        if found := stored.get(ending):
            return found[0] if len(found) == 1 else name
    return name
