"""Entry points of `rankscope-tui` and `rankscope`. Nothing heavier than argparse is imported before it is used."""

from __future__ import annotations

import argparse
import gc
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ..data.named import resolve
from . import arguments, options
from .parser import Parser

PROG = "rankscope"
_COLLECT_AFTER = 100_000
"""New objects before Python searches for reference cycles; Python's default is 700."""


@dataclass(frozen=True, slots=True)
class Command:
    """One command of `rankscope`: `run` is "module:name" of a function that takes the parsed arguments and the store's
    root and returns the exit code; `options` adds its arguments, besides --store and MODEL, which may be given several
    times if `is_of_series`."""

    name: str
    help: str
    run: str
    options: Callable[[argparse.ArgumentParser], None] | None = None
    has_model: bool = True
    is_of_series: bool = False


COMMANDS = (
    Command(
        "scan",
        "compute what is not stored yet, save it, print the table",
        "cli.commands:scan",
        arguments.scan,
        is_of_series=True,
    ),
    Command(
        "show",
        "print a view of what is stored: by default the threshold ranks, layers x roles",
        "cli.show:show",
        arguments.show,
        is_of_series=True,
    ),
    Command("plot", "save a view of what is stored as a picture", "cli.show:plot", arguments.plot),
    Command(
        "inspect",
        "say what the first direction of a projection is, and compute it if needed",
        "cli.inspect:inspect",
        arguments.inspect,
    ),
    Command(
        "mla", "say which kv_lora_rank and q_lora_rank latent attention (MLA) would need", "cli.mla:mla", arguments.mla
    ),
    Command(
        "delta",
        "say what a fine-tune B changed of A, and which LoRA rank holds that: spectra of B - A",
        "cli.delta:delta",
        arguments.delta,
    ),
    Command("tree", "list layers and projections, from the files' headers only", "cli.commands:tree", arguments.tree),
    Command("export", "write what is stored to one file", "cli.commands:export", arguments.export),
    Command(
        "moments",
        "run a model on text and write the second moments of its inputs, for --weight",
        "cli.moments:moments",
        arguments.moments,
    ),
    Command(
        "plan",
        "choose a rank for each projection under a budget of parameters, and write the plan as a file",
        "cli.plan:plan",
        arguments.plan,
    ),
    Command(
        "apply",
        "write the checkpoint of a plan: two factors for each matrix, or dense by their products",
        "cli.apply:apply",
        arguments.apply,
        has_model=False,
    ),
    Command(
        "perplexity",
        "measure how well a model predicts a text, as it is and with the ranks of a plan",
        "cli.perplexity:perplexity",
        arguments.perplexity,
    ),
    Command(
        "worker",
        "run workers of a Dask scheduler, for scans on this and other hosts: docs/CLUSTER.md",
        "cli.worker:worker",
        arguments.worker,
        has_model=False,
    ),
    Command("ls", "list the models that have stored spectra", "cli.stored_models:ls", arguments.ls, has_model=False),
    Command("rm", "remove the stored spectra of a model", "cli.stored_models:rm", arguments.rm),
    Command(
        "doctor",
        "show the devices, versions, store and cache that are found",
        "cli.commands:doctor",
        arguments.doctor,
        has_model=False,
    ),
)


def main_tui(argv: Sequence[str] | None = None) -> int:
    """Run the explorer."""
    parser = Parser(
        "rankscope-tui", description="Explore the singular-value spectra of a model.", epilog=arguments.EXIT_CODES
    )
    arguments.explorer(parser)
    args = parser.parse_args(argv)
    return _guarded(parser.prog, _run_tui, args)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command of `rankscope`."""
    words = sys.argv[1:] if argv is None else argv
    args = _parser(words).parse_args(words)
    return _guarded(PROG, _run_headless, args)


def _parser(words: Sequence[str]) -> argparse.ArgumentParser:
    """The parser of these words: commands whose names are not among them have no arguments, not even --help, as nearly
    all of the time would go into those."""
    parser = Parser(
        PROG, description="Singular-value spectra and threshold ranks of model weights.", epilog=arguments.EXIT_CODES
    )
    options.add_version(parser)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in COMMANDS:
        is_named = command.name in words
        own = commands.add_parser(command.name, help=command.help, description=command.help, add_help=is_named)
        if not is_named:
            continue
        if command.has_model:
            several = f"{arguments.MODEL_HELP}; several, or org/name@step*: a series"
            if command.is_of_series:
                own.add_argument("model", nargs="+", help=several)
            else:
                own.add_argument("model", help=arguments.MODEL_HELP)
            options.add_links(own)
        options.add_store(own)
        if command.options is not None:
            command.options(own)
        own.set_defaults(run=command.run)
    return parser


def _store_root(args: argparse.Namespace) -> Path:
    from rankscope.engine.errors import InputError, printable

    try:
        root = Path(args.store).expanduser() if args.store else _default_root()
    except RuntimeError:  # ~nobody
        named = printable(args.store or "")
        raise InputError(
            f"the store {named} names a home folder that does not exist: name another with --store DIR"
        ) from None
    if root.exists() and not root.is_dir():
        raise InputError(f"the store {printable(str(root))} is not a folder: name one with --store DIR")
    return root


def _default_root() -> Path:
    from rankscope.store.folders import default_root

    return default_root()


def _run_tui(args: argparse.Namespace) -> int:
    if args.print_config:
        from .launch import print_config

        return print_config(args)
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        print("rankscope-tui needs a terminal; without one use  rankscope scan | show | export", file=sys.stderr)
        return 2
    from .launch import run_app

    return run_app(args, _store_root(args))


def _run_headless(args: argparse.Namespace) -> int:
    # None of the 500,000 objects of a large model is garbage, and searching them would take a third of opening it.
    gc.set_threshold(_COLLECT_AFTER, 20, 100)
    command: Callable[[argparse.Namespace, Path], int] = resolve(args.run)
    return command(args, _store_root(args))


def _guarded(prog: str, run: Callable[[argparse.Namespace], int], args: argparse.Namespace) -> int:
    """Run with bad input as one line and exit code 2, a closed pipe as no error, and signals handled by ending.py."""
    # numpy only does light work here: its BLAS need not start a thread for each core.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from ..settings.encoding import set_up_streams
    from .ending import Ending

    _replace_closed_streams()
    set_up_streams()
    with Ending(prog), _links_followed(getattr(args, "follow_links", False)):
        return _run(prog, run, args)


@contextmanager
def _links_followed(wanted: bool) -> Iterator[None]:
    """Follow links out of a model's folder if `wanted`."""
    if not wanted:
        yield
        return
    from rankscope.engine.formats.guarded import LINKS

    LINKS.followed = True
    try:
        yield
    finally:
        LINKS.followed = False


def _replace_closed_streams() -> None:
    """Put /dev/null in the place of streams that the shell has closed (`2>&-`): else a file of the store could be
    opened as number 2."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115 - until the program ends


def _run(prog: str, run: Callable[[argparse.Namespace], int], args: argparse.Namespace) -> int:
    from rankscope.engine.errors import InputError, cure_of, printable

    try:
        return run(args)
    except InputError as error:
        print(f"{prog}: {printable(str(error), 1000)}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        # Everything is saved; a thread inside a BLAS call would delay or crash an orderly exit.
        sys.stderr.flush()
        os._exit(0)
    except OSError as error:  # a store that cannot be read, a full disk
        at = f"{error.filename}: " if error.filename else ""
        print(f"{prog}: {printable(f'{at}{error.strerror or error}: {cure_of(error)}', 1000)}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
