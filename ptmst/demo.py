"""The main job on an embedded default: data → teachers → distillation → students → one page."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources

from ptmst import config as configs
from ptmst.config import DistillConfig, EvaluateConfig, RenderConfig, TeachConfig


@dataclass(frozen=True)
class DemoConfig:
    """One preset of the demo: presets/demo.toml and presets/demo-quick.toml."""

    render: RenderConfig
    teach: TeachConfig
    lors: DistillConfig
    ptm_st: DistillConfig
    evaluate: EvaluateConfig
    random_lr: tuple[float, ...] = (0.01, 0.03, 0.1, 0.3)
    """Student learning rates tried for random pairs; the best on the val split is used."""


def preset(name: str) -> DemoConfig:
    with resources.as_file(resources.files("ptmst") / "presets" / f"{name}.toml") as path:
        return configs.from_toml(DemoConfig, path)
