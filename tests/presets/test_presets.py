"""Presets against the published tables, which are repeated here."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from ptmst import cli
from ptmst.cli.pipeline import Distill
from ptmst.config import DistillConfig, EvaluateConfig, LeafRates, OpenPhases, Phase
from ptmst.errors import InputError
from ptmst.presets import applied, catalogue, experiment, methods
from ptmst.schema import check

TWO = ((5, (0, 2)), (7, (1, 3)))
ROWS = {
    "flickr30k-500": ((200, 299), 40, 10.0),
    "flickr30k-200": ((99, 100), 20, 10.0),
    "flickr30k-100": ((99,), 20, 10.0),
    "coco-500": ((200, 299), 20, 50.0),
    "coco-200": ((99, 100), 20, 50.0),
    "coco-100": ((99,), 20, 50.0),
    "cc3m-500": ((200, 299), 20, 50.0),
    "cc3m-200": ((99, 100), 20, 50.0),
    "cc3m-100": ((99,), 20, 50.0),
}
"""Pairs of each phase, batch, outer rate of S."""


@pytest.mark.parametrize("name", ROWS)
def test_a_row_is_the_papers(name: str) -> None:
    pairs, batch, similarity = ROWS[name]
    found = experiment(name)
    phases = tuple(Phase(n, end, start) for n, (end, start) in zip(pairs, TWO, strict=False))
    expected = DistillConfig(
        phases=phases,
        trajectory="shortcut",
        expert_epochs=1,
        steps=2000,
        inner_steps=8,
        batch_size=batch,
        loss="wbce",
        similarity="full",
        student_lr=0.1,
        optimizer="sgd",
        momentum=0.5,
        rates=LeafRates(images=1000.0, texts=1000.0, lr=0.01, similarity=similarity),
        adjoint=0.0,
        adjoint_clip=None,
        blend=0.0,
        ema=0.99,
    )
    assert found.distill == expected
    teach = found.teach
    assert (teach.experts, teach.epochs, teach.lr, teach.batch_size) == (20, 10, 0.1, 128)
    assert (teach.augment, teach.dropout, teach.drop_last) == (True, 0.1, True)
    assert (teach.data.name, teach.data.image_size) == (name.split("-")[0], 224)
    assert {phase.endpoint for phase in phases} <= set(teach.kept_endpoints)
    assert (teach.encoder.image_tower, teach.encoder.text_tower) == (
        "timm:nfnet_l0",
        "hf:google-bert/bert-base-uncased",
    )
    assert teach.encoder.freeze_tower == name.startswith("cc3m")
    assert teach.encoder.head_width == (2048 if name.startswith("cc3m") else None)
    assert found.evaluate == EvaluateConfig(protocol="per-phase")


REPBLEND = {
    100: (99, (0, 2), LeafRates(100.0, 100.0, 0.01, 10.0), 10, 3.0),
    200: (199, (0, 2), LeafRates(1000.0, 1000.0, 0.01, 10.0), 5, 1.0),
    500: (499, (0, 3), LeafRates(1000.0, 1000.0, 0.01, 100.0), 20, 0.01),
}


@pytest.mark.parametrize("size", REPBLEND)
def test_repblend_is_the_published_one(size: int) -> None:
    pairs, start, rates, rank, alpha = REPBLEND[size]
    found = experiment(f"flickr30k-{size},repblend")
    settings = found.distill
    assert [(phase.pairs, phase.start) for phase in settings.phases] == [(pairs, start)]
    assert (settings.rates, settings.rank, settings.alpha) == (rates, rank, alpha)
    assert (settings.steps, settings.batch_size, settings.inner_steps, settings.blend) == (3000, 20, 8, 1.0)
    assert (settings.trajectory, settings.expert_epochs, settings.similarity) == ("raw", 1, "low-rank")
    assert found.teach.encoder.freeze_tower and found.teach.encoder.head_width is None  # 2304, as nfnet_l0


@pytest.mark.parametrize("name", [preset.name for preset in catalogue() if preset.kind == "experiment"])
def test_a_preset_stores_what_it_distills_from(name: str) -> None:
    for method in ["", *(f",{method}" for method in methods())]:
        found = experiment(f"{name}{method}")
        kept, epochs = set(found.teach.kept_endpoints), found.teach.epochs
        # Those that are chosen later are chosen among what is kept.
        for phase in (phase for phase in found.distill.phases if not isinstance(phase, OpenPhases)):
            raw = range(1, max(phase.start[1] - 1 + found.distill.expert_epochs, 1) + 1)
            assert set(raw if found.distill.trajectory == "raw" else [phase.endpoint]) <= kept, (name, method)
            assert phase.endpoint <= epochs


IS = {
    # method: trajectory, phases, loss, S, S fixed, adjoint, blend, averaged, frozen tower (None: as the experiment)
    "mtt-vl": ("raw", 1, "infonce", "full", True, 1.0, 0.0, False, False),
    "tesla": ("raw", 1, "wbce", "full", True, 0.0, 0.0, False, None),
    "lors": ("raw", 1, "wbce", "low-rank", False, 0.0, 0.0, False, None),
    "repblend": ("raw", 1, "wbce", "low-rank", False, 0.0, 1.0, False, True),
    "base": ("raw", 1, "wbce", "full", False, 0.0, 0.0, True, None),
    "ptm": ("raw", 2, "wbce", "full", False, 0.0, 0.0, True, None),
    "st": ("shortcut", 1, "wbce", "full", False, 0.0, 0.0, True, None),
    "st-low-rank": ("shortcut", 1, "wbce", "low-rank", False, 0.0, 0.0, True, None),
    "ptm-st": ("shortcut", 2, "wbce", "full", False, 0.0, 0.0, True, None),
    "st-adjoint": ("shortcut", 1, "wbce", "full", False, 0.5, 0.0, True, None),
}


def test_every_method_is_known() -> None:
    assert set(IS) == set(methods())


@pytest.mark.parametrize("name", IS)
@pytest.mark.parametrize("base", ["demo", "flickr30k-500"])
def test_a_method_is_what_its_paper_says_and_costs_the_same(name: str, base: str) -> None:
    before = experiment(base)
    # Whatever the experiment did, the method decides what makes it itself.
    odd = replace(before.distill, adjoint=0.5, blend=2.0, trajectory="shortcut", similarity="full")
    found = applied(name, replace(before, distill=odd, tuned={}))
    settings = found.distill
    check(settings)
    trajectory, phases, loss, similarity, fixed, adjoint, blend, averaged, frozen = IS[name]
    assert (settings.trajectory, len(settings.phases), settings.loss) == (trajectory, phases, loss)
    assert (settings.similarity, settings.rates.similarity == 0) == (similarity, fixed)
    assert (settings.adjoint, settings.blend, settings.ema > 0) == (adjoint, blend, averaged)
    assert settings.adjoint_clip == (1.0 if name == "st-adjoint" else None)
    assert found.teach.encoder.freeze_tower == (before.teach.encoder.freeze_tower if frozen is None else frozen)
    assert found.evaluate.loss is None  # the set's own
    assert settings.pairs == before.distill.pairs
    assert settings.steps * len(settings.phases) == before.distill.steps * len(before.distill.phases)
    kept = ("optimizer", "momentum", "inner_steps", "batch_size", "student_lr")
    assert all(getattr(settings, key) == getattr(before.distill, key) for key in kept)
    assert settings.rates == replace(before.distill.rates, similarity=settings.rates.similarity)


def test_methods_join_and_stand_alone() -> None:
    assert experiment("lors") == experiment("flickr30k-500,lors")
    assert experiment("lors").distill.steps == 3000
    # All pairs in one phase, over the start ranges of all, to the last end point.
    for method in ("st", "base", "lors"):
        assert experiment(f"flickr30k-500,{method}").distill.phases == (Phase(499, 7, (0, 3)),)
    # Numbers published for Flickr30k stay there.
    demo, coco = experiment("demo"), experiment("coco-200")
    assert experiment("demo,repblend") == applied("repblend", demo)
    assert experiment("demo,repblend").distill.rates == demo.distill.rates
    assert experiment("coco-200,lors").distill.steps == 2 * coco.distill.steps
    assert experiment() == experiment(None, None) and experiment().distill == DistillConfig()


def test_what_a_study_tuned_is_applied_with_the_method(tmp_path: Path) -> None:
    demo = replace(experiment("demo"), tuned={"lors": {"distill": {"batch_size": 7, "rates": {"texts": 0.5}}}})
    found, plain = applied("lors", demo).distill, applied("lors", replace(demo, tuned={})).distill
    assert found == replace(plain, batch_size=7, rates=replace(plain.rates, texts=0.5))
    assert applied("base", demo).distill.batch_size == demo.distill.batch_size
    assert applied("lors", demo, published=True).distill.batch_size == demo.distill.batch_size
    file = tmp_path / "mine.toml"
    file.write_text("[tuned.lors.distill]\nsteps = 7\n")
    with pytest.raises(
        InputError, match=r"mine.toml: expected settings of commands, found tuned ones of methods; name"
    ):
        experiment("demo,lors", file)
    for entry in catalogue():
        own = experiment(entry.name)
        for method in own.tuned:
            assert method in methods()
            check(applied(method, own))


def test_a_file_changes_a_preset(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text("[distill]\nsteps = 7\nrates = { lr = 0.5 }\n[teach]\nexperts = 2\n")
    found, before = experiment("coco-200", file), experiment("coco-200")
    assert found.distill == replace(before.distill, steps=7, rates=replace(before.distill.rates, lr=0.5))
    assert found.teach == replace(before.teach, experts=2)
    command = cli.parse(["distill", "--store", "s", "--preset", "coco-200", f"--config={file}", "--inner-steps", "3"])
    assert isinstance(command, Distill)
    assert command.settings == replace(found.distill, inner_steps=3)


@pytest.mark.parametrize(
    ("preset", "message"),
    [
        ("flickr30k-50", r"flickr30k-50: expected a preset, found none of that name; did you mean flickr30k-500"),
        ("lors,coco-100", r"lors,coco-100: expected one experiment, and first, found coco-100 later"),
        ("coco-100,", r": expected a preset, found none of that name"),
        ("flickr30k-500,repblend,ptm-st", r"expected one method, found ptm-st after another; keep one, and add"),
        ("flickr30k-100,ptmst", r"^preset ptmst: this method is now called st-adjoint; use --preset st-adjoint$"),
        ("ptmst", r"^preset ptmst: this method is now called st-adjoint; use --preset st-adjoint$"),
        ("lors,ptm-st", r"preset lors,ptm-st: expected one method, found ptm-st after another"),
    ],
)
def test_what_is_no_preset_is_refused(preset: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        cli.parse(["distill", "--store", "s", "--preset", preset])


def test_the_catalogue_names_sources(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["presets"]) == 0
    shown = capsys.readouterr().out
    for preset in catalogue():
        assert preset.about and re.search(r"arXiv \d{4}\.\d{5}|ptmst", preset.source), preset.name
        assert f" {preset.name} " in shown
    assert [preset.name for preset in catalogue() if preset.name.startswith("coco")] == [
        "coco-100",
        "coco-200",
        "coco-500",
    ]
