"""`halo doctor`: packages that hide each other, settings and their origin, engines, models."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import platform
from pathlib import Path
from typing import Any

import halo
from halo._siblings import SIBLINGS, hidden_siblings
from halo.config import Config, load_config
from halo.errors import HaloError
from runtime.models.choice import choose_default
from runtime.models.store import ModelStore

DISTRIBUTION = "halo-flow"


def doctor(config_file: Path | None, *, json_out: bool) -> int:
    """Print the findings; 1 when something is wrong."""
    problems = package_problems()
    try:
        config, origins = load_config(file=config_file)
    except HaloError as error:
        config, origins = Config(), {}
        problems.append(str(error))
    store = ModelStore(config.models_dir)
    default_model, warning = choose_default()
    findings: dict[str, Any] = {
        "halo": halo.__version__,
        "python": platform.python_version(),
        "settings": {
            name: {"value": value, "from": origins.get(name, "default")}
            for name, value in config.model_dump(mode="json").items()
        },
        "engines": {
            "simulated": "ready",
            "local": "ready"
            if importlib.util.find_spec("openvino_genai")
            else "not installed: pip install 'halo-flow[local]'",
        },
        "models": {m.name: m.present for m in store.list()},
        "models_dir": str(store.models_dir),
        "default_model": {"name": default_model, "warning": warning},
        "problems": problems,
    }
    print(json.dumps(findings) if json_out else _text(findings))
    return 1 if problems else 0


def package_problems() -> list[str]:
    """Every clash over Halo's five top-level names."""
    problems = [
        f"package {name!r} is hidden by {found}; rename that file or run from another directory"
        for name, found in hidden_siblings(Path(halo.__file__).resolve().parent.parent)
    ]
    providers = importlib.metadata.packages_distributions()
    for name in ("halo", *SIBLINGS):
        others = sorted(set(providers.get(name, [])) - {DISTRIBUTION})
        if others:
            problems.append(
                f"{', '.join(others)} also installs a package {name!r}: whichever was installed "
                f"later has overwritten the other; pip uninstall {' '.join(others)}, then "
                f"reinstall {DISTRIBUTION}"
            )
    return problems


def _text(findings: dict[str, Any]) -> str:
    lines = [f"halo {findings['halo']}, Python {findings['python']}", "", "settings"]
    lines += [f"  {k:14} {v['value']!s:24} {v['from']}" for k, v in findings["settings"].items()]
    lines += ["", "engines", *(f"  {k:14} {v}" for k, v in findings["engines"].items())]
    lines += ["", f"models in {findings['models_dir']}"]
    lines += [
        f"  {k:32} {'present' if v else 'not fetched'}" for k, v in findings["models"].items()
    ]
    chosen = findings["default_model"]
    lines += [f"  without --model: {chosen['name']}", *filter(None, [chosen["warning"]])]
    lines += ["", "problems" if findings["problems"] else "no problems found"]
    lines += [f"  {problem}" for problem in findings["problems"]]
    return "\n".join(lines)
