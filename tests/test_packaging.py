"""The wheel ships every folder that holds an __init__.py, each file once, and works elsewhere.

The list in pyproject.toml is written by hand.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HOUSES = {"lmppl": "lmppl", "lmppl.inference": "inference", "lmppl.graphs": "graphs"}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def real_files(name: str) -> dict[str, Path]:
    """Path in the wheel -> file in the tree, of one house; a link is not a second copy."""
    base = ROOT / HOUSES[name]
    found = {}
    for file in base.rglob("*.py"):
        inner = file.relative_to(base)
        linked = any((base / part).is_symlink() for part in inner.parents)
        if not linked and "__pycache__" not in inner.parts:
            found[f"{name.replace('.', '/')}/{inner.as_posix()}"] = file
    return found


def all_files() -> dict[str, Path]:
    return {path: file for name in HOUSES for path, file in real_files(name).items()}


def test_every_package_is_listed() -> None:
    listed = PROJECT["tool"]["setuptools"]["packages"]
    found = {
        path.removesuffix("/__init__.py").replace("/", ".")
        for path in all_files()
        if path.endswith("/__init__.py")
    }
    assert sorted(listed) == sorted(found)


def test_every_folder_of_code_is_a_package() -> None:
    folders = {path.rpartition("/")[0] for path in all_files()}
    assert {folder for folder in folders if f"{folder}/__init__.py" not in all_files()} == set()


def test_the_package_knows_its_version() -> None:
    import lmppl

    assert lmppl.__version__ == PROJECT["project"]["version"]


def test_the_two_links_are_relative_links() -> None:
    for name in ("inference", "graphs"):
        assert os.readlink(ROOT / "lmppl" / name) == f"../{name}"


def test_ranges_contain_the_pinned_versions() -> None:
    """Each requirement of pyproject.toml admits the version that constraints.txt pins."""
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins: dict[str, list[Requirement]] = {}
    for line in lines:
        if line and not line.startswith("#"):
            pin = Requirement(line)
            pins.setdefault(canonicalize_name(pin.name), []).append(pin)
    project = PROJECT["project"]
    wanted = [*project["dependencies"], *sum(project["optional-dependencies"].values(), [])]
    for requirement in map(Requirement, wanted):
        if requirement.name == project["name"]:
            continue
        assert canonicalize_name(requirement.name) in pins, f"{requirement} is not pinned"
        for pin in pins[canonicalize_name(requirement.name)]:
            (version,) = (s.version for s in pin.specifier)
            assert requirement.specifier.contains(version), f"{requirement} refuses {pin}"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built without a network from a clean copy: `build/` would bring back the dead."""
    tree = tmp_path_factory.mktemp("source") / "tree"
    tree.mkdir()
    for entry in ("pyproject.toml", "README.md", "LICENSE", "lmppl", "inference", "graphs"):
        source = ROOT / entry
        if source.is_dir():
            ignore = shutil.ignore_patterns("__pycache__")
            shutil.copytree(source, tree / entry, symlinks=True, ignore=ignore)
        elif source.exists():
            shutil.copy(source, tree / entry)
    pip = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index"]
    out = tmp_path_factory.mktemp("wheel")
    done = subprocess.run(
        [*pip, "--wheel-dir", str(out), str(tree)], capture_output=True, text=True, cwd=out
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = out.glob("*.whl")
    return built


@pytest.mark.slow
def test_the_wheel_holds_each_file_once(wheel: Path) -> None:
    assert wheel.name.startswith(f"lmppl_lang-{PROJECT['project']['version']}-py3-none-any")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (entry_points,) = (n for n in names if n.endswith(".dist-info/entry_points.txt"))
        assert "lmppl = lmppl.cli:main" in archive.read(entry_points).decode()
        (metadata,) = (n for n in names if n.endswith(".dist-info/METADATA"))
        page = (ROOT / "README.md").read_text() if (ROOT / "README.md").exists() else ""
        assert page.strip() in archive.read(metadata).decode()
    assert len(set(names)) == len(names)
    assert {name for name in names if name.endswith(".py")} == set(all_files())
    assert "lmppl/py.typed" in names
    assert any(name.endswith("LICENSE") for name in names)
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"lmppl"}
    data = {p.relative_to(ROOT).as_posix() for p in (ROOT / "lmppl/data").rglob("*") if p.is_file()}
    assert {name for name in names if name.startswith("lmppl/data/")} == data


EXTRAS = (
    "arviz gguf h5netcdf jax networkx numpyro pandas pyro safetensors torch transformers xarray"
)
IMPORT_ALL = """
import importlib, pathlib, pkgutil, sys
import lmppl
home, extras = pathlib.Path(sys.argv[1]), sys.argv[2].split()
modules = [m.name for m in pkgutil.walk_packages(lmppl.__path__, "lmppl.")]
for name in modules:
    if name.endswith("__main__"):
        continue
    try:
        file = pathlib.Path(importlib.import_module(name).__file__)
    except ModuleNotFoundError as missing:
        if missing.name not in extras:  # else: an extra that this environment lacks
            raise
        continue
    if not file.is_relative_to(home):
        sys.exit(f"{name} comes from {file}")
print(len(modules) + 1)
"""


@pytest.mark.slow
def test_the_wheel_imports_from_a_fresh_place(wheel: Path, tmp_path: Path) -> None:
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    elsewhere.mkdir()
    pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--target", str(home)]
    subprocess.run([*pip, str(wheel)], check=True, capture_output=True, cwd=elsewhere)
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_ALL, str(home), EXTRAS],
        cwd=elsewhere,
        env={**os.environ, "PYTHONPATH": str(home)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == len(all_files())
