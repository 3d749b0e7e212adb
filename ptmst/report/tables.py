"""Recalls of several sets side by side: for a terminal, and as CSV, JSON, Markdown or LaTeX."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from ptmst import schema
from ptmst.config import TEMPERATURE, EvaluateConfig, Selection
from ptmst.errors import InputError
from ptmst.evaluation.metrics import METRICS, TIES, ZERO_SHOT
from ptmst.evaluation.scores import SCORES, Scores, read_scores
from ptmst.support import files, progress
from ptmst.synthetic.distilled_set import INDEX, DistilledSet
from ptmst.trajectories.store import INDEX as STORE_INDEX

if TYPE_CHECKING:
    from rich.table import Table

HEADINGS = dict(zip(METRICS, ("IR@1", "IR@5", "IR@10", "TR@1", "TR@5", "TR@10", "mean"), strict=True))
HEADINGS |= {ZERO_SHOT: ZERO_SHOT}


@dataclass(frozen=True)
class Row:
    """One line of a recall table."""

    name: str
    scores: Scores
    pairs: int
    """Pairs that the students were trained on."""
    distilled: DistilledSet | None = None
    """The set, where there is one to show."""
    more: Mapping[str, str | float] = field(default_factory=dict)
    """Columns of its own: how it was tuned, what it cost."""
    run: str = ""
    """The run that it is of, where it is of one."""

    @property
    def is_full(self) -> bool:
        """Whether all real pairs were trained on."""
        return "experts" in self.scores.provenance

    @property
    def is_selected(self) -> bool:
        """Whether some of the real pairs were trained on."""
        made = self.scores.provenance.get("set", {}) if self.distilled is None else self.distilled.provenance
        return is_selection(made)

    @property
    def evaluation(self) -> dict[str, str | int]:
        """Columns that describe the evaluation; of another image tower than the set's, its name and initial weights."""
        provenance = self.scores.provenance
        config: Mapping[str, Any] = provenance.get("config", {})
        seeds = provenance.get("seeds", [config["seed"]] if "seed" in config else [])
        columns: dict[str, str | int] = {"students": len(self.scores.students)}
        columns |= {"seeds": ", ".join(map(str, seeds)), "data": provenance.get("data", "")}
        columns["scored on"] = self.scores.scored_data
        columns["split"] = provenance["split"]
        columns["ties"] = self.scores.ties
        if "scored" in provenance:
            columns["images"] = provenance["scored"]["images"]
        columns["equal captions"] = "correct" if self.scores.counts_equal_captions else "wrong"
        if self.is_full:
            return columns | {"protocol": "as trained", "selection": "last"}
        columns |= {"protocol": config["protocol"], "selection": config["select"]}
        if config.get("loss"):
            columns["loss"] = config["loss"]
        if config.get("student"):
            columns |= {"tower": config["student"], "weights": _weights(provenance)}
        if config.get("temperature"):
            columns["temperature"] = config["temperature"]
        default = schema.to_json(EvaluateConfig())
        changed = [f"{k} {v}" for k, v in config.items() if k in default.keys() - _TOLD and v != default[k]]
        return columns | ({"changed": ", ".join(changed)} if changed else {})


_TOLD = {
    "students",
    "student",
    "student_weights",
    "protocol",
    "split",
    "on",
    "count_equal_captions",
    "select",
    "loss",
    "temperature",
    "seed",
    "together",
}
"""Settings that are told in words of their own, or that change no number."""


def _weights(provenance: Mapping[str, Any]) -> str:
    if file := provenance.get("image_weights_sha256"):
        return f"weights {file[:8]}"
    epochs = provenance.get("encoder", {}).get("warmup_epochs")
    return f"warmed up for {epochs} epochs" if epochs else "random weights"


def is_selection(provenance: Mapping[str, Any]) -> bool:
    """Whether a set that was made so has real pairs."""
    return provenance.get("method") in get_args(Selection)


RUNS = ("whole.json", "demo.json")
"""Records that make a folder that of a run or a demo, which has its sets' scores in one folder below it."""
RUN_SCORES = "scores"
_REAL = {"random": "random real pairs", "all": "all real pairs"}


def read_rows(paths: Sequence[Path]) -> list[Row]:
    """`read_row` of each, and all rows of runs; those of one name are called by their paths."""
    read = [(path, row) for path in paths for row in (_of_run(path) if is_run(path) else [read_row(path)])]
    names = [row.name for _, row in read]

    def called(path: Path, row: Row) -> str:
        if names.count(row.name) == 1:
            return row.name
        return f"{row.name} ({path})" if row.run else str(path)

    return [replace(row, name=called(path, row)) for path, row in read]


def is_run(path: Path) -> bool:
    """Whether it is the folder of `ptmst run` or `ptmst demo`."""
    return any((path / record).exists() for record in RUNS)


def _of_run(path: Path) -> list[Row]:
    """What students of a run's random pairs, of its sets and of all real pairs reach."""
    files_of = sorted((path / RUN_SCORES).glob("*.json"))
    if not (path / RUN_SCORES / "all.json").exists():  # the last one that is written
        raise InputError(f"{path}: expected a run with its scores, found none yet; run it to its end first")
    name, rows, alone = path.resolve().name, list[Row](), len(files_of) == len(_REAL) + 1
    for file in files_of:
        scores = read_scores(file)
        if file.stem in _REAL:
            rows.append(Row(f"{_REAL[file.stem]} of {name}", scores, int(scores.provenance["pairs"]), run=str(path)))
        else:
            made = DistilledSet.load(path / file.stem)
            rows.append(Row(name if alone else f"{name}: {file.stem}", scores, made.num_pairs, made, run=str(path)))
    return rows


def read_row(path: Path) -> Row:
    """What `ptmst evaluate` has scored: the folder of a set, or of a store (all real pairs), or a file of scores."""
    name = path.resolve().name
    if path.is_file():
        scores = read_scores(path)
        return Row(path.stem, scores, int(scores.provenance["pairs"]))
    if not (path / SCORES).exists() and ((path / INDEX).exists() or (path / STORE_INDEX).exists()):
        raise InputError(f"{path}: expected {SCORES}, found none; run `ptmst evaluate {path}` first")
    if (path / STORE_INDEX).exists():
        scores = read_scores(path / SCORES)
        return Row(f"all real pairs ({name})", scores, int(scores.provenance["pairs"]))
    distilled = DistilledSet.load(path)
    return Row(name, read_scores(path / SCORES), distilled.num_pairs, distilled)


def shown_name(row: Row) -> str:
    """A row's name on one line, without characters that would steer a terminal or that a page may not hold."""
    return progress.printable(row.name).replace("\n", "\\n").replace("\t", "\\t")


def full_of(row: Row, rows: Sequence[Row]) -> Row | None:
    """The full-data row that matches a row, the only one with the same data, split and encoder; of several that of the
    same run."""
    full = [other for other in rows if other.is_full and _measured_on(other) == _measured_on(row)]
    full = [other for other in full if other.run == row.run] or full
    return full[0] if len(full) == 1 else None


def fraction_of_full(row: Row, rows: Sequence[Row]) -> float | None:
    """A row's mean recall as percent of the matching full-data row's; None without exactly one such row."""
    full = full_of(row, rows)
    return 100 * row.scores.mean() / full.scores.mean() if full is not None and full.scores.mean() else None


def _measured_on(row: Row) -> tuple[Any, ...]:
    """What two rows must have in common to be compared."""
    provenance, scores = row.scores.provenance, row.scores
    scored = {key: value for key, value in provenance.get("scored", {}).items() if key not in ("data", "sha256")}
    # A text tower is the same by whatever name, as its fingerprint tells.
    encoder = {key: value for key, value in provenance.get("encoder", {}).items() if key != "text_tower"}
    keys = ("split", "data_fingerprint", "text_fingerprint", "image_weights_sha256")
    return scores.scored_data, scored, scores.counts_equal_captions, encoder, *(provenance.get(key) for key in keys)


def recall_table(rows: Sequence[Row], columns: str = "") -> Table:
    """Recall@1/5/10 of each row in percent, mean ± standard deviation over students, for a terminal.

    `columns` says what the rows' own columns are.
    """
    from rich.table import Table

    head, body = lines(rows, "±")
    table = Table(
        title=f"Retrieval recall on the {split(rows)} split, percent (mean ± std over students)",
        caption="\n".join([*how(rows), *([columns] if columns else [])]),
        caption_justify="left",
    )
    table.add_column("trained on", no_wrap=True)
    for heading in head[1:]:
        table.add_column(heading, justify="right", no_wrap=True)
    for line in body:
        table.add_row(*line)
    return table


def split(rows: Sequence[Row]) -> str:
    return " or ".join(sorted({str(row.scores.provenance["split"]) for row in rows}))


def measured(rows: Sequence[Row]) -> list[str]:
    """The metrics that any of the rows has."""
    return [metric for metric in HEADINGS if any(metric in row.scores.metrics for row in rows)]


def cells(scores: Scores, rows: Sequence[Row], between: str) -> list[str]:
    """Mean and deviation of every metric that any of the rows has."""
    return [
        f"{scores.mean(metric):.1f}{between}{scores.std(metric):.1f}" if metric in scores.metrics else ""
        for metric in measured(rows)
    ]


def how(rows: Sequence[Row]) -> list[str]:
    """A line for each way in which rows were evaluated, which names them where there are several ways."""
    by_way: dict[str, dict[str, None]] = {}
    for row in rows:
        by_way.setdefault(_way(row), {})[shown_name(row)] = None
    if len(by_way) == 1:
        return list(by_way)
    return [f"{', '.join(names)}: {description}" for description, names in by_way.items()]


def _way(row: Row) -> str:
    e = row.evaluation
    who = f"{e['students']} {'expert' if row.is_full else 'student'}{'s' if e['students'] != 1 else ''}"
    if seeds := str(e["seeds"]).count(","):
        who += f" of {seeds + 1} seeds"
    if "tower" in e:
        who += f" of {e['tower']} ({e['weights']})"
    scored = f"{e['scored on']} {e['split']}".strip() + (f" of {e['images']:,} images" if "images" in e else "")
    where = scored if e["scored on"] == e["data"] else f"{e['data']}, scored on {scored}"
    parts = [who, where, e["protocol"], f"selection {e['selection']}"]
    parts += [f"loss {e['loss']}"] if "loss" in e else []
    parts += ["equal captions correct"] if row.scores.counts_equal_captions else []
    parts += [] if row.scores.ties == TIES else [f"ties {row.scores.ties}"]
    parts += [f"temperature {e['temperature']}"] if e.get("temperature", TEMPERATURE) != TEMPERATURE else []
    return ", ".join(map(str, parts + ([e["changed"]] if "changed" in e else [])))


def write_table(out: Path, rows: Sequence[Row], columns: str = "") -> None:
    """Write the recalls as the suffix of `out` says: .csv, .json, .md or .tex.

    `columns` says what the rows' own columns are, under a table; CSV and JSON hold nothing but rows.

    Raises InputError for another suffix, and where `out` cannot be written.
    """
    if out.suffix not in _FORMATS:
        raise InputError(f"{out}: expected a name that ends in {', '.join(_FORMATS)}, found {out.suffix or 'none'}")
    # A name that is no Unicode, as of a folder in another encoding, keeps its bytes as escapes.
    files.write(out, _FORMATS[out.suffix](rows, columns).encode("utf-8", "backslashreplace"))


def refuse_mixed(rows: Sequence[Row]) -> None:
    """Raises InputError for rows that no table compares: scored on different data, or counted differently."""
    old = [row.name for row in rows if row.scores.ties != TIES]
    if 0 < len(old) < len(rows):
        raise InputError(
            f"{', '.join(old)}: expected scores that count ties as {TIES}, as the others do, found "
            "ones in the student's favor, of an earlier version; run `ptmst evaluate` again"
        )
    equal = [row.name for row in rows if row.scores.counts_equal_captions]
    if 0 < len(equal) < len(rows):
        raise InputError(
            f"{', '.join(equal)}: expected scores that count equal captions as wrong, as the others do, found ones "
            "that count them as correct; run `ptmst evaluate` with --count-equal-captions for all or for none"
        )
    first: dict[str, Row] = {}
    for row in rows:
        other = first.setdefault(row.scores.provenance["split"], row)
        if row.scores.scored_data != rows[0].scores.scored_data:
            other = rows[0]
        elif _size(row) == _size(other):
            if _same_content(row, other):
                continue
            raise InputError(
                f"{row.name}: expected scores on the images and captions of {other.name}, found ones on others of the "
                f"same name ({_data_scored(row)}); make a table for each data set"
            )
        raise InputError(
            f"{row.name}: expected scores on {_data_scored(other)}, as of {other.name}, found ones on "
            f"{_data_scored(row)}; make a table for each data set"
        )


def _size(row: Row) -> tuple[int | None, int | None]:
    """Images and captions that were scored, which tell apart data of one name; None where a file does not say."""
    scored = row.scores.provenance.get("scored", {})
    return scored.get("images"), scored.get("captions")


def _same_content(row: Row, other: Row) -> bool:
    """Whether images and captions that were scored are the same, as far as both say."""
    ours, theirs = (one.scores.provenance.get("scored", {}).get("sha256") for one in (row, other))
    return None in (ours, theirs) or ours == theirs


def _data_scored(row: Row) -> str:
    images, captions = _size(row)
    size = f" ({images:,} images, {captions:,} captions)" if images is not None and captions is not None else ""
    return f"{row.scores.scored_data} {row.scores.provenance['split']}{size}"


def _records(rows: Sequence[Row]) -> list[dict[str, Any]]:
    refuse_mixed(rows)
    records = []
    for row in rows:
        recalls: dict[str, float] = {}
        for metric in row.scores.metrics:
            recalls |= {metric: row.scores.mean(metric), f"{metric} std": row.scores.std(metric)}
        more = {"percent of all real pairs": fraction_of_full(row, rows)}
        records.append({"trained on": row.name, "pairs": row.pairs, **recalls, **more, **row.more, **row.evaluation})
    return records


def _csv(rows: Sequence[Row], _: str) -> str:
    records, buffer = _records(rows), io.StringIO()
    names = list(dict.fromkeys(name for record in records for name in record))
    writer = csv.DictWriter(buffer, names, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return buffer.getvalue()


def _json(rows: Sequence[Row], _: str) -> str:
    return json.dumps(_records(rows), indent=1, ensure_ascii=False) + "\n"


def lines(rows: Sequence[Row], between: str = " ± ") -> tuple[list[str], list[list[str]]]:
    """Head and body of the table of rows. Raises InputError for rows that cannot be compared."""
    refuse_mixed(rows)
    with_full = any(row.is_full for row in rows)
    own = list(dict.fromkeys(name for row in rows for name in row.more))
    head = ["trained on", "pairs", *(HEADINGS[metric] for metric in measured(rows))]
    head += [*(["of all"] if with_full else []), *own]
    body = []
    for row in rows:
        share = fraction_of_full(row, rows)
        more = [f"{share:.0f} %" if share is not None else ""] if with_full else []
        more += [str(row.more.get(name, "")) for name in own]
        body.append([shown_name(row), f"{row.pairs:,}", *cells(row.scores, rows, between), *more])
    return head, body


def what_numbers_are(rows: Sequence[Row]) -> str:
    """Of a table, in a sentence or two."""
    return f"{_unit(rows)} IR finds the image of a text, TR any text of an image."


def _unit(rows: Sequence[Row]) -> str:
    scores = "Recall and zero-shot accuracy" if ZERO_SHOT in measured(rows) else "Recall"
    return f"{scores} on {split(rows)} in percent, mean ± standard deviation over students."


def note(rows: Sequence[Row], columns: str = "") -> str:
    """What the numbers of a table are, how they were measured, and the columns of its own."""
    return f"{_unit(rows)} {'; '.join(how(rows))}. {columns}".rstrip()


def _markdown(rows: Sequence[Row], columns: str) -> str:
    head, body = lines(rows)
    escaped = [[_in_markdown(cell).replace("|", "\\|") for cell in row] for row in (head, *body)]
    shown = [escaped[0], ["---", *["--:"] * (len(head) - 1)], *escaped[1:]]
    return "\n".join([*(f"| {' | '.join(row)} |" for row in shown), "", _in_markdown(note(rows, columns)), ""])


def _in_markdown(text: str) -> str:
    return re.sub(r"[\\`*<>~$\[\]]|&(?=#?\w+;)|(?<![^\W_])_|_(?![^\W_])", r"\\\g<0>", text)


_LATEX = {"\\": r"\textbackslash{}", **{c: f"\\{c}" for c in "&%$#_{}"}, "~": r"\textasciitilde{}"}
_LATEX |= {"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", "`": r"\textasciigrave{}"}
# At the start of a row they would belong to the line break before it.
_LATEX |= {"[": "{[}", "]": "{]}", "*": "{*}"}
_LATEX |= {"^": r"\textasciicircum{}", "±": r"$\pm$", "×": r"$\times$", "η": r"$\eta$"}


def _latex(rows: Sequence[Row], columns: str) -> str:
    head, body = lines(rows)
    shown = [" & ".join(map(_in_latex, row)) + r" \\" for row in (head, *body)]
    caption = _in_latex(note(rows, columns))
    start = rf"\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}"
    return "\n".join([f"% {note(rows)}", start, r"\hline", shown[0], r"\hline", *shown[1:], r"\hline"]) + (
        f"\n\\end{{tabular}}\n\n{caption}\n"
    )


def _in_latex(text: str) -> str:
    return "".join(_LATEX.get(c, c) for c in text).replace("--", "-{}-")


_FORMATS: dict[str, Callable[[Sequence[Row], str], str]] = {
    ".csv": _csv, ".json": _json, ".md": _markdown, ".tex": _latex,
}  # fmt: skip
