"""What students find: by hand from their embeddings, and framed on a page where it is right."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from reported import rows

from ptmst import TrainConfig, TrajectoryStore, random_pairs, train_student
from ptmst.report.page import write_report
from ptmst.retrieval.examples import CAPTIONS, COUNT, PICTURES, examples
from tiny import tiny_store


@pytest.mark.slow
@pytest.mark.parametrize("frozen", [False, True])
def test_examples_are_what_students_find(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, frozen: bool
) -> None:
    store: TrajectoryStore = tiny_store(tmp_path_factory, frozen)
    config = TrainConfig(device="cpu")
    students = {
        "random <pairs>": train_student(random_pairs(store, 6, 0.1, 0), config),
        "all": train_student(store, config),
    }
    pairs = store.recipe.pairs("test")
    found = examples(students, pairs, 3)
    assert len(found) == COUNT and len({one.caption for one in found}) == COUNT
    everything = pairs.pixels(torch.arange(len(pairs.image_names)))
    for one in found:
        text = pairs.captions.index(one.caption)
        image = int(pairs.image_of_text[text])
        assert torch.equal(one.picture, everything[image])
        for name, student in students.items():
            images, texts = student.embed_images(pairs.image_paths), student.embed_captions(pairs.captions)
            order = sorted(range(len(images)), key=lambda i: -float(images[i] @ texts[text]))[:PICTURES]
            assert [right for _, right in one.pictures[name]] == [i == image for i in order]
            assert all(torch.equal(p, everything[i]) for (p, _), i in zip(one.pictures[name], order, strict=True))
            cosines = (texts @ images[image]).tolist()
            best = sorted(range(len(texts)), key=lambda t: -cosines[t])[:CAPTIONS]
            assert [caption for caption, _ in one.captions[name]] == [pairs.captions[t] for t in best]
            assert [right for _, right in one.captions[name]] == [pairs.image_of_text[t] == image for t in best]
    write_report(tmp_path / "page.html", "A title", rows(), examples=found)
    html = (tmp_path / "page.html").read_text()
    framed = sum(right for one in found for shown in one.pictures.values() for _, right in shown)
    assert html.count('<img class="right"') == framed and html.count("<h3>random &lt;pairs&gt;</h3>") == COUNT
    strong = sum(right for one in found for shown in one.captions.values() for _, right in shown)
    assert len(re.findall("<strong>", html)) == strong
