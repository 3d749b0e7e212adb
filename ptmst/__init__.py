"""ptmst: distill a large image-text data set into a few hundred synthetic pairs (PTM-ST, arXiv 2603.25388).

Public names are imported when they are first used, so that a command line is parsed without loading torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ptmst.config import DataConfig as DataConfig
    from ptmst.config import DistillConfig as DistillConfig
    from ptmst.config import EncoderConfig as EncoderConfig
    from ptmst.config import EvaluateConfig as EvaluateConfig
    from ptmst.config import ImportConfig as ImportConfig
    from ptmst.config import LeafRates as LeafRates
    from ptmst.config import Phase as Phase
    from ptmst.config import Places as Places
    from ptmst.config import TeachConfig as TeachConfig
    from ptmst.config import TrainConfig as TrainConfig
    from ptmst.data import Pairs as Pairs
    from ptmst.data import load_pairs as load_pairs
    from ptmst.data import write_digits as write_digits
    from ptmst.data import write_emoji as write_emoji
    from ptmst.data import write_scenes as write_scenes
    from ptmst.distillation.distill import distill as distill
    from ptmst.distillation.watching import Moment as Moment
    from ptmst.engine.outer_step import OuterStep as OuterStep
    from ptmst.engine.outer_step import outer_gradient as outer_gradient
    from ptmst.engine.recursion import Adjoint as Adjoint
    from ptmst.engine.recursion import Damped as Damped
    from ptmst.engine.recursion import OuterGradient as OuterGradient
    from ptmst.engine.recursion import Truncated as Truncated
    from ptmst.errors import Diverged as Diverged
    from ptmst.errors import InputError as InputError
    from ptmst.evaluation.baselines import random_pairs as random_pairs
    from ptmst.evaluation.baselines import subset as subset
    from ptmst.evaluation.evaluate import evaluate as evaluate
    from ptmst.evaluation.evaluate import evaluate_experts as evaluate_experts
    from ptmst.evaluation.metrics import retrieval_recall as retrieval_recall
    from ptmst.evaluation.scores import Scores as Scores
    from ptmst.exchange.distilled_sets import import_set as import_set
    from ptmst.exchange.export import export as export
    from ptmst.exchange.replay_buffers import import_buffers as import_buffers
    from ptmst.recipe import Recipe as Recipe
    from ptmst.retrieval.trained_student import TrainedStudent as TrainedStudent
    from ptmst.retrieval.trained_student import load_student as load_student
    from ptmst.retrieval.training import train_student as train_student
    from ptmst.students.layers import LayerTable as LayerTable
    from ptmst.students.losses import SoftContrastiveLoss as SoftContrastiveLoss
    from ptmst.students.student import Student as Student
    from ptmst.support.memory import keep_freed_memory as keep_freed_memory
    from ptmst.support.progress import progress as progress
    from ptmst.synthetic.distilled_set import DistilledSet as DistilledSet
    from ptmst.synthetic.pairs import PairBatch as PairBatch
    from ptmst.synthetic.pairs import SyntheticPairs as SyntheticPairs
    from ptmst.synthetic.soft_labels import FullSimilarity as FullSimilarity
    from ptmst.synthetic.soft_labels import LowRankSimilarity as LowRankSimilarity
    from ptmst.teachers.teach import train_teachers as train_teachers
    from ptmst.trajectories.matching import TrajectoryMatchingLoss as TrajectoryMatchingLoss
    from ptmst.trajectories.store import TrajectoryStore as TrajectoryStore

__version__ = "0.1.0"

_HOME = {
    "Adjoint": "engine.recursion",
    "Damped": "engine.recursion",
    "DataConfig": "config",
    "DistillConfig": "config",
    "DistilledSet": "synthetic.distilled_set",
    "Diverged": "errors",
    "EncoderConfig": "config",
    "EvaluateConfig": "config",
    "FullSimilarity": "synthetic.soft_labels",
    "ImportConfig": "config",
    "InputError": "errors",
    "LayerTable": "students.layers",
    "LeafRates": "config",
    "LowRankSimilarity": "synthetic.soft_labels",
    "Moment": "distillation.watching",
    "OuterGradient": "engine.recursion",
    "OuterStep": "engine.outer_step",
    "PairBatch": "synthetic.pairs",
    "Pairs": "data",
    "Phase": "config",
    "Places": "config",
    "Recipe": "recipe",
    "Scores": "evaluation.scores",
    "SoftContrastiveLoss": "students.losses",
    "Student": "students.student",
    "SyntheticPairs": "synthetic.pairs",
    "TeachConfig": "config",
    "TrainConfig": "config",
    "TrainedStudent": "retrieval.trained_student",
    "TrajectoryMatchingLoss": "trajectories.matching",
    "TrajectoryStore": "trajectories.store",
    "Truncated": "engine.recursion",
    "distill": "distillation.distill",
    "evaluate": "evaluation.evaluate",
    "evaluate_experts": "evaluation.evaluate",
    "export": "exchange.export",
    "import_buffers": "exchange.replay_buffers",
    "import_set": "exchange.distilled_sets",
    "keep_freed_memory": "support.memory",
    "load_pairs": "data",
    "load_student": "retrieval.trained_student",
    "outer_gradient": "engine.outer_step",
    "progress": "support.progress",
    "random_pairs": "evaluation.baselines",
    "retrieval_recall": "evaluation.metrics",
    "subset": "evaluation.baselines",
    "train_student": "retrieval.training",
    "train_teachers": "teachers.teach",
    "write_digits": "data",
    "write_emoji": "data",
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
