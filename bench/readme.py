"""The tables of README and docs, made from the results under bench/results: `python -m bench.readme` writes them."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from bench import ablation, presets
from bench import cpu_tables as cpu
from bench.adjoint import tables as adjoint
from bench.adjoint.cells import DATA
from bench.cases import CLEAN
from bench.gpu import tables as gpu
from bench.result import RESULTS, ROOT, Row
from bench.tables import NOT_YET, Table, cores, source
from ptmst.presets import experiment
from ptmst.report.tables import HEADINGS


def headline(name: str, folder: str) -> str:
    """What a demo shows, in two sentences."""
    rows = cpu.measured(name)["rows"]
    random, full = rows[0], rows[-1]
    distilled = _best(rows)
    share, points = 100 * _mean(distilled) / _mean(full), f"{_mean(distilled):.1f} of {_mean(full):.1f} points"
    return (
        f"**{distilled['pairs']:,} distilled pairs reach {share:.0f} % of the recall that {full['pairs']:,} real pairs "
        f"reach: {points}.** {random['pairs']:,} random real pairs reach {_mean(random):.1f}. "
        f"That is {distilled['name']}, the best of [the demo](docs/demo.md) on this test "
        f"([raw]({folder}/{name}.json)). Test shows things that training does not."
    )


def best(name: str) -> str:
    """The name of a demo's best distilled set, of which the headline tells."""
    label: str = _best(cpu.measured(name)["rows"])["name"]
    return label


def _best(rows: list[Row]) -> Row:
    """Random pairs come first, all pairs last."""
    return max(rows[1:-1], key=_mean)


def demo_summary(name: str, folder: str) -> str:
    """Mean recall of a demo's rows, each with its share of what all real pairs reach."""
    result = cpu.measured(name)
    table = Table(["trained on", "pairs", "IR@1", "TR@1", "mean recall", "of all"])
    for row in result["rows"]:
        share = 100 * _mean(row) / _mean(result["rows"][-1])
        recalls = (_spread(row, metric) for metric in ("ir1", "tr1", "mean"))
        table.add(row["name"], f"{row['pairs']:,}", *recalls, f"{share:.0f} %")
    machine = result["machine"]
    return table.markdown(
        f"Percent, mean ± standard deviation over {result['students']} students. `{result['command']}` took "
        f"{result['minutes']:.0f} minutes on {machine['cpu']}, {cores(machine)} ([raw]({folder}/{name}.json))."
    )


def demo_table(name: str, folder: str) -> str:
    """All recalls of a demo's results.json."""
    result = cpu.measured(name)
    metrics = [metric for metric in HEADINGS if metric in result["rows"][0]["recall"]]
    table = Table(["trained on", "pairs", *(HEADINGS[metric] for metric in metrics)])
    for row in result["rows"]:
        table.add(row["name"], f"{row['pairs']:,}", *(_spread(row, metric) for metric in metrics))
    ran = f"{cores(result['machine'])}, GPU: {result['machine']['gpu']}; {result['minutes']:.1f} minutes"
    return table.markdown(
        f"Recall in percent, mean ± standard deviation over {result['students']} students. "
        + source(result, ran=ran, raw=f"{folder}/{name}.json")
    )


def _mean(row: Row) -> float:
    mean: float = row["recall"]["mean"]["mean"]
    return mean


def _spread(row: Row, metric: str) -> str:
    return f"{row['recall'][metric]['mean']:.1f} ± {row['recall'][metric]['std']:.1f}"


def speed_table(folder: str) -> str:
    """One line for every case of the outer step: clean double backward, and our fastest way."""
    head = "tower", "gradient", "parameters", "double backward", "ptmst", "times as fast", "memory: theirs, ours"
    table = Table(head, left=(0, 1))
    for name in ("outer-nfnet-cpu", "outer-towers-cpu", "outer-system-allocator-cpu"):
        result = cpu.measured(name)
        cases: dict[tuple[str, bool, str], dict[str, Row]] = {}
        for row in result["rows"]:
            cases.setdefault((row["tower"], row["frozen"], row["gradient"]), {})[row["way"]] = row
        allocator = ", system's allocator" if "system" in name else ""
        for (tower, frozen, gradient), ways in cases.items():
            theirs = ways[CLEAN]
            ours = min((row for way, row in ways.items() if way.startswith("ptmst")), key=lambda row: row["seconds"])
            table.add(
                tower + ", frozen" * frozen,
                gradient + allocator,
                f"{theirs['parameters'] / 1e6:.1f} M",
                f"{theirs['seconds']:.2f} s",
                f"{ours['seconds']:.2f} s, {ours['way'].removeprefix('ptmst ')}",
                f"{theirs['seconds'] / ours['seconds']:.2f} ×",
                f"{theirs['peak MB'] / 1024:.2f}, {ours['peak MB'] / 1024:.2f} GB",
            )
    machine, torch = result["machine"], result["versions"]["torch"]
    return table.markdown(
        f"On {machine['cpu']}, {machine['threads']} threads, GPU: {machine['gpu']}; torch {torch}; 96 px, 8 pairs a "
        "batch. [The outer step](outer-step.md) has every way, with the commands and the raw numbers."
    )


def settings_table(folder: str) -> str:
    """The settings of every published row, from the presets."""
    head = "pairs", "phases: pairs, span starts, end point", "outer steps", "n", "B", "rates: images · texts · η · S"
    table = Table(["`--preset`", *head, "tower"], left=(0, 2, 6, 7))
    for name in (name for name in presets.names() if "," not in name):
        whole = experiment(name)
        config, rates = whole.distill, whole.distill.rates
        table.add(
            f"`{name}`",
            f"{config.pairs}",
            "; ".join(f"{p.pairs}, {p.start[0]}–{p.start[1] - 1}, {p.endpoint}" for p in config.phases),
            f"{len(config.phases)} × {config.steps:,}",
            f"{config.inner_steps}",
            f"{config.batch_size}",
            " · ".join(f"{value:g}" for value in (rates.images, rates.texts, rates.lr, rates.similarity)),
            "frozen" if whole.teach.encoder.freeze_tower else "trained",
        )
    return table.markdown()


def adjoint_table(make: Callable[[Path], str], folder: str) -> str:
    """A table of the study of the adjoint."""
    return f"{make(RESULTS / 'adjoint')} ([raw]({folder}/adjoint))"


def ablation_table(data: str, folder: str) -> str:
    """Methods side by side on a data set."""
    return _with_source(ablation.methods(RESULTS, data), data, folder)


def against_table(data: str, folder: str) -> str:
    """How far methods are from the best on a data set."""
    return _with_source(ablation.against(RESULTS, data), data, folder)


def _with_source(table: str, data: str, folder: str) -> str:
    return _with_raw(table, f"ablation-{data}", folder)


def _with_raw(table: str, name: str, folder: str) -> str:
    return table if table == NOT_YET else f"{table} ([raw]({folder}/{name}.json))"


def questions_table(sets: Sequence[str], folder: str) -> str:
    """What the ablations answer."""
    return ablation.questions(RESULTS, sets)


def protocols_table(folder: str) -> str:
    """Sets of the study under two protocols."""
    from bench.protocols import table

    return _with_raw(table(RESULTS / "protocols.json"), "protocols", folder)


def phases_table(plan: str, folder: str) -> str:
    """Choices about phases."""
    from bench.phases import table

    return _with_raw(table(RESULTS / f"phases-{plan}.json"), f"phases-{plan}", folder)


def phases_by_steps(folder: str) -> str:
    """Recall by outer steps on every data set."""
    from bench.phases import steps_table

    names = {"emoji": "phases-steps", "scenes": "phases-steps-scenes", "digits": "phases-steps-digits"}
    measured = {data: name for data, name in names.items() if (RESULTS / f"{name}.json").exists()}
    table = steps_table({data: RESULTS / f"{name}.json" for data, name in measured.items()})
    for name in measured.values():
        table = _with_raw(table, name, folder)
    return table


PHASES = (
    *("soft-labels", "losses", "end-points", "end-points-drawings", "batches", "sizes"),
    *("phases", "trajectories", "ideas", "more-experts-scenes", "more-experts-digits"),
)
"""Results of bench.phases that have a table."""
Make = Callable[[str], str]
"""From the way of a page to the results to a table in Markdown."""
TABLES: dict[str, Make] = {
    "headline": partial(headline, "demo-emoji"),
    "demo-summary": partial(demo_summary, "demo-emoji"),
    "demo-emoji": partial(demo_table, "demo-emoji"),
    "demo-emoji-quick": partial(demo_table, "demo-emoji-quick"),
    "demo-scenes": partial(demo_table, "demo-scenes"),
    "demo-digits": partial(demo_table, "demo-digits"),
    "retrieval": partial(cpu.recall_line, "retrieval"),
    "speed": speed_table,
    "outer-nfnet": partial(cpu.outer_table, "outer-nfnet-cpu", gradient="truncated"),
    "outer-nfnet-exact": partial(cpu.outer_table, "outer-nfnet-cpu", gradient="exact"),
    "outer-nfnet-frozen": partial(cpu.outer_table, "outer-nfnet-cpu", gradient="truncated", frozen=True),
    "outer-towers": partial(cpu.outer_table, "outer-towers-cpu", gradient="truncated"),
    "outer-towers-exact": partial(cpu.outer_table, "outer-towers-cpu", gradient="exact"),
    "outer-system": partial(cpu.outer_table, "outer-system-allocator-cpu", gradient="truncated"),
    "outer-published": partial(cpu.outer_table, "outer-published-cpu", gradient="truncated", published=True),
    "instructions": partial(cpu.instructions_table, "instructions"),
    "corrections": partial(cpu.corrections_table, "corrections"),
    "students": partial(cpu.students_table, "students-cpu"),
    "features": partial(cpu.features_table, "features-cpu"),
    "features-kept": partial(cpu.features_table, "features-kept-cpu"),
    "kernels-flat": partial(cpu.kernels_flat_table, "kernels-flat-cpu"),
    "waits": partial(cpu.waits_table, "waits-cpu"),
    "before": partial(cpu.before_table, "before-cpu"),
    "kernels-allocator": partial(cpu.allocator_table, "kernels-allocator-cpu"),
    "kernels-contrastive": partial(cpu.kernels_contrastive_table, "kernels-contrastive-cpu"),
    "store": partial(cpu.store_table, "store-cpu"),
    "codings": partial(cpu.codings_table, "codings-cpu"),
    "adjoint-experts": partial(adjoint_table, adjoint.experts),
    "adjoint-screening": partial(adjoint_table, adjoint.screening),
    "adjoint-tuning": partial(adjoint_table, adjoint.tuning),
    "adjoint-confirmation": partial(adjoint_table, adjoint.confirmation),
    "adjoint-forms": partial(adjoint_table, adjoint.forms),
    "adjoint-why": partial(adjoint_table, adjoint.reasons),
    "adjoint-real-tower": partial(adjoint_table, adjoint.real_tower),
    "adjoint-alternatives": partial(adjoint_table, adjoint.alternatives),
    "adjoint-contest": partial(adjoint_table, adjoint.contest),
    "towers": partial(cpu.towers_table, "towers-cpu"),
    "preset-settings": settings_table,
    "presets": partial(cpu.presets_table, "presets-cpu"),
    "ablation-scenes": partial(ablation_table, "scenes"),
    "ablation-digits": partial(ablation_table, "digits"),
    "ablation-emoji": partial(ablation_table, "emoji"),
    **{f"phases-{plan}": partial(phases_table, plan) for plan in PHASES},
    "phases-steps": phases_by_steps,
    "protocols": protocols_table,
    "on-stamps": lambda folder: _with_raw(ablation.on_other_data(RESULTS, "on-stamps", "emoji"), "on-stamps", folder),
    "ablation-features": partial(ablation_table, "features"),
    "ablation-features-against": partial(against_table, "features"),
    "ablation-emoji-sizes": partial(ablation_table, "emoji-sizes"),
    "ablation-drawings": partial(ablation_table, "drawings"),
    "ablation-emoji-sizes-against": partial(against_table, "emoji-sizes"),
    "ablation-drawings-against": partial(against_table, "drawings"),
    "ablation-emoji-against": partial(against_table, "emoji"),
    "questions": partial(questions_table, DATA),
    "questions-emoji": partial(questions_table, ["emoji"]),
    "adjoint-neighbors": partial(adjoint_table, adjoint.neighbors),
    "adjoint-segments": partial(adjoint_table, adjoint.segments),
    "adjoint-combination": partial(adjoint_table, adjoint.combination),
    "adjoint-phases": partial(adjoint_table, adjoint.phases),
    "kernels-ptx": partial(cpu.ptx_table, "kernels-ptx-sm90"),
    "cuda-host": partial(cpu.cuda_host_table, "cuda-host"),
    "gpu-parts": gpu.estimates,
    **{name: partial(gpu.table, lines, RESULTS) for name, lines in gpu.TABLES.items()},
}
PAGES = {
    "README.md": "bench/results",
    "docs/demo.md": "../bench/results",
    "docs/presets.md": "../bench/results",
    "docs/speed.md": "../bench/results",
    "docs/outer-step.md": "../bench/results",
    "docs/kernels.md": "../bench/results",
    "docs/gpu.md": "../bench/results",
    "docs/formats.md": "../bench/results",
    "docs/adjoint.md": "../bench/results",
    "docs/towers.md": "../bench/results",
    "docs/phases.md": "../bench/results",
    "docs/results.md": "../bench/results",
}
"""Each page with its way to the results."""


def written(page: str, folder: str) -> str:
    """A page with every table between its `<!-- table: NAME -->` marks made again."""
    marks = re.compile(r"(<!-- table: (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)
    return marks.sub(lambda m: f"{m[1]}{TABLES[m[2]](folder)}\n{m[3]}", page)


def write(*pages: str) -> None:
    """Make the tables of some pages again, or of all."""
    for page in pages or PAGES:
        (ROOT / page).write_text(written((ROOT / page).read_text(), PAGES[page]))


if __name__ == "__main__":
    write()
