"""Verbs and their options. Bodies import what they need, so that `--help` answers at once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(
    name="halo",
    help="Compile agentic workflows into query plans and run whole batches of them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
models_app = typer.Typer(help="Local models: list, pull, remove.", no_args_is_help=True)
app.add_typer(models_app, name="models")

Flows = Annotated[
    list[str], typer.Argument(metavar="FLOW...", help="file.py:name or flow.yaml; several merge")
]
Input = Annotated[
    str, typer.Option("--input", "-i", metavar="ROWS", help=".jsonl .json .csv .parquet or a glob")
]
Model = Annotated[str | None, typer.Option(help="default model")]
Engine = Annotated[str | None, typer.Option(help="local or simulated")]
ConfigFile = Annotated[Path | None, typer.Option("--config", help="halo.toml")]
Seed = Annotated[int | None, typer.Option(help="seed of sampled calls")]
Db = Annotated[Path | None, typer.Option(help="DuckDB database of SQL steps")]
Budget = Annotated[
    str | None, typer.Option(help="stop at a limit, such as calls=500,tokens=2M,minutes=30")
]
Json = Annotated[bool, typer.Option("--json", help="one JSON document on standard output")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="do not ask")]
Directory = Annotated[Path, typer.Argument(metavar="DIR", help="a run directory")]


def settings(**flags: Any) -> dict[str, Any]:
    """Flags that were given."""
    return {name: value for name, value in flags.items() if value is not None}


def _version(value: bool) -> None:
    if value:
        import halo

        typer.echo(f"halo {halo.__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="print the version")
    ] = False,
) -> None:
    pass


@app.command()
def run(
    flows: Flows,
    input: Input,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="run directory")] = None,
    model: Model = None,
    engine: Engine = None,
    config: ConfigFile = None,
    seed: Seed = None,
    db: Db = None,
    max_in_flight: Annotated[int | None, typer.Option(help="calls in an engine at once")] = None,
    tenant: Annotated[str | None, typer.Option(help="share no answers beyond this tenant")] = None,
    exact: Annotated[bool | None, typer.Option("--exact", help="local engine in float32")] = None,
    prime: Annotated[
        bool | None, typer.Option(help="send one call of a shared prefix first")
    ] = None,
    budget: Budget = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="plan and print; make no call")
    ] = False,
    json: Json = False,
    yes: Yes = False,
) -> int:
    """Run workflows over rows; several workflows are one merged batch."""
    from halo.cli import run as verb

    flags = settings(
        model=model, engine=engine, seed=seed, db=db, max_in_flight=max_in_flight, tenant=tenant,
        exact=exact, prime=prime, budget=budget,
    )  # fmt: skip
    return verb.run(
        flows, input, out=out, config_file=config, flags=flags, dry_run=dry_run, json_out=json
    )


@app.command()
def explain(
    flows: Annotated[list[str] | None, typer.Argument(metavar="FLOW...")] = None,
    input: Annotated[str | None, typer.Option("--input", "-i", metavar="ROWS")] = None,
    analyze: Annotated[
        Path | None, typer.Option("--analyze", metavar="DIR", help="a run: estimate beside actual")
    ] = None,
    stage: Annotated[str, typer.Option(help="bound, merged, optimized or physical")] = "physical",
    format: Annotated[str, typer.Option(help="text, json, mermaid, dot, html or gantt")] = "text",
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="show whole prompts")] = False,
    model: Model = None,
    engine: Engine = None,
    config: ConfigFile = None,
    db: Db = None,
    json: Json = False,
) -> int:
    """Print the plan with its estimates; --analyze DIR puts what happened beside them."""
    from halo.cli import explain as verb

    return verb.explain(
        flows or [], input, analyze=analyze, stage=stage, format="json" if json else format,
        verbose=verbose, config_file=config, flags=settings(model=model, engine=engine, db=db),
    )  # fmt: skip


@app.command()
def resume(
    directory: Directory, budget: Budget = None, json: Json = False, yes: Yes = False
) -> int:
    """Continue a run; nothing to do after success."""
    from halo.cli import run as verb

    return verb.resume(directory, json_out=json, flags=settings(budget=budget))


@app.command()
def status(directory: Directory, json: Json = False) -> int:
    """Where a run stands; works while it runs."""
    from halo.cli import inspect as verb

    return verb.status(directory, json_out=json)


@app.command()
def report(
    directory: Directory,
    output: Annotated[Path | None, typer.Option("-o", help="write to a file")] = None,
    json: Json = False,
) -> int:
    """What a run did: rows, failures, calls, tokens and time by operator."""
    from halo.cli import inspect as verb

    return verb.report(directory, output=output, json_out=json)


@app.command()
def calibrate(
    engine: Engine = None,
    model: Model = None,
    hardware: Annotated[
        str | None, typer.Option(help="profile of the device to start from: a name or .toml file")
    ] = None,
    shape: Annotated[
        str | None, typer.Option(help="profile of the model's shape: a name or config.json")
    ] = None,
    samples: Annotated[
        Path | None, typer.Option(help="fit measured samples instead of measuring")
    ] = None,
    save_samples: Annotated[Path | None, typer.Option(help="keep the raw measurements")] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="the profile; default: beside the models")
    ] = None,
    budget_s: Annotated[float, typer.Option(min=5, help="seconds to measure at most")] = 170.0,
    held_out: Annotated[int, typer.Option(min=10, help="mixed batches to judge by")] = 60,
    config: ConfigFile = None,
    seed: Seed = None,
    threads: Annotated[int | None, typer.Option(min=1, help="threads of the engine")] = None,
    json: Json = False,
) -> int:
    """Measure an engine's step times and fit the profile that its estimates use."""
    from halo.cli import calibrate as verb

    return verb.calibrate(
        samples_file=samples, save_samples=save_samples, out=out, hardware=hardware, shape=shape,
        budget_s=budget_s, held_out=held_out, config_file=config,
        flags=settings(engine=engine, model=model, seed=seed, threads=threads), json_out=json,
    )  # fmt: skip


@app.command()
def doctor(config: ConfigFile = None, json: Json = False) -> int:
    """Check the environment: packages, settings and their origin, engines, models."""
    from halo.cli import doctor as verb

    return verb.doctor(config, json_out=json)


@models_app.command("list")
def models_list(json: Json = False) -> int:
    """Models that can be pulled or are present."""
    from halo.cli import models as verb

    return verb.list_models(json_out=json)


@models_app.command("pull")
def models_pull(
    name: Annotated[str, typer.Argument(help="a model's name; with --from-file, its new name")],
    from_file: Annotated[
        Path | None, typer.Option("--from-file", help="a GGUF file or a model folder")
    ] = None,
) -> int:
    """Fetch a model's weights, check their hash and keep them."""
    from halo.cli import models as verb

    return verb.pull(name, from_file)


@models_app.command("remove")
def models_remove(name: str) -> int:
    """Delete a model's weights from the cache."""
    from halo.cli import models as verb

    return verb.remove(name)
