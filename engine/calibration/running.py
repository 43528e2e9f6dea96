"""A checkpoint as transformers runs it, and which of its modules multiply with which projections."""

from __future__ import annotations

import inspect
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from importlib.util import find_spec
from io import StringIO
from typing import TYPE_CHECKING, Any, TypeAlias

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
    """What feeds projections: the module that multiplies, and of a stack of experts its parameter and which of them.

    `names` are the tensors that have this input, in the checkpoint where it has them one by one.
    """

    module: torch.nn.Module
    parameter: str
    expert: int | None
    cols: int
    names: tuple[str, ...]
    projections: tuple[Projection, ...]


Take: TypeAlias = Callable[[Fed, "torch.Tensor", "torch.Tensor | None"], None]
"""Told of an input: rows of (tokens, features), and the position of each, None where that is not known."""


def require(what: str = "running a model") -> None:
    """See that the extra `calibrate`, which `what` needs, is there.

    Raises:
        InputError: transformers or accelerate is not installed.
    """
    if not (find_spec("transformers") and find_spec("accelerate")):
        raise InputError(f"{what} needs transformers and accelerate:  {install_line('calibrate')}")


def load(checkpoint: Checkpoint, device: str, dtype: str = "") -> tuple[torch.nn.Module, Any]:
    """The module and the tokenizer of a checkpoint whose files are here: nothing in it is executed.

    `dtype` is what torch calls the type of its numbers; else that is float32 on a CPU, as stored on a GPU.

    Raises:
        InputError: transformers cannot load it, or would make weights up that are not in it; one line says why.
    """
    require()
    import transformers

    where, options = _place(checkpoint)
    with _asked_of_transformers(checkpoint):
        tokenizer = transformers.AutoTokenizer.from_pretrained(where, **options)
    return load_model(checkpoint, device, dtype), tokenizer


def load_model(checkpoint: Checkpoint, device: str, dtype: str = "") -> torch.nn.Module:
    """The same without a tokenizer, of which there need be none.

    Raises:
        InputError: as load.
    """
    require()
    import torch
    import transformers

    where, options = _place(checkpoint)
    asked = {"experts_implementation": "eager", "output_loading_info": True}
    on: dict[str, Any] = {"dtype": torch.float32} if device == "cpu" else {"dtype": "auto", "device_map": device}
    on |= {"dtype": getattr(torch, dtype)} if dtype else {}
    if "gguf_file" in options and hasattr(transformers, "GgufConfig"):  # or some modules would keep packed blocks
        on["quantization_config"] = transformers.GgufConfig(dequantize=True)
    with _asked_of_transformers(checkpoint):
        kind, _ = _kind_of(where, options)
        model, info = kind.from_pretrained(where, **asked, **on, **options)
    if lacking := sorted(info["missing_keys"]):
        others = f" and {len(lacking) - 1} others" if len(lacking) > 1 else ""
        raise InputError(
            f"{printable(checkpoint.name)} cannot be run: {type(model).__name__} needs weights that are not in it, "
            f"{printable(lacking[0], 100)}{others}"
        )
    loaded: torch.nn.Module = model.eval()
    return loaded


def skeleton(checkpoint: Checkpoint) -> torch.nn.Module:
    """The module that transformers makes of a checkpoint's configuration, without weights.

    Raises:
        InputError: transformers is not installed, or makes none.
    """
    require("naming the modules of a LoRA")
    import torch

    where, options = _place(checkpoint)
    with _asked_of_transformers(checkpoint):
        kind, config = _kind_of(where, options)
        with torch.device("meta"):
            made: torch.nn.Module = (getattr(kind, "from_config", None) or kind)(config)
    return made


def loaded_as(model: torch.nn.Module) -> Callable[[str], str | None]:
    """Under which name transformers loads a stored tensor into a model; None of one that it cuts, stacks or turns, and
    of all where its version does not tell."""
    try:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter
    except ImportError:
        return lambda _: None
    every: list[Any] = get_model_conversion_mapping(model)  # type: ignore[arg-type]

    def name_of(name: str) -> str | None:
        for one in sorted(every, key=lambda one: isinstance(one, WeightConverter)):  # it looks at the new names
            name, found = one.rename_source_key(name)
            if found is not None and isinstance(one, WeightConverter):
                return None
        return name

    return name_of


def _kind_of(where: str, options: Mapping[str, Any]) -> tuple[Any, Any]:
    """The class of a model, that of language models where none is named, and its configuration."""
    import transformers

    config = transformers.AutoConfig.from_pretrained(where, **options)
    named = (config.architectures or [""])[0]
    return getattr(transformers, named, transformers.AutoModelForCausalLM), config


@contextmanager
def _asked_of_transformers(checkpoint: Checkpoint) -> Iterator[None]:
    """Without what it says on the way; of what its parts raise the first line.

    Raises:
        InputError: anything goes wrong.
    """
    import transformers

    logging: Any = transformers.utils.logging
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with redirect_stderr(StringIO()):  # bars of its parts that know no setting
            yield
    except Exception as error:  # noqa: BLE001 - transformers raises what its parts do
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"transformers cannot load {printable(checkpoint.name)}: {printable(reason, 300)}") from None


def _place(checkpoint: Checkpoint) -> tuple[str, dict[str, Any]]:
    """What transformers calls it: a folder, a GGUF file in one, or a commit on the Hub."""
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
    """Tokens of a sequence: LENGTH, or as many as the model has positions for."""
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return min(LENGTH, positions) if isinstance(positions, int) and positions > 1 else LENGTH


def forward(model: torch.nn.Module, ids: Sequence[int]) -> Any:
    """What the model answers to one sequence; an encoder and its decoder both read it.

    Raises:
        InputError: it does not run on text, or the device has no room for it.
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
            f"the device has too little memory for one sequence: {printable(str(error).splitlines()[0], 200)}"
        ) from None
    except Exception as error:  # noqa: BLE001 - it may want images or sound: of whatever it raises the first line
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"the model does not run on text: {printable(reason, 300)}") from None


def fed_of(
    model: torch.nn.Module, tree: Sequence[Projection], checkpoint: Checkpoint
) -> tuple[list[Fed], list[Projection]]:
    """What feeds the projections of a tree, in the order of the modules, and those that no module is known to hold."""
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
        fits = matrix is None and modules[name][3] == p.cols
        (found[name] if fits else lost).append(p)
    places: dict[tuple[Any, ...], list[str]] = defaultdict(list)
    for name in modules:
        if name in found:
            places[modules[name]].append(name)
    made = []
    for (module, parameter, expert, cols), names in places.items():
        held = tuple(p for name in names for p in found[name])
        own = dict.fromkeys(_name(name, p) for name in names for p in found[name])
        made.append(Fed(module, parameter, expert, cols, tuple(own), held))
    return made, lost


def _name(name: str, p: Projection) -> str:
    """What the file calls it. Of GGUF the name of the module: some of its input features stand in another order."""
    is_own = not is_gguf(p.tensor) and (p.slice is None or p.slice.index is None)
    return p.tensor if is_own else name


def _modules(
    model: torch.nn.Module, tensors: Iterable[str]
) -> Iterator[tuple[str, tuple[torch.nn.Module, str, int | None, int]]]:
    """Names of matrices, as the catalogue reads them, and module, parameter, expert and input features of each."""
    stored = _by_ending(tensors)
    every = list(model.named_modules())
    names = {path: f"{path}.weight" for path, module in every if _linear(module)}
    claims = Counter(_stored(name, stored) for name in names.values())
    for path, module in every:
        if name := names.get(path):
            own = _stored(name, stored)  # of two modules that claim a tensor neither is known to hold it
            yield own if claims[own] == 1 else name, (module, "", None, _linear(module))
            continue
        for own, parameter in module.named_parameters(recurse=False):
            if parameter.dim() != 3 or "experts" not in path.split("."):
                continue
            transposed = bool(getattr(module, "is_transposed", False))
            for expert in range(parameter.shape[0]):
                for role in _roles(own):
                    place = (module, own, expert, int(parameter.shape[1 if transposed else 2]))
                    yield f"{path}.{expert}.{role}_proj.weight", place


def _linear(module: torch.nn.Module) -> int:
    """How many features a module multiplies with one matrix; 0 of every other one."""
    if type(module).__name__ == "Conv1D":
        return int(module.weight.shape[0])  # type: ignore[index]
    cols = getattr(module, "in_features", 0)
    return cols if isinstance(cols, int) else 0


def _roles(parameter: str) -> tuple[str, ...]:
    if "down" in parameter:
        return ("down",)
    return tuple(role for role in ("gate", "up") if role in parameter) or ("up",)


def _by_ending(tensors: Iterable[str]) -> Mapping[str, list[str]]:
    """Tensors by every end of their names that has a number: a module in a wrapper has another beginning."""
    found: dict[str, list[str]] = defaultdict(list)
    for name in tensors:
        for ending in _endings(name):
            found[ending].append(name)
    return found


def _endings(name: str) -> Iterator[str]:
    """The name itself, then what is behind each of its dots, down to a number and what is in it."""
    words = name.split(".")
    yield name
    last = max((i for i, word in enumerate(words) if word.isdecimal()), default=0)
    for start in range(1, last):
        yield ".".join(words[start:])


def _stored(name: str, stored: Mapping[str, list[str]]) -> str:
    """The one tensor that shares most of the end of a module's name; the module's own where there is none, or two."""
    for ending in _endings(name):
        if found := stored.get(ending):
            return found[0] if len(found) == 1 else name
    return name
