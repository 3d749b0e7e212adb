"""Methods side by side: the same data, experts, budget of outer steps and evaluation; all tuned alike."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory
from typing import Any, cast, get_args

from ptmst import schema
from ptmst.config import TUNING_SEEDS, AblateConfig, Experiment, Selection, Writable, WriteDataConfig
from ptmst.data import load_split, write_data
from ptmst.errors import InputError
from ptmst.evaluation.metrics import TIES
from ptmst.evaluation.scores import Scores
from ptmst.presets import RENAMED, applied, experiment, methods
from ptmst.report.tables import Row
from ptmst.students.image_towers import prepared
from ptmst.studies import cost as cost_of
from ptmst.studies import tuning
from ptmst.studies.cost import Between, hours, total
from ptmst.studies.runs import FULL, FULL_HEADS, Run, evaluation, measure, recalls, settings, store_folder
from ptmst.support import devices, files, folders, parallel, progress
from ptmst.support.provenance import machine, versions
from ptmst.teachers.teach import train_teachers
from ptmst.trajectories.store import INDEX

RESULTS = "ablation.json"
_KIND, _VERSION = "ablation", 1
FOLDER = folders.Kind("an ablation", (RESULTS,))
COLUMNS = (
    "Tuned on val: the factor of all leaf rates but η's, or loss and η of real pairs; (edge): the best value "
    "is at the edge of the grid. Diverged: students that count as recall 0. CPU seconds of a distillation or "
    "selection, without compilation, and the most memory of its process."
)
"""What the columns of its own are."""
MORE_COLUMNS = (
    "Tuned one after another, the rest at its best so far: S × and η × are factors of the rate of S and of η's start, "
    "batch is a share of the pairs, steps × a factor of the outer steps; as-matched: students train in batches as "
    "large as those of inner steps, of real pairs as large as is told. Last leaves: mean recall without the average, "
    "in the same runs."
)
"""What further ones are, where more than rates is tuned."""


def columns(axes: Sequence[str]) -> str:
    """What the columns of a table's own are, where those were tuned."""
    return COLUMNS if list(axes) == ["rates"] else f"{COLUMNS} {MORE_COLUMNS}"


def ablate(config: AblateConfig, command: str) -> list[Row]:
    """Run the grid in `config.out`, or continue it; returns its rows, all real pairs last.

    Raises InputError for an unknown method, for sizes that cannot be had, for data without the splits, and where the
    folder holds another grid.
    """
    with _grid(config, command) as grid:
        if cost := grid.cost():
            progress.note(f"ablate: {cost}")
        grid.teach()
        best = grid.tuned()
        grid.forget_other_rates(best)
        runs = [
            replace(best[method], pairs=pairs, seed=seed, split=config.split)
            for seed, pairs, method in product(grid.seeds, config.pairs, config.methods)
        ]
        full = [Run(name, 0, seed, split=config.split) for name in grid.full for seed in grid.seeds]
        grid.run("ablate", [*full, *runs])
        return grid.rows(runs, full)


def cost(config: AblateConfig, command: str) -> str:
    """What `ablate` has left to do and how long that takes, in a sentence, from a few outer steps of each method.

    Raises InputError as `ablate` does.
    """
    with _grid(config, command) as grid:
        return grid.cost() or "nothing is left to do"


@contextmanager
def _grid(config: AblateConfig, command: str) -> Iterator[_Grid]:
    """The grid in its folder, with its data there."""
    schema.check(config)
    known = [*get_args(Selection), *methods()]
    for name in config.methods:
        if name not in known:
            renamed = f"; it is now called {RENAMED[name]}" if name in RENAMED else schema.nearest(name, known)
            raise InputError(f"methods: expected methods, found {name}{renamed}")
    base = experiment(config.chosen_preset, config.config)
    schema.check(base)
    on_data = _on_data(config, base)
    if not _written_here(config):
        _refuse(config, on_data)
    with folders.claimed(config.out, FOLDER), parallel.processes(config.workers) as workers:
        grid = _Grid(config, base, command, workers)
        if _written_here(config):
            write_data(_rendered(config, base))
            _refuse(config, on_data)
        yield grid


class _Grid:
    """The runs of an ablation, each measured once."""

    def __init__(self, config: AblateConfig, base: Experiment, command: str, workers: parallel.Workers) -> None:
        self._config, self._base, self._file = config, _on_data(config, base), config.out / RESULTS
        self._workers, self._device = workers, devices.pick(config.device).type
        grids = {"factors": tuning.FACTORS, "losses": tuning.REAL_LOSSES, "rates": tuning.REAL_LR}
        how = {name: schema.to_json(methods()[name]) for name in config.methods if name in methods()}
        asked_for = replace(
            base, teach=replace(base.teach, data=replace(base.teach.data, **_columns(config))), tuned={}
        )
        asked = {"data": config.data, "settings": schema.to_json(asked_for), "methods": how, "tried": grids}
        asked["device"] = self._device
        asked |= {"tuned": {"axes": config.tune, "seeds": config.tuning_seeds}, "split": config.split}
        if config.tuned_in is not None:
            asked["tuned"] = _read(config.tuned_in).get("tuned", asked["tuned"])
        self._head = {"format": "ptmst-ablation", "version": _VERSION, **json.loads(json.dumps(asked))}
        self._measured = {"command": command, "machine": machine(), "versions": versions()}
        own = base.teach.encoder.freeze_tower
        frozen = {own, *(applied(m, base).teach.encoder.freeze_tower for m in config.methods if m in methods())}
        self.frozen = sorted(frozen)
        """Whether the tower is frozen, in the experiment and in any of the methods."""
        self.full = [FULL_HEADS if one else FULL for one in self.frozen]
        """What is compared with, by name: all real pairs, of which experts are."""
        self.seeds = range(config.seed, config.seed + config.seeds)
        self._tuning = TUNING_SEEDS[: config.tuning_seeds] if config.tuned_in is None else ()
        self._size = sorted(config.pairs)[len(config.pairs) // 2]
        self._prices: dict[str, Any] = {}
        """As they are kept: of `_Prices`."""
        self.found: dict[Run, dict[str, Any]] = {}
        if self._file.exists():
            before = _read(config.out)
            # Methods may join and leave, and more rates be tried: what a grid has measured of the others stays true.
            both = before["methods"].keys() & how.keys()
            other = [] if before["data"] == config.data else ["data"]
            other += [] if before.get("device", "cpu") == self._device else ["device"]
            other += [] if schema.agrees(before["settings"], asked_for) else ["settings"]
            other += sorted(name for name in both if not schema.agrees(before["methods"][name], methods()[name]))
            other += [] if all(row["provenance"].get("ties") == TIES for row in before["rows"]) else ["ties"]
            if other:
                raise InputError(
                    f"{config.out}: expected an ablation of these settings, found one that differs in "
                    f"{', '.join(other)}; choose another --out"
                )
            self._head["methods"] = before["methods"] | self._head["methods"]
            self._prices = before.get("prices", {})
            self.found = {schema.from_json(Run, row["run"]): row for row in before["rows"]}

    def teach(self) -> None:
        """The experts of every seed."""
        base, config = self._base, self._config
        wanted = [(config, base, seed, frozen) for seed in [*self.seeds, *self._tuning] for frozen in self.frozen]
        with progress.bar("experts", len(wanted)) as bar:
            for path in self._workers.completed(_teach, wanted):
                bar.advance(path.name)

    def cost(self) -> str:
        """What is left to do, and how long it takes; empty where nothing is."""
        config = self._config
        stores = [(seed, frozen) for seed in [*self.seeds, *self._tuning] for frozen in self.frozen]
        lacking = sum(not (store_folder(config.out, *one) / INDEX).exists() for one in stores)
        trials, tests = {}, {}
        for start in self._starts():
            found = [run for run in self.found if run.method == start.method]
            tried = sum(run.seed in self._tuning and run.pairs == start.pairs for run in found)
            tested = sum(run.seed in self.seeds and run.pairs in config.pairs for run in found)
            runs = tuning.trials(start, config.tune, self._base) * len(self._tuning)
            trials[start.method] = runs.without(tried)
            tests[start.method] = Between.exactly(len(config.pairs) * len(self.seeds)).without(tested)
        tune, test = total(trials.values()), total(tests.values())
        if not lacking and not tune.least and not test.least:
            return ""
        prices = self._measured_prices()
        seconds = prices.store * lacking + total(
            prices.trial[m] * trials[m] + prices.test[m] * tests[m] for m in trials
        )
        taking = f"{hours(seconds)} CPU hours, {hours(seconds * (1 / config.workers))} hours with {config.workers}"
        return (
            f"{lacking} stores of experts, {tune:.0f} runs to tune, {test:.0f} on {config.split}: {taking} at a time "
            "(from a few eager outer steps of each method and a few epochs of its students; most where tuning chooses "
            "the most steps)"
        )

    def _measured_prices(self) -> _Prices:
        """Measured once, while they are those of all methods."""
        if not self._prices.get("trial", {}).keys() >= set(self._config.methods):
            task = self._config, self._base, self._size, self.frozen
            (prices,) = self._workers.completed(_prices, [task])
            self._prices = asdict(prices)
            self._save()
        return schema.from_json(_Prices, self._prices)

    def tuned(self) -> dict[str, Run]:
        """Every method's run with what is best on val, at the middle size and seeds of their own; or elsewhere."""
        if self._config.tuned_in is not None:
            return _tuned_in(self._config.tuned_in, self._config.methods)
        return tuning.search(self._starts(), self._config.tune, self._base, self._recalls)

    def _starts(self) -> list[Run]:
        return [Run(method, self._size, TUNING_SEEDS[0], split="val") for method in self._config.methods]

    def _recalls(self, runs: Sequence[Run]) -> list[float]:
        """Means over all tuning seeds."""
        if not runs:
            return []
        by_run = {run: [replace(run, seed=seed) for seed in self._tuning] for run in runs}
        self.run("tune", [one for seeds in by_run.values() for one in seeds])
        return [mean(map(self._mean, seeds)) for seeds in by_run.values()]

    def forget_other_rates(self, best: dict[str, Run]) -> None:
        """Drop what was measured as it is no longer tuned: a new middle size is tuned again."""
        split = self._config.split
        tested = [run for run in self.found if not run.tunes and run.split == split and run.method in best]
        others = [r for r in tested if r != replace(best[r.method], pairs=r.pairs, seed=r.seed, split=split)]
        for run in others:
            del self.found[run]
        if others:
            self._save()

    def run(self, label: str, runs: Sequence[Run]) -> None:
        """Measure what has not been measured yet."""
        missing = [run for run in runs if run not in self.found]
        tasks = [(self._config.out, self._base, run, self._config.device) for run in missing]
        with progress.bar(label, len(runs), len(runs) - len(missing)) as bar:
            for run, row in self._workers.completed(measure, tasks):
                self.found[run] = row
                self._save()
                bar.advance(f"{run.method}, {run.pairs} pairs, seed {run.seed}")

    def _save(self) -> None:
        rows = {"prices": self._prices, "rows": list(self.found.values())}
        files.write_json(self._file, {**self._head, **self._measured, **rows})

    def _mean(self, run: Run) -> float:
        """Mean recall; that of a student that diverged is 0."""
        return mean(recalls(self.found[run]))

    def rows(self, runs: Sequence[Run], full: Sequence[Run]) -> list[Row]:
        """A row a method and size, over the students of all seeds."""
        table, measured = [], list(self.found[full[0]]["students"][0])
        for num_pairs, method in product(self._config.pairs, self._config.methods):
            measured_rows = [self.found[run] for run in runs if (run.method, run.pairs) == (method, num_pairs)]
            students = [student for row in measured_rows for student in row["students"]]
            diverged = sum(row["lost"] for row in measured_rows)
            students += [dict.fromkeys(measured, 0.0)] * diverged
            (run, *_) = (run for run in runs if (run.method, run.pairs) == (method, num_pairs))
            trials = [other for other in self.found if other.method == method and other.tunes]
            more: dict[str, str | float] = {
                "tuned": tuning.tuned(run, trials),
                "trials": len({replace(t, seed=0) for t in trials}),
            }
            more |= {"diverged": diverged, **_last_leaves(measured_rows), **_cost(measured_rows)}
            table.append(Row(method, Scores(tuple(students), self._provenance(measured_rows)), num_pairs, more=more))
        for name in dict.fromkeys(run.method for run in full):
            measured_rows = [self.found[run] for run in full if run.method == name]
            scored = tuple(student for row in measured_rows for student in row["students"])
            provenance = self._provenance(measured_rows)
            table.append(Row(name, Scores(scored, provenance), provenance["pairs"]))
        return table

    def _provenance(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Of a method's runs together."""
        return {**rows[0]["provenance"], "seeds": list(self.seeds)}


def _last_leaves(rows: Sequence[dict[str, Any]]) -> dict[str, str | float]:
    """Mean recall on the leaves as they were at the end, where the set is their average."""
    scored = [row["last leaves"] for row in rows if "last leaves" in row]
    return {"last leaves": round(mean(v for one in scored for v in recalls(one)), 1)} if scored else {}


def _cost(rows: Sequence[dict[str, Any]]) -> dict[str, str | float]:
    """Means over runs: CPU seconds of a distillation or selection, and the most memory of its process."""
    seconds = [row["seconds"] for row in rows if "seconds" in row]
    peaks = [row["peak bytes"] for row in rows if row.get("peak bytes")]
    cost: dict[str, str | float] = {"CPU s": float(f"{mean(seconds):.3g}") if seconds else ""}
    return cost | {"peak GB": round(mean(peaks) / 1e9, 2) if peaks else ""}


def _written_here(config: AblateConfig) -> bool:
    """Whether the data are made for this grid, in its folder."""
    return config.data in get_args(Writable) and config.root is None


def _rendered(config: AblateConfig, base: Experiment) -> WriteDataConfig:
    """The experiment's settings of what is drawn by us; other sets have none."""
    own = WriteDataConfig(name=cast(Writable, config.data), root=config.out / "data")
    return replace(base.data, name=own.name, root=own.root) if own.is_drawn_by_us else own


def _on_data(config: AblateConfig, base: Experiment) -> Experiment:
    """The experiment on the data that are asked for."""
    data = replace(base.teach.data, name=config.data, root=config.root, **_columns(config))
    if _written_here(config):
        made = _rendered(config, base)
        size = made.image_size if made.is_drawn_by_us else None
        data = replace(data, root=made.root, image_size=data.image_size or size)
    # Methods are tuned here, alike.
    return replace(base, teach=replace(base.teach, data=prepared(data, base.teach.encoder)), tuned={})


def _read(folder: Path) -> dict[str, Any]:
    record: dict[str, Any] = files.read_json(folder / RESULTS, _KIND, _VERSION)
    return record


def _tuned_in(folder: Path, names: Sequence[str]) -> dict[str, Run]:
    """As methods were compared in another ablation. Raises InputError where one was not."""
    runs = [schema.from_json(Run, row["run"]) for row in _read(folder)["rows"]]
    found = {run.method: run for run in runs if not run.tunes}
    if missing := [name for name in names if name not in found]:
        raise InputError(
            f"{folder}: expected an ablation of {', '.join(names)}, found none of {', '.join(missing)}; leave those "
            "out, or run it to its end"
        )
    return {name: found[name] for name in names}


def _columns(config: AblateConfig) -> dict[str, Any]:
    named = {"image_column": config.image_column, "caption_column": config.caption_column}
    return {setting: column for setting, column in named.items() if column is not None}


def _refuse(config: AblateConfig, base: Experiment) -> None:
    """Raises InputError for data without the splits, and for sizes that they do not have."""
    data = base.teach.data
    most = len(load_split(data, "train").image_names)
    advice = {"val": "divide some off: methods are tuned on it", "test": "name one, or compare with --split val"}
    for split in ("val", config.split):
        try:
            load_split(data, split)
        except InputError as error:
            raise InputError(f"{data.name}: expected a {split} split, found none ({error}); {advice[split]}") from error
    least = 2 * len(base.distill.phases)
    for num_pairs in config.pairs:
        if not least <= num_pairs <= most:
            raise InputError(f"pairs: expected {least} to {most}, found {num_pairs}; choose another number")


def _teach(asked: tuple[AblateConfig, Experiment, int, bool]) -> Path:
    config, base, seed, frozen = asked
    encoder = replace(base.teach.encoder, freeze_tower=frozen)
    out = store_folder(config.out, seed, frozen)
    train_teachers(replace(base.teach, out=out, encoder=encoder, seed=seed, device=config.device))
    return out


@dataclass(frozen=True)
class _Prices:
    """CPU seconds of a store of experts, and of a method's trials and tests."""

    store: Between
    trial: dict[str, Between]
    test: dict[str, Between]


def _prices(asked: tuple[AblateConfig, Experiment, int, Sequence[bool]]) -> _Prices:
    config, base, size, kinds = asked
    fields = {axis.field: axis.values for axis in tuning.tried(config.tune)}
    stores, students, teach = {}, {}, Between(0, 0)
    trial, test = {}, {}
    with TemporaryDirectory() as folder:
        for frozen in kinds:
            teaching = replace(
                base.teach, encoder=replace(base.teach.encoder, freeze_tower=frozen), device=config.device
            )
            stores[frozen] = cost_of.store_of_noise(teaching, Path(folder) / str(frozen))
            teach += Between.exactly(cost_of.teaching(teaching)) * (1 / len(kinds))
            scoring = replace(evaluation(base, [size]), split="val", device=config.device)
            students[frozen] = cost_of.students(size, scoring, stores[frozen])
        for method in config.methods:
            if method not in methods():
                trial[method] = test[method] = Between.exactly(students[base.teach.encoder.freeze_tower])
                continue
            run = Run(method, size, TUNING_SEEDS[0], split="val")
            ways = [settings(base, replace(run, batch=share)) for share in fields.get("batch", (run.batch,))]
            frozen = ways[0].teach.encoder.freeze_tower
            seconds = [cost_of.distilling(replace(w.distill, device=config.device), stores[frozen]) for w in ways]
            made = Between(min(seconds), max(seconds))
            trial[method] = made + Between.exactly(students[frozen])
            leaves = 2 if ways[0].distill.ema else 1
            test[method] = (
                made * Between(1, max(fields.get("steps", (1,)))) + Between.exactly(students[frozen]) * leaves
            )
    return _Prices(teach, trial, test)
