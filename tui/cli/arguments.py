"""The options of the command lines. Imports argparse, and for the names of views the table of them."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from ..data.views import DEFAULT, named_for
from ..settings.values import cut, kept_ranks, positive, reference_line, threshold, thresholds, whole
from .parser import Flat

MODEL_HELP = (
    "org/name[/folder][@revision] or hf://org/name/FILE.gguf on the Hub, a folder, a file (.safetensors, .gguf, .bin, "
    ".pt, .ckpt), a URL of a .safetensors or .gguf, or demo; of a model or an adapter"
)


EXIT_CODES = (
    "Exit codes: 0 all done; 1 some projections failed, or an export is partial; 2 wrong use or input; "
    "128 + n ended by signal n, with what is computed saved."
)


DEPTH, ADDRESS = "depth", "address"
DELTA = "delta"
"""The side of two models that is their difference."""

HEAD_KINDS = ("query", "key", "value", "qk", "ov", "kv_ov")
"""Those of engine/derive/heads.py, which is not imported here."""


def device(text: str) -> str:
    """A device specification of the right form."""
    from rankscope.engine.compute.devices import check_spec
    from rankscope.engine.errors import InputError

    try:
        return check_spec(text)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error).removeprefix("--device is ")) from None


def add_store(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--store", metavar="DIR", help="where spectra are kept (else RANKSCOPE_STORE, else the data folder)"
    )


def add_links(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--follow-links", action="store_true", help="read files that a model's folder holds as links to elsewhere"
    )


def add_device(parser: argparse.ArgumentParser) -> None:
    several = "auto (a scan takes several GPUs only where their start pays), cpu, cuda (all GPUs) or cuda:0,cuda:1"
    parser.add_argument("--device", type=device, default="auto", help=several)
    parser.add_argument(
        "--threads", type=positive, metavar="N", help="CPU threads (else OMP_NUM_THREADS, else the cores, at most 8)"
    )
    parser.add_argument(
        "--download", action="store_true", help="take the whole model into the Hub cache first, not just what is needed"
    )


def add_computing(parser: argparse.ArgumentParser) -> None:
    add_device(parser)
    parser.add_argument(
        "--scheduler",
        metavar="ADDRESS",
        help="compute by the workers of a Dask scheduler: tcp://host:8786, tls://host:8786, or its file",
    )
    parser.add_argument("--experts", type=positive, metavar="N", help="compute N experts of each layer, evenly spread")


def add_pair(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--pair",
        choices=(DEPTH, ADDRESS),
        help="with --against, where one has more layers: what stands as deep, or equal addresses alone (depth)",
    )


def _add_thresholds(parser: argparse.ArgumentParser, default: str = "60 80 90") -> None:
    parser.add_argument(
        "-t",
        "--threshold",
        type=thresholds,
        nargs="+",
        action=Flat,
        metavar="T",
        help=f"energy thresholds: 0.9, 90 or 90%%, several as 60,80 or 60 80 ({default})",
    )


def _add_view(parser: argparse.ArgumentParser, views: Sequence[str]) -> None:
    """What `show` and `plot` have in common."""
    parser.add_argument("--view", choices=views, default=DEFAULT, help=f"what to show ({DEFAULT})")
    _add_filter(parser)
    _add_thresholds(parser)
    parser.add_argument(
        "--unit", metavar="NAME", help="heatmap, layers: k, percent, k/k0, k/kf, k/k*, energy, effective_rank ... (k)"
    )
    parser.add_argument(
        "--rank",
        type=kept_ranks,
        metavar="K",
        help="what keeping K values means: 512, or by role query=1536,key_value=512 (short: q k v o kv); heatmap and "
        "layers with --unit energy",
    )
    parser.add_argument("--against", metavar="MODEL", help="a second model, B: the same projections of both")
    add_pair(parser)
    parser.add_argument(
        "--side", choices=("A", "B", "B/A", DELTA), help="with --against: numbers of which, or of B - A (B/A)"
    )
    parser.add_argument(
        "--line", type=reference_line, action="append", metavar="NAME=K[@ROLE]", help="layers: a rank to draw across"
    )


def _add_show(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--by", choices=("role",), help="heatmap, with --against: both models role by role")
    parser.add_argument("--sort", metavar="COLUMN", help="table: by k90, k/k0, stable_rank ..., largest first")
    files = parser.add_mutually_exclusive_group()
    files.add_argument("--csv", action="store_true", help="all views but facets: as CSV, of every projection")
    files.add_argument("--json", action="store_true", help="the same, one JSON object a line")
    parser.add_argument(
        "--color", choices=("auto", "256", "16", "mono"), default="auto", help="how many colours (auto)"
    )


def _add_latent(
    parser: argparse.ArgumentParser, rope: str | None = None, balance: str | None = None, bias: str | None = None
) -> None:
    """How keys and values would be made latent; without defaults where only one view takes that."""
    of = "" if rope else "mla: "
    parser.add_argument(
        "--rope",
        default=rope,
        metavar="WAY",
        help=f"{of}what becomes of RoPE: recompute (after the expansion), decoupled:D (D rows of a key that all heads "
        "share keep it), per-head:D[:high|low|uniform|norm] (D rows of each head) (recompute)",
    )
    parser.add_argument("--real", action="store_true", help=f"{of}decoupled: TransMLA's real rotation over the heads")
    parser.add_argument(
        "--balance",
        choices=("whole", "own", "none"),
        default=balance,
        help=f"{of}by what keys and values are divided: the norm of all keys, that of what has left RoPE, or nothing "
        "(whole)",
    )
    parser.add_argument(
        "--bias",
        choices=("append", "leave"),
        default=bias,
        help=f"{of}biases as one more column, under moments that have means, or left out (leave)",
    )


def _add_offset(parser: argparse.ArgumentParser, when: str) -> None:
    parser.add_argument(
        "--offset",
        type=whole,
        default=0,
        metavar="N",
        help=f"{when}QK of a query N tokens behind its key, RoPE applied; 0 applies none (0)",
    )


_WEIGHTS = (
    "as they are (none), by the gains of their norms (norm), by an imatrix or moments FILE, or for display by "
    "centred:FILE, about the mean of the inputs"
)


def _add_weight(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--weight", default="none", metavar="W", help=f"spectra of the weights {_WEIGHTS}; ./none is a file (none)"
    )


_GAUGE = "the weights as they are (raw), or gains of norms folded in and neurons of MLPs balanced (fixed)"


def _add_gauge(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--gauge", choices=("raw", "fixed"), default="raw", help=f"{_GAUGE} (raw)")


def _add_filter(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--filter", metavar="GLOB", help="addresses: '*.attention.key', 'layers.3', 'mlp'")


def _add_text(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--text", required=True, metavar="FILE", help="what the model reads, in UTF-8; builtin: Python's help pages"
    )


def add_version(parser: argparse.ArgumentParser) -> None:
    class Version(argparse.Action):
        def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
            from importlib.metadata import version

            print(parser.prog, version("rankscope-tui"))  # parser.exit would write to stderr
            parser.exit()

    parser.add_argument("--version", action=Version, nargs=0, help="print the version")


# What each command takes


def scan(parser: argparse.ArgumentParser) -> None:
    """Of `rankscope scan`."""
    _add_filter(parser)
    add_computing(parser)
    _add_thresholds(parser)
    parser.add_argument(
        "--weight", action="append", metavar="W", help=f"spectra of the weights {_WEIGHTS}; may be repeated (none)"
    )
    parser.add_argument("--gauge", choices=("raw", "fixed"), action="append", help=f"{_GAUGE}; may be repeated (raw)")
    parser.add_argument("--null", choices=("flip",), help="also compute the weights under random signs, for k/kf")
    parser.add_argument(
        "--derived",
        nargs="?",
        const="all",
        choices=("all", "mla", "heads"),
        help="also the matrices made of others: keys and values of a layer as one (mla), single heads and their "
        "products QK and OV (heads), or both (all)",
    )
    _add_offset(parser, "with --derived: ")
    parser.add_argument("--recompute", action="store_true", help="compute again what is stored")
    parser.add_argument("--json", action="store_true", help="one JSON object a line and projection, once it is saved")


def show(parser: argparse.ArgumentParser) -> None:
    """Of `rankscope show`."""
    _add_view(parser, named_for("text"))
    _add_weight(parser)
    _add_gauge(parser)
    _add_show(parser)
    _add_latent(parser)
    parser.add_argument("--of", choices=HEAD_KINDS, help="heads: one kind of rows or products (all)")
    _add_offset(parser, "heads: ")
    _add_independent(parser)


def plot(parser: argparse.ArgumentParser) -> None:
    """Of `rankscope plot`."""
    _add_view(parser, named_for("picture"))
    _add_weight(parser)
    _add_gauge(parser)
    parser.add_argument("-o", "--output", required=True, metavar="FILE", help="FILE.png, .pdf or .svg")
    parser.add_argument("--normalised", action="store_true", help="spectrum, facets: sigma over sigma_1")


def inspect(parser: argparse.ArgumentParser) -> None:
    """Of `rankscope inspect`."""
    parser.add_argument("address", help="of a projection, as  rankscope tree  lists it: layers.28.mlp.up")
    add_device(parser)
    _add_weight(parser)
    parser.add_argument(
        "--tokens", action="store_true", help="also the tokens at both ends of the direction, as a reading aid"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object")


def mla(parser: argparse.ArgumentParser) -> None:
    """Of `rankscope mla`."""
    _add_filter(parser)
    add_device(parser)
    _add_thresholds(parser, "90")
    _add_weight(parser)
    _add_latent(parser, "recompute", "whole", "leave")
    parser.add_argument("--recompute", action="store_true", help="compute again what is stored")
    parser.add_argument("-o", "--output", metavar="FILE", help="also write all numbers as JSON: docs/MLA.md")


def delta(parser: argparse.ArgumentParser) -> None:
    """Of `rankscope delta`."""
    parser.add_argument("against", metavar="B", help="what was made of MODEL by fine-tuning; named as MODEL is")
    _add_filter(parser)
    add_device(parser)
    _add_thresholds(parser, "90")
    _add_weight(parser)
    _add_independent(parser)
    parser.add_argument("--recompute", action="store_true", help="compute again what is stored")
    parser.add_argument(
        "-o", "--output", metavar="FILE", help="write the rank of each module as PEFT's LoRA configuration, as JSON"
    )
    parser.add_argument(
        "--extract",
        metavar="DIR",
        help="write the adapter itself: the leading factors of B - A at these ranks, for PEFT",
    )


def _add_independent(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--independent",
        action="store_true",
        help="A and B were each rounded from weights of their own: A's rounding counts as well as B's",
    )


def tree(parser: argparse.ArgumentParser) -> None:
    """Of `rankscope tree`."""
    parser.add_argument("--json", action="store_true", help="one JSON object a line and tensor or projection")


def export(parser: argparse.ArgumentParser) -> None:
    """Of `rankscope export`."""
    parser.add_argument("-o", "--output", required=True, metavar="FILE", help="FILE.h5, .npz, .csv or .json")
    parser.add_argument(
        "--layout",
        choices=("index", "groups"),
        default="index",
        help="of an .h5: one array of all values and an index of it (index), or a group a projection with attributes "
        "and dimension scales, for xarray, pandas and netCDF (groups)",
    )
    _add_filter(parser)
    _add_weight(parser)
    _add_gauge(parser)


def moments(parser: argparse.ArgumentParser) -> None:
    """Of `rankscope moments`."""
    _add_text(parser)
    parser.add_argument(
        "--tokens",
        type=positive,
        metavar="N",
        help="how many of it, in whole sequences (16 for each feature of the widest input)",
    )
    parser.add_argument("--device", type=device, default="auto", help="auto, cpu, cuda or cuda:0: one of them is used")
    parser.add_argument("-o", "--output", required=True, metavar="FILE", help="the file to write, in safetensors")


def plan(parser: argparse.ArgumentParser) -> None:
    """Of `rankscope plan`."""
    parser.add_argument(
        "--cut", type=cut, required=True, metavar="SHARE", help="how much is to go of the parameters: 20%% or 0.2"
    )
    parser.add_argument(
        "--of",
        choices=("projections", "total"),
        default="projections",
        help="of which parameters: of the projections that are planned, or of all that the model stores (projections)",
    )
    _add_filter(parser)
    parser.add_argument("--min-rank", type=positive, default=8, metavar="K", help="the smallest rank that is given (8)")
    parser.add_argument("--multiple", type=positive, default=8, metavar="K", help="ranks are multiples of it (8)")
    parser.add_argument(
        "--uniform", action="store_true", help="every projection keeps the same share of its parameters"
    )
    parser.add_argument(
        "--objective",
        choices=("parameters", "relative", "absolute"),
        default="parameters",
        help="what is to be small: the lost energy, as a share of each projection's and weighted by its parameters "
        "(parameters), the plain sum of these shares (relative), or all lost energy (absolute)",
    )
    parser.add_argument(
        "--cost",
        choices=("factors", "pifa"),
        default="factors",
        help="what rank r costs: r (m + n), two factors, or r (m + n - r), which only apply --merge can use (factors)",
    )
    _add_weight(parser)
    add_device(parser)
    parser.add_argument("-o", "--output", required=True, metavar="FILE", help="the plan to write, as JSON")


def apply(parser: argparse.ArgumentParser) -> None:
    """Of `rankscope apply`."""
    parser.add_argument("plan", metavar="PLAN", help="plan.json, as  rankscope plan  writes it")
    parser.add_argument("-o", "--output", required=True, metavar="DIR", help="a new folder for the checkpoint")
    parser.add_argument("--model", metavar="PATH", help="the planned model, as it was named for  rankscope plan")
    add_links(parser)
    parser.add_argument("--weight", metavar="FILE", help="the imatrix or moments file that the plan was made under")
    parser.add_argument(
        "--merge", action="store_true", help="write their products: a dense checkpoint of the same names and shapes"
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "float16", "bfloat16", "float64"),
        help="the type of all numbers (as stored; float16 of what is quantised)",
    )
    parser.add_argument("--device", type=device, default="auto", help="auto, cpu, cuda or cuda:0: one of them is used")
    parser.add_argument(
        "--threads", type=positive, metavar="N", help="CPU threads (else OMP_NUM_THREADS, else the cores, at most 8)"
    )


def perplexity(parser: argparse.ArgumentParser) -> None:
    """Of `rankscope perplexity`."""
    compared = parser.add_mutually_exclusive_group()
    compared.add_argument("--plan", metavar="FILE", help="also with the factors of this plan, put into its memory")
    compared.add_argument("--against", metavar="MODEL", help="also of this one: what  apply --merge  wrote, for one")
    parser.add_argument(
        "--weight",
        metavar="FILE",
        help="the imatrix or moments that the plan was made under; tokens that moments were made of are left out",
    )
    _add_text(parser)
    parser.add_argument("--tokens", type=positive, metavar="N", help="how many of it, in whole windows (4096)")
    parser.add_argument("--device", type=device, default="auto", help="auto, cpu, cuda or cuda:0: one of them is used")
    parser.add_argument("--json", action="store_true", help="one JSON object")


def worker(parser: argparse.ArgumentParser) -> None:
    """Of `rankscope worker`."""
    parser.add_argument(
        "address", metavar="ADDRESS", help="of a Dask scheduler: tcp://host:8786, tls://host:8786, or its file"
    )
    parser.add_argument(
        "--device", type=device, default="auto", help="auto, cpu, cuda or cuda:0,cuda:1: a process for each"
    )
    parser.add_argument("--threads", type=positive, metavar="N", help="CPU threads of each process")


def ls(parser: argparse.ArgumentParser) -> None:
    """Of `rankscope ls`."""
    parser.add_argument("--json", action="store_true", help="one JSON object a line and model")


def rm(parser: argparse.ArgumentParser) -> None:
    """Of `rankscope rm`."""
    parser.add_argument(
        "--weight",
        metavar="W",
        help="only the spectra under a weighting: none, norm, imatrix, moments, centred, or FILE or centred:FILE",
    )
    parser.add_argument(
        "--gauge", choices=("raw", "fixed"), help="only the spectra in a gauge: raw, fixed (what is kept for it alone)"
    )


def doctor(parser: argparse.ArgumentParser) -> None:
    """Of `rankscope doctor`."""
    parser.add_argument("--verify", action="store_true", help="read every stored value, and name what is damaged")


def explorer(parser: argparse.ArgumentParser) -> None:
    """Of `rankscope-tui`."""
    parser.add_argument(
        "model",
        nargs="*",
        help=f"{MODEL_HELP}; several, or org/name@step*: a series; none: choose among stored and cached models",
    )
    add_store(parser)
    add_links(parser)
    add_computing(parser)
    parser.add_argument("--against", metavar="MODEL", help="a second model: the same projections of both, and B/A")
    add_pair(parser)
    _add_weight(parser)
    _add_gauge(parser)
    parser.set_defaults(weight=None, gauge=None)  # what is not given is as the user left it
    parser.add_argument(
        "--fresh", action="store_true", help="begin anew: else a model opens as you left it, but for what is given here"
    )
    parser.add_argument("-t", "--threshold", type=threshold, help="energy threshold to start with (90%%)")
    parser.add_argument(
        "--line",
        type=reference_line,
        action="append",
        metavar="NAME=K[@ROLE]",
        help="one more rank drawn across the layers view; may be repeated",
    )
    parser.add_argument("--color", choices=("auto", "256", "16", "mono"), help="how many colours (auto)")
    parser.add_argument("--theme", metavar="NAME", help="nord, textual-light, ansi-dark ...; a wrong name lists all")
    parser.add_argument("--mouse", action="store_true", help="clicks select cells, rows and keys; text no longer")
    parser.add_argument("--print-config", action="store_true", help="print all settings as a settings file")
    add_version(parser)
