"""Tables of what was measured on CPUs, from bench/results. All take the way from their page to that folder."""

from __future__ import annotations

import statistics

from bench import presets
from bench.cases import CLEAN, COMPILED, INTO, KEPT, OPEN_CLIP, OURS_KERNEL, PLAIN, PLAIN_PROCESS, PUBLISHED
from bench.result import RESULTS, Result, Row, read
from bench.spread import paired
from bench.tables import NOT_YET, Table, source
from ptmst.evaluation.intervals import Interval


def measured(name: str) -> Result:
    """The results of that name. Raises FileNotFoundError if it was not measured."""
    result = read(RESULTS / f"{name}.json")
    if result is None:
        raise FileNotFoundError(f"{name}: no such results; measure it first")
    return result


def recall_line(name: str, folder: str) -> str:
    """The median time of the recall benchmark."""
    result = measured(name)
    (row,) = result["rows"]
    return (
        f"`retrieval_recall` on {row['images']:,} images × {row['texts']:,} texts of width {row['width']}: "
        f"{row['seconds']:.1f} s, {row['peak_extra_mb']:.0f} MB beside its inputs. "
        + source(result, ran=f"{result['machine']['cores']} cores", raw=f"{folder}/{name}.json")
    )


def outer_table(name: str, folder: str, gradient: str, frozen: bool = False, published: bool = False) -> str:
    """Seconds and memory of an outer step by implementation, for every matching case of the results.

    The published loop has a file of its own: in the others it did more than is published.
    """
    result = measured(name)
    rows = [row for row in result["rows"] if (row["gradient"], row["frozen"]) == (gradient, frozen)]
    rows = rows if published else [row for row in rows if row["way"] != PUBLISHED]
    parts = []
    for case in dict.fromkeys(row["case"] for row in rows):
        mine = [row for row in rows if row["case"] == case]
        clean = next(row["seconds"] for row in mine if row["way"] == CLEAN)
        about = mine[0]
        parts.append(
            f"{about['tower']}{', frozen' if frozen else ''}, {about['size']} px, B {about['batch']}, "
            f"{about['inner steps']} inner steps, {gradient} gradient, {about['parameters'] / 1e6:.1f} M parameters:"
        )
        table = Table(["implementation", "s / outer step", "against double backward", "peak memory", "of the floor"])
        for row in sorted(mine, key=lambda row: -row["seconds"]):
            share = f"{100 * row['fraction of floor']:.0f} %" if "fraction of floor" in row else ""
            seconds, memory = row["seconds"], f"{row['peak MB'] / 1024:.2f} GB"
            table.add(row["way"], f"{seconds:.2f}", f"{clean / seconds:.2f} ×", memory, share)
        parts.append(table.markdown())
    rates = [row["rates"]["product FLOP/s"] for row in rows if "rates" in row]
    products = f"products {rates[0] / 1e9:.0f} GFLOP/s" if rates else ""
    return "\n\n".join([*parts, source(result, more=products, raw=f"{folder}/{name}.json")])


def instructions_table(name: str, folder: str) -> str:
    """Mean recalls of the quick demo with other instructions, and whether the sets have the same bits."""
    result = measured(name)
    rows = result["rows"]
    table = Table(["instructions", *rows[0]["mean recall"], "sets as in the first run"])
    for row in rows:
        same = "to the bit" if row["sets"] == rows[0]["sets"] else "no"
        table.add(row["way"], *(f"{mean:.1f}" for mean in row["mean recall"].values()), same)
    ran = f"{rows[0]['processor']}, one thread"
    return table.markdown("Mean recall in percent. " + source(result, ran=ran, raw=f"{folder}/{name}.json"))


def corrections_table(name: str, folder: str) -> str:
    """Mean recalls with ties in the student's favor, as earlier numbers count them, and by expectation."""
    result = measured(name)
    table = Table(["data", "trained on", "in favor", "expected", "largest change of a recall"], left=(0, 1))
    for row in result["rows"]:
        if row["what"] == "ties":
            before, after = row["in favor"], row["expected"]
            largest = max(abs(after[metric] - before[metric]) for metric in after)
            means = f"{before['mean']:.2f}", f"{after['mean']:.2f}"
            table.add(row["data"].removeprefix("demo-"), row["trained on"], *means, f"{largest:.2f}")
    sums = [row for row in result["rows"] if row["what"] == "sums"]
    worst = max(error for row in sums for error in row["largest relative error by threads"].values())
    below = f"Percent. Spans of {sums[0]['parameters']:,} parameters were off by at most {worst:.0e}, relative. "
    return table.markdown(below + source(result, raw=f"{folder}/{name}.json"))


def students_table(name: str, folder: str) -> str:
    """Seconds of training the students of one evaluation, one at a time and as one stack."""
    result = measured(name)
    seconds = {(row["frozen"], row["together"]): row["seconds"] for row in result["rows"]}
    about = result["rows"][0]
    table = Table([f"{about['students']} students", "one at a time", "one stack"])
    for frozen, tower in ((False, "tower trained"), (True, "tower frozen")):
        table.add(tower, *(f"{seconds[frozen, together]:.2f} s" for together in (1, about["students"])))
    below = f"{about['epochs']} epochs of {about['pairs']} pairs. {source(result, raw=f'{folder}/{name}.json')}"
    return table.markdown(below)


def features_table(name: str, folder: str) -> str:
    """Seconds of teaching behind a frozen tower, with kept features and without."""
    result = measured(name)
    table = Table(["experts", "seconds", "CPU seconds"])
    for row in result["rows"]:
        table.add(row["way"], f"{row['seconds']:.1f}", f"{row['CPU seconds']:.1f}")
    about, apart = result["rows"][0], max(row["distance"] for row in result["rows"])
    same = (
        f"All ways end within {apart:.0e} of each other, relative to the way from start to end."
        if apart
        else "All ways give the same experts, to the bit."
    )
    return table.markdown(
        f"{about['experts']} experts of {about['epochs']} epochs, {about['pairs']:,} pairs. {same} "
        f"{source(result, raw=f'{folder}/{name}.json')}"
    )


def allocator_table(name: str, folder: str) -> str:
    """Milliseconds of flat kernels in processes that differ in their memory, and how many times the floor that is."""
    result = measured(name)
    ways = (PLAIN_PROCESS, INTO, KEPT)
    by: dict[str, dict[str, Row]] = {}
    for row in result["rows"]:
        by.setdefault(row["kernel"], {})[row["process"]] = row

    def cell(row: Row | None) -> str:
        return "–" if row is None else f"{_milliseconds(row['seconds'])}, {row['times the floor']:.2f} ×"

    table = Table(["call", *ways])
    for kernel, of in by.items():
        table.add(kernel if " " in kernel else f"`{kernel}`", *(cell(of.get(way)) for way in ways))
    parameters = result["rows"][0]["parameters"] // 1_000_000
    return table.markdown(f"{parameters} M parameters; times the floor. {source(result, raw=f'{folder}/{name}.json')}")


def waits_table(name: str, folder: str) -> str:
    """Everything that a user waits for, beside what it was measured with."""
    result = measured(name)
    table = Table(["what", "ptmst", "beside it", "ratio", "goal"], left=(0, 2, 4))

    def seconds(value: float) -> str:
        return f"{value / 60:.1f} min" if value >= 120 else f"{value:.1f} s" if value >= 1 else _milliseconds(value)

    for row in result["rows"]:
        beside = f"{row['beside']}, {seconds(row['seconds beside'])}" if "ratio" in row else "–"
        ratio = f"{row['ratio']:.2f}" if "ratio" in row else "–"
        table.add(row["wait"], seconds(row["seconds"]), beside, ratio, row["goal"])
    return table.markdown(f"The best of three turns. {source(result, raw=f'{folder}/{name}.json')}")


def kernels_flat_table(name: str, folder: str) -> str:
    """Milliseconds of the flat kernels by provider, and how many times the floor that is."""
    result = measured(name)
    providers = (PLAIN, COMPILED, OURS_KERNEL)
    by: dict[tuple[str, int], dict[str, Row]] = {}
    for row in result["rows"]:
        by.setdefault((row["kernel"], row["parameters"]), {})[row["provider"]] = row
    table = Table(["kernel", "parameters", *providers, "of the floor"])
    for (kernel, parameters), of in sorted(by.items(), key=lambda item: item[0][::-1]):
        times = [_milliseconds(of[provider]["seconds"]) for provider in providers]
        floor = f"{of[OURS_KERNEL]['times the floor']:.2f} ×"
        table.add(f"`{kernel}`", f"{parameters // 1_000_000} M", *times, floor)
    copied = sorted(row["copied bytes/s"] / 1e9 for row in result["rows"])
    copies = f"copies {copied[0]:.0f} to {copied[-1]:.0f} GB/s"
    return table.markdown(source(result, more=copies, raw=f"{folder}/{name}.json"))


def kernels_contrastive_table(name: str, folder: str) -> str:
    """Milliseconds and memory of the contrastive loss by provider."""
    result = measured(name)
    providers = (PLAIN, COMPILED, OPEN_CLIP, OURS_KERNEL)
    by: dict[tuple[str, int], dict[str, str]] = {}
    for row in result["rows"]:
        case = row["kernel"].removeprefix("soft_contrastive "), row["pairs"]
        by.setdefault(case, {})[row["provider"]] = f"{_time(row['seconds'])}, {_memory(row['peak MB'])}"
    table = Table(["loss", "N", *providers])
    for (kernel, pairs), of in by.items():
        table.add(kernel, f"{pairs:,}", *(of.get(provider, "–") for provider in providers))
    products = f"products {result['rows'][0]['product FLOP/s'] / 1e9:.0f} GFLOP/s"
    return table.markdown(source(result, more=products, raw=f"{folder}/{name}.json"))


def ptx_table(name: str, folder: str) -> str:
    """Registers, spills and widths of memory accesses of every Triton kernel."""
    result = measured(name)
    table = Table(["kernel", "registers", "threads at once", "bytes spilled", "widest load, store"])
    for row in result["rows"]:
        shares = str(row["registers"]), f"{row['share of threads']:.0%}", str(row["spilled bytes stored"])
        table.add(row["kernel"], *shares, f"{row['widest load']}, {row['widest store']} bytes")
    compiler = f"Triton {result['versions']['triton']}, {result['machine']['target']}"
    return table.markdown(f"`{result['command']}`, {compiler} ([raw]({folder}/{name}.json)).")


def store_table(name: str, folder: str) -> str:
    """Bytes of a store of twenty experts, and seconds to sample one."""
    result = measured(name)
    columns = ["layout", "bits", "error", "20 experts", "against 79.7 GB", "deflated", "open", "first sample", "sample"]
    table = Table(columns)
    for row in result["rows"]:
        sample = _short_time(row["sample s"])
        if "open s" not in row:
            table.add(row["layout"], "32", *[None] * 6, sample)
            continue
        size = f"{row['bytes of 20 experts by arithmetic'] / 1e9:.2f} GB"
        smaller = f"{row['times smaller than published']:.1f} × smaller"
        error = f"{max(row['relative errors']):.1g}"
        deflated = f"{100 * row['deflated']:.0f} %, {_short_time(row['inflate s'])}"
        times = (deflated, _short_time(row["open s"]), _short_time(row["first sample s"]), sample)
        table.add(row["layout"], f"{row['bits a parameter']:.2f}", error, size, smaller, *times)
    first = result["rows"][0]
    excess = first["bytes of 2 experts"] / first["bytes of 2 experts by arithmetic"] - 1
    return table.markdown(
        "Bits for each parameter and end point; error of a displacement, relative to its length; what zlib would leave "
        "of an expert's file, and take to read it; the first sample compares the hash. "
        f"nfnet_l0 and text head, {result['parameters'] / 1e6:.2f} M parameters, end points 5, 7; "
        f"sizes by arithmetic, which a written store of two experts exceeds by {100 * excess:.2f} %; files in the page "
        "cache. " + source(result, raw=f"{folder}/{name}.json")
    )


def before_table(name: str, folder: str) -> str:
    """What users wait for, of an earlier commit and of this one, quietly and beside a busy process."""
    result = measured(name)
    table = Table(["what", *(f"{which}, {how}" for how in ("quiet", "one core busy") for which in ("before", "after"))])
    for wait in dict.fromkeys(row["wait"] for row in result["rows"]):
        mine = {row["busy processes beside"]: row for row in result["rows"] if row["wait"] == wait}
        cells = [f"{mine[beside][f'{which} s']:.1f} s" for beside in (0, 1) for which in ("before", "after")]
        table.add(wait, *cells)
    return table.markdown(
        f"Whole commands, of commit {result['before']} and of this one in turn, each with a cache of its own. "
        f"{source(result, raw=f'{folder}/{name}.json')}"
    )


def codings_table(name: str, folder: str) -> str:
    """Mean recall by coding, and what a coarser one costs, paired by seed."""
    result = measured(name)
    by_coding: dict[tuple[str, str], dict[int, float]] = {}
    for row in result["rows"]:
        by_coding.setdefault((row["data"], row["coding"]), {})[row["seed"]] = statistics.mean(row["mean recall"])
    against = {"fp16": "float32", "int8": "fp16", "int4": "fp16"}
    table = Table(["data", "seeds", "float32", *(f"{one} − {other}" for one, other in against.items())])
    every: dict[str, list[float]] = {coding: [] for coding in against}
    for data in dict.fromkeys(row["data"] for row in result["rows"]):
        exact, cells = by_coding[data, "float32"], []
        for coding, other in against.items():
            off = paired(by_coding[data, coding], by_coding[data, other])
            every[coding] += off
            cells.append(_hundredths(Interval.of(off)))
        table.add(data, str(len(exact)), f"{statistics.mean(exact.values()):.2f}", *cells)
    table.add("all", str(len(every["fp16"])), None, *(_hundredths(Interval.of(off)) for off in every.values()))
    return table.markdown(
        "Mean recall in percent of three students; differences are paired by seed, with their 95 % intervals of "
        f"Student's t. {source(result, ran='', raw=f'{folder}/{name}.json')}"
    )


def _hundredths(interval: Interval) -> str:
    return f"{interval.mean:+.2f} [{interval.low:+.2f}, {interval.high:+.2f}]"


def towers_table(name: str, folder: str) -> str:
    """Which image towers have an outer gradient, eager and compiled, and why others have none."""
    result = read(RESULTS / f"{name}.json")
    if result is None:
        return NOT_YET
    rows = {(row["tower"], row["compiled"]): row for row in result["rows"]}
    columns = ["`--encoder.image-tower`", "size", "width", "eager", "compiled", "double backward"]
    table = Table(columns, left=(0, 3, 4, 5))
    for (tower, compiled), row in rows.items():
        if not compiled:
            size = [str(row["image size"]), str(row["width"])] if "width" in row else ["", ""]
            other = _tower_cell(rows[tower, True]) if (tower, True) in rows else ""
            rounding = f"{row['rounding']:.0e}" if "rounding" in row else ""
            table.add(f"`{tower}`", *size, _tower_cell(row), other, rounding)
    return table.markdown(
        "An entry is the relative distance from double backward in float32, the greater of `keep = path` and `keep = "
        "primals` (one of them where compiled), and, of double backward itself, from float64; *keep primals*: that "
        f"alone works; an empty entry was not tried. {source(result, ran='', raw=f'{folder}/{name}.json')}"
    )


def _tower_cell(row: Row) -> str:
    keeps = ("path", "primals")
    reasons = [row[key] for key in ("refused", *(f"{keep}, refused" for keep in keeps)) if key in row]
    errors = [row[keep] for keep in keeps if keep in row]
    if not errors:
        return f"no: {reasons[-1]}"
    return f"{max(errors):.0e}{', keep primals' if 'path, refused' in row else ''}"


def presets_table(name: str, folder: str) -> str:
    """How to type a published setting, what it needs on disk and what it costs."""
    result = read(RESULTS / f"{name}.json")
    if result is None:
        return NOT_YET
    columns = ["`--preset`", "tower", "B", "chunk", "parameters", "store", "outer steps", "s / outer step"]
    table = Table([*columns, "peak memory", "in all"], left=(0, 1))
    for row in result["rows"]:
        table.add(
            f"`{row['preset']}`",
            "frozen" if row["frozen"] else "trained",
            str(row["batch"]),
            str(row["chunk"] or "–"),
            f"{row['parameters'] / 1e6:.1f} M",
            f"{presets.store_bytes(row['preset']) / 1e9:.2f} GB",
            f"{row['outer steps']:,}",
            f"{row['seconds']:.0f}",
            f"{row['peak bytes'] / 2**30:.1f} GB",
            f"{row['seconds'] * row['outer steps'] / 86_400:.1f} days",
        )
    missing = [f"`{name}`" for name in presets.names() if name not in {row["preset"] for row in result["rows"]}]
    left = f"Not measured yet: {', '.join(missing)}. " if missing else ""
    return table.markdown(
        f"{left}One outer step at 224 pixels with random weights, in all its inner steps, eager; B pairs a batch, a "
        "chunk of its images in the tower at a time; in all: outer steps times that, on this CPU. "
        f"Sizes of the store by arithmetic. {source(result, raw=f'{folder}/{name}.json')}"
    )


def cuda_host_table(name: str, folder: str) -> str:
    """The costs of the host's part of the CUDA path, by checkout."""
    result = measured(name)
    commits = {row["tree"]: row["commit"] for row in result["rows"]}
    parts = []
    for of in dict.fromkeys(row["of"] for row in result["rows"]):
        rows = [row for row in result["rows"] if row["of"] == of]
        by = {(row["what"], row["tree"]): _cuda_host_cell(row) for row in rows}
        table = Table([of, *commits])
        for what in dict.fromkeys(row["what"] for row in rows):
            table.add(what, *(by.get((what, tree), "–") for tree in commits))
        parts.append(table.markdown())
    trees = ", ".join(f"{tree} is {commit}" for tree, commit in commits.items())
    ran = f"one thread of {result['machine']['cores']} cores, which others used meanwhile"
    return "\n\n".join([*parts, source(result, ran=ran, more=trees, raw=f"{folder}/{name}.json")])


def _cuda_host_cell(row: Row) -> str:
    if "value" not in row:
        return str(row.get("said") or f"fails: {row['failed']}")
    value: float = row["value"]
    number = f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.2f}" if value < 1 else f"{value:.1f}"
    return f"{number} {row['unit']}".strip()


def _milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:.2f} ms" if seconds < 2e-3 else f"{1e3 * seconds:.1f} ms"


def _short_time(seconds: float) -> str:
    return f"{1e3 * seconds:.1f} ms" if seconds < 0.1 else f"{seconds:.2f} s"


def _time(seconds: float) -> str:
    return f"{1e3 * seconds:.1f} ms" if seconds < 1 else f"{seconds:.1f} s"


def _memory(megabytes: float) -> str:
    return f"{megabytes:.0f} MB" if megabytes < 1024 else f"{megabytes / 1024:.1f} GB"
