"""The tables of README and docs, made from the results under bench/results: `python -m bench.readme` writes them."""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from bench import ablation, presets, reading
from bench.adjoint import tables as adjoint
from bench.adjoint.cells import DATA
from bench.cases import CLEAN, COMPILED, OPEN_CLIP, OURS_KERNEL, PLAIN
from bench.gpu import tables as gpu
from ptmst.presets import experiment
from ptmst.report.tables import HEADINGS

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "bench" / "results"


def _measured(name: str) -> dict[str, Any]:
    found = reading.read(RESULTS, name)
    assert found is not None, f"{name}: measure it first"
    return found


def demo_table(name: str, folder: str) -> str:
    """The recall table of a demo's results.json."""
    found: dict[str, Any] = _measured(name)
    metrics = [metric for metric in HEADINGS if metric in found["rows"][0]["recall"]]
    head = " | ".join(HEADINGS[metric] for metric in metrics)
    lines = [f"| trained on | pairs | {head} |", f"|---|--:|{'--:|' * len(metrics)}"]
    for row in found["rows"]:
        cells = [f"{row['recall'][m]['mean']:.1f} ± {row['recall'][m]['std']:.1f}" for m in metrics]
        lines.append(f"| {row['name']} | {row['pairs']:,} | {' | '.join(cells)} |")
    machine = found["machine"]
    lines += [
        "",
        f"Recall in percent, mean ± standard deviation over {found['students']} students. `{found['command']}`, "
        f"{found['minutes']:.1f} minutes on {machine['cpu']}, {machine['cores']} cores, GPU: {machine['gpu']}; torch "
        f"{found['versions']['torch']} ([raw]({folder}/{name}.json)).",
    ]
    return "\n".join(lines)


def headline(name: str, folder: str) -> str:
    """What a demo shows, in two sentences."""
    found: dict[str, Any] = _measured(name)
    random, _, distilled, full = found["rows"]
    means = {row["name"]: row["recall"]["mean"]["mean"] for row in found["rows"]}
    reached = 100 * means[distilled["name"]] / means[full["name"]]
    points = f"{means[distilled['name']]:.1f} of {means[full['name']]:.1f} points"
    return (
        f"**{distilled['pairs']:,} distilled pairs reach {reached:.0f} % of the recall that {full['pairs']:,} real "
        f"pairs reach: {points}.** {random['pairs']:,} random real pairs reach {means[random['name']]:.1f} "
        f"([the demo](docs/demo.md), [raw]({folder}/{name}.json))."
    )


def demo_summary(name: str, folder: str) -> str:
    """Mean recall of a demo's rows, each with its share of what all real pairs reach."""
    found: dict[str, Any] = _measured(name)
    full = found["rows"][-1]["recall"]["mean"]["mean"]
    lines = ["| trained on | pairs | IR@1 | TR@1 | mean recall | of all |", "|---|--:|--:|--:|--:|--:|"]
    for row in found["rows"]:
        cells = [f"{row['recall'][m]['mean']:.1f} ± {row['recall'][m]['std']:.1f}" for m in ("ir1", "tr1", "mean")]
        share = row["recall"]["mean"]["mean"] / full
        lines.append(f"| {row['name']} | {row['pairs']:,} | {' | '.join(cells)} | {100 * share:.0f} % |")
    machine = found["machine"]
    lines += [
        "",
        f"Percent, mean ± standard deviation over {found['students']} students. `{found['command']}` took "
        f"{found['minutes']:.0f} minutes on {machine['cpu']}, {machine['cores']} cores ([raw]({folder}/{name}.json)).",
    ]
    return "\n".join(lines)


def recall_line(name: str, folder: str) -> str:
    """The median time of the recall benchmark."""
    found: dict[str, Any] = _measured(name)
    (benchmark,) = found["benchmarks"]
    extra = benchmark["extra_info"]
    return (
        f"`retrieval_recall` on {extra['images']:,} images × {extra['texts']:,} texts of width {extra['width']}: "
        f"{benchmark['stats']['median']:.1f} s, {extra['peak_extra_mb']:.0f} MB beside its inputs, on "
        f"{extra['machine']['cpu']}, {extra['machine']['cores']} cores ([raw]({folder}/{name}.json))."
    )


def outer_table(name: str, folder: str, gradient: str, frozen: bool = False) -> str:
    """Seconds and memory of an outer step, way by way, for every case of the results that is asked for."""
    found: dict[str, Any] = _measured(name)
    rows = [(b["extra_info"], b["stats"]["median"]) for b in found["benchmarks"]]
    rows = [(e, s) for e, s in rows if (e["gradient"], e["frozen"]) == (gradient, frozen)]
    lines = []
    for case in dict.fromkeys(extra["case"] for extra, _ in rows):
        ways = [(extra, seconds) for extra, seconds in rows if extra["case"] == case]
        clean = next(seconds for extra, seconds in ways if extra["way"] == CLEAN)
        extra = ways[0][0]
        lines += [
            f"{extra['tower']}{', frozen' if frozen else ''}, {extra['size']} px, B {extra['batch']}, "
            f"{extra['inner steps']} inner steps, {gradient} gradient, {extra['parameters'] / 1e6:.1f} M parameters:",
            "",
            "| way | s / outer step | against double backward | peak memory | of the floor |",
            "|---|--:|--:|--:|--:|",
        ]
        for extra, seconds in sorted(ways, key=lambda way: -way[1]):
            share = f"{100 * extra['fraction of floor']:.0f} %" if "fraction of floor" in extra else ""
            memory = f"{extra['peak MB'] / 1024:.2f} GB"
            lines.append(f"| {extra['way']} | {seconds:.2f} | {clean / seconds:.2f} × | {memory} | {share} |")
        lines.append("")
    environment = rows[0][0]["environment"]
    rates = [extra["rates"]["product FLOP/s"] for extra, _ in rows if "rates" in extra]
    measured = f"; products {rates[0] / 1e9:.0f} GFLOP/s" if rates else ""
    lines.append(
        f"`{environment['command']}` on {environment['cpu']}, {environment['threads']} threads, GPU: "
        f"{environment['gpu']}; torch {environment['torch']}{measured} ([raw]({folder}/{name}.json))."
    )
    return "\n".join(lines)


def speed_table(folder: str) -> str:
    """One line for every case of the outer step: clean double backward, and our fastest way."""
    lines = [
        "| tower | gradient | parameters | double backward | ptmst | times as fast | memory: theirs, ours |",
        "|---|---|--:|--:|--:|--:|--:|",
    ]
    for name in ("outer-nfnet-cpu", "outer-towers-cpu", "outer-system-allocator-cpu"):
        cases: dict[tuple[str, bool, str], dict[str, tuple[dict[str, Any], float]]] = {}
        for benchmark in _measured(name)["benchmarks"]:
            extra = benchmark["extra_info"]
            case = cases.setdefault((extra["tower"], extra["frozen"], extra["gradient"]), {})
            case[extra["way"]] = extra, benchmark["stats"]["median"]
        allocator = ", system's allocator" if "system" in name else ""
        for (tower, frozen, gradient), ways in cases.items():
            theirs, clean = ways[CLEAN]
            ours, fastest = min((one for way, one in ways.items() if way.startswith("ptmst")), key=lambda one: one[1])
            memory = f"{theirs['peak MB'] / 1024:.2f}, {ours['peak MB'] / 1024:.2f} GB"
            lines.append(
                f"| {tower}{', frozen' if frozen else ''} | {gradient}{allocator} | {theirs['parameters'] / 1e6:.1f} M "
                f"| {clean:.2f} s | {fastest:.2f} s, {ours['way'].removeprefix('ptmst ')} | {clean / fastest:.2f} × "
                f"| {memory} |"
            )
    environment = ours["environment"]
    return "\n".join(
        [
            *lines,
            "",
            f"On {environment['cpu']}, {environment['threads']} threads, GPU: {environment['gpu']}; torch "
            f"{environment['torch']}; 96 px, 8 pairs a batch. [The outer step](outer-step.md) has every way, with the "
            "commands and the raw numbers.",
        ]
    )


def students_table(name: str, folder: str) -> str:
    """Seconds of training the students of one evaluation, one at a time and as one stack."""
    found: dict[str, Any] = _measured(name)
    seconds = {
        (b["extra_info"]["frozen"], b["extra_info"]["together"]): b["stats"]["median"] for b in found["benchmarks"]
    }
    extra = found["benchmarks"][0]["extra_info"]
    count, environment = extra["students"], extra["environment"]
    lines = [f"| {count} students | one at a time | one stack |", "|---|--:|--:|"]
    for frozen, tower in ((False, "tower trained"), (True, "tower frozen")):
        lines.append(f"| {tower} | {seconds[frozen, 1]:.2f} s | {seconds[frozen, count]:.2f} s |")
    lines += [
        "",
        f"{extra['epochs']} epochs of {extra['pairs']} pairs; `{environment['command']}` on {environment['cpu']}, "
        f"{environment['threads']} threads, GPU: {environment['gpu']} ([raw]({folder}/{name}.json)).",
    ]
    return "\n".join(lines)


def kernels_flat_table(name: str, folder: str) -> str:
    """Milliseconds of the flat kernels by provider, and how many times the floor that is."""
    found = _kernels(name, "parameters")
    lines = [
        "| kernel | parameters | plain torch | torch.compile | ptmst | of the floor |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    rows: dict[tuple[str, int], dict[str, Any]] = {}
    for extra, seconds in found:
        row = rows.setdefault((extra["kernel"], extra["parameters"]), {})
        row[extra["provider"]] = f"{1e3 * seconds:.2f} ms" if seconds < 2e-3 else f"{1e3 * seconds:.1f} ms"
        row["floor"] = f"{extra['times the floor']:.2f} ×" if extra["provider"] == OURS_KERNEL else row.get("floor", "")
    for (kernel, parameters), row in sorted(rows.items(), key=lambda item: item[0][::-1]):
        cells = [row[provider] for provider in (PLAIN, COMPILED, OURS_KERNEL)]
        lines.append(f"| `{kernel}` | {parameters // 1_000_000} M | {' | '.join(cells)} | {row['floor']} |")
    copied = sorted(extra["copied bytes/s"] / 1e9 for extra, _ in found)
    return "\n".join([*lines, "", _source(found, f"copies {copied[0]:.0f} to {copied[-1]:.0f} GB/s", name, folder)])


def kernels_contrastive_table(name: str, folder: str) -> str:
    """Milliseconds and memory of the contrastive loss by provider."""
    found = _kernels(name, "pairs")
    providers = (PLAIN, COMPILED, OPEN_CLIP, OURS_KERNEL)
    lines = [f"| loss | N | {' | '.join(providers)} |", f"|---|--:|{'--:|' * len(providers)}"]
    rows: dict[tuple[str, int], dict[str, str]] = {}
    for extra, seconds in found:
        cell = f"{_time(seconds)}, {_memory(extra['peak MB'])}"
        rows.setdefault((extra["kernel"].removeprefix("soft_contrastive "), extra["pairs"]), {})[extra["provider"]] = (
            cell
        )
    for (kernel, pairs), row in rows.items():
        lines.append(f"| {kernel} | {pairs:,} | {' | '.join(row.get(p, '–') for p in providers)} |")
    products = found[0][0]["product FLOP/s"] / 1e9
    return "\n".join([*lines, "", _source(found, f"products {products:.0f} GFLOP/s", name, folder)])


def ptx_table(name: str, folder: str) -> str:
    """Registers, spills and widths of memory accesses of every Triton kernel."""
    found: dict[str, Any] = _measured(name)
    lines = [
        "| kernel | registers | threads at once | bytes spilled | widest load, store |",
        "|---|--:|--:|--:|--:|",
    ]
    for row in found["kernels"]:
        numbers = f"{row['registers']} | {row['share of threads']:.0%} | {row['spilled bytes stored']}"
        lines.append(f"| {row['kernel']} | {numbers} | {row['widest load']}, {row['widest store']} bytes |")
    made = f"`{found['command']}`, Triton {found['triton']}, {found['target']} ([raw]({folder}/{name}.json))."
    return "\n".join([*lines, "", made])


def store_table(name: str, folder: str) -> str:
    """Bytes of a store of twenty experts, and seconds to sample one."""
    found: dict[str, Any] = _measured(name)
    lines = [
        "| layout | 20 experts | against 79.7 GB | open | first sample, hash compared | sample |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for row in found["rows"]:
        sample = _short_time(row["sample s"])
        if "open s" not in row:
            lines.append(f"| {row['layout']} | | | | | {sample} |")
            continue
        size, times = f"{row['bytes of 20 experts by arithmetic'] / 1e9:.2f} GB", row["times smaller than published"]
        times_read = f"{_short_time(row['open s'])} | {_short_time(row['first sample s'])} | {sample}"
        lines.append(f"| {row['layout']} | {size} | {times:.1f} × smaller | {times_read} |")
    environment, first = found["environment"], found["rows"][0]
    measured = first["bytes of 2 experts"] / first["bytes of 2 experts by arithmetic"] - 1
    lines += [
        "",
        f"nfnet_l0 and text head, {found['parameters'] / 1e6:.2f} M parameters, end points 5 and 7; sizes by "
        f"arithmetic, which a written store of two experts exceeds by {100 * measured:.2f} %; files in the page cache. "
        f"`{found['command']}` on {environment['cpu']}, {environment['threads']} threads; torch {environment['torch']} "
        f"([raw]({folder}/{name}.json)).",
    ]
    return "\n".join(lines)


def codings_table(name: str, folder: str) -> str:
    """Mean recall by coding, and the difference to float32 with its standard error over seeds."""
    found: dict[str, Any] = _measured(name)
    recall = {(r["data"], r["seed"], r["coding"]): statistics.mean(r["mean recall"]) for r in found["rows"]}
    lines = ["| data | seeds | float32 | fp16 | int8 |", "|---|--:|--:|--:|--:|"]
    for data in dict.fromkeys(row["data"] for row in found["rows"]):
        seeds = sorted({seed for d, seed, _ in recall if d == data})
        exact = [recall[data, seed, "float32"] for seed in seeds]
        cells = [f"{statistics.mean(exact):.2f}"]
        for coding in ("fp16", "int8"):
            off = [recall[data, seed, coding] - before for seed, before in zip(seeds, exact, strict=True)]
            error = statistics.stdev(off) / len(off) ** 0.5 if len(off) > 1 else float("nan")
            cells.append(
                f"{statistics.mean(exact) + statistics.mean(off):.2f} ({statistics.mean(off):+.2f} ± {error:.2f})"
            )
        lines.append(f"| {data} | {len(seeds)} | {' | '.join(cells)} |")
    machine = found["machine"]
    lines += [
        "",
        "Mean recall in percent of three students; in brackets the difference to float32 and its standard error over "
        f"seeds. `{found['command']}` on {machine['cpu']}; torch {found['torch']} ([raw]({folder}/{name}.json)).",
    ]
    return "\n".join(lines)


def towers_table(name: str, folder: str) -> str:
    """Which image towers have an outer gradient, eager and compiled, and why not."""
    found = reading.read(RESULTS, name)
    if found is None:
        return reading.NOT_YET
    rows = {(row["tower"], row["compiled"]): row for row in found["rows"]}
    lines = [
        "| `--encoder.image-tower` | size | width | eager | compiled | double backward |",
        "|---|--:|--:|---|---|---|",
    ]
    for (tower, compiled), row in rows.items():
        if not compiled:
            size = f"{row['image size']} | {row['width']}" if "width" in row else " | "
            other = _tower_cell(rows[tower, True]) if (tower, True) in rows else ""
            rounding = f"{row['rounding']:.0e}" if "rounding" in row else ""
            lines.append(f"| `{tower}` | {size} | {_tower_cell(row)} | {other} | {rounding} |")
    environment = found["environment"]
    lines += [
        "",
        "An entry is the relative distance from double backward in float32, the greater of `keep = path` and `keep = "
        "primals` (one of them where compiled), and, of double backward itself, from float64; *keep primals*: that "
        "alone works; an empty entry was not tried. "
        f"`{environment['command']}` on {environment['cpu']}; torch {environment['torch']} "
        f"([raw]({folder}/{name}.json)).",
    ]
    return "\n".join(lines)


def _tower_cell(row: dict[str, Any]) -> str:
    keeps = ("path", "primals")
    reasons = [row[key] for key in ("refused", *(f"{keep}, refused" for keep in keeps)) if key in row]
    errors = [row[keep] for keep in keeps if keep in row]
    if not errors:
        return f"no: {reasons[-1]}"
    return f"{max(errors):.0e}{', keep primals' if 'path, refused' in row else ''}"


def presets_table(name: str, folder: str) -> str:
    """What a published setting is to type, needs on disk and costs."""
    found = reading.read(RESULTS, name)
    if found is None:
        return reading.NOT_YET
    lines = [
        "| `--preset` | tower | B | chunk | parameters | store | outer steps | s / outer step | peak memory | in all |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row in found["rows"]:
        chunk = row["chunk"] or "–"
        days = row["seconds"] * row["outer steps"] / 86_400
        lines.append(
            f"| `{row['preset']}` | {'frozen' if row['frozen'] else 'trained'} | {row['batch']} | {chunk} | "
            f"{row['parameters'] / 1e6:.1f} M | {row['store bytes by arithmetic'] / 1e9:.2f} GB | "
            f"{row['outer steps']:,} | {row['seconds']:.0f} | {row['peak bytes'] / 2**30:.1f} GB | {days:.1f} days |"
        )
    environment = found["environment"]
    missing = [f"`{name}`" for name in presets.names() if name not in {row["preset"] for row in found["rows"]}]
    left = f"Not measured yet: {', '.join(missing)}. " if missing else ""
    lines += [
        "",
        f"{left}One outer step at 224 pixels with random weights, in all its inner steps, eager; B pairs a batch, a "
        "chunk of its images in the tower at a time; in all: outer steps times that, on this CPU. "
        f"Sizes of the store by arithmetic. `{environment['command']}` on {environment['cpu']}, "
        f"{found['threads']} threads, GPU: {environment['gpu']}; torch {environment['torch']} "
        f"([raw]({folder}/{name}.json)).",
    ]
    return "\n".join(lines)


def settings_table(folder: str) -> str:
    """The settings of every published row, from the presets."""
    rate = "images · texts · η · S"
    lines = [
        f"| `--preset` | pairs | phases: pairs, span starts, end point | outer steps | n | B | rates: {rate} | tower |",
        "|---|--:|---|--:|--:|--:|---|---|",
    ]
    for name in (name for name in presets.names() if "," not in name):
        whole = experiment(name)
        config, rates = whole.distill, whole.distill.rates
        phases = "; ".join(f"{p.pairs}, {p.start[0]}–{p.start[1] - 1}, {p.endpoint}" for p in config.phases)
        values = " · ".join(f"{value:g}" for value in (rates.images, rates.texts, rates.lr, rates.similarity))
        tower = "frozen" if whole.teach.encoder.freeze_tower else "trained"
        lines.append(
            f"| `{name}` | {config.pairs} | {phases} | {len(config.phases)} × {config.steps:,} | {config.inner_steps} "
            f"| {config.batch_size} | {values} | {tower} |"
        )
    return "\n".join(lines)


def cuda_host_table(name: str, folder: str) -> str:
    """What the host's side of the CUDA path takes, tree by tree."""
    found: dict[str, Any] = _measured(name)
    commits = {row["tree"]: row["commit"] for row in found["rows"]}
    lines: list[str] = []
    for of in dict.fromkeys(row["of"] for row in found["rows"]):
        cells: dict[str, dict[str, str]] = {}
        for row in found["rows"]:
            if row["of"] == of:
                cells.setdefault(row["what"], {})[row["tree"]] = _cuda_host_cell(row)
        lines += [f"| {of} | {' | '.join(commits)} |", f"|---|{'--:|' * len(commits)}"]
        lines += [f"| {what} | {' | '.join(by_tree.get(t, '–') for t in commits)} |" for what, by_tree in cells.items()]
        lines.append("")
    trees = ", ".join(f"{tree} is {commit}" for tree, commit in commits.items())
    machine = found["machine"]
    lines += [
        f"`{found['command']}` on {machine['cpu']}, one thread of {machine['cores']} cores, which others used "
        f"meanwhile; torch {found['torch']}; {trees} ([raw]({folder}/{name}.json)).",
    ]
    return "\n".join(lines)


def _cuda_host_cell(row: dict[str, Any]) -> str:
    if "value" not in row:
        return str(row.get("said") or f"fails: {row['failed']}")
    value: float = row["value"]
    number = f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.2f}" if value < 1 else f"{value:.1f}"
    return f"{number} {row['unit']}".strip()


def _short_time(seconds: float) -> str:
    return f"{1e3 * seconds:.1f} ms" if seconds < 0.1 else f"{seconds:.2f} s"


def _kernels(name: str, of: str) -> list[tuple[dict[str, Any], float]]:
    found: dict[str, Any] = _measured(name)
    return [(b["extra_info"], b["stats"]["median"]) for b in found["benchmarks"] if of in b["extra_info"]]


def _source(found: list[tuple[dict[str, Any], float]], measured: str, name: str, folder: str) -> str:
    environment = found[0][0]["environment"]
    return (
        f"`{environment['command']}` on {environment['cpu']}, {environment['threads']} threads, GPU: "
        f"{environment['gpu']}; torch {environment['torch']}; {measured} ([raw]({folder}/{name}.json))."
    )


def _time(seconds: float) -> str:
    return f"{1e3 * seconds:.1f} ms" if seconds < 1 else f"{seconds:.1f} s"


def _memory(megabytes: float) -> str:
    return f"{megabytes:.0f} MB" if megabytes < 1024 else f"{megabytes / 1024:.1f} GB"


def adjoint_table(make: Callable[[Path], str], folder: str) -> str:
    """A table of the study of the adjoint."""
    return f"{make(RESULTS / 'adjoint')} ([raw]({folder}/adjoint))"


def ablation_table(data: str, folder: str) -> str:
    """Methods side by side on a data set."""
    return f"{ablation.methods(RESULTS, data)} ([raw]({folder}/ablation-{data}.json))"


def questions_table(folder: str) -> str:
    """What the ablations answer."""
    return ablation.questions(RESULTS, DATA)


Table = Callable[[str], str]
TABLES: dict[str, Table] = {
    "headline": partial(headline, "demo-scenes"),
    "demo-summary": partial(demo_summary, "demo-scenes"),
    "demo-scenes": partial(demo_table, "demo-scenes"),
    "demo-digits": partial(demo_table, "demo-digits"),
    "retrieval": partial(recall_line, "retrieval"),
    "speed": speed_table,
    "outer-nfnet": partial(outer_table, "outer-nfnet-cpu", gradient="truncated"),
    "outer-nfnet-exact": partial(outer_table, "outer-nfnet-cpu", gradient="exact"),
    "outer-nfnet-frozen": partial(outer_table, "outer-nfnet-cpu", gradient="truncated", frozen=True),
    "outer-towers": partial(outer_table, "outer-towers-cpu", gradient="truncated"),
    "outer-towers-exact": partial(outer_table, "outer-towers-cpu", gradient="exact"),
    "outer-system": partial(outer_table, "outer-system-allocator-cpu", gradient="truncated"),
    "students": partial(students_table, "students-cpu"),
    "kernels-flat": partial(kernels_flat_table, "kernels-flat-cpu"),
    "kernels-contrastive": partial(kernels_contrastive_table, "kernels-contrastive-cpu"),
    "store": partial(store_table, "store-cpu"),
    "codings": partial(codings_table, "codings-cpu"),
    "adjoint-experts": partial(adjoint_table, adjoint.experts),
    "adjoint-screening": partial(adjoint_table, adjoint.screening),
    "adjoint-tuning": partial(adjoint_table, adjoint.tuning),
    "adjoint-confirmation": partial(adjoint_table, adjoint.confirmation),
    "adjoint-forms": partial(adjoint_table, adjoint.forms),
    "adjoint-why": partial(adjoint_table, adjoint.reasons),
    "adjoint-real-tower": partial(adjoint_table, adjoint.real_tower),
    "adjoint-alternatives": partial(adjoint_table, adjoint.alternatives),
    "adjoint-contest": partial(adjoint_table, adjoint.contest),
    "towers": partial(towers_table, "towers-cpu"),
    "preset-settings": settings_table,
    "presets": partial(presets_table, "presets-cpu"),
    "ablation-scenes": partial(ablation_table, "scenes"),
    "ablation-digits": partial(ablation_table, "digits"),
    "questions": questions_table,
    "adjoint-neighbours": partial(adjoint_table, adjoint.neighbours),
    "adjoint-segments": partial(adjoint_table, adjoint.segments),
    "adjoint-combination": partial(adjoint_table, adjoint.combination),
    "adjoint-phases": partial(adjoint_table, adjoint.phases),
    "kernels-ptx": partial(ptx_table, "kernels-ptx-sm90"),
    "cuda-host": partial(cuda_host_table, "cuda-host"),
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
