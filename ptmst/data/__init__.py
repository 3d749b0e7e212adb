"""Image-text pairs: published sets, files of a user's own, and two small sets that are rendered on the spot."""

from ptmst.data.batches import image_batches
from ptmst.data.captions import clean_caption
from ptmst.data.digits import write_digits
from ptmst.data.normalize import MEAN, STD, denormalize, normalize, renormalize
from ptmst.data.pairs import Pairs, load_pairs, load_split
from ptmst.data.scenes import write_scenes
from ptmst.data.shipped import write_emoji
from ptmst.data.writing import write_data

__all__ = [
    "MEAN",
    "STD",
    "Pairs",
    "clean_caption",
    "denormalize",
    "image_batches",
    "load_pairs",
    "load_split",
    "normalize",
    "renormalize",
    "write_data",
    "write_digits",
    "write_emoji",
    "write_scenes",
]
