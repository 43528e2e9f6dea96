"""What `rankscope delta` writes: the ranks of a LoRA adapter as PEFT's configuration, and the adapter itself."""

from __future__ import annotations

from argparse import Namespace
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rankscope.engine.atomic import move_folder, temporary_folder, write_atomically
from rankscope.engine.derive.difference import quantised_of
from rankscope.engine.errors import InputError, WeightsError, cannot_write, printable
from rankscope.engine.formats.safetensors import SAFETENSORS
from rankscope.engine.formats.writing import write_safetensors
from rankscope.engine.moment import Moment, Weighting
from rankscope.engine.plan.lora_file import LoraRanks, config_of, encoded, ranks_for
from rankscope.engine.spectrum import Projection

from ..data.lora_ranks import Wanted, ranks_of, wanted_of
from ..data.model import Model
from ..data.session import Session
from ..drawing.console import say
from .apply import placing
from .outputs import output_file, output_folder

if TYPE_CHECKING:
    from rankscope.engine.plan.module_weights import ModuleWeights

CONFIG = "adapter_config.json"
_MADE = "made"
_MOST_LISTED = 8
_REORDERED = "a GGUF file has its rows or columns in another order: name two GGUF files, or none"


def outputs_of(args: Namespace) -> tuple[Path | None, Path | None]:
    """The file for the ranks and the folder for the adapter; None for what is not wanted.

    Raises:
        InputError: nothing can be written there, or there are several thresholds.
    """
    if not (args.output or args.extract):
        return None, None
    if len(set(args.threshold or ())) > 1:
        raise InputError("ranks are written at one threshold: name one with -t")
    ranks = output_file(args.output, "-o FILE.json") if args.output else None
    return ranks, output_folder(args.extract, "--extract DIR") if args.extract else None


class Lora:
    """The ranks and the adapter, and the modules that get them; checked before anything is computed."""

    def __init__(
        self,
        args: Namespace,
        outputs: tuple[Path | None, Path | None],
        models: tuple[Model, Model],
        deltas: Sequence[Projection],
        under: Weighting | None,
    ) -> None:
        """
        Raises:
            InputError: these models have no such ranks or adapter.
        """
        self._output, self._folder = outputs
        sound = [p for p in deltas if p.problem is None and not quantised_of(p)]
        if not sound:
            reason = next((p.problem for p in deltas if p.problem), "A or B is quantised: no rank is advised")
            raise InputError(f"no ranks can be written: {reason}")
        self._args, self._models, self._under = args, models, under
        self.wanted: Wanted = wanted_of(models[0], sound, under)
        is_mixed = len({model.checkpoint.format.stands_alone for model in models if model.checkpoint}) > 1
        self._weights = _weights_of(models, self.wanted) if self._folder is not None or is_mixed else None
        if self._weights is not None and is_mixed:
            turned = {m.name for m in self.wanted.found.modules if not all(w.keeps_order(m) for w in self._weights)}
            self.wanted = self.wanted.without(turned, _REORDERED)

    def write(self, session: Session, threshold: float) -> int:
        """Write the files that the options name; 1 if there is nothing to write."""
        known = ranks_of(session, self.wanted, threshold, self._args.independent)
        ranks = {name: rank or 0 for name, rank in known.items()}
        given = ranks_for(self.wanted.found, ranks)
        self._say_left(known, given)
        if not given.every:
            why = "no module changed by more than rounding" if ranks else "none of these is a whole module of the model"
            say(f"nothing is written: {why}")
            return 1
        base = self._models[0].checkpoint
        assert base is not None
        config = config_of(str(base.location.absolute() if base.location else base.name), self.wanted.found, given)
        if self._output is not None:
            _write(self._output, encoded(config))
            say(f"{len(given.every)} modules of {len(ranks)} have a rank in {printable(str(self._output))}")
        if self._folder is not None:
            self._extract(self._folder, config, given)
        return 0

    def _say_left(self, known: Mapping[str, int | None], given: LoraRanks) -> None:
        """Print which modules get no adapter, and why."""
        reasons = Counter(reason for _, reason in self.wanted.found.left)
        for reason, count in list(reasons.items())[:_MOST_LISTED]:
            first = next(p for p, why in self.wanted.found.left if why == reason)
            say(f"not in the adapter: {_first_of(count, first.address)}: {reason}")
        if unknown := [name for name, rank in known.items() if rank is None]:
            say(f"not in the adapter: {_first_of(len(unknown), unknown[0])}: not computed")
        if given.left:
            say(f"not in the adapter: {', '.join(given.left)}: PEFT would also match other parameters with these")

    def _extract(self, output: Path, config: Mapping[str, object], given: LoraRanks) -> None:
        from rankscope.engine.plan.extract import Adapter

        assert self._weights is not None
        modules = {module.name: module for module in self.wanted.found.modules}
        place = placing(self._args.device, self._args.threads)
        adapter = Adapter(*self._weights, self._moment, place)
        (suffix,) = SAFETENSORS.suffixes
        with temporary_folder(output.parent) as folder:
            made = folder / _MADE
            made.mkdir()
            try:
                write_safetensors(
                    made / f"adapter_model{suffix}", list(adapter.entries(modules, given)), {"format": "pt"}
                )
            except WeightsError as error:
                raise InputError(str(error)) from None
            write_atomically(made / CONFIG, encoded({**config, "inference_mode": True}))
            move_folder(made, output)
        say(f"an adapter of {len(given.every)} modules is in {printable(str(output))}")

    def _moment(self, projection: Projection) -> Moment | None:
        return None if self._under is None else self._under.moment(projection)


def _weights_of(models: Sequence[Model], wanted: Wanted) -> tuple[ModuleWeights, ModuleWeights]:
    """The weights of A and of B by module. Reads only headers.

    Raises:
        InputError: transformers would not load them, or a module has another shape in B.
    """
    from rankscope.engine.plan.module_weights import ModuleWeights, by

    ours, theirs = (ModuleWeights(model.checkpoint) for model in models if model.checkpoint is not None)
    for module in wanted.found.modules:
        if (before := ours.shape(module)) != (after := theirs.shape(module)):
            there = f"is {by(after)} in B and {by(before)} in A" if before and after else "is not in B"
            raise InputError(
                f"{printable(module.name)} {there}: no adapter makes one of the other; leave it out with --filter GLOB"
            )
    return ours, theirs


def _first_of(count: int, name: str) -> str:
    return f"{name} and {count - 1} others" if count > 1 else name


def _write(path: Path, data: bytes) -> None:
    try:
        write_atomically(path, data)
    except OSError as error:
        raise cannot_write(path, error) from None
