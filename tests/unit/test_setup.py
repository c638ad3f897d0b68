"""environment.yml, pyproject.toml and constraints.txt tell one story, and the top level holds what the design lists."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[2]


def constraints() -> dict[str, Version]:
    lines = [
        line for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")
    ]
    pinned = dict(line.split("==") for line in lines)
    return {canonicalize_name(name): Version(version) for name, version in pinned.items()}


def requirements(*groups: str) -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    listed = list(project["dependencies"]) if "base" in groups else []
    for name, extra in project["optional-dependencies"].items():
        listed += extra if name in groups else []
    return [r for r in map(Requirement, listed) if r.name != "nsw"]


def environment_pip_lines() -> list[str]:
    text = (ROOT / "environment.yml").read_text(encoding="utf-8")
    return [line.strip()[2:] for line in text.partition("- pip:")[2].splitlines() if line.strip()]


@pytest.mark.parametrize("requirement", requirements("base", "dev", "sfm", "synth"), ids=lambda r: r.name)
def test_every_dependency_is_pinned_inside_its_range(requirement):
    pinned = constraints().get(canonicalize_name(requirement.name))
    assert pinned is not None, f"{requirement.name} is not in constraints.txt"
    assert requirement.specifier.contains(pinned), f"{requirement} does not admit {pinned}"


def test_every_pin_installs_under_the_first_release_of_the_oldest_python():
    """A pin may ask for 3.11.5 where Debian 12 has 3.11.2."""
    too_new, seen = [], 0
    for name, version in constraints().items():
        try:
            found = metadata(name)
        except PackageNotFoundError:
            continue
        if Version(found["Version"]).public == str(version):
            seen += 1
            wanted = found.get("Requires-Python") or ""
            if not SpecifierSet(wanted).contains("3.11.0"):
                too_new.append(f"{name}=={version} asks for Python {wanted}")
    assert not too_new and seen > 100


def test_torch_is_pinned_alike_everywhere():
    torch = constraints()["torch"]
    assert f"torch=={torch}" in environment_pip_lines()
    assert torch >= Version("2.6")
    assert "$(TORCH)" in (ROOT / "Makefile").read_text(encoding="utf-8")


def test_environment_installs_this_project_under_the_constraints():
    lines = environment_pip_lines()
    assert lines[0] == "-c constraints.txt"
    assert lines[-1] == "-e ."
    python = re.search(r"python=(\d+\.\d+)", (ROOT / "environment.yml").read_text(encoding="utf-8")).group(1)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert Requirement(f"python{project['requires-python']}").specifier.contains(python)


def test_the_packages_of_the_mission_are_in_the_base_install():
    names = {canonicalize_name(r.name) for r in requirements("base")}
    assert {"jupyterlab", "torch", "ipywidgets", "plotly", "viser", "gsplat", "nerfacc", "papermill"} <= names
    assert not names & {"pycolmap", "mitsuba", "ray", "transformers"}, "heavy packages belong to an extra"


@pytest.mark.skipif(not shutil.which("git"), reason="needs git")
def test_top_level_holds_what_the_design_lists():
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode:
        pytest.skip("not a git checkout: nothing to list")
    allowed = {"notebooks", "nsw", "data", "tests", "environment.yml", "README.md", "pyproject.toml", "Makefile", "constraints.txt"}
    allowed |= {"LICENSE", "CONTRIBUTING.md", ".ci", ".gitignore", ".gitattributes"}
    assert {name.split("/")[0] for name in tracked.stdout.split()} <= allowed


def test_import_stays_light():
    heavy = [
        "torch",
        "numpy",
        "gsplat",
        "nerfacc",
        "numba",
        "plotly",
        "ipywidgets",
        "viser",
        "mitsuba",
        "pycolmap",
        "matplotlib",
        "trimesh",
    ]
    code = f"import sys, nsw; print([m for m in {heavy!r} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_every_module_parses_under_the_oldest_supported_python():
    import ast

    files = list((ROOT / "nsw").rglob("*.py"))
    assert files
    for path in files:
        ast.parse(path.read_text(encoding="utf-8"), filename=str(path), feature_version=(3, 11))


@pytest.mark.skipif(os.name != "posix" or not shutil.which("make"), reason="needs make and a POSIX shell")
@pytest.mark.parametrize(("user", "asked"), [("0", True), ("1000", False)])
def test_make_lab_starts_for_root_too(tmp_path, user, asked):
    """Jupyter refuses root, whom a container makes of everybody, unless it is asked for."""
    (tmp_path / "id").write_text(f"#!/bin/sh\necho {user}\n")
    (tmp_path / "id").chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    command = ["make", "-n", "-C", str(ROOT), "lab"]
    said = subprocess.run(command, capture_output=True, text=True, env=environment, check=True).stdout
    assert ("jupyter lab --allow-root notebooks/00_start.ipynb" in said) == asked and "notebooks/00_start.ipynb" in said
