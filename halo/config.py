"""Settings and where each came from. Precedence: flags, environment, halo.toml, defaults.

The environment and the file are read when a session or a command is made, never at import.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, cast

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
)

from halo.errors import ConfigError
from runtime.budget import Budget, Prices

PREFIX = "HALO_"


def _budget_text(value: object) -> object:
    if isinstance(value, Mapping):
        limits = cast("Mapping[str, object]", value)
        return ",".join(f"{name}={limit}" for name, limit in limits.items())
    return value


def _listed(value: object) -> object:
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return tuple(cast("list[object]", value)) if isinstance(value, list) else value


def _technique(value: str) -> str:
    if value and value != "auto":
        from costmodel.errors import ProfileError
        from costmodel.techniques.named import named_technique

        try:
            named_technique(value)
        except ProfileError as error:
            raise ValueError(str(error)) from None
    return value


class Config(BaseModel):
    """What a session needs to know besides the workflow and the rows."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    engine: str = Field(
        default="local", description="local, torch, simulated, sglang=URL, openai=URL"
    )
    workers: Annotated[tuple[str, ...], BeforeValidator(_listed)] = Field(
        default=(),
        description="several engines for one batch, such as sglang=http://a:30000; empty: engine",
    )
    scheduler: str = Field(default="auto", description="how rows are split over several workers")
    objective: str = Field(
        default="makespan", description="what the schedule minimises; see docs/scheduling.md"
    )
    planning_s: float = Field(default=1.0, gt=0, description="seconds that scheduling may take")
    model: str = Field(default="", description="default model; empty chooses by memory")
    seed: int = Field(default=0, description="seed of sampled calls and of the simulated engine")
    db: Path | None = Field(default=None, description="default DuckDB database of SQL steps")
    models_dir: Path | None = Field(default=None, description="where model weights are kept")
    threads: int | None = Field(default=None, ge=1, description="threads of the local engine")
    max_in_flight: int | None = Field(default=None, ge=1, description="calls in an engine at once")
    tenant: str = Field(default="", description="answers are never shared between tenants")
    exact: bool = Field(default=False, description="local engine in float32, for comparisons")
    budget: Annotated[str, BeforeValidator(_budget_text)] = Field(
        default="", description="limits, such as tokens=2M,minutes=30,usd=5"
    )
    usd_per_million_input: float | None = Field(default=None, ge=0, description="price, for usd")
    usd_per_million_output: float | None = Field(default=None, ge=0, description="price, for usd")
    prime: bool = Field(default=True, description="send one call of a shared prefix first")
    gather: bool = Field(
        default=True,
        description="a small model's calls wait for each other beside a busy large one",
    )
    api_key: SecretStr = Field(default=SecretStr(""), description="key of the engine's server")
    tokenizer: Path | None = Field(default=None, description="folder of a server's tokenizer")
    steer: bool = Field(default=True, description="calls at a server follow the load it reports")
    share: bool = Field(default=True, description="make equal calls once")
    warm: bool = Field(default=True, description="compute shared instructions before the rows")
    attention: Annotated[str, AfterValidator(_technique)] = Field(
        default="", description="attention technique of the engine: fastkv, swiftkv, ...; or auto"
    )
    checkpoints: Annotated[tuple[str, ...], BeforeValidator(_listed)] = Field(
        default=(), description="techniques that the model's weights were made for"
    )
    prefix_order: bool = Field(default=True, description="start rows with equal prompts together")
    cache: Path | None = Field(default=None, description="directory of answers kept between runs")
    cache_mb: float = Field(default=1024, gt=0, description="how large the answer cache may become")
    off: tuple[str, ...] = Field(default=(), description="rewrite rules not to apply")
    on: tuple[str, ...] = Field(default=(), description="unsafe rewrite rules to apply")
    learn: tuple[Path, ...] = Field(default=(), description="run directories to plan by")
    overlap: bool = Field(default=True, description="tools and model calls run at the same time")
    requests_per_minute: float | None = Field(default=None, gt=0, description="server's limit")
    tokens_per_minute: float | None = Field(default=None, gt=0, description="server's limit")

    @property
    def limits(self) -> Budget:
        """What `budget` says. Raises `BudgetError`."""
        return Budget.parse(
            self.budget, Prices(self.usd_per_million_input, self.usd_per_million_output)
        )


def load_config(
    flags: Mapping[str, Any] | None = None,
    *,
    file: Path | None = None,
    environ: Mapping[str, str] | None = None,
) -> tuple[Config, dict[str, str]]:
    """The settings and, for each, where it came from ("flag", "environment HALO_X", "file", or
    "default"). `flags` with value None are not set. Raises `ConfigError`."""
    environ = os.environ if environ is None else environ
    values: dict[str, Any] = {}
    origins = dict.fromkeys(Config.model_fields, "default")
    for name, value, origin in [
        *((k, v, where) for where, table in _file_tables(file) for k, v in table.items()),
        *(
            (name, environ[key], f"environment {key}")
            for name in Config.model_fields
            if (key := PREFIX + name.upper()) in environ
        ),
        *((k, v, "flag") for k, v in (flags or {}).items() if v is not None),
    ]:
        values[name] = value
        origins[name] = origin
    try:
        return Config(**values), origins
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])
        known = ", ".join(Config.model_fields)
        hint = f"; known settings: {known}" if first["type"] == "extra_forbidden" else ""
        raise ConfigError(
            f"setting {name!r} ({origins.get(name, 'unknown')}): {first['msg']}, "
            f"got {first['input']!r}{hint}"
        ) from error


def _file_tables(file: Path | None) -> list[tuple[str, dict[str, Any]]]:
    candidates = [file] if file else [Path("pyproject.toml"), Path("halo.toml")]
    tables: list[tuple[str, dict[str, Any]]] = []
    for path in candidates:
        if not path.is_file():
            if file:
                raise ConfigError(f"no configuration file {path}")
            continue
        try:
            document = tomllib.loads(path.read_text("utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path}: not valid TOML: {error}") from error
        if path.name == "pyproject.toml":
            document = document.get("tool", {}).get("halo", {})
        tables.append((str(path), document))
    return tables
