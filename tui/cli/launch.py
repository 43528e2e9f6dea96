"""Open what the command line names in the explorer, run it, and end it."""

from __future__ import annotations

import gc
import os
import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from rankscope.engine.checkpoint.hub import Access
from rankscope.engine.derive.gauge import FIXED
from rankscope.engine.errors import InputError, printable

from ..data.gauged_model import RAW
from ..drawing.console import say
from ..settings.config import AUTO, Config
from ..settings.palette import Depth
from ..settings.read import config_path, load
from ..settings.terminal import set_up
from .ending import at_end
from .opening import save, unsaved
from .options import ADDRESS

if TYPE_CHECKING:
    from ..data.chosen_weighting import Offer
    from ..data.model import Model
    from ..screens.app import RankScopeApp
    from ..screens.memory import Memory


def _check(args: Namespace) -> None:
    """Check that files and packages that the explorer needs are there, before anything is opened.

    Raises:
        InputError: a settings file that is named, or what a scheduler needs, is missing.
    """
    if os.environ.get("RANKSCOPE_CONFIG") and not config_path().exists():
        raise InputError(
            f"RANKSCOPE_CONFIG names {printable(str(config_path()))}, which does not exist: unset it, or make the file"
        )
    if args.scheduler:
        from rankscope.engine.compute.cluster import require

        require()


def run_app(args: Namespace, root: Path) -> int:
    """Open the models (with --download fetching them first, with a progress bar), and show them until the user
    quits."""
    from ..data.session import CLOSE_SECONDS

    _check(args)
    config = _checked(set_up(_settings(args), os.environ))
    models = _models(args, root, config)
    if not models:
        return 0
    for warning in (warning for model in models for warning in model.warnings):
        print(warning, file=sys.stderr)
    from rankscope.engine.compute.engine import ComputeSettings

    from ..screens.app import RankScopeApp
    from ..screens.memory import Memory
    from ..screens.terminal_driver import put_back

    memory = Memory(models[0], fresh=args.fresh)
    under = _under(args, models, root, memory)
    settings = ComputeSettings(args.device, args.threads, scheduler=args.scheduler, is_apart=True, gives_way=True)
    app = RankScopeApp(models, root, settings, config, args.experts, under, memory, by_depth=args.pair != ADDRESS)
    # A model of 91,000 tensors is a million objects that live as long as the explorer. Searching them for garbage
    # would take 0.3 s before the first screen, and 0.1 s at some key presses.
    gc.freeze()
    gc.enable()
    with at_end(partial(_save, app), partial(put_back, app)):
        app.run(mouse=config.mouse)  # with mouse=False the terminal keeps the mouse, for selecting text
        ended = app.close(CLOSE_SECONDS)
    if lost := unsaved(app.pair.opened):
        print(f"rankscope-tui: {lost}", file=sys.stderr)
    if app.last_words:
        print(f"rankscope-tui: {app.last_words}", file=sys.stderr)
    if not ended:
        # Everything finished is saved; a thread inside LAPACK would delay or crash an orderly exit.
        sys.stdout.flush()
        os._exit(app.return_code or 0)
    return app.return_code or 0


def _models(args: Namespace, root: Path, config: Config) -> list[Model]:
    """The models that the command line names: one, two, or a series. Without a name what the user picks, [] if they
    leave.

    Raises:
        InputError: a model cannot be opened.
    """
    from ..data.model import open_model
    from ..data.series_model import is_series, open_series

    def opened(name: str) -> list[Model]:
        gc.disable()
        access = Access.DOWNLOAD if args.download else Access.RANGES
        return [open_model(each, root, access) for each in (name, args.against) if each is not None]

    if is_series(args.model):
        from .series import check_options

        check_options(args)
        return [open_series(args.model, root)]
    return opened(args.model[0]) if args.model else _picked(root, config, opened)


def _save(app: RankScopeApp) -> str:
    """Save finished spectra and how the model was looked at; see `save`."""
    app.explorer.rememberer.keep()
    return save(app.pair.opened)


def _under(
    args: Namespace, models: Sequence[Model], root: Path, memory: Memory
) -> tuple[Offer, Sequence[Model]] | None:
    """The weighting and the gauge that the command line names, else those under which the first model was last seen;
    and the models in that state. What the command line names is kept in `memory` too.

    Raises:
        InputError: the weighting or gauge cannot be had.
    """
    from ..data.chosen_weighting import NONE, opened_under

    last = memory.last
    if last is not None and args.threshold is not None:
        memory.last = last = replace(last, threshold=args.threshold)
    if args.weight is None and last is not None and last.offer is not None:
        offer = last.offer if args.gauge is None else replace(last.offer, fixed=args.gauge == FIXED)
        try:
            return offer, [offer.shown(model, root, say) for model in models]
        except InputError as error:
            say(f"you left it under {last.offer.words}, which cannot be used now: {error}")
    return opened_under(args.weight or NONE, models, root, say, args.gauge or RAW)


def _picked(root: Path, config: Config, opened: Callable[[str], list[Model]]) -> list[Model]:
    """The models that a user's choice opens, [] if they leave. If one does not open, a line says why, and another may
    be chosen.
    """
    from ..drawing.nearest_colour import use_nearest
    from ..screens.picker import Picker
    from ..screens.terminal_driver import put_back

    said = ""
    while True:
        picker = Picker(root, said, config.suspend)
        use_nearest(picker)
        picker.set_keymap(config.keymap)
        with at_end(str, partial(put_back, picker)):
            name = picker.run(mouse=False)
        if name is None:
            return []
        try:
            return opened(name)
        except InputError as error:
            said = str(error)


def print_config(args: Namespace) -> int:
    """Print the settings in force, as a settings file."""
    config = _checked(_settings(args))
    from textual.theme import BUILTIN_THEMES

    from ..settings.write import written

    print(written(config, config_path(), BUILTIN_THEMES), end="")
    return 0


def _settings(args: Namespace) -> Config:
    """The settings of the file, overridden by the command line. Imports no Textual."""
    config = load(config_path())
    named = {line.name for line in args.line or ()}
    kept = (line for line in config.lines if line.name not in named)
    return replace(
        config,
        theme=args.theme or config.theme,
        depth=config.depth if args.color is None else None if args.color == AUTO else Depth(args.color),
        threshold=args.threshold or config.threshold,
        mouse=args.mouse or config.mouse,
        lines=(*kept, *(args.line or ())),
    )


def _checked(config: Config) -> Config:
    """The settings with keys and theme that Textual knows. Unknown settings of the file are reported on stderr.

    Raises:
        InputError: Textual does not know a key or the theme.
    """
    from textual.theme import BUILTIN_THEMES

    if config.theme not in (AUTO, *BUILTIN_THEMES):
        raise InputError(f"no theme {printable(config.theme)!r}: {', '.join([AUTO, *sorted(BUILTIN_THEMES)])}")
    for warning in config.warnings:
        print(warning, file=sys.stderr)
    if not config.keymap:
        return config
    from ..settings.keymap import checked, unknown

    where = f"settings file {printable(str(config_path()))}: keymap: "
    for warning in unknown(config.keymap):
        print(f"{where}{printable(warning, 400)}", file=sys.stderr)
    try:
        return replace(config, keymap=checked(config.keymap))
    except InputError as error:
        raise InputError(f"{where}{error}") from None
