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
trace_app = typer.Typer(help="Traces of tool-using agents.", no_args_is_help=True)
app.add_typer(trace_app, name="trace")

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
Off = Annotated[
    list[str] | None, typer.Option(metavar="RULE", help="leave out a rewrite rule: --no-RULE too")
]
On = Annotated[list[str] | None, typer.Option(metavar="RULE", help="use an unsafe rewrite rule")]
Learn = Annotated[
    list[Path] | None, typer.Option(metavar="DIR", help="plan by what earlier runs measured")
]
Cache = Annotated[
    Path | None, typer.Option(metavar="DIR", help="keep greedy answers and pure results here")
]
Sample = Annotated[int, typer.Option(min=0, help="run this many rows first and plan by them")]
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
    off: Off = None,
    on: On = None,
    learn: Learn = None,
    sample: Sample = 0,
    cache: Cache = None,
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
        exact=exact, prime=prime, budget=budget, off=off, on=on, learn=learn, cache=cache,
    )  # fmt: skip
    return verb.run(
        flows, input, out=out, config_file=config, flags=flags, dry_run=dry_run, json_out=json,
        sample=sample,
    )  # fmt: skip


@app.command()
def explain(
    flows: Annotated[list[str] | None, typer.Argument(metavar="FLOW...")] = None,
    input: Annotated[str | None, typer.Option("--input", "-i", metavar="ROWS")] = None,
    analyze: Annotated[
        Path | None, typer.Option("--analyze", metavar="DIR", help="a run: estimate beside actual")
    ] = None,
    stage: Annotated[str, typer.Option(help="bound, merged, optimized or physical")] = "physical",
    format: Annotated[str, typer.Option(help="text, json, mermaid, dot or html")] = "text",
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="whole prompts, and the plan after each rule")
    ] = False,
    model: Model = None,
    engine: Engine = None,
    config: ConfigFile = None,
    db: Db = None,
    off: Off = None,
    on: On = None,
    learn: Learn = None,
    sample: Sample = 0,
    json: Json = False,
) -> int:
    """Print the plan with its estimates; --analyze DIR puts what happened beside them."""
    from halo.cli import explain as verb

    return verb.explain(
        flows or [], input, analyze=analyze, stage=stage, format="json" if json else format,
        verbose=verbose, config_file=config, sample=sample,
        flags=settings(model=model, engine=engine, db=db, off=off, on=on, learn=learn),
    )  # fmt: skip


@app.command()
def resume(
    directory: Directory, budget: Budget = None, json: Json = False, yes: Yes = False
) -> int:
    """Continue a run; nothing to do after success."""
    from halo.cli import run as verb

    return verb.resume(directory, json_out=json, flags=settings(budget=budget))


@app.command()
def cache(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="what --cache named")],
    prune: Annotated[
        float | None, typer.Option(min=0, metavar="MB", help="drop the least used beyond this size")
    ] = None,
    clear: Annotated[bool, typer.Option("--clear", help="drop everything")] = False,
    json: Json = False,
) -> int:
    """What an answer cache holds; --prune and --clear make it smaller."""
    from halo.cli import cache as verb

    return verb.cache(directory, prune_mb=prune, clear=clear, json_out=json)


@app.command()
def status(directory: Directory, json: Json = False) -> int:
    """Where a run stands; works while it runs."""
    from halo.cli import inspect as verb

    return verb.status(directory, json_out=json)


@app.command()
def report(
    directory: Directory,
    output: Annotated[Path | None, typer.Option("-o", help="write to a file")] = None,
    model: Annotated[str | None, typer.Option(help="price PTE as this model")] = None,
    hardware: Annotated[str | None, typer.Option(help="price PTE on this device")] = None,
    json: Json = False,
) -> int:
    """What a run did: rows, failures, calls, tokens, time and PTE by operator."""
    from halo.cli import inspect as verb

    return verb.report(directory, output=output, json_out=json, model=model, hardware=hardware)


@app.command()
def estimate(
    flows: Flows,
    input: Input,
    sample: Annotated[
        int, typer.Option(min=0, help="run this many rows first and learn from them")
    ] = 0,
    model: Model = None,
    engine: Engine = None,
    hardware: Annotated[
        str | None, typer.Option(help="price on this device: a profile's name or .toml file")
    ] = None,
    shape: Annotated[
        str | None, typer.Option(help="profile of the model's shape: a name or config.json")
    ] = None,
    budget: Budget = None,
    config: ConfigFile = None,
    max_in_flight: Annotated[int | None, typer.Option(help="calls in an engine at once")] = None,
    db: Db = None,
    json: Json = False,
) -> int:
    """Calls, tokens, time and money that a batch would take, as intervals; makes no call."""
    from halo.cli import estimate as verb

    return verb.estimate(
        flows, input, sample=sample, hardware=hardware or "", shape=shape or "",
        config_file=config,
        flags=settings(
            model=model, engine=engine, budget=budget, db=db, max_in_flight=max_in_flight
        ),
        json_out=json,
    )  # fmt: skip


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


@trace_app.command("report")
def trace_report(
    files: Annotated[
        list[str], typer.Argument(metavar="FILES...", help="trace files, globs, run directories")
    ],
    model: Annotated[
        str | None, typer.Option(help="price all traces as this model: a name or config.json")
    ] = None,
    hardware: Annotated[str | None, typer.Option(help="device: a name or a profile's file")] = None,
    mode: Annotated[str, typer.Option(help="exact, or paper to compare with it")] = "exact",
    peak: Annotated[str, typer.Option(help="dense, sparse or reached")] = "dense",
    batch: Annotated[
        float, typer.Option(help="sequences that share the weight reads; 0 leaves those out")
    ] = 32,
    tokenizer: Annotated[
        Path | None, typer.Option(help="tokenizer.json for counts that traces lack")
    ] = None,
    top: Annotated[int, typer.Option(min=0, max=500, help="worst traces kept and shown")] = 20,
    what_if_cap: Annotated[int, typer.Option(min=0, help="tokens of a tool answer")] = 1000,
    what_if_remove: Annotated[int, typer.Option(min=0, help="costliest calls of a trace")] = 1,
    what_if_hardware: Annotated[str | None, typer.Option(help="another device")] = None,
    what_if_model: Annotated[str | None, typer.Option(help="another model")] = None,
    html: Annotated[Path | None, typer.Option(help="write a page of charts and traces")] = None,
    csv: Annotated[Path | None, typer.Option(help="write one line a trace")] = None,
    jobs: Annotated[int | None, typer.Option(min=1, help="processes")] = None,
    json: Json = False,
) -> int:
    """What tool-using traces cost in prefill token equivalents, and where they waste it."""
    if mode not in ("exact", "paper"):
        raise typer.BadParameter(f"{mode!r} is no mode; the modes are exact and paper")
    if peak not in ("dense", "sparse", "reached"):
        raise typer.BadParameter(f"{peak!r} is no peak; the peaks are dense, sparse and reached")
    from halo.cli import trace as verb
    from halo.trace_report.what_if import Scenarios

    options = {
        "model": model, "hardware": hardware, "mode": mode, "peak": peak, "tokenizer": tokenizer,
        "top": top, "jobs": jobs,
    }  # fmt: skip
    scenarios = Scenarios(what_if_cap, what_if_remove, what_if_hardware, what_if_model)
    return verb.report(
        files, json_out=json, csv_file=csv, html_file=html, scenarios=scenarios, batch=batch,
        options=options,
    )  # fmt: skip
