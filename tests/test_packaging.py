"""What is claimed is what is tested; one wheel for every Python, with everything in it, that runs by itself."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

import ptmst

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
PIP = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "--no-input")


def pins(name: str) -> dict[str, Version]:
    """The one version of each package that a file of constraints allows."""
    lines = [line for line in (ROOT / name).read_text().splitlines() if not line.startswith("#")]
    return {canonicalize_name(package): Version(version) for package, version in (line.split("==") for line in lines)}


def requirements() -> dict[str, SpecifierSet]:
    """What ptmst and its extras ask for, by package."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        content = tomllib.load(file)
    project = content["project"]
    texts = [*content["build-system"]["requires"], *project["dependencies"]]
    found = [Requirement(text) for text in sum(project["optional-dependencies"].values(), texts)]
    return {canonicalize_name(each.name): each.specifier for each in found if each.name != "ptmst"}


def test_every_range_begins_at_a_version_that_is_tested() -> None:
    """Of those that have a range: what only checks this repository has none, its version is in constraints.txt."""
    bounds = {name: list(specifiers) for name, specifiers in requirements().items() if specifiers}
    assert all(len(each) == 1 and each[0].operator in (">=", "==") for each in bounds.values())
    tested = pins("constraints-oldest.txt")
    assert {name: Version(each.version) for name, (each,) in bounds.items()} == {name: tested[name] for name in bounds}


def test_every_dependency_has_a_newest_version_that_is_tested() -> None:
    tested = pins("constraints.txt")
    assert [name for name, range in requirements().items() if tested[name] not in range] == []


def test_the_pythons_are_those_of_the_classifiers() -> None:
    with (ROOT / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)["project"]
    allowed = SpecifierSet(project["requires-python"])
    prefix = "Programming Language :: Python :: "
    claimed = [each.removeprefix(prefix) for each in project["classifiers"] if each.startswith(prefix)]
    assert claimed == [f"3.{minor}" for minor in range(20) if f"3.{minor}" in allowed]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("scikit_build_core", reason="scikit-build-core is not installed, so no wheel can be built here")
    if shutil.which("cmake") is None:
        pytest.skip("cmake is not installed, so no wheel can be built here")
    out = tmp_path_factory.mktemp("wheel")
    flags = ["--no-deps", "--no-build-isolation", f"--config-settings=build-dir={out / 'build'}"]
    subprocess.run([*PIP, "wheel", *flags, f"--wheel-dir={out}", str(ROOT)], check=True, cwd=out)
    (path,) = out.glob("*.whl")
    return path


def test_it_is_tagged_for_every_python(wheel: Path) -> None:
    assert wheel.name.startswith(f"ptmst-{ptmst.__version__}-py3-none-")
    assert not wheel.name.endswith("-any.whl")
    with zipfile.ZipFile(wheel) as archive:
        lines = archive.read(f"ptmst-{ptmst.__version__}.dist-info/WHEEL").decode().splitlines()
    assert "Root-Is-Purelib: false" in lines
    assert all(line.startswith("Tag: py3-none-") for line in lines if line.startswith("Tag:"))


def test_everything_is_in_it_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    package = {p.relative_to(ROOT).as_posix() for p in (ROOT / "ptmst").rglob("*") if p.is_file()}
    sources = ROOT / "kernels" / "python"
    kernels = {f"ptmst/{p.relative_to(sources).as_posix()}" for p in sources.rglob("*.py")}
    expected = {name for name in package | kernels if "__pycache__" not in name}
    assert {"ptmst/py.typed", "ptmst/report/page.html.jinja", "ptmst/presets/demo.toml"} < expected
    (native,) = (name for name in names if name.startswith("ptmst/kernels/_native"))
    assert native.endswith(".so")
    information = f"ptmst-{ptmst.__version__}.dist-info/"
    assert {name for name in names if not name.startswith(information)} == expected | {native}
    assert {f"{information}licenses/LICENSE", f"{information}entry_points.txt"} < names


RUN = """
import sys
sys.path[:0] = [sys.argv[1]]
sys.path.append(sys.argv[2])
import ptmst
from ptmst import kernels
print(ptmst.__file__, kernels.__file__, kernels.active()["shortcut_point"], sep="\\n")
"""


def test_an_installed_wheel_runs_natively(wheel: Path, tmp_path: Path) -> None:
    """Without `site`, so that the editable install's import hook is out of the way."""
    target = tmp_path / "installed"
    subprocess.run([*PIP, "install", "--no-deps", f"--target={target}", str(wheel)], check=True, cwd=tmp_path)
    command = [sys.executable, "-I", "-S", "-c", RUN, str(target), sysconfig.get_path("purelib")]
    done = subprocess.run(command, cwd=tmp_path, env={}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    package, kernels, active = done.stdout.splitlines()
    assert package == str(target / "ptmst" / "__init__.py")
    assert kernels == str(target / "ptmst" / "kernels" / "__init__.py")
    assert active.startswith("native C++ (")


@pytest.mark.skipif(sys.platform != "linux" or platform.machine() != "x86_64", reason="wheels of Linux on x86-64 only")
def test_old_systems_load_the_wheel(wheel: Path, tmp_path: Path) -> None:
    """As auditwheel judges by the symbols that it needs; OpenMP's library is torch's (`make wheel`)."""
    pytest.importorskip("auditwheel", reason="auditwheel is not installed")
    scripts = sysconfig.get_path("scripts")
    how = ["--plat", "manylinux2014_x86_64", "--exclude", "libgomp.so.1", "--wheel-dir", str(tmp_path)]
    command = [sys.executable, "-m", "auditwheel", "repair", *how]
    environment = {**os.environ, "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}"}
    subprocess.run([*command, str(wheel)], check=True, capture_output=True, env=environment)
    (repaired,) = tmp_path.glob("*.whl")
    assert "manylinux_2_17_x86_64" in repaired.name and "manylinux2014_x86_64" in repaired.name
    with zipfile.ZipFile(wheel) as ours, zipfile.ZipFile(repaired) as theirs:
        files = [{name for name in one.namelist() if not name.endswith("/")} for one in (ours, theirs)]
        assert files[0] == files[1]  # nothing was grafted into it


def test_the_sources_alone_make_the_same_wheel(wheel: Path, tmp_path: Path) -> None:
    """For processors and systems without a wheel."""
    code = "import sys; from scikit_build_core.build import build_sdist; print(build_sdist(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, cwd=ROOT, capture_output=True)
    (sources,) = tmp_path.glob("*.tar.gz")
    flags = ["--no-deps", "--no-build-isolation", f"--config-settings=build-dir={tmp_path / 'build'}"]
    subprocess.run([*PIP, "wheel", *flags, f"--wheel-dir={tmp_path}", str(sources)], check=True, cwd=tmp_path)
    (built,) = tmp_path.glob("*.whl")
    assert built.name == wheel.name
    with zipfile.ZipFile(wheel) as ours, zipfile.ZipFile(built) as theirs:
        names = {name for name in ours.namelist() if not name.endswith("RECORD")}
        assert names == {name for name in theirs.namelist() if not name.endswith("RECORD")}
        same = [name for name in names if not name.endswith(".so")]
        assert all(ours.read(name) == theirs.read(name) for name in same)
