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
models_app = typer.Typer(help="Local models: list, pull, remove, serve.", no_args_is_help=True)
app.add_typer(models_app, name="models")
engine_app = typer.Typer(help="Servers: start one.", no_args_is_help=True)
app.add_typer(engine_app, name="engine")
trace_app = typer.Typer(help="Traces of tool-using agents.", no_args_is_help=True)
app.add_typer(trace_app, name="trace")

Flows = Annotated[
    list[str], typer.Argument(metavar="FLOW...", help="file.py:name or flow.yaml; several merge")
]
Input = Annotated[
    str, typer.Option("--input", "-i", metavar="ROWS", help=".jsonl .json .csv .parquet or a glob")
]
Model = Annotated[str | None, typer.Option(help="default model")]
Engine = Annotated[str | None, typer.Option(help="local, torch, simulated or sglang=URL")]
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
    exact: Annotated[
        bool | None, typer.Option("--exact", help="local and torch engines: float32")
    ] = None,
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


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def sql(
    context: typer.Context,
    text: Annotated[
        str | None, typer.Argument(metavar="SQL", help="statements; none starts a shell")
    ] = None,
    file: Annotated[Path | None, typer.Option("--file", "-f", help="statements of a file")] = None,
    db: Db = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="run directory")] = None,
    format: Annotated[str, typer.Option(help="table, json, jsonl, csv or parquet")] = "table",
    param: Annotated[
        list[str] | None, typer.Option("--param", metavar="NAME=VALUE", help="value of $NAME")
    ] = None,
    workflow: Annotated[
        list[str] | None, typer.Option("--workflow", metavar="FLOW", help="for AI_RUN")
    ] = None,
    allow: Annotated[
        list[Path] | None, typer.Option("--allow", metavar="DIR", help="files that may be read")
    ] = None,
    model: Model = None,
    engine: Engine = None,
    config: ConfigFile = None,
    seed: Seed = None,
    budget: Budget = None,
    learn: Learn = None,
    sample: Annotated[
        int, typer.Option(min=0, help="ask about so many inputs of each call first, plan by them")
    ] = 0,
    cache: Cache = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="plan and print; make no call")
    ] = False,
    json: Json = False,
    yes: Yes = False,
) -> int:
    """Run SQL with AI functions; several statements are one batch. --no-RULE leaves a rule out."""
    from halo.cli import sql as verb

    words = [each for each in (text, *context.args) if each is not None]
    return verb.sql(
        words, file=file, out=out, format=format, params=param or [], workflows=workflow or [],
        allow=allow or [], config_file=config, dry_run=dry_run, json_out=json, sample=sample,
        options=[name for each in context.command.params for name in each.opts],
        flags=settings(
            model=model, engine=engine, seed=seed, db=db, budget=budget, learn=learn, cache=cache
        ),
    )  # fmt: skip


@app.command()
def explain(
    flows: Annotated[list[str] | None, typer.Argument(metavar="FLOW...")] = None,
    input: Annotated[str | None, typer.Option("--input", "-i", metavar="ROWS")] = None,
    analyze: Annotated[
        Path | None, typer.Option("--analyze", metavar="DIR", help="a run: estimate beside actual")
    ] = None,
    stage: Annotated[str, typer.Option(help="bound, merged, optimized or physical")] = "physical",
    format: Annotated[str, typer.Option(help="text, json, mermaid, dot, html or gantt")] = "text",
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
    kv_tokens: Annotated[
        int | None, typer.Option(min=0, help="also what a prefix cache of this size would hit")
    ] = None,
    json: Json = False,
) -> int:
    """Print the plan with its estimates; --analyze DIR puts what happened beside them."""
    from halo.cli import explain as verb

    return verb.explain(
        flows or [], input, analyze=analyze, stage=stage, format="json" if json else format,
        verbose=verbose, config_file=config, sample=sample, kv_tokens=kv_tokens,
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
    processor_time: Annotated[
        bool,
        typer.Option(
            "--processor-time",
            help="count the engine's processor seconds: one thread on a machine that is not quiet",
        ),
    ] = False,
    config: ConfigFile = None,
    seed: Seed = None,
    threads: Annotated[int | None, typer.Option(min=1, help="threads of the engine")] = None,
    json: Json = False,
) -> int:
    """Measure an engine's step times and fit the profile that its estimates use."""
    from halo.cli import calibrate as verb

    return verb.calibrate(
        samples_file=samples, save_samples=save_samples, out=out, hardware=hardware, shape=shape,
        budget_s=budget_s, held_out=held_out, processor_time=processor_time, config_file=config,
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


@models_app.command("serve")
def models_serve(
    name: Annotated[str, typer.Argument(metavar="MODEL", help="a name, a GGUF file or a folder")],
    engine: Annotated[str, typer.Option(help="torch, local or simulated")] = "torch",
    port: Annotated[int, typer.Option(help="0 takes any that is free")] = 8321,
    threads: Annotated[int | None, typer.Option(help="processor threads")] = None,
    max_in_flight: Annotated[
        int | None, typer.Option(help="requests in the engine at once")
    ] = None,
    exact: Annotated[bool, typer.Option("--exact", help="float32 throughout")] = False,
    precision: Annotated[
        str | None, typer.Option(help="torch engine: float32, bfloat16 or int8")
    ] = None,
    seed: Seed = None,
) -> int:
    """Serve a model on this machine under the OpenAI API: chat, completions, streaming."""
    from halo.cli import serve_model as verb

    return verb.serve_model(
        name, engine=engine, port=port, threads=threads, max_in_flight=max_in_flight,
        exact=exact, precision=precision, seed=seed or 0,
    )  # fmt: skip


@models_app.command("remove")
def models_remove(name: str) -> int:
    """Delete a model's weights from the cache."""
    from halo.cli import models as verb

    return verb.remove(name)


@engine_app.command(
    "start", context_settings={"allow_extra_args": True, "ignore_unknown_options": False}
)
def engine_start(
    context: typer.Context,
    model: Annotated[str, typer.Option(help="a model folder, or a name of the hub")],
    python: Annotated[
        str | None, typer.Option(help="Python or environment with SGLang [HALO_SGLANG_PYTHON]")
    ] = None,
    name: Annotated[str, typer.Option(help="the model's name in requests")] = "",
    port: Annotated[int, typer.Option(help="on the loopback address")] = 30000,
    gpu: Annotated[str | None, typer.Option(help="which devices, such as 0 or 0,1")] = None,
    hardware: Annotated[
        str | None, typer.Option(help="device: a name such as h100-sxm, or a profile's file")
    ] = None,
    cpu: Annotated[bool, typer.Option("--cpu", help="run without an accelerator")] = False,
    policy: Annotated[str, typer.Option(help="plan: Halo's order; lpm: SGLang's own")] = "plan",
    share: Annotated[float, typer.Option(help="part of the device's memory")] = 1.0,
    chunk_tokens: Annotated[int | None, typer.Option(help="prompt tokens of a step")] = None,
    mixed_chunk: Annotated[
        bool | None,
        typer.Option(
            "--mixed-chunk/--no-mixed-chunk",
            help="decode in the steps in which prompts are read; on with an accelerator",
        ),
    ] = None,
    host_cache: Annotated[float, typer.Option(help="GiB of host memory for prefixes")] = 0.0,
    memory_saver: Annotated[
        bool, typer.Option("--memory-saver", help="memory can be released between runs")
    ] = False,
    metrics: Annotated[
        bool, typer.Option("--metrics", help="offer Prometheus metrics; without priorities then")
    ] = False,
    seeded: Annotated[
        bool, typer.Option("--seeded", help="sampled answers follow their seeds; slower")
    ] = False,
    adapter: Annotated[list[str] | None, typer.Option(help="LoRA adapter: NAME=FOLDER")] = None,
    flag: Annotated[
        list[str] | None, typer.Option(help="passed on to SGLang: --flag='--tp-size 2'")
    ] = None,
    log: Annotated[Path, typer.Option(help="the server's output")] = Path("sglang.log"),
    ready_s: Annotated[float, typer.Option(help="how long it may take to come up")] = 600.0,
    restarts: Annotated[int, typer.Option(help="how often it is restarted when it dies")] = 3,
    show: Annotated[bool, typer.Option("--show", help="print the command and why")] = False,
) -> int:
    """Start an SGLang server and keep it running until interrupted. A command after `--` runs with
    HALO_ENGINE naming the server, and the server is stopped when the command has ended."""
    import shlex

    from halo.cli import engine as verb
    from halo.engine_flags import Wish

    wish = Wish(
        model=model, name=name, port=port, hardware=hardware, cpu=cpu, policy=policy, share=share,
        chunk_tokens=chunk_tokens, mixed_chunk=mixed_chunk, host_cache_gib=host_cache,
        memory_saver=memory_saver, metrics=metrics, seeded=seeded, adapters=tuple(adapter or ()),
        extra=tuple(part for each in flag or () for part in shlex.split(each)),
    )  # fmt: skip
    return verb.start(
        wish, python=python, gpu=gpu, log=log, ready_s=ready_s, restarts=restarts,
        command=list(context.args), show=show,
    )  # fmt: skip


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
