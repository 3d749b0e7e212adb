"""ptmst: distil a large image-text data set into a few hundred synthetic pairs (PTM-ST, arXiv 2603.25388).

Public names are imported when they are first used, so that a command line is parsed without loading torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ptmst.baselines import random_pairs as random_pairs
    from ptmst.baselines import subset as subset
    from ptmst.config import DataConfig as DataConfig
    from ptmst.config import DistillConfig as DistillConfig
    from ptmst.config import EncoderConfig as EncoderConfig
    from ptmst.config import EvaluateConfig as EvaluateConfig
    from ptmst.config import ImportConfig as ImportConfig
    from ptmst.config import LeafRates as LeafRates
    from ptmst.config import Phase as Phase
    from ptmst.config import TeachConfig as TeachConfig
    from ptmst.contrast import SoftContrastiveLoss as SoftContrastiveLoss
    from ptmst.data import Pairs as Pairs
    from ptmst.data import load_pairs as load_pairs
    from ptmst.data import write_digits as write_digits
    from ptmst.data import write_scenes as write_scenes
    from ptmst.distillation import distill as distill
    from ptmst.distilled import DistilledSet as DistilledSet
    from ptmst.errors import Diverged as Diverged
    from ptmst.errors import InputError as InputError
    from ptmst.evaluation import Scores as Scores
    from ptmst.evaluation import evaluate as evaluate
    from ptmst.evaluation import evaluate_experts as evaluate_experts
    from ptmst.evaluation import retrieval_recall as retrieval_recall
    from ptmst.exchange import export as export
    from ptmst.exchange import import_set as import_set
    from ptmst.flat import LayerTable as LayerTable
    from ptmst.flat import Student as Student
    from ptmst.legacy import import_buffers as import_buffers
    from ptmst.matching import TrajectoryMatchingLoss as TrajectoryMatchingLoss
    from ptmst.similarity import FullSimilarity as FullSimilarity
    from ptmst.similarity import LowRankSimilarity as LowRankSimilarity
    from ptmst.store import TrajectoryStore as TrajectoryStore
    from ptmst.synthetic import SyntheticPairs as SyntheticPairs
    from ptmst.teachers import train_teachers as train_teachers
    from ptmst.unroll import OuterGradient as OuterGradient
    from ptmst.unroll import OuterStep as OuterStep
    from ptmst.unroll import outer_gradient as outer_gradient

__version__ = "0.1.0"

_HOME = {
    "DataConfig": "config",
    "Diverged": "errors",
    "DistillConfig": "config",
    "DistilledSet": "distilled",
    "EncoderConfig": "config",
    "EvaluateConfig": "config",
    "FullSimilarity": "similarity",
    "ImportConfig": "config",
    "InputError": "errors",
    "LayerTable": "flat",
    "LeafRates": "config",
    "LowRankSimilarity": "similarity",
    "OuterGradient": "unroll",
    "OuterStep": "unroll",
    "Pairs": "data",
    "Phase": "config",
    "Scores": "evaluation",
    "SoftContrastiveLoss": "contrast",
    "Student": "flat",
    "SyntheticPairs": "synthetic",
    "TeachConfig": "config",
    "TrajectoryMatchingLoss": "matching",
    "TrajectoryStore": "store",
    "distill": "distillation",
    "evaluate": "evaluation",
    "evaluate_experts": "evaluation",
    "export": "exchange",
    "import_buffers": "legacy",
    "import_set": "exchange",
    "load_pairs": "data",
    "outer_gradient": "unroll",
    "random_pairs": "baselines",
    "retrieval_recall": "evaluation",
    "subset": "baselines",
    "train_teachers": "teachers",
    "write_digits": "data",
    "write_scenes": "data",
}
__all__ = [*_HOME, "__version__"]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'ptmst' has no attribute '{name}'")
    value = getattr(importlib.import_module(f"ptmst.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
