"""URLs of files of weights: which can be read, which belong to the Hub, and the names that their spectra are stored
by."""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from typing import NamedTuple
from urllib.parse import SplitResult, unquote, urlsplit, urlunsplit

from ..errors import InputError
from ..formats import registry
from ..formats.parts import siblings
from ..spectrum import digest
from . import hub
from .retries import short_message, status_of

_HUB_HOSTS = ("huggingface.co", "www.huggingface.co", "hf.co")
_FILE = re.compile(r"/(?P<repo>[^/]+/[^/]+|[^/]+)/(?:resolve|blob)/(?P<revision>[^/]+)/(?P<file>.+)")


class HubFile(NamedTuple):
    """A file of weights on the Hub."""

    repo: str
    revision: str
    file: str

    @property
    def name(self) -> str:
        """The name that its spectra are stored by: the repo's, with the file's if the format stands alone, as a repo
        may hold several such models.
        """
        return f"{self.repo}/{self.parts[0]}" if registry.stands_alone(self.file) else self.repo

    @property
    def parts(self) -> list[str]:
        """The file, with the other parts of its model if its format stands alone."""
        return _parts(self.file)


def is_url(model: str) -> bool:
    """True if a name is the URL of a file. `hf://` names a repo or a folder, unless it ends in a file of a format that
    stands alone.
    """
    return re.match(r"[A-Za-z][\w+.-]*://", model) is not None and (
        not model.startswith(hub.SCHEME) or hub_file(model) is not None
    )


def stored_name(model: str) -> str:
    """The name by which the spectra of a Hub id or URL are stored."""
    if not is_url(model):
        return model.removeprefix(hub.SCHEME).partition("@")[0].removesuffix("/")
    if (found := hub_file(model)) is not None:
        return found.name
    if (parts := _components(model)) is None:
        return model
    name = f"{parts.hostname}{f':{parts.port}' if parts.port else ''}{_parts(parts.path)[0]}"
    return name if len(name) <= 150 else f"{parts.hostname}/{digest(name)[:8]}/{PurePosixPath(name).name[-60:]}"


def hub_file(url: str) -> HubFile | None:
    """The file on the Hub (or at HF_ENDPOINT) that a URL names, or that `hf://org/name/FILE[@revision]` names if its
    format stands alone; None for any other.
    """
    if url.startswith(hub.SCHEME):
        return _named_in_repo(url.removeprefix(hub.SCHEME))
    from huggingface_hub import constants

    endpoint = urlsplit(constants.ENDPOINT)
    parts = _components(url)
    if parts is None or parts.netloc not in (endpoint.netloc, *_HUB_HOSTS):
        return None
    found = _FILE.fullmatch(parts.path.removeprefix(endpoint.path.rstrip("/")))
    if found is None or not found["file"].lower().endswith(registry.ranged_suffixes()):
        return None
    return HubFile(unquote(found["repo"]), unquote(found["revision"]), unquote(found["file"]))


def _named_in_repo(text: str) -> HubFile | None:
    path, at, revision = text.partition("@")
    org, base, file = (*path.split("/", 2), "", "")[:3]
    if not registry.stands_alone(file) or (at and not revision):
        return None
    return HubFile(f"{org}/{base}", revision or "main", file)


def files_of(url: str) -> list[str]:
    """The URLs of all parts, if the URL names one of several parts of a format that stands alone; else the URL."""
    parts = urlsplit(url)
    held = _parts(parts.path)
    return [urlunsplit(parts._replace(path=path)) for path in held] if len(held) > 1 else [url]


def _parts(file: str) -> list[str]:
    return (siblings(file) if registry.stands_alone(file) else []) or [file]


def _components(url: str) -> SplitResult | None:
    """The components of a URL, None if it is malformed."""
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018 - raises if it is no number
    except ValueError:
        return None
    return parts


def checked(url: str, shown: str) -> SplitResult:
    """The components of a URL; raises InputError unless it can be read."""
    parts = _components(url)
    if parts is None:
        raise InputError(f"{shown} is not a URL: write https://host/path/file")
    if parts.username is not None:
        raise InputError(
            f"{shown}: a URL must not hold a user or password: leave them out, or download the file and name it"
        )
    suffixes = registry.ranged_suffixes()
    kinds = f"{', '.join(suffixes[:-1])} or {suffixes[-1]}"
    if parts.scheme.lower() not in ("http", "https") or not parts.hostname or not url.isprintable():
        raise InputError(
            f"{shown} is not an https:// URL of a {kinds} file: write https://host/path/model{suffixes[0]}"
        )
    if not parts.path.lower().endswith(suffixes):
        raise InputError(f"{shown} is not a URL of a {kinds} file: name a model on the Hub as org/name")
    return parts


def explain(error: Exception, host: str, file: str) -> str:
    """Say in one sentence why a server that is not the Hub did not send a file."""
    from huggingface_hub import constants

    status = status_of(error)
    if constants.HF_HUB_OFFLINE:
        return f"{file} is on {host}; HF_HUB_OFFLINE is set: unset it, or name a copy here"
    if status:
        refused = ": access refused, name a signed URL or a copy here"
        why = {401: refused, 403: refused, 404: ": no such file, check the URL", 429: ": too many requests, try later"}
        return f"{host} answered {status} for {file}{why.get(status, ': try again later')}"
    return f"cannot reach {host} ({short_message(error)}): check the URL and the connection"
