"""What is shipped: the wheel's content, and a new environment that runs it."""

from __future__ import annotations

import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

import halo

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = {"costmodel", "halo", "planner", "runtime", "workloads"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    build = (
        "import sys, os; from hatchling.build import build_wheel; "
        "os.chdir(sys.argv[1]); print(build_wheel(sys.argv[2]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", build, str(ROOT), str(folder)],
        capture_output=True,
        text=True,
        check=True,
    )
    return folder / done.stdout.strip().splitlines()[-1]


def test_the_wheel_holds_the_five_packages_whole(wheel: Path) -> None:
    shipped = set(zipfile.ZipFile(wheel).namelist())
    tops = {name.split("/")[0] for name in shipped}
    assert {top for top in tops if not top.endswith(".dist-info")} == PACKAGES
    sources = {
        str(path.relative_to(ROOT))
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and path.suffix in {".py", ".toml", ".typed"}
    }
    assert sources <= shipped
    assert {f"{package}/py.typed" for package in PACKAGES} <= shipped


def test_a_new_environment_runs_the_installed_wheel(wheel: Path, tmp_path: Path) -> None:
    """Dependencies come from the environment of the tests, so that no network is needed."""
    home = tmp_path / "env"
    venv.create(home, with_pip=True)
    python = home / "bin" / "python"
    install = [python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", wheel]
    subprocess.run([str(part) for part in install], check=True, cwd=tmp_path)
    site = next(Path(path) for path in sys.path if path.endswith("site-packages"))
    here = subprocess.run(
        [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    (Path(here) / "dependencies.pth").write_text(f"{site}\n")
    helped = subprocess.run(
        [str(home / "bin" / "halo"), "--help"],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    assert "explain" in helped.stdout
    assert helped.stderr == ""
    where = subprocess.run(
        [str(python), "-c", "import halo, planner; print(halo.__file__); print(planner.__file__)"],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    ).stdout.split()
    assert all(Path(path).is_relative_to(here) for path in where)


def test_the_version_is_the_newest_in_the_changelog() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    headings = [x for x in (ROOT / "CHANGELOG.md").read_text().splitlines() if x.startswith("## [")]
    assert project["version"] == halo.__version__
    assert headings[0].startswith(f"## [{halo.__version__}]")


def test_tests_have_no_packages() -> None:
    """`tests/planner/__init__.py` would become the package `planner` and hide the real one."""
    assert list((ROOT / "tests").rglob("__init__.py")) == []
