"""Small facts that take long to find out, kept in the cache folder: a function of all that decides them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib import metadata
from typing import Any

import torch

from ptmst.errors import InputError
from ptmst.support import files, folders
from ptmst.support.provenance import cpu_name

_KIND, _VERSION = "fact", 1
PATTERN = "fact-*.json"
"""Files of the cache."""


def remembered(key: Mapping[str, Any], found: Callable[[], Any]) -> Any:
    """What `found` returns, JSON values: asked once for each key, also of JSON values.

    Found out each time where the cache folder cannot be written.
    """
    path = folders.cache_folder() / f"fact-{files.sha256(json.dumps(key, sort_keys=True).encode())[:32]}.json"
    with suppress(InputError):  # not there, or damaged: it can be found again
        return files.read_json(path, _KIND, _VERSION)["value"]
    value = found()
    with suppress(InputError):
        files.write_json(path, {"format": f"ptmst-{_KIND}", "version": _VERSION, "value": value})
    return value


def surroundings(*packages: str) -> dict[str, str]:
    """What decides how a tower is built and what it computes here, besides its settings: for keys."""
    releases = {name: metadata.version(name) for name in ("ptmst", "torch", *packages)}
    return {**releases, "cpu": f"{cpu_name()}, {torch.backends.cpu.get_cpu_capability()}"}
