"""The rendered data sets as a configuration names them."""

from __future__ import annotations

from dataclasses import asdict

from ptmst.config import RenderConfig
from ptmst.data.digits import write_digits
from ptmst.data.scenes import write_scenes
from ptmst.support import progress

_WRITERS = {"scenes": write_scenes, "digits": write_digits}


def write_rendered(config: RenderConfig) -> bool:
    """Write a rendered data set under `config.folder`; False if the same set was there already.

    Raises InputError for settings out of range and for a folder that holds other settings or cannot be written.
    """
    settings = {key: value for key, value in asdict(config).items() if key not in ("name", "root")}
    total = config.train + config.val + config.test + config.warmup
    with progress.bar("data", total) as bar:
        return _WRITERS[config.name](config.folder, **settings, progress=lambda *_: bar.advance("images"))
