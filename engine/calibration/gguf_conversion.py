"""How transformers makes the parameters of a model of a GGUF file's tensors: by its list of conversions for newer
architectures, and by a processor of single tensors for the others."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import WeightsError, printable

if TYPE_CHECKING:
    import torch


def transforms_of(file: Path, model: torch.nn.Module) -> list[Any] | None:
    """transformers' renamings and conversions for the file's architecture; None if it has none.

    Raises:
        ImportError: this version of transformers has no such lists.
    """
    from transformers.integrations.gguf.utils import get_gguf_conversion_mapping, is_gguf_arch_supported

    architecture = _architecture(file)
    if not is_gguf_arch_supported(architecture):
        return None
    found: list[Any] = get_gguf_conversion_mapping(architecture, model.config)
    return found


class Processing:
    """What transformers does with the single tensors of a GGUF file, by its processor for the architecture.

    Processors reorder rows, transpose, or join the stacks of experts along axis 1: matrices of a stack stay apart.
    """

    def __init__(self, file: Path, model: torch.nn.Module) -> None:
        from transformers import modeling_gguf_pytorch_utils

        gguf: Any = modeling_gguf_pytorch_utils
        config = gguf.load_gguf_checkpoint(str(file))["config"]
        kind: Any = gguf.TENSOR_PROCESSORS.get(_architecture(file), gguf.TensorProcessor)
        self._processor: Any = kind(config=config)
        self._names: dict[str, str] = gguf.get_gguf_hf_weights_map(model, self._processor)

    def target(self, tensor: str) -> str | None:
        """The parameter into which a tensor is loaded, None if it is not."""
        return self._names.get(tensor) or self._names.get(tensor.removesuffix(".weight"))

    def made(self, name: str, numbers: Sequence[tuple[str, torch.Tensor]]) -> torch.Tensor:
        """The parameter of a `name`, made of its tensors.

        Raises:
            WeightsError: transformers makes something else of them.
        """
        import torch

        held: dict[str, Any] = {}
        for tensor, values in numbers:
            result = self._processor.process(
                weights=values.numpy(), name=tensor, tensor_key_mapping=self._names, parsed_parameters={"tensors": held}
            )
            if result.name is not None:
                held[name] = torch.from_numpy(result.weights)
        if name not in held:
            raise WeightsError(f"transformers does not load {printable(numbers[0][0])} of GGUF as {printable(name)}")
        found: torch.Tensor = held[name]
        return found


def _architecture(file: Path) -> str:
    from transformers.integrations.gguf.reader import read_gguf_metadata

    metadata, _ = read_gguf_metadata(str(file))
    return str(metadata["general.architecture"])
