"""Start-up guard: Halo's five packages must come from one place.

`runtime`, `planner` and the others are plain top-level names: a `runtime.py` beside a user's
script, or another distribution, can hide one of them. Without this check the symptom is an
ImportError from the middle of the package.
"""

from __future__ import annotations

from importlib.machinery import PathFinder
from pathlib import Path

SIBLINGS = ("planner", "runtime", "costmodel", "workloads")


def hidden_siblings(home: Path) -> list[tuple[str, str]]:
    """(package, where it is found instead) for each sibling that is not beside `home`."""
    hidden: list[tuple[str, str]] = []
    for name in SIBLINGS:
        spec = PathFinder.find_spec(name)
        expected = home / name / "__init__.py"
        if spec is None or spec.origin is None or not Path(spec.origin).samefile(expected):
            hidden.append((name, (spec.origin if spec else None) or "nowhere"))
    return hidden


def check_siblings() -> None:
    """Raise ImportError naming the file that hides one of Halo's packages."""
    home = Path(__file__).resolve().parent.parent
    for name, found in hidden_siblings(home):
        raise ImportError(
            f"Halo's package {name!r} is hidden: Python finds it at {found}, not beside {home}. "
            f"Rename that file, or run from another directory (`python -P` leaves the current one "
            f"out); `halo doctor` lists every such clash."
        )
