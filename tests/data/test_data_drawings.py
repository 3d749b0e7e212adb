"""Sets that are made of installed packages: small folders of pictures stand for these."""

from __future__ import annotations

import json
from collections.abc import Iterable
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ptmst import cli
from ptmst.config import WriteDataConfig
from ptmst.data import clipart, drawings, installed, load_pairs, stamps, write_data
from ptmst.data.check import check
from ptmst.data.credits import Credits
from ptmst.data.installed import Found, Package
from ptmst.data.written import Advance, PictureSet, Sample
from ptmst.errors import InputError
from ptmst.support import parallel

needs_resvg = pytest.mark.skipif(find_spec("resvg_py") is None, reason="needs the extra ptmst[drawings]")
HEAD = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 100 100">'
PUBLIC = '<cc:license rdf:resource="http://web.resource.org/cc/PublicDomain"/>'
EMOJI: list[tuple[str, str, tuple[str, ...]]] = [
    ("train", "1f415-a.webp", ("dog", "animal, dog")),
    ("train", "1f34b-a.webp", ("lemon", "citrus, fruit")),
    ("val", "1f335-a.webp", ("cactus", "desert, plant")),
    ("test", "1f431-b.webp", ("cat face", "animal, pet")),
    ("test", "1f319-b.webp", ("crescent moon", "moon, space")),
]


def shape(seed: int) -> str:
    """An SVG's body: blocks that no other seed has."""
    draw = np.random.default_rng(seed)
    blocks = (draw.integers(0, 80, 2) for _ in range(9))
    return "".join(f'<rect x="{x}" y="{y}" width="20" height="20" fill="#36{seed:04d}"/>' for x, y in blocks)


def svg(
    path: Path, body: str, title: str = "", about: str = "", tags: Iterable[str] = (), license: str = PUBLIC
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    listed = "".join(f"<rdf:li>{tag}</rdf:li>" for tag in tags)
    path.write_text(
        f"{HEAD}<metadata><rdf:RDF xmlns:rdf='r' xmlns:cc='c' xmlns:dc='d'><cc:Work><dc:title>{title}</dc:title>"
        f"<dc:description>{about}</dc:description><dc:subject><rdf:Bag>{listed}</rdf:Bag></dc:subject>"
        f"<dc:creator><cc:Agent><dc:title>Somebody</dc:title></cc:Agent></dc:creator>{license}</cc:Work></rdf:RDF>"
        f"</metadata>{body}</svg>"
    )


def stamp(folder: Path, name: str, sentence: str, seed: int, alpha: int = 255) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 200, (8, 8, 4), dtype=np.uint8)
    pixels[..., 3] = alpha
    Image.fromarray(pixels).resize((80, 80), Image.Resampling.NEAREST).save(path)
    path.with_suffix(".txt").write_text(f"{sentence}\nde.utf8=Auf Deutsch.\n", "utf-8")


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """Empty folders of clip art and of stamps, drawn in this process, and an emoji set of five pictures."""
    art, prints = tmp_path / "svg", tmp_path / "stamps"

    def samples(advance: Advance) -> Iterable[Sample]:
        for number, (split, name, captions) in enumerate(EMOJI):
            advance()
            content = BytesIO()
            pixels = np.random.default_rng(900 + number).integers(0, 255, (64, 64, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(content, "webp", lossless=True)
            yield split, name, content.getvalue(), captions

    few = PictureSet(
        "emoji", {"archives": {"a": "0"}}, Credits("MIT", ("E, by F, MIT",)), samples, len(EMOJI), "MIT text"
    )
    monkeypatch.setattr(drawings, "emoji", lambda: few)
    monkeypatch.setattr(clipart, "PACKAGE", Package("openclipart-svg", art))
    monkeypatch.setattr(stamps, "PACKAGE", Package("tuxpaint-stamps-default", prints))
    monkeypatch.setattr(installed, "_installed", lambda _: find_spec("resvg_py") is not None)
    monkeypatch.setattr(parallel, "completed", lambda function, tasks, workers: map(function, tasks))
    return art, prints


def splits(root: Path, name: str) -> dict[str, tuple[str, list[str]]]:
    """Split and captions by image."""
    found: dict[str, tuple[str, list[str]]] = {}
    for path in root.glob(f"{name}_*.json"):
        for entry in json.loads(path.read_text("utf-8")):
            captions = [entry["caption"]] if isinstance(entry["caption"], str) else entry["caption"]
            image = entry["image"].removeprefix("images/")
            known = found.setdefault(image, (path.stem.rpartition("_")[2], []))
            known[1].extend(captions)
    return found


def content(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


# Clip art


def test_titles_descriptions_and_keywords_are_captions(tmp_path: Path) -> None:
    svg(tmp_path / "a/one.svg", "", "big_dog 3", "A dog that sleeps.", ["dog", "animal", "hash(0x874)", "unsorted"])
    svg(tmp_path / "two.svg", "", "HedgeShear", "shear", ["tool"])
    svg(tmp_path / "three.svg", "", "L&amp;apos;Ã©tÃ©", "made by me@x.org, see http://x.org", ["a", "b"])
    assert [(one.name, one.captions) for one in clipart.found(tmp_path)] == [
        ("a/one.png", ("big dog", "A dog that sleeps", "dog, animal")),
        ("three.png", ("L'été", "a, b")),
        ("two.png", ("Hedge Shear",)),
    ]


@pytest.mark.parametrize("title", ["", "7", "#12", "e", "Created with Inkscape", "EPS converted from x", "me@x.org"])
def test_titles_that_tell_nothing(tmp_path: Path, title: str) -> None:
    svg(tmp_path / "x.svg", "", title, "A long description.", ["dog", "cat"])
    assert clipart.found(tmp_path) == []


def test_what_is_under_the_gpl_or_has_text_or_is_a_theme_of_icons_is_left_out(tmp_path: Path) -> None:
    gpl = '<cc:license rdf:resource="http://creativecommons.org/licenses/GPL/2.0/"/>'
    svg(tmp_path / "gpl.svg", "", "a dog", license=gpl)
    svg(tmp_path / "text.svg", '<text x="1">dog</text>', "a dog")
    svg(tmp_path / "flow.svg", "<svg:flowRoot/>", "a dog")
    svg(tmp_path / "computer/icons/x.svg", "", "a dog")
    svg(tmp_path / "kept.svg", "<textPath/>", "a dog")
    (tmp_path / "again.svg").symlink_to("kept.svg")
    (tmp_path / "notes.txt").write_text("a dog")
    assert [one.name for one in clipart.found(tmp_path)] == ["kept.png"]


def test_a_title_of_many_pictures_is_that_of_a_collection(tmp_path: Path) -> None:
    for number in range(13):
        svg(tmp_path / f"card{number}.svg", "", "Cards")
        svg(tmp_path / f"pear_{number}.svg", "", "Clipart by Nicu Buculei - mouse")
    for number in range(12):
        svg(tmp_path / f"tree{number}.svg", "", "Tree")
    found = clipart.found(tmp_path)
    assert {one.captions for one in found} == {("pear",), ("Tree",)} and len(found) == 25


# Stamps


def test_a_stamp_is_a_picture_with_a_sentence(tmp_path: Path) -> None:
    stamp(tmp_path, "animals/dog.png", "A dog.  It barks!", 1)
    stamp(tmp_path, "animals/cat.png", "A cat.", 2)
    (tmp_path / "animals/cat.svg").write_text(f"{HEAD}{shape(3)}</svg>")
    (tmp_path / "animals/owl.svg").write_text(f"{HEAD}{shape(4)}</svg>")
    (tmp_path / "animals/owl.txt").write_text("An owl.", "utf-8")
    stamp(tmp_path, "silent.png", "...", 5)
    (tmp_path / "none.txt").write_text("Of no picture.")
    stamp(tmp_path, "mirror.png", "x", 6)
    (tmp_path / "mirror.txt").unlink()
    assert [(one.name, one.file.name, one.captions) for one in stamps.found(tmp_path)] == [
        ("animals/cat.png", "cat.png", ("A cat.",)),
        ("animals/dog.png", "dog.png", ("A dog. It barks!",)),
        ("animals/owl.png", "owl.svg", ("An owl.",)),
    ]


@pytest.mark.slow
@needs_resvg
def test_stamps_are_written_for_scoring(folders: tuple[Path, Path], tmp_path: Path) -> None:
    for number in range(40):
        stamp(folders[1], f"a/{number:02}.png", f"A thing{number:02}.", number)
        stamp(folders[1], f"b/{number:02}.png", f"The thing{number:02}.", 100 + number)
    root = tmp_path / "data"
    assert write_data(WriteDataConfig("stamps", root)) is True
    assert write_data(WriteDataConfig("stamps", root)) is False
    found = splits(root, "stamps")
    counts = {split: sum(one == split for one, _ in found.values()) for split in ("train", "val", "test")}
    assert counts == {"train": 8, "val": 4, "test": 32}  # 4, 4 and 32 things: of one that is scored, one picture
    things = {split: {c[-10:] for one, cs in found.values() for c in cs if one == split} for split in counts}
    assert not things["train"] & things["test"] and not things["val"] & (things["train"] | things["test"])
    record, credits = (json.loads((root / name).read_text("utf-8")) for name in ("stamps.json", "credits.json"))
    assert record["images"] == counts and {"tuxpaint-stamps-default", "resvg-py", "pillow"} < record.keys()
    assert credits["license"] == "GPL-2.0-or-later" and "Tux Paint" in credits["credits"][0]
    with Image.open(root / "images" / next(iter(found))) as image:
        assert (image.format, image.mode, image.size) == ("PNG", "RGB", (64, 64))
    assert check("stamps", root).problems == ()
    assert len(load_pairs("stamps", root, "test", 64)) == 32


# Both


@pytest.mark.slow
@needs_resvg
def test_the_same_packages_give_the_same_bytes_and_others_are_refused(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    for number in range(6):
        stamp(folders[1], f"{number}.png", f"A thing{number}.", number)
        svg(folders[0] / f"{number}.svg", shape(number), f"clip{number}")
    for name in ("one", "two"):
        assert write_data(WriteDataConfig("drawings", tmp_path / name))
    assert content(tmp_path / "one") == content(tmp_path / "two")
    (folders[1] / "5.txt").write_text("A new thing.")
    with pytest.raises(InputError, match=r"made of other tuxpaint-stamps-default; choose another root or delete that"):
        write_data(WriteDataConfig("drawings", tmp_path / "one"))


@needs_resvg
def test_drawings_keep_things_together(folders: tuple[Path, Path], tmp_path: Path) -> None:
    """By what captions name, by the names of things, and by what pictures look like."""
    art, prints = folders
    svg(art / "puppy.svg", shape(1), "A dog with a bone")  # names the dog, which is for training
    svg(art / "tabby.svg", shape(2), "Tabby", tags=["cat", "pet"])  # its keywords name the cat, which is for test
    svg(art / "night.svg", shape(3), "Full moon", tags=["sky", "night"])  # moons are one thing
    svg(art / "fight.svg", shape(4), "Dog and cat")  # torn by itself
    svg(art / "chase.svg", shape(8), "Tabby", tags=["cat", "dog"])  # likewise; it does not tear the other tabby
    svg(art / "salon.svg", shape(5), "Purple poodle")
    svg(art / "kennel.svg", shape(5).replace("#36", "#56"), "Dogs")  # looks like the poodle: in the split of dogs
    svg(art / "blob.svg", shape(6), "Wobble", tags=["cat", "x"])  # torn from the next, which looks alike and is a dog
    prints.mkdir()
    (prints / "bow.svg").write_text(f"{HEAD}{shape(6).replace('#36', '#46')}</svg>")
    (prints / "bow.txt").write_text("A dog that bows.")
    (prints / "clone.svg").write_text(f"{HEAD}{shape(1)}</svg>")  # the same pixels as the puppy's
    (prints / "clone.txt").write_text("A wolf.")
    svg(art / "nothing.svg", "", "Zebra")
    svg(art / "faint.svg", '<rect width="9" height="9" fill="#fff"/>', "Snow")
    root = tmp_path / "data"
    seen = list[int]()
    pictures = drawings.drawings()
    drawn = {name: (split, tuple(captions)) for split, name, _, captions in pictures.samples(lambda: seen.append(1))}
    assert len(seen) == pictures.count == 5 + 12
    assert drawn == {
        **{f"emoji/{name}": (split, captions) for split, name, captions in EMOJI},
        "clipart/puppy.png": ("train", ("A dog with a bone",)),
        "clipart/tabby.png": ("test", ("Tabby", "cat, pet")),
        "clipart/night.png": ("test", ("Full moon", "sky, night")),
        "clipart/salon.png": ("train", ("Purple poodle",)),
        "clipart/kennel.png": ("train", ("Dogs",)),
    }
    assert write_data(WriteDataConfig("drawings", root)) is True
    assert {image: (split, tuple(captions)) for image, (split, captions) in splits(root, "drawings").items()} == drawn
    assert check("drawings", root).problems == ()
    credits = json.loads((root / "credits.json").read_text("utf-8"))
    assert [line.partition(",")[0] for line in credits["credits"]] == ["E", "Open Clip Art Library", "Tux Paint stamps"]
    assert "GPL-2.0-or-later" in credits["license"]
    assert (root / "LICENSES.txt").read_text("utf-8").endswith("MIT text")


def test_the_longest_name_counts() -> None:
    known = {name: frozenset(name.split()) for name in ("dog", "dog hot", "sun", "flower")}
    assert drawings.named(["A hot dog"], known) == {"dog hot"}
    assert drawings.named(["A dog", "sun, hot"], known) == {"dog hot", "sun"}
    assert drawings.named(["sunflower"], known) == set()
    assert drawings.named(["two dogs"], known) == {"dog"}


def picture(values: np.ndarray) -> bytes:
    file = BytesIO()
    Image.fromarray(values.astype(np.uint8)).resize((64, 64), Image.Resampling.NEAREST).save(file, "png")
    return file.getvalue()


def test_pictures_that_look_alike_are_of_a_group_through_others_too() -> None:
    """Correlation decides: of one drawing in two grays and with noise, not of another drawing."""
    draw = np.random.default_rng(0)
    one, other = draw.integers(0, 2, (2, 16, 16))
    noisy = np.clip(80 + 90 * one + draw.integers(-6, 7, one.shape), 0, 255)
    pngs = {"a": picture(200 * one), "b": picture(noisy), "c": picture(200 * other), "d": picture(200 * (1 - one))}
    captions = {"a": "x", "b": "y", "c": "z", "d": "w"}
    pictures = [Found(name, Path(), (caption,)) for name, caption in captions.items()]
    group_of = installed.groups(pictures, pngs)
    assert group_of["a"] == group_of["b"] and len(set(group_of.values())) == 3
    joined = installed.groups([Found("c", Path(), ("a y",)), *pictures[:2]], pngs)
    assert len(set(joined.values())) == 1  # c is called like b, and b looks like a


@pytest.mark.slow
@needs_resvg
def test_processes_draw_the_same(tmp_path: Path) -> None:
    for number in range(5):
        stamp(tmp_path, f"{number}.png", f"A thing{number}.", number)
    stamp(tmp_path, "unseen.png", "Nothing.", 9, alpha=0)
    (tmp_path / "4.png").write_bytes(b"no picture")
    (tmp_path / "again.png").write_bytes((tmp_path / "0.png").read_bytes())
    (tmp_path / "again.txt").write_text("A thing0 again.")
    seen = list[int]()
    pngs = installed.drawn_pictures(stamps.found(tmp_path), lambda: seen.append(1))
    assert len(seen) == 7 and list(pngs) == ["0.png", "1.png", "2.png", "3.png"]
    for name, png in pngs.items():
        with Image.open(BytesIO(png)) as drawn, Image.open(tmp_path / name) as given:
            small = given.convert("RGB").resize((58, 58), Image.Resampling.LANCZOS)
            assert np.abs(np.asarray(drawn, int)[3:61, 3:61] - np.asarray(small, int)).max() <= 1


def test_what_is_missing_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(clipart, "PACKAGE", Package("openclipart-svg", tmp_path / "none"))
    monkeypatch.setattr(stamps, "PACKAGE", Package("tuxpaint-stamps-default", tmp_path))
    monkeypatch.setattr(installed, "_installed", lambda _: False)
    for name in ("drawings", "stamps"):
        assert cli.main(["data", "--name", name, "--root", str(tmp_path / "data")]) == 2
    stamp(tmp_path, "a.png", "A.", 1)
    monkeypatch.setattr(installed, "_installed", lambda _: True)
    assert cli.main(["data", "--name", "drawings", "--root", str(tmp_path / "data")]) == 2
    told = capsys.readouterr().err
    assert not (tmp_path / "data").exists()
    assert [" ".join(line.split()) for line in told.strip().splitlines()] == [
        "ptmst: drawings: expected openclipart-svg, tuxpaint-stamps-default, resvg-py, found no openclipart-svg or "
        "tuxpaint-stamps-default or resvg-py; apt-get install openclipart-svg tuxpaint-stamps-default and pip install "
        "'ptmst[drawings]'",
        "ptmst: stamps: expected tuxpaint-stamps-default, resvg-py, found no tuxpaint-stamps-default or resvg-py; "
        "apt-get install tuxpaint-stamps-default and pip install 'ptmst[drawings]'",
        "ptmst: drawings: expected openclipart-svg, tuxpaint-stamps-default, resvg-py, found no openclipart-svg; "
        "apt-get install openclipart-svg",
    ]


def test_the_renderer_is_asked_for_by_its_package_name() -> None:
    assert installed._installed("pillow") and not installed._installed("no-such-package-of-anybody")
