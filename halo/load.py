"""Workflows by the name that the command line uses: `file.py:name` or `flow.yaml`."""

from __future__ import annotations

import importlib.util
import sys
from difflib import get_close_matches
from pathlib import Path

from halo.errors import HaloError, WorkflowError
from halo.flow import Flow


def load_flow(spec: str) -> Flow:
    """The workflow that `spec` names. Raises `WorkflowError` saying what was looked for and what
    is there instead."""
    path_text, colon, name = spec.rpartition(":")
    if spec.endswith((".yaml", ".yml")):
        from halo.spec import load_spec

        return load_spec(_existing(spec, spec))
    if not colon or not path_text.endswith(".py"):
        raise WorkflowError(
            f"{spec!r} names no workflow; write file.py:name for a Python workflow or a .yaml file"
        )
    return _from_python(_existing(path_text, spec), name)


def _existing(path_text: str, spec: str) -> Path:
    path = Path(path_text)
    if not path.is_file():
        here = [str(p) for p in path.parent.glob(f"*{path.suffix}")] if path.parent.is_dir() else []
        near = get_close_matches(str(path), here, n=3)
        hint = f"; did you mean {', '.join(near)}?" if near else ""
        raise WorkflowError(f"workflow {spec!r}: no file {path}{hint}")
    return path


def _from_python(path: Path, name: str) -> Flow:
    module_name = f"halo_flow_{path.stem}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Registered before execution: pydantic resolves annotations through sys.modules.
    sys.modules[module_name] = module
    try:
        spec.loader.exec_module(module)
    except HaloError:
        raise
    except Exception as error:
        raise WorkflowError(
            f"{path} cannot be imported: {type(error).__name__}: {error}"
        ) from error
    flow = getattr(module, name, None)
    if flow is None or not hasattr(flow, "trace"):
        have = sorted(k for k, v in vars(module).items() if hasattr(v, "trace") and k[0] != "_")
        problem = "is not a workflow (decorate it with @halo.workflow)" if flow else "is not there"
        raise WorkflowError(f"{path}: {name!r} {problem}; workflows: {', '.join(have) or 'none'}")
    return flow  # type: ignore[no-any-return]
