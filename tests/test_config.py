"""Settings: the paper's by default, all mistakes in one message, the same after a trip through JSON."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
import re
import types
import typing
from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ptmst import config as configs
from ptmst.config import (
    AblateConfig,
    Chunk,
    DataConfig,
    DistillConfig,
    EncoderConfig,
    EvaluateConfig,
    LeafRates,
    OpenPhases,
    Phase,
    TeachConfig,
)
from ptmst.errors import InputError
from ptmst.presets import experiment, in_one_phase
from ptmst.schema import check, from_json, from_toml, parse_endpoints, parse_phase, to_json

KINDS = [kind for _, kind in inspect.getmembers(configs, inspect.isclass) if dataclasses.is_dataclass(kind)]


def toml(folder: Path, text: str) -> Path:
    path = folder / "settings.toml"
    path.write_text(text, "utf-8")
    return path


@cache
def drawn(hint: Any) -> st.SearchStrategy[Any]:
    """Any value of a type that settings have."""
    plain = {
        int: st.integers(),
        float: st.floats(allow_nan=False),
        bool: st.booleans(),
        str: st.text().filter(lambda text: text.lower() != "none"),  # which is no text, or refused
        Path: st.sampled_from(("data", "/a/b.pt", ".", "Zoë/x y")).map(Path),
        types.NoneType: st.none(),
    }
    if hint in plain:
        return plain[hint]
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return st.builds(hint, **{name: drawn(of) for name, of in typing.get_type_hints(hint).items()})
    kind, inside = typing.get_origin(hint), typing.get_args(hint)
    if kind is typing.Literal:
        return st.sampled_from(inside)
    if kind is dict:  # tables as they are in a file
        return st.just({"lors": {"distill": {"steps": 7}}})
    if kind is tuple and inside[-1] is Ellipsis:
        return st.lists(drawn(inside[0]), max_size=3).map(tuple)
    if kind is tuple:
        return st.tuples(*map(drawn, inside))
    return st.one_of(*map(drawn, inside))


def test_every_config_is_found() -> None:
    assert {DataConfig, DistillConfig, EncoderConfig, EvaluateConfig, LeafRates, Phase, TeachConfig} < set(KINDS)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
@settings(max_examples=25, deadline=None, derandomize=True, database=None)
def test_json_round_trip(kind: type, data: st.DataObject) -> None:
    config = data.draw(drawn(kind))
    again: object = from_json(kind, json.loads(json.dumps(to_json(config))))
    assert again == config
    assert repr(again) == repr(config)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if not issubclass(kind, Phase)])
def test_missing_settings_take_their_defaults(kind: type) -> None:
    assert from_json(kind, {}) == kind()
    check(kind())


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_every_setting_is_explained(kind: type) -> None:
    """By a docstring, or by those of the config that it is."""
    body: list[ast.stmt] = []
    for one in filter(dataclasses.is_dataclass, kind.__mro__):
        (definition,) = (n for n in ast.parse(inspect.getsource(one)).body if isinstance(n, ast.ClassDef))
        assert ast.get_docstring(definition)
        body += [*definition.body, ast.Pass()]
    explained = {
        field.target.id
        for field, after in pairwise(body)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) and isinstance(after.value.value, str)
    }
    whole = {name for name, hint in typing.get_type_hints(kind).items() if dataclasses.is_dataclass(hint)}
    assert {f.name for f in dataclasses.fields(kind)} == explained | whole


def test_distillation_defaults_are_flickr30k_500() -> None:
    config = DistillConfig()
    assert config.phases == (Phase(200, 5, (0, 2)), Phase(299, 7, (1, 3)))
    assert config.pairs == 499
    assert (config.trajectory, config.similarity, config.loss) == ("shortcut", "full", "wbce")
    assert (config.steps, config.inner_steps, config.batch_size) == (2000, 8, 40)
    assert config.rates == LeafRates(images=1000, texts=1000, lr=0.01, similarity=10)
    assert (config.optimizer, config.momentum, config.student_lr, config.ema) == ("sgd", 0.5, 0.1, 0.99)
    assert (config.temperature, config.adjoint, config.adjoint_clip) == (0.07, 0.5, 1.0)  # docs/adjoint.md


def test_teacher_and_student_defaults_are_the_papers() -> None:
    teach, evaluate = TeachConfig(), EvaluateConfig()
    assert (teach.experts, teach.epochs, teach.lr, teach.batch_size, teach.temperature) == (20, 10, 0.1, 128, 0.07)
    assert (evaluate.students, evaluate.epochs, evaluate.lr_drop, evaluate.every) == (5, 100, 50, 10)
    assert (evaluate.batch_size, evaluate.momentum, evaluate.weight_decay) == (128, 0.9, 5e-4)
    assert (evaluate.loss, evaluate.temperature, evaluate.select) == (None, None, "last")  # both are the set's


def test_toml(tmp_path: Path) -> None:
    path = toml(
        tmp_path,
        """
        out = "runs/a"
        steps = 3
        student_lr = 1
        phases = [{ pairs = 99, endpoint = 5, start = [0, 2] }]
        rates = { images = 0.02 }
        """,
    )
    expected = DistillConfig(
        out=Path("runs/a"), steps=3, student_lr=1.0, phases=(Phase(99, 5, (0, 2)),), rates=LeafRates(images=0.02)
    )
    assert from_toml(DistillConfig, path) == expected
    assert from_toml(TeachConfig, toml(tmp_path, 'endpoints = "all"')).kept_endpoints == tuple(range(1, 11))
    assert from_toml(TeachConfig, toml(tmp_path, "endpoints = [7, 5, 7]")).kept_endpoints == (5, 7)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stepz = 3", "unknown setting stepz; did you mean steps"),
        ("rates = { imagez = 3 }", "unknown setting imagez; did you mean images? @ $.rates"),
        ("[rates]\nqqqq = 3", "unknown setting qqqq; known: images, texts, lr, similarity @ $.rates"),
        ('steps = "many"', "expected int, found 'many' @ $.steps"),
        ("steps = 2.0", "expected int, found 2.0 @ $.steps"),
        ("steps = true", "expected int, found True @ $.steps"),
        ("ema = false", "expected float, found False @ $.ema"),
        ("rates = 3", "expected a table of settings, found something else @ $.rates"),
        ('phases = ["200:5:0-2"]', "expected a table of settings, found something else @ $.phases[0]"),
        ("out = 3", "expected str, found 3 @ $.out"),
        (
            'loss = "wbec"',
            "expected wbce, bce, infonce, kl, mse, cwcl, siglip, found 'wbec'; did you mean wbce or bce? @ $.loss",
        ),
        ("phases = [{ pairs = 99, start = [0, 2] }]", "expected the key 'endpoint', found none; add it @ $.phases[0]"),
        ('phases = [{ pairs = 99, endpoint = "5", start = [0, 2] }]', "expected int, found '5' @ $.phases[0].endpoint"),
        ("steps = ", "expected TOML, found a mistake (Invalid value"),
    ],
)
def test_a_mistake_in_toml_is_named(text: str, message: str, tmp_path: Path) -> None:
    path = toml(tmp_path, text)
    with pytest.raises(InputError, match="^" + re.escape(f"{path}: {message}")):
        from_toml(DistillConfig, path)


def test_all_mistakes_of_a_toml_file_are_in_one_message(tmp_path: Path) -> None:
    path = toml(tmp_path, 'stepz = 3\nema = "x"\nbatch_size = 1.5\nrates = { imagez = 1 }')
    with pytest.raises(InputError) as caught:
        from_toml(DistillConfig, path)
    first, *lines = str(caught.value).split("\n  ")
    assert first == f"{path}: settings:"
    assert sorted(lines) == [
        "expected float, found 'x' @ $.ema",
        "expected int, found 1.5 @ $.batch_size",
        "unknown setting imagez; did you mean images? @ $.rates",
        "unknown setting stepz; did you mean steps or inner_steps? @ $",
    ]


def test_toml_that_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "none.toml"
    message = f"{path}: cannot be read (No such file or directory); check the path"
    with pytest.raises(InputError, match="^" + re.escape(message) + "$"):
        from_toml(DistillConfig, path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="expected TOML in UTF-8, found another encoding"):
        from_toml(DistillConfig, path)


@pytest.mark.parametrize("value", [3, None, "steps", [1]])
def test_json_that_holds_no_settings_is_refused(value: object) -> None:
    with pytest.raises(InputError, match=f"^expected a table of settings, found {re.escape(repr(value))}$"):
        from_json(DistillConfig, value)


def test_endpoints_of_another_type_are_refused() -> None:
    for value, message in ((5, "expected a list of epochs or 'all', found 5"), ("5;7", "expected epochs such as 5,7")):
        with pytest.raises(InputError, match=re.escape(message) + r".* @ \$\.endpoints$"):
            from_json(TeachConfig, {"endpoints": value})


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            DistillConfig(phases=(Phase(200, 5, (0, 2)), Phase(200, 5, (1, 6)))),
            "phases[1]: expected the last span 5→6 to end by the end point, found end point 5; raise it or lower the "
            "start range",
        ),
        (
            DistillConfig(phases=(Phase(200, 5, (0, 4)),), expert_epochs=3),
            "phases[0]: expected the last span 3→6 to end by the end point, found end point 5; raise it or lower the "
            "start range",
        ),
        (
            DistillConfig(phases=(Phase(200, 5, (2, 2)),)),
            "phases[0].start: expected 0 <= first < last, found 2-2; fix the range",
        ),
        (
            DistillConfig(phases=(Phase(39, 5, (0, 2)),)),
            "phases[0].pairs: expected at least one batch of 40, found 39 pairs; lower batch_size or raise pairs",
        ),
        (DistillConfig(batch_share=1.5), "batch_share: expected a share above 0 and up to 1, found 1.5; such as 0.5"),
        (
            DistillConfig(phases=(Phase(0, 5, (0, 2)),)),
            "phases[0].pairs: expected a positive number, found 0; raise it",
        ),
        (
            DistillConfig(similarity="low-rank", similarity_pull=0.1),
            "similarity_pull: expected full soft labels to pull, found low-rank; leave it out, or set similarity full",
        ),
        (DistillConfig(phases=()), "phases: expected at least one, found none; name one, such as 99:5:0-2"),
        (DistillConfig(steps=0), "steps: expected a positive number, found 0; raise it"),
        (DistillConfig(temperature=float("nan")), "temperature: expected a positive number, found nan; raise it"),
        (DistillConfig(ema=1.0), "ema: expected a number below 1, found 1.0; lower it"),
        (DistillConfig(adjoint=1.5), "adjoint: expected 0 (truncated) to 1 (exact), found 1.5; lower it"),
        (DistillConfig(rates=LeafRates(texts=-1)), "rates.texts: expected at least 0, found -1; raise it"),
        (
            TeachConfig(epochs=6, endpoints=(5, 7)),
            "endpoints: expected epochs in 1..6, found 7; lower it or raise epochs",
        ),
        (TeachConfig(endpoints=()), "endpoints: expected at least one epoch, found none; name some, such as 5,7"),
        (
            TeachConfig(encoder=EncoderConfig(image_weights=Path("w.pt"), warmup_epochs=3)),
            "encoder.image_weights and warmup_epochs: expected one of them, found both; drop one",
        ),
        (
            DistillConfig(keep="nothing", adjoint=0.5),
            "keep: expected path or primals with adjoint 0.5, found nothing; keep the path, or set adjoint 0",
        ),
        (DistillConfig(chunk=16), "chunk: expected a divisor of batch_size 40, found 16; name one"),
        (DistillConfig(chunk=80), "chunk: expected a divisor of batch_size 40, found 80; name one"),
        (DistillConfig(chunk=0), "chunk: expected at least 1, found 0; raise it"),
        (DistillConfig(chunk=-8), "chunk: expected at least 1, found -8; raise it"),
        (
            DistillConfig(chunk=8, keep="primals"),
            "keep and chunk: expected one way to spend memory, found primals with chunks; drop one",
        ),
        (EvaluateConfig(together=0), "together: expected a positive number, found 0; raise it or leave it out"),
        (EvaluateConfig(together=-2), "together: expected a positive number, found -2; raise it or leave it out"),
        (
            DistillConfig(precision="fp16"),  # type: ignore[arg-type]
            "precision: expected fp32, tf32, bf16, found 'fp16'; did you mean bf16 or fp32?",
        ),
        (
            DistillConfig(keep="primal"),  # type: ignore[arg-type]
            "keep: expected auto, nothing, path, primals, found 'primal'; did you mean primals?",
        ),
        (
            DistillConfig(compile="yes"),  # type: ignore[arg-type]
            "compile: expected auto, on, off, found 'yes'; choose one of them",
        ),
        (
            AblateConfig(seed=998, seeds=3),
            "seed: expected seeds without 1000, on which rates are tuned, found it; choose another",
        ),
        (
            AblateConfig(seed=1001),
            "seed: expected seeds without 1001, on which rates are tuned, found it; choose another",
        ),
        (AblateConfig(seed=-1), "seed: expected at least 0, found -1; raise it"),
        (
            TeachConfig(data=DataConfig(name="scenes", max_words=0)),
            "data.max_words: expected a positive number, found 0; raise it",
        ),
        (EvaluateConfig(weight_decay=-1e-4), "weight_decay: expected at least 0, found -0.0001; raise it"),
    ],
)
def test_a_setting_that_cannot_be_used_is_named(config: object, message: str) -> None:
    with pytest.raises(InputError) as caught:
        check(config)
    assert str(caught.value) == message


@pytest.mark.parametrize("clip", [0.0, -1.0, float("nan")])
def test_a_clip_that_clips_all_is_refused(clip: float) -> None:
    with pytest.raises(InputError, match=f"^adjoint_clip: expected a positive number, found {clip}; raise it or leave"):
        check(DistillConfig(adjoint_clip=clip))


def test_ways_of_computing_that_go_together() -> None:
    chunks: tuple[Chunk, ...] = (None, "auto", 1, 8, 40)
    for chunk in chunks:
        check(DistillConfig(chunk=chunk, adjoint=1.0))
        check(DistillConfig(chunk=chunk, keep="nothing", adjoint=0.0))
    check(DistillConfig(keep="primals", adjoint=1.0, precision="bf16", compile="on"))
    check(EvaluateConfig(together=1))
    config = DistillConfig()
    assert (config.precision, config.keep, config.chunk, config.compile) == ("fp32", "auto", "auto", "auto")
    assert EvaluateConfig().together is None


def test_none_is_a_word_in_toml(tmp_path: Path) -> None:
    path = toml(tmp_path, 'adjoint_clip = "none"\nchunk = 4\nroot = "none"')
    assert from_toml(DistillConfig, path) == DistillConfig(adjoint_clip=None, chunk=4, root=None)
    for text, chunk in (('"none"', None), ('"auto"', "auto")):
        assert from_toml(DistillConfig, toml(tmp_path, f"chunk = {text}")).chunk == chunk
    for text in ('"most"', "1.5", "true"):
        with pytest.raises(InputError, match=r"expected a number of images, none or auto, found .* @ \$\.chunk"):
            from_toml(DistillConfig, toml(tmp_path, f"chunk = {text}"))
    with pytest.raises(InputError, match=r"expected float, found 'nothing' @ \$\.adjoint_clip"):
        from_toml(DistillConfig, toml(tmp_path, 'adjoint_clip = "nothing"'))
    for name in ("root", "adjoint_clip"):
        with pytest.raises(InputError, match=rf"expected none in lower case, found 'None' @ \$\.{name}"):
            from_toml(DistillConfig, toml(tmp_path, f'{name} = "None"'))


def test_a_word_that_is_no_choice_is_named_in_toml(tmp_path: Path) -> None:
    for name, choices in (
        ("precision", "fp32, tf32, bf16"),
        ("keep", "auto, nothing, path, primals"),
        ("compile", "auto, on"),
    ):
        path = toml(tmp_path, f'{name} = "qqq"')
        with pytest.raises(InputError, match=f"expected {choices}.*, found 'qqq'; choose one of them @ \\$.{name}"):
            from_toml(DistillConfig, path)


def test_the_last_span_may_end_at_the_end_point() -> None:
    check(DistillConfig(phases=(Phase(40, 5, (0, 5)), Phase(40, 1, (0, 1)))))
    check(DistillConfig(phases=(Phase(40, 5, (2, 3)),), expert_epochs=3))


def test_all_settings_that_cannot_be_used_are_in_one_message() -> None:
    phases = (Phase(200, 5, (0, 2)), Phase(20, 5, (3, 3)))
    with pytest.raises(InputError) as caught:
        check(DistillConfig(phases=phases, momentum=1.0, seed=-1, rates=LeafRates(images=-1.0, lr=-2.0)))
    first, *lines = str(caught.value).split("\n  ")
    assert first == "6 settings cannot be used:"
    assert sorted(lines) == [
        "momentum: expected a number below 1, found 1.0; lower it",
        "phases[1].pairs: expected at least one batch of 40, found 20 pairs; lower batch_size or raise pairs",
        "phases[1].start: expected 0 <= first < last, found 3-3; fix the range",
        "rates.images: expected at least 0, found -1.0; raise it",
        "rates.lr: expected at least 0, found -2.0; raise it",
        "seed: expected at least 0, found -1; raise it",
    ]


def test_phases_and_endpoints_on_a_command_line() -> None:
    assert parse_phase("200:5:0-2") == Phase(200, 5, (0, 2))
    assert parse_phase("1:10:12-345") == Phase(1, 10, (12, 345))
    assert parse_phase("auto:100") == OpenPhases(100)
    assert parse_phase("search:7") == OpenPhases(7, by="search")
    assert parse_endpoints("5,7") == (5, 7)
    assert parse_endpoints("10") == (10,)
    assert parse_endpoints("all") == "all"


@pytest.mark.parametrize(
    "text", ["", "200", "200:5", "200:5:0", "200:5:0-2-3", "200:5:-1-2", "a:5:0-2", "200:5.0:0-2", "auto:", "auto:x"]
)
def test_a_mistyped_phase(text: str) -> None:
    expected = "PAIRS:ENDPOINT:FIRST-LAST, such as 200:5:0-2, auto:PAIRS or search:PAIRS"
    with pytest.raises(ValueError, match=f"^expected {expected}, found {re.escape(text)}$"):
        parse_phase(text)


@pytest.mark.parametrize("text", ["auto:100", "search:50"])
def test_phases_that_are_left_open(tmp_path: Path, text: str) -> None:
    config = DistillConfig(phases=(parse_phase(text),), batch_size=20)
    check(config)
    assert to_json(config)["phases"] == text
    again = from_json(DistillConfig, json.loads(json.dumps(to_json(config))))
    assert again == config and isinstance(again.phases[0], OpenPhases)
    (tmp_path / "x.toml").write_text(f'phases = "{text}"\nbatch_size = 20\n')
    assert from_toml(DistillConfig, tmp_path / "x.toml") == config
    assert in_one_phase(config) == config
    with pytest.raises(InputError, match=f"^phases: expected {text.split(':')[0]}:PAIRS alone, found others beside it"):
        check(replace(config, phases=(*config.phases, Phase(50, 5, (0, 2)))))


@pytest.mark.parametrize(("share", "size"), [(0.5, 25), (1.0, 50), (0.3, 15), (0.001, 1)])
def test_a_batch_may_be_a_share_of_the_pairs(share: float, size: int) -> None:
    config = DistillConfig(phases=(Phase(80, 5, (0, 2)), Phase(50, 5, (1, 3))), batch_share=share, batch_size=1000)
    check(config)
    assert config.sized() == replace(config, batch_size=size, batch_share=None)
    assert config.sized().sized() == config.sized()


@pytest.mark.parametrize("text", ["", "5,", "5;7", "5-7", "ALL", "5.0"])
def test_mistyped_endpoints(text: str) -> None:
    with pytest.raises(ValueError, match=f"^expected epochs such as 5,7, or all, found {re.escape(text)}$"):
        parse_endpoints(text)


def test_the_preset_of_an_ablation_is_that_of_its_data() -> None:
    chosen = {data: AblateConfig(data=data).chosen_preset for data in ("scenes", "digits", "emoji", "csv:pairs.csv")}
    assert chosen == {
        "scenes": "ablation",
        "digits": "ablation",
        "emoji": "ablation-emoji",
        "csv:pairs.csv": "ablation-emoji",
    }
    assert AblateConfig(data="emoji", preset="ablation").chosen_preset == "ablation"
    # What is written by an own hand has no split for a warm-up.
    assert experiment("ablation-emoji").teach.encoder.warmup_epochs == 0
