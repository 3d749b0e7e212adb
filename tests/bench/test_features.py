"""The benchmark of kept features compares ways that end at the same experts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest

from bench import features
from ptmst import presets
from ptmst.config import EncoderConfig, Experiment, TeachConfig, WriteDataConfig
from ptmst.data import write_data
from ptmst.teachers import side_by_side, training
from tiny import data_config


@pytest.mark.slow
def test_experts_are_the_same_and_the_cache_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PTMST_CACHE", str(tmp_path / "cache"))
    write_data(WriteDataConfig("scenes", tmp_path / "data", 16, train=24, val=4, test=4, warmup=0, captions=2))
    encoder = EncoderConfig(image_width=8, text_width=16, freeze_tower=True, head_width=8)
    teach = TeachConfig(data=data_config(tmp_path), encoder=encoder, batch_size=16, lr=0.1, endpoints="all")
    monkeypatch.setattr(presets, "experiment", lambda name: replace(Experiment(), teach=teach))
    asked = mock.Mock(wraps=training.seen_features)
    monkeypatch.setattr(side_by_side, "seen_features", asked)
    rows = features.measure(tmp_path / "data", tmp_path, epochs=2, experts=2)
    assert [row["way"] for row in rows] == list(features.WAYS) and asked.call_count == 2
    assert all(row["seconds"] > 0 and row["pairs"] == 48 and row["distance"] < 1e-3 for row in rows)
    assert rows[0]["distance"] == 0 and len(list((tmp_path / "cache").glob("features-*"))) == 1
