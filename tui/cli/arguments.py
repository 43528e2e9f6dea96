"""The arguments of each command. Imports only argparse and the table of views, for their names."""

from __future__ import annotations

import argparse

from ..data.views import named_for
from ..settings.values import cut, positive, reference_line, threshold
from .options import (
    GAUGE,
    HEAD_KINDS,
    WEIGHTS,
    add_computing,
    add_device,
    add_filter,
    add_gauge,
    add_independent,
    add_latent,
    add_links,
    add_offset,
    add_pair,
    add_store,
    add_text,
    add_thresholds,
    add_version,
    add_view,
    add_weight,
    device,
)

MODEL_HELP = (
    "a model or an adapter: org/name[/folder][@revision] or hf://org/name/FILE.gguf on the Hub, a folder, a file "
    "(.safetensors, .gguf, .bin, .pt, .ckpt), the URL of one, or demo"
)


EXIT_CODES = (
    "Exit codes: 0 all done; 1 some projections failed, or an export is partial; 2 wrong use or input; "
    "128 + n ended by signal n, with what is computed saved."
)


def scan(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `rankscope scan`."""
    add_filter(parser)
    add_computing(parser)
    add_thresholds(parser)
    parser.add_argument(
        "--weight", action="append", metavar="W", help=f"spectra of the weights {WEIGHTS}; may be repeated (none)"
    )
    parser.add_argument("--gauge", choices=("raw", "fixed"), action="append", help=f"{GAUGE}; may be repeated (raw)")
    parser.add_argument("--null", choices=("flip",), help="also compute the weights under random signs, for k/kf")
    parser.add_argument(
        "--derived",
        nargs="?",
        const="all",
        choices=("all", "mla", "heads"),
        help="also matrices made from others: keys and values of a layer as one (mla), single heads and their "
        "products QK and OV (heads), or both (all)",
    )
    add_offset(parser, "with --derived: ")
    parser.add_argument("--recompute", action="store_true", help="compute again what is stored")
    parser.add_argument("--json", action="store_true", help="one JSON object a line and projection, once it is saved")


def show(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `rankscope show`."""
    add_view(parser, named_for("text"))
    add_weight(parser)
    add_gauge(parser)
    _add_show(parser)
    add_latent(parser)
    parser.add_argument("--of", choices=HEAD_KINDS, help="heads: one kind of rows or products (all)")
    add_offset(parser, "heads: ")
    add_independent(parser)


def _add_show(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of views that `plot` does not have."""
    parser.add_argument("--by", choices=("role",), help="heatmap, with --against: both models role by role")
    parser.add_argument("--sort", metavar="COLUMN", help="table: by k90, k/k0, stable_rank ..., largest first")
    files = parser.add_mutually_exclusive_group()
    files.add_argument("--csv", action="store_true", help="all views but facets: as CSV, of every projection")
    files.add_argument("--json", action="store_true", help="the same, one JSON object a line")
    parser.add_argument(
        "--color", choices=("auto", "256", "16", "mono"), default="auto", help="how many colours (auto)"
    )


def plot(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `rankscope plot`."""
    add_view(parser, named_for("picture"))
    add_weight(parser)
    add_gauge(parser)
    parser.add_argument("-o", "--output", required=True, metavar="FILE", help="FILE.png, .pdf or .svg")
    parser.add_argument("--normalised", action="store_true", help="spectrum, facets: sigma over sigma_1")


def inspect(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `rankscope inspect`."""
    parser.add_argument("address", help="address of a projection, as  rankscope tree  lists it: layers.28.mlp.up")
    add_device(parser)
    add_weight(parser)
    parser.add_argument(
        "--tokens", action="store_true", help="also the tokens at both ends of the direction, as a reading aid"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object")


def mla(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `rankscope mla`."""
    add_filter(parser)
    add_device(parser)
    add_thresholds(parser, "90")
    add_weight(parser)
    add_latent(parser, "recompute", "whole", "leave")
    parser.add_argument("--recompute", action="store_true", help="compute again what is stored")
    parser.add_argument("-o", "--output", metavar="FILE", help="also write all numbers as JSON: docs/MLA.md")


def delta(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `rankscope delta`."""
    parser.add_argument("against", metavar="B", help="the fine-tuned model, named as MODEL is")
    add_filter(parser)
    add_device(parser)
    add_thresholds(parser, "90")
    add_weight(parser)
    add_independent(parser)
    parser.add_argument("--recompute", action="store_true", help="compute again what is stored")
    parser.add_argument(
        "-o", "--output", metavar="FILE", help="write the rank of each module as PEFT's LoRA configuration, as JSON"
    )
    parser.add_argument(
        "--extract",
        metavar="DIR",
        help="write the adapter itself: the leading factors of B - A at these ranks, for PEFT",
    )


def tree(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `rankscope tree`."""
    parser.add_argument("--json", action="store_true", help="one JSON object a line and tensor or projection")


def export(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `rankscope export`."""
    parser.add_argument("-o", "--output", required=True, metavar="FILE", help="FILE.h5, .npz, .csv or .json")
    parser.add_argument(
        "--layout",
        choices=("index", "groups"),
        default="index",
        help="layout of an .h5: one array of all values with its index (index), or a group each with attributes "
        "and dimension scales, for xarray, pandas and netCDF (groups)",
    )
    add_filter(parser)
    add_weight(parser)
    add_gauge(parser)


def moments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `rankscope moments`."""
    add_text(parser)
    parser.add_argument(
        "--tokens",
        type=positive,
        metavar="N",
        help="tokens to read, in whole sequences (16 for each feature of the widest input)",
    )
    parser.add_argument("--device", type=device, default="auto", help="auto, cpu, cuda or cuda:0; one device is used")
    parser.add_argument("-o", "--output", required=True, metavar="FILE", help="the file to write, in safetensors")


def plan(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `rankscope plan`."""
    parser.add_argument(
        "--cut", type=cut, required=True, metavar="SHARE", help="the share of the parameters to remove: 20%% or 0.2"
    )
    parser.add_argument(
        "--of",
        choices=("projections", "total"),
        default="projections",
        help="whose parameters: those of the planned projections, or all that the model stores (projections)",
    )
    add_filter(parser)
    parser.add_argument(
        "--min-rank", type=positive, default=8, metavar="K", help="the smallest rank of a projection (8)"
    )
    parser.add_argument("--multiple", type=positive, default=8, metavar="K", help="every rank is a multiple of K (8)")
    parser.add_argument(
        "--uniform", action="store_true", help="every projection keeps the same share of its parameters"
    )
    parser.add_argument(
        "--objective",
        choices=("parameters", "relative", "absolute"),
        default="parameters",
        help="what to minimise: the lost energy, as a share of each projection's and weighted by its parameters "
        "(parameters), the plain sum of these shares (relative), or all lost energy (absolute)",
    )
    parser.add_argument(
        "--cost",
        choices=("factors", "pifa"),
        default="factors",
        help="what rank r costs: r (m + n), two factors, or r (m + n - r), which only apply --merge can use (factors)",
    )
    add_weight(parser)
    add_device(parser)
    parser.add_argument("-o", "--output", required=True, metavar="FILE", help="the plan to write, as JSON")


def apply(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `rankscope apply`."""
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
    parser.add_argument("--device", type=device, default="auto", help="auto, cpu, cuda or cuda:0; one device is used")
    parser.add_argument(
        "--threads", type=positive, metavar="N", help="CPU threads (else OMP_NUM_THREADS, else the cores, at most 8)"
    )


def perplexity(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `rankscope perplexity`."""
    compared = parser.add_mutually_exclusive_group()
    compared.add_argument(
        "--plan", metavar="FILE", help="also with the factors of this plan, put in the place of its weights"
    )
    compared.add_argument(
        "--against", metavar="MODEL", help="also of this model, such as one that  apply --merge  wrote"
    )
    parser.add_argument(
        "--weight",
        metavar="FILE",
        help="the imatrix or moments that the plan was made under; tokens that moments were made of are left out",
    )
    add_text(parser)
    parser.add_argument("--tokens", type=positive, metavar="N", help="tokens to read, in whole windows (4096)")
    parser.add_argument("--device", type=device, default="auto", help="auto, cpu, cuda or cuda:0; one device is used")
    parser.add_argument("--json", action="store_true", help="one JSON object")


def worker(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `rankscope worker`."""
    parser.add_argument(
        "address", metavar="ADDRESS", help="address of a Dask scheduler: tcp://host:8786, tls://host:8786, or its file"
    )
    parser.add_argument(
        "--device", type=device, default="auto", help="auto, cpu, cuda or cuda:0,cuda:1: a process for each"
    )
    parser.add_argument("--threads", type=positive, metavar="N", help="CPU threads of each process")


def ls(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `rankscope ls`."""
    parser.add_argument("--json", action="store_true", help="one JSON object a line and model")


def rm(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `rankscope rm`."""
    parser.add_argument(
        "--weight",
        metavar="W",
        help="only the spectra under a weighting: none, norm, imatrix, moments, centred, or FILE or centred:FILE",
    )
    parser.add_argument(
        "--gauge",
        choices=("raw", "fixed"),
        help="only the spectra in a gauge: raw, or fixed (those stored for it alone)",
    )


def doctor(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `rankscope doctor`."""
    parser.add_argument("--verify", action="store_true", help="read every stored value, and name what is damaged")


def explorer(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `rankscope-tui`."""
    parser.add_argument(
        "model",
        nargs="*",
        help=f"{MODEL_HELP}; several, or org/name@step*: a series; without one: choose from stored and cached models",
    )
    add_store(parser)
    add_links(parser)
    add_computing(parser)
    parser.add_argument("--against", metavar="MODEL", help="a second model: the same projections of both, and B/A")
    add_pair(parser)
    add_weight(parser)
    add_gauge(parser)
    parser.set_defaults(weight=None, gauge=None)  # what is not given is as the user left it
    parser.add_argument(
        "--fresh",
        action="store_true",
        help="do not restore the last view; else a model opens as you left it, except for options given",
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
    parser.add_argument("--mouse", action="store_true", help="clicks select cells, rows and keys instead of text")
    parser.add_argument("--print-config", action="store_true", help="print all settings as a settings file")
    add_version(parser)
