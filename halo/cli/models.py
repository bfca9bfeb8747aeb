"""`halo models`: list, pull, remove."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from halo.config import load_config
from halo.progress import Reporter
from runtime.models.store import ModelStore


def list_models(*, json_out: bool) -> int:
    """Print what can be pulled and what is present."""
    models = _store().list()
    if json_out:
        print(json.dumps([asdict(model) for model in models], default=str))
        return 0
    from rich.console import Console
    from rich.table import Column, Table

    table = Table(Column("model", no_wrap=True), "size", "present", "licence", "note", box=None)
    for model in models:
        size = f"{model.size_bytes / 1e6:,.0f} MB"
        table.add_row(model.name, size, "yes" if model.present else "", model.licence, model.note)
    Console().print(table)
    return 0


def pull(name: str, from_file: Path | None) -> int:
    """Fetch `name`, or register a file of the user's own under it."""
    with Reporter(sys.stderr) as reporter:
        store = _store(reporter.say)
        if from_file is not None:
            model = store.add_file(from_file, name)
        else:
            model = store.pull(name, reporter.download)
    print(f"{model.name}: {model.weights}")
    return 0


def remove(name: str) -> int:
    """Delete a model from the cache."""
    _store().remove(name)
    print(f"removed {name}")
    return 0


def _store(say: Callable[[str], None] | None = None) -> ModelStore:
    """The store of the configured folder."""
    config, _ = load_config()
    return ModelStore(config.models_dir, say=say)
