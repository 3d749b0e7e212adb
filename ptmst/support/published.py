"""Files of torch.save that others made: tensors and plain containers, never anything that would be executed."""

from __future__ import annotations

import pickle
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch

from ptmst.errors import InputError


def load_published(path: Path) -> Any:
    """What torch.save wrote, tensors and plain containers only. Raises InputError for anything else, unexecuted."""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                if broken := archive.testzip():
                    raise InputError(f"{path}: expected a whole file, found a damaged one ({broken}); fetch it again")
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        with warnings.catch_warnings():
            # Of a pickle's protocol, of which a refusal says enough.
            warnings.simplefilter("ignore", UserWarning)
            return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise InputError(f"{path}: expected a file of torch.save, found none; check the path") from error
    except pickle.UnpicklingError as error:
        would_run = "safe_globals" in str(error)
        found = "what would have to be executed" if would_run else "something else"
        raise InputError(
            f"{path}: expected tensors alone, as torch.save writes them, found {found}; it was not read"
        ) from error
    except InputError:
        raise
    except Exception as error:  # whatever a damaged pickle makes of itself
        first = str(error).splitlines()[0].split(". ")[0] if str(error) else type(error).__name__
        raise InputError(f"{path}: expected a file of torch.save, found a damaged one ({first})") from error
