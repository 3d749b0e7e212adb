"""A student to keep, and what it finds: train, query."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar

from tyro.conf import Positional, arg

from ptmst.cli.flags import Command, Text, typed
from ptmst.config import COMPUTE, RUN, Device, TrainConfig
from ptmst.errors import InputError
from ptmst.support.progress import printable, result, table


@dataclass(frozen=True)
class Train(Command):
    """Train one student on a set and keep it, to embed pictures and captions of your own."""

    input = "set"
    examples: ClassVar = (
        "ptmst train runs/emoji-100 --out runs/student",
        "ptmst train runs/store --out runs/expert",
    )

    set: Annotated[Positional[Path], arg(metavar="SET")]
    """Folder of a distilled set, or of a trajectory store whose expert is kept (or --set SET)."""
    settings: Annotated[TrainConfig, arg(name="")] = field(default_factory=TrainConfig)

    def run(self) -> None:
        from ptmst.retrieval.trained_student import FOLDER
        from ptmst.retrieval.training import train_student
        from ptmst.support import folders
        from ptmst.synthetic.distilled_set import DistilledSet
        from ptmst.trajectories.store import INDEX, TrajectoryStore

        with folders.claimed(self.settings.out, FOLDER, fresh=True):
            is_store = (self.set / INDEX).exists()
            source = TrajectoryStore.open(self.set) if is_store else DistilledSet.load(self.set)
            student = train_student(source, self.settings)
            student.save(self.settings.out)
        learned, width = f"{len(student.theta):,}", student.width
        result(f"{self.settings.out}: a student of {learned} parameters that were learned, embeddings of width {width}")


@dataclass(frozen=True)
class Query(Command):
    """Find the pictures, or captions, that fit a caption or a picture best."""

    input = "student"
    examples: ClassVar = (
        'ptmst query runs/student pictures "a red bird" "two cups"',
        "ptmst query runs/student captions.txt bird.jpg --best 3 --out found.html",
    )

    student: Annotated[Positional[Path], arg(metavar="STUDENT")]
    """Folder of a trained student."""
    gallery: Annotated[Positional[Path], arg(metavar="GALLERY")]
    """Folder of pictures, or text file with a caption a line."""
    queries: Annotated[Positional[tuple[Text, ...]], arg(metavar="QUERY [QUERY ...]")]
    """Captions, or picture files."""
    best: int = 5
    """How many are shown for each."""
    out: Path | None = field(default=None, metadata=RUN)
    """HTML page to write; none = a table alone."""
    text_tower: str | None = field(default=None, metadata=RUN)
    """Text tower, if it has moved: hf:NAME_OR_FOLDER or pypi:NAME; none = the one that is recorded."""
    device: Device = field(default="auto", metadata=COMPUTE)
    """Device to run on; auto = CUDA if there is one."""

    def run(self) -> None:
        from rich.table import Table

        from ptmst.config import Places
        from ptmst.report.query import write_query_page
        from ptmst.retrieval.gallery import Gallery, find
        from ptmst.retrieval.trained_student import TrainedStudent
        from ptmst.support import files

        if self.best < 1:
            raise InputError(f"best: expected a positive number, found {self.best}; raise it")
        if self.out is not None:
            files.try_writing(self.out)
        gallery = Gallery.read(self.gallery)
        student = TrainedStudent.load(self.student, Places(text_tower=self.text_tower), self.device)
        found = find(student, gallery, self.queries, self.best)
        rows = Table("query", "", "cosine", "found")
        for one in found:
            for rank, (item, cosine) in enumerate(zip(one.items, one.cosines, strict=True), start=1):
                query = printable(one.query) if rank == 1 else ""
                rows.add_row(query, str(rank), f"{cosine:.3f}", printable(gallery.shown(item)))
        table(rows)
        if self.out is not None:
            title = f"What {self.student.name} finds in {self.gallery.name}"
            write_query_page(self.out, title, gallery, found, typed())
            result(f"{self.out}: open it in a browser")
