from __future__ import annotations

import json
from pathlib import Path

import pytest

from ptmst.data import clean_caption

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "captions.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: f"{case['caption'][:12]!r}-{case['max_words']}")
def test_captions_come_out_as_the_reference_cleans_them(case: dict[str, str | int]) -> None:
    assert clean_caption(str(case["caption"]), int(case["max_words"])) == case["expected"]


def test_thirty_words_are_kept_by_default() -> None:
    assert clean_caption("word " * 40) == " ".join(["word"] * 30)
