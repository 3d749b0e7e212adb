"""`python -m bench.cuda_host --json FILE`: what can be measured of the CUDA path without a GPU.

It runs on the null device of the tests, whose kernels do nothing, and counts launches, nodes of graphs, bytes of the
allocator and of copies, blocking calls, and the time of the host. None of it is the speed of a GPU. `--tree FOLDER --as
NAME` measures another checkout for comparison; the rows of other trees in FILE stay. The large tower takes minutes to
compile; `--only PART` measures one part.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).parents[1]
Row = dict[str, Any]
LARGE, SMALL = ("nfnet_l0", 224, 40, 200), ("convnet-64", 32, 25, 50)
"""Tower, pixels, batch and synthetic pairs: the published setting, and the demo's."""
_PUBLISHED, _DEMO = ("{}, {} px, B {}, n 8".format(*of) for of in (LARGE, SMALL))
_CALLS = re.compile(r"\btriton_\w+(?=\.run\()|\bextern_kernels\.\w+|torch\.ops\.aten\.\w+(?=\.default\()")
"""Launches in a module that Inductor wrote."""
_ZEROS = re.compile(r"triton_poi_fused_zeros(_\d+)?$")
_GIB = 2**30


# In a process on the null device. The tree that is measured is on its path.


def code(tower: str, size: int, batch: int, pairs: int) -> Iterator[Row]:
    """The captured step, compiled as for a GPU, without what Triton would compile."""
    from torch._inductor import codecache

    from ptmst.engine.outer_step import OuterStep

    _without_triton()
    texts: list[str] = []
    load = codecache.PyCodeCache.load_by_key_path

    def read(key: str, path: str, *args: Any, **named: Any) -> Any:
        texts.append(Path(path).read_text())
        return load(key, path, *args, **named)

    codecache.PyCodeCache.load_by_key_path = read  # type: ignore[method-assign]
    setting = _setting(tower, size, batch, pairs)
    inputs = setting.trajectory.span(0, 1), setting.pairs, setting.batches
    step = OuterStep(setting.student, compile="on")
    before, began = _counts(), time.process_time()
    with _peak() as peak:
        step(*inputs)
    after = _counts()
    yield _row("CPU time until the step is recorded, without what Triton compiles", time.process_time() - began, "s")
    yield _row("allocator's peak, compiled", peak[0] / _GIB, "GiB")
    again = OuterStep(setting.student, keep="nothing", compile="on")
    again._derivatives = step._derivatives  # whose functions are the same, and compiled by now
    with _peak() as peak:
        again(*inputs)
    yield _row("allocator's peak, compiled, nothing kept", peak[0] / _GIB, "GiB")
    nodes = sum(value - before[name] for name, value in after.items() if name.startswith("recorded_"))
    yield _row("nodes of the outer step's graph", nodes)
    compiled = [calls for calls in map(_CALLS.findall, texts) if calls]
    for name, calls in zip(("inner step", "gradient of an inner step"), compiled, strict=True):
        triton = [call for call in calls if call.startswith("triton_")]
        yield _row(f"{name}: Triton launches", len(triton))
        yield _row(f"{name}: of these, zero fills", sum(map(bool, map(_ZEROS.match, triton))))
        yield _row(f"{name}: launches of libraries", len(calls) - len(triton))
    yield _row("text of the compiled modules", sum(map(len, texts)) / 1e6, "MB")


def memory(tower: str, size: int, batch: int, pairs: int) -> Iterator[Row]:
    """Peaks of an eager step and of its opponent, without what existed before."""
    import torch

    from bench.baselines import double_backward
    from ptmst.engine.outer_step import OuterStep

    setting = _setting(tower, size, batch, pairs)
    calls: dict[str, Callable[[], object]] = {"clean double backward": lambda: setting.opponent(double_backward)}
    for name, how in (
        ("eager", {}),
        ("eager, nothing kept", {"keep": "nothing"}),
        ("eager, exact", {"adjoint": 1.0}),
        ("eager, primals kept", {"keep": "primals"}),
    ):
        calls[name] = lambda how=how: setting.step(OuterStep(setting.student, **how))  # type: ignore[misc]
    for name, call in calls.items():
        try:
            with _peak() as peak:
                call()
        except torch.OutOfMemoryError as error:
            yield _failed(f"allocator's peak, {name}", error)
        else:
            yield _row(f"allocator's peak, {name}", peak[0] / _GIB, "GiB")


def launches(tower: str, size: int, batch: int, pairs: int) -> Iterator[Row]:
    """Of an eager step."""
    from ptmst.engine.outer_step import OuterStep

    setting = _setting(tower, size, batch, pairs)
    step = OuterStep(setting.student)
    setting.step(step)
    before = _counts()
    setting.step(step)
    done = {name: value - before[name] for name, value in _counts().items()}
    yield _row("launches of an eager outer step", done["launches"] + done["fills"] + done["copies_on_device"])


def distill(*of: Any) -> Iterator[Row]:
    """Captured outer steps of a distillation, one after another, without compiling what they compute."""
    import ptmst.distillation.distill
    from ptmst import DistillConfig, LeafRates, Phase, TeachConfig
    from ptmst.engine.outer_step import OuterStep

    _without_triton()
    seen: list[tuple[float, dict[str, int]]] = []
    call = OuterStep.__call__

    def noted(self: OuterStep, *args: Any, **named: Any) -> Any:
        seen.append((time.thread_time(), _counts()))
        return call(self, *args, **named)

    OuterStep.__call__ = noted  # type: ignore[method-assign]
    with _scenes(32, 64) as (data, encoder, folder):
        teach = TeachConfig(folder / "store", data, encoder, experts=2, epochs=5, batch_size=32, endpoints="all")
        store = ptmst.train_teachers(replace(teach, device="cpu"))
        phases = (Phase(SMALL[3], 5, (0, 2)),)
        rates = LeafRates(images=0.02, texts=0.1, lr=0.002, similarity=0.1)
        config = DistillConfig(phases=phases, steps=60, inner_steps=8, batch_size=SMALL[2], rates=rates)
        config = replace(config, optimizer="adam", momentum=0.9, adjoint=0.0, adjoint_clip=None)
        config = replace(config, keep="path", chunk=None, compile="on", device="cuda")
        ptmst.distill(config, store)
    pairs = list(pairwise(seen[20:]))
    yield _row("CPU time of the host, an outer step of `distill`", median(1e6 * (b[0] - a[0]) for a, b in pairs), "µs")
    for name, what in (("synchronisations", "blocking calls"), ("launches", "launches beside the graph")):
        counts = [
            sum(b[1][key] - a[1][key] for key in b[1] if key.endswith(name) and "rec" not in key) for a, b in pairs
        ]
        yield _row(f"{what}, an outer step of `distill`", median(counts))


def teach(size: int, batch: int) -> Iterator[Row]:
    """Batches of real images while an expert trains."""
    import torch

    import ptmst
    from ptmst import TeachConfig, kernels

    with _scenes(size, 3 * batch) as (data, encoder, folder):
        config = TeachConfig(
            folder / "store", data, encoder, experts=1, epochs=1, batch_size=batch, endpoints="all", device="cuda"
        )
        try:
            ptmst.train_teachers(config)
            yield {"what": "`teach` on CUDA", "said": "runs"}
        except ValueError as error:
            yield _failed("`teach` on CUDA", error)
        seen = []
        update = kernels.flat_sgd_

        def noted(theta: torch.Tensor, grad: torch.Tensor, lr: torch.Tensor, *rest: Any) -> torch.Tensor:
            seen.append(_counts()["copied_to_device_bytes"])
            # Where a tree leaves it on the host.
            return update(theta, grad, lr.to(theta.device), *rest)

        kernels.flat_sgd_ = noted  # type: ignore[assignment]
        ptmst.train_teachers(replace(config, out=folder / "again"))
    yield _row("copied to the device, an image of a teaching batch", (seen[-1] - seen[-2]) / batch / 1000, "kB")


def evaluate(tower: str, size: int, batch: int) -> Iterator[Row]:
    """Peaks of students that train as one stack."""
    import torch

    from bench.settings import TEXT_WIDTH, build_tower
    from ptmst import DistilledSet, EvaluateConfig, Student, SyntheticPairs
    from ptmst.evaluation.students import train_students
    from ptmst.students.heads import ProjectionHead
    from ptmst.synthetic.distilled_set import DistilledPhase
    from ptmst.synthetic.soft_labels import FullSimilarity

    module, width = build_tower(tower, size)
    student = Student.from_modules(module, ProjectionHead(TEXT_WIDTH, width)).to("cuda")
    rates = torch.full((2,), 0.05)
    images, texts = torch.zeros(batch, 3, size, size), torch.zeros(batch, TEXT_WIDTH)
    phase = DistilledPhase(
        SyntheticPairs(images, texts, FullSimilarity.identity(batch), rates), rates, ("",) * batch, {}
    )
    distilled = DistilledSet((phase,), {}, {}, None)
    for number in (1, 2, 5):
        thetas, draws = student.flatten().repeat(number, 1), [(k,) for k in range(number)]
        with _peak() as peak:
            for _ in train_students(student, thetas, distilled, EvaluateConfig(epochs=0, batch_size=batch), draws):
                pass
        yield _row(f"allocator's peak, evaluation of {number} students at once", peak[0] / _GIB, "GiB")
        del thetas


@contextmanager
def _scenes(size: int, images: int) -> Iterator[Any]:
    """A small rendered data set: its config, an encoder's and its folder."""
    import ptmst
    from ptmst import DataConfig, EncoderConfig

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["PTMST_CACHE"] = str(folder / "cache")
        ptmst.write_scenes(folder / "data", image_size=size, train=images, val=8, test=8, warmup=0, captions=1)
        data = DataConfig(name="scenes", root=folder / "data", image_size=size)
        yield data, EncoderConfig(image_width=64), folder


def _without_triton() -> None:
    """Compile as for a GPU but without Triton's own compilation: its kernels are launched as empty ones."""
    import ctypes

    from torch._inductor import async_compile, config

    driver = ctypes.CDLL(None)

    class Launched:
        def run(self, *args: Any, stream: int, **named: Any) -> None:
            driver.cuLaunchKernel(None, 1, 1, 1, 1, 1, 1, 0, ctypes.c_void_p(stream), None, None)

    async_compile.AsyncCompile.triton = lambda *args, **named: Launched()  # type: ignore[method-assign]
    config.fx_graph_cache, config.compile_threads = False, 1


def _setting(tower: str, size: int, batch: int, pairs: int) -> Any:
    import torch

    from bench.cases import Case
    from bench.settings import setting

    return setting(Case(tower, size, batch, pairs=pairs), torch.device("cuda", 0))


def _counts() -> dict[str, int]:
    from null_device import counts

    return counts()


@contextmanager
def _peak() -> Iterator[list[int]]:
    """Most bytes of tensors in the block without those that existed before: the only entry of the list after it."""
    import torch

    # Graphs and their tensors are in reference cycles.
    gc.collect()
    torch.cuda.empty_cache()
    peak: list[int] = []
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    yield peak
    peak.append(torch.cuda.max_memory_allocated() - before)


def _row(what: str, value: float, unit: str = "") -> Row:
    return {"what": what, "value": value, "unit": unit}


def _failed(what: str, error: Exception) -> Row:
    return {"what": what, "failed": f"{type(error).__name__}: {str(error).splitlines()[0].split('. ')[0]}"}


PARTS: dict[str, tuple[str, Callable[..., Iterator[Row]], tuple[Any, ...]]] = {
    "code": (_PUBLISHED, code, LARGE),
    "code-small": (_DEMO, code, SMALL),
    "launches": (_PUBLISHED, launches, LARGE),
    "launches-small": (_DEMO, launches, SMALL),
    "memory": (_PUBLISHED, memory, LARGE),
    "distill": (_DEMO, distill, ()),
    "teach": ("224 px", teach, (224, 32)),
    "evaluate": ("nfnet_l0, 224 px, B 128", evaluate, ("nfnet_l0", 224, 128)),
}
"""Part → what it is about, its function and arguments; in the order of the table."""


def work(part: str) -> None:
    """Measure a part in this process, on the null device; each row is a line of JSON on standard output."""
    # An editable installation finds its own checkout first.
    sys.meta_path[:] = [finder for finder in sys.meta_path if "ScikitBuild" not in type(finder).__name__]
    sys.path.append(str(ROOT / "tests"))
    from null_device import stand_ins

    stand_ins.install()
    stand_ins.answer()
    of, measure, arguments = PARTS[part]
    for row in measure(*arguments):
        print(json.dumps({"of": of, **row}), flush=True)


# The command


def measured(part: str, tree: Path, environment: dict[str, str]) -> list[Row]:
    """The rows of a part, from a separate process that imports from `tree`."""
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder) / "ptmst"
        package.mkdir()
        kernels = tree / "kernels" / "python" / "kernels"
        for path in [*(tree / "ptmst").iterdir(), kernels if kernels.exists() else tree / "kernels"]:
            (package / path.name).symlink_to(path)
        more = environment | {"PYTHONPATH": os.pathsep.join([folder, str(tree)]), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-P", "-W", "ignore", __file__, "--json", os.devnull, "--part", part]
        done = subprocess.run(command, env=os.environ | more, stdout=subprocess.PIPE, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def _commit(tree: Path) -> str:
    try:
        command = ["git", "-C", str(tree), "rev-parse", "--short", "HEAD"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "no commit"


def main() -> int:
    options = argparse.ArgumentParser(prog="python -m bench.cuda_host", description=__doc__)
    options.add_argument("--json", type=Path, required=True, metavar="FILE", help="results")
    options.add_argument("--tree", type=Path, default=ROOT, metavar="FOLDER", help="the checkout that is measured")
    options.add_argument("--as", dest="name", default="now", metavar="NAME", help="name of its rows")
    options.add_argument("--only", choices=PARTS, action="append", help="measure this part only; can be repeated")
    options.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    asked = options.parse_args()
    if asked.part:
        work(asked.part)
        return 0
    sys.path.append(str(ROOT / "tests"))
    import null_device
    from bench import result

    if lacking := null_device.lacking():
        print(lacking, file=sys.stderr)
        return 2
    rows = result.rows(asked.json)
    with tempfile.TemporaryDirectory() as folder:
        environment = null_device.build(Path(folder))
        for part in asked.only or PARTS:
            key = {"tree": asked.name, "part": part}
            rows = [row for row in rows if not key.items() <= row.items()]
            rows += [{**key, "commit": _commit(asked.tree), **row} for row in measured(part, asked.tree, environment)]
            result.write(asked.json, rows, command=f"python -m bench.cuda_host --json {asked.json}")
            print(part, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
