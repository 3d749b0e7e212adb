"""The data sets that `ptmst data` writes, as a configuration names them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict

from ptmst import schema
from ptmst.config import WriteDataConfig
from ptmst.data.digits import write_digits
from ptmst.data.drawings import drawings
from ptmst.data.scenes import write_scenes
from ptmst.data.shipped import emoji
from ptmst.data.stamps import stamps
from ptmst.data.written import PictureSet, write_set
from ptmst.support import progress

_PAINTERS = {"scenes": write_scenes, "digits": write_digits}
_SETS: Mapping[str, Callable[[], PictureSet]] = {"emoji": emoji, "drawings": drawings, "stamps": stamps}


def write_data(config: WriteDataConfig) -> bool:
    """Write a data set under `config.folder`; False if the same set was there already.

    Raises InputError for settings out of range, for packages that it is made of and that are missing, and for a folder
    that holds something else or cannot be written.
    """
    schema.check(config)
    if config.is_drawn_by_us:
        settings = {key: value for key, value in asdict(config).items() if key not in ("name", "root")}
        total = config.train + config.val + config.test + config.warmup
        with progress.bar("data", total) as bar:
            return _PAINTERS[config.name](config.folder, **settings, progress=lambda *_: bar.advance("images"))
    pictures = _SETS[config.name]()
    with progress.bar("data", pictures.count) as bar:
        return write_set(config.folder, pictures, lambda *_: bar.advance("images"))
