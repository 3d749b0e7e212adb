"""The data and encoder that published files belong to."""

from __future__ import annotations

from dataclasses import replace

from ptmst.config import ImportConfig
from ptmst.data import MEAN, STD, Pairs, load_split
from ptmst.recipe import Recipe
from ptmst.students.image_towers import prepared
from ptmst.students.text_towers import text_tower


def published_recipe(config: ImportConfig) -> tuple[Recipe, Pairs]:
    """The recipe of files that others made with this data and encoder, and its training pairs.

    Published code normalizes with CLIP's mean and standard deviation, whatever the tower. Raises InputError for data
    or towers that cannot be used.
    """
    data = replace(config.data, mean=config.data.mean or MEAN, std=config.data.std or STD)
    data = prepared(data, config.encoder)
    pairs = load_split(data, "train")
    return Recipe.of(data, config.encoder, pairs, text_tower(config.encoder)), pairs
