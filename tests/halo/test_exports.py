"""The public surface."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import halo
import halo.errors
from costmodel.errors import HaloError
from halo._siblings import SIBLINGS


def test_all_is_sorted_and_everything_in_it_exists() -> None:
    assert halo.__all__ == sorted(halo.__all__)
    for name in halo.__all__:
        assert getattr(halo, name) is not None, name


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'runn'"):
        _ = halo.runn  # type: ignore[attr-defined]


def test_the_error_tree_in_the_docstring_is_the_real_one() -> None:
    drawn = halo.errors.__doc__ or ""
    for name in halo.errors.__all__:
        assert issubclass(getattr(halo.errors, name), HaloError)
        assert f"{name} " in drawn or f"{name}\n" in drawn, f"{name} is not drawn"


@pytest.mark.parametrize("name", SIBLINGS)
def test_a_file_that_hides_a_package_is_named(name: str, tmp_path: Path) -> None:
    """A user's own runtime.py beside their script."""
    (tmp_path / f"{name}.py").write_text("")
    done = subprocess.run(
        [sys.executable, "-c", "import halo"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert f"Halo's package {name!r} is hidden" in done.stderr
    assert f"{name}.py" in done.stderr


def test_importing_halo_loads_no_engine_and_nothing_slow() -> None:
    code = (
        "import sys, halo, halo.cli.app; "
        "print([m for m in ('duckdb','networkx','sqlglot','openvino_genai','torch','aiohttp',"
        "'pydantic','rich','numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
