"""The simulator keeps accounts, wastes no time, and repeats itself."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated_work import TIMER, cases, engine, workloads

from costmodel.errors import ProfileError, SimulationError
from costmodel.simulator import (
    AffineTimer,
    Assignment,
    EngineSpec,
    LinkSpec,
    Machine,
    ModelWork,
    Operation,
    PromptPart,
    Simulator,
    ToolLaneSpec,
    ToolWork,
    WorkerSpec,
    Workload,
    even_groups,
    simulate,
    topological_priorities,
)
from costmodel.simulator.compiled import CompiledWorkload


def one_worker(spec: EngineSpec, memory: float = 1e12, **options: object) -> Machine:
    worker = WorkerSpec("w", {"m": spec}, memory, ("m",), **options)  # type: ignore[arg-type]
    return Machine((worker,), (ToolLaneSpec("tools", 2),))


def plan(workload: Workload, **options: object) -> Assignment:
    n = len(workload.operations) * len(workload.group_rows)
    return Assignment([0] * n, topological_priorities(workload), **options)  # type: ignore[arg-type]


def call(name: str, *inputs: int, own: int = 100, out: int = 10, **options: object) -> Operation:
    parts = (PromptPart(f"own {name}", own, True),)
    return Operation(name, ModelWork("m", parts, out), inputs, **options)  # type: ignore[arg-type]


@given(cases())
@settings(max_examples=150, deadline=None)
def test_accounts_balance_and_equal_runs_are_equal(
    case: tuple[Workload, Machine, Assignment],
) -> None:
    workload, machine, assignment = case
    run = simulate(workload, machine, assignment, timeline=True)
    compiled = CompiledWorkload(workload)
    assert run.calls == sum(compiled.calls)
    spent = run.computed_tokens + run.hit_tokens + run.host_tokens + run.moved_tokens
    assert spent == pytest.approx(run.prompt_tokens)
    groups = compiled.n_groups
    prompts = outputs = 0
    for i, op in enumerate(workload.operations):
        if isinstance(op.work, ModelWork):
            calls = sum(compiled.calls[i * groups : (i + 1) * groups])
            prompts += calls * op.work.prompt_tokens
            outputs += calls * op.work.output_tokens
    assert run.prompt_tokens == prompts
    assert run.output_tokens == outputs
    assert sum(w.prompt_tokens for w in run.workers) == prompts
    assert all(w.busy_s <= run.makespan_s + 1e-9 for w in run.workers)
    assert sum(s.calls for s in run.timeline if s.kind in ("calls", "tool")) == run.calls
    assert simulate(workload, machine, assignment, timeline=True) == run


@given(cases())
@settings(max_examples=100, deadline=None)
def test_nothing_starts_before_what_it_needs_and_lanes_keep_their_limits(
    case: tuple[Workload, Machine, Assignment],
) -> None:
    workload, machine, assignment = case
    run = simulate(workload, machine, assignment, timeline=True)
    names = {op.name: i for i, op in enumerate(workload.operations)}
    ended: dict[tuple[int, int], list[tuple[float, int]]] = {}
    for span in run.timeline:
        if span.kind in ("calls", "tool"):
            ended.setdefault((names[span.label], span.group), []).append((span.end_s, span.calls))
    compiled = CompiledWorkload(workload)
    for span in run.timeline:
        if span.kind not in ("calls", "tool"):
            continue
        op = names[span.label]
        for i in workload.operations[op].inputs:
            if compiled.calls[i * compiled.n_groups + span.group]:
                before = [end for end, _ in ended[i, span.group] if end <= span.start_s + 1e-9]
                assert before, f"{span} began before anything of operation {i}"
    limit = machine.lanes[0].limit
    tools = [s for s in run.timeline if s.kind == "tool"]
    for at in {s.start_s for s in tools}:
        assert sum(s.calls for s in tools if s.start_s <= at < s.end_s) <= limit


@given(workloads(tools=False, models=("m",)), st.integers(1, 8), st.booleans())
@settings(max_examples=100, deadline=None)
def test_one_worker_is_never_idle_while_work_is_ready(
    workload: Workload, max_running: int, mixed: bool
) -> None:
    machine = one_worker(engine(max_running=max_running, mixed=mixed))
    run = simulate(workload, machine, plan(workload))
    assert run.workers[0].busy_s == pytest.approx(run.makespan_s)


@given(cases(), st.sampled_from([0.5, 2.0, 8.0]))
@settings(max_examples=60, deadline=None)
def test_a_machine_that_is_k_times_as_slow_takes_k_times_as_long(
    case: tuple[Workload, Machine, Assignment], k: float
) -> None:
    workload, machine, assignment = case

    def slower(spec: EngineSpec) -> EngineSpec:
        assert isinstance(spec.timer, AffineTimer)
        return replace(
            spec, timer=spec.timer.scaled(k), load_s=spec.load_s * k, wake_s=spec.wake_s * k
        )

    slow = replace(
        machine,
        workers=tuple(
            replace(w, engines={m: slower(e) for m, e in w.engines.items()})
            for w in machine.workers
        ),
    )
    slow_workload = replace(
        workload,
        operations=tuple(
            replace(op, work=replace(op.work, latency_s=op.work.latency_s * k))
            if isinstance(op.work, ToolWork)
            else op
            for op in workload.operations
        ),
    )
    fast_run = simulate(workload, machine, assignment)
    # Powers of two scale floating-point times exactly, so the same events happen.
    assert simulate(slow_workload, slow, assignment).makespan_s == pytest.approx(
        k * fast_run.makespan_s
    )


@given(workloads(models=("m",)), st.integers(1, 4))
@settings(max_examples=80, deadline=None)
def test_lower_bounds_hold(workload: Workload, n_workers: int) -> None:
    spec = engine()
    machine = Machine(
        tuple(WorkerSpec(f"w{i}", {"m": spec}, 1e12, ("m",)) for i in range(n_workers)),
        (ToolLaneSpec("tools", 2),),
    )
    groups = len(workload.group_rows)
    n = len(workload.operations) * groups
    assignment = Assignment([i % n_workers for i in range(n)], topological_priorities(workload))
    run = simulate(workload, machine, assignment)
    # The longest chain of a row: at least one token of a prompt is computed, and each answer token
    # takes a step of one request.
    compiled = CompiledWorkload(workload)
    worst = 0.0
    for g in range(groups):
        ends: list[float] = []
        for i, op in enumerate(workload.operations):
            seconds = 0.0
            if compiled.calls[i * groups + g]:
                if isinstance(op.work, ModelWork):
                    step = TIMER.step_s(0, 0, 1, 1)
                    seconds = TIMER.step_s(1, 0, 0, 0) + op.work.output_tokens * step
                else:
                    seconds = op.work.latency_s
            ends.append(seconds + max((ends[j] for j in op.inputs), default=0.0))
        worst = max(worst, *ends)
    assert run.makespan_s >= worst - 1e-9
    tools = sum(run.lane_busy_s)
    assert run.makespan_s >= tools / 2 - 1e-9
    tokens_s = run.computed_tokens * TIMER.per_prefill_token_s
    assert run.makespan_s * n_workers >= tokens_s - 1e-9


@given(st.integers(1, 40), st.integers(1, 40))
def test_more_rows_never_take_less(rows: int, more: int) -> None:
    machine = one_worker(engine())

    def makespan(n: int) -> float:
        workload = Workload((call("a"), call("b", 0)), even_groups(n, 4))
        return simulate(workload, machine, plan(workload)).makespan_s

    assert makespan(rows + more) >= makespan(rows) - 1e-9


def test_one_call_takes_its_prefill_and_its_steps() -> None:
    workload = Workload((call("a", own=1000, out=5),), (1,))
    run = simulate(workload, one_worker(engine(chunk_tokens=400)), plan(workload))
    prefill = 1000 * TIMER.per_prefill_token_s
    assert run.makespan_s == pytest.approx(prefill + 5 * (TIMER.decode_s + TIMER.per_request_s))


def test_a_batch_decodes_side_by_side_and_prefill_goes_first() -> None:
    workload = Workload((call("a", own=100, out=5),), (4,))
    run = simulate(workload, one_worker(engine()), plan(workload))
    prefill = 400 * TIMER.per_prefill_token_s
    assert run.makespan_s == pytest.approx(prefill + 5 * (TIMER.decode_s + 4 * TIMER.per_request_s))


def test_calls_that_arrive_in_a_macro_step_join_at_the_next_step() -> None:
    first = call("long", own=100, out=100)
    late = call("late", own=100, out=1)
    workload = Workload((first, replace(late, inputs=())), (1, 1), arrival_s=(0.0, 0.505))
    # Group 1 arrives while group 0 decodes; both make both calls.
    run = simulate(workload, one_worker(engine()), plan(workload), timeline=True)
    late_spans = [s for s in run.timeline if s.label == "late" and s.group == 1]
    step = TIMER.decode_s + 2 * TIMER.per_request_s
    assert 0.505 <= late_spans[0].start_s <= 0.505 + step


def test_static_and_row_prefixes_are_found_where_they_were_computed() -> None:
    shared = PromptPart("instructions", 300)
    row = PromptPart("document", 200, True)
    operations = tuple(
        Operation(f"q{i}", ModelWork("m", (shared, row, PromptPart(f"ask{i}", 10, True)), 5))
        for i in range(2)
    )
    workload = Workload(operations, (2, 2))
    spec = engine()
    machine = Machine(tuple(WorkerSpec(f"w{i}", {"m": spec}, 1e12, ("m",)) for i in range(2)))
    together = simulate(workload, machine, Assignment([0, 1, 0, 1], [0, 1, 2, 3]))
    # On each worker: instructions once, each document once; everything else is found.
    assert together.computed_tokens == 2 * 300 + 4 * 200 + 8 * 10
    apart = simulate(workload, machine, Assignment([0, 0, 1, 1], [0, 1, 2, 3]))
    assert apart.computed_tokens == 2 * 300 + 8 * 200 + 8 * 10


def test_an_answer_that_a_prompt_goes_on_from_is_found() -> None:
    ask = (PromptPart("system", 50), PromptPart("question", 100, True))
    first = Operation("first", ModelWork("m", ask, 40))
    history = (*ask, PromptPart("answer:first", 40, True), PromptPart("again", 10, True))
    second = Operation("second", ModelWork("m", history, 5), (0,))
    workload = Workload((first, second), (1,))
    run = simulate(workload, one_worker(engine()), plan(workload))
    assert run.hit_tokens == 50 + 100 + 40


def test_a_small_cache_forgets_and_a_host_tier_remembers() -> None:
    row = PromptPart("document", 400, True)
    operations = tuple(
        Operation(f"q{i}", ModelWork("m", (row, PromptPart(f"a{i}", 10, True)), 5))
        for i in range(2)
    )
    workload = Workload(operations, (1,) * 10)
    spec = engine(max_running=1)
    roomy = simulate(workload, one_worker(spec), plan(workload))
    assert roomy.hit_tokens == 10 * 400
    # Room for three calls: operation by operation, every document is gone before it is needed.
    small = simulate(workload, one_worker(spec, 1e9 + 3 * 450 * 1e3), plan(workload))
    assert small.hit_tokens == 0
    assert small.workers[0].evicted_tokens > 0
    by_row = [0.0] * 20
    for g in range(10):
        by_row[g], by_row[10 + g] = 2 * g, 2 * g + 1
    row_major = Assignment([0] * 20, by_row)
    nested = simulate(workload, one_worker(spec, 1e9 + 3 * 450 * 1e3), row_major)
    assert nested.hit_tokens == 10 * 400
    tiered = simulate(
        workload,
        one_worker(spec, 1e9 + 3 * 450 * 1e3, host_cache_tokens=100_000),
        plan(workload),
    )
    assert tiered.host_tokens >= 9 * 400
    assert tiered.makespan_s < small.makespan_s


def test_prefixes_move_over_a_link_when_that_is_cheaper() -> None:
    row = PromptPart("document", 2000, True)
    operations = (
        Operation("a", ModelWork("m", (row, PromptPart("x", 10, True)), 5)),
        Operation("b", ModelWork("m", (row, PromptPart("y", 10, True)), 5), (0,)),
    )
    workload = Workload(operations, (1,))
    spec = engine(chunk_tokens=4096)
    workers = tuple(WorkerSpec(f"w{i}", {"m": spec}, 1e12, ("m",)) for i in range(2))
    apart = Assignment([0, 1], [0, 1], migrate=True)
    fast = simulate(workload, Machine(workers, link=LinkSpec(1e9)), apart)
    assert fast.moved_tokens == 2000
    slow = simulate(workload, Machine(workers, link=LinkSpec(1e6)), apart)
    assert slow.moved_tokens == 0  # 2 s on the link against 0.2 s of prefill
    assert fast.makespan_s < slow.makespan_s


def test_models_that_do_not_fit_together_are_switched_and_pay_for_it() -> None:
    both = {"a": engine(load_s=3.0), "b": engine(load_s=5.0)}
    operations = (
        Operation("x", ModelWork("a", (PromptPart("p", 10, True),), 5)),
        Operation("y", ModelWork("b", (PromptPart("p", 10, True),), 5), (0,)),
        Operation("z", ModelWork("a", (PromptPart("p", 10, True),), 5), (1,)),
    )
    workload = Workload(operations, (2,))
    assignment = Assignment([0, 0, 0], [0, 1, 2])
    small = Machine((WorkerSpec("w", both, 1.5e9),))
    run = simulate(workload, small, assignment, timeline=True)
    loads = [(s.label, round(s.end_s - s.start_s, 6)) for s in run.timeline if s.kind == "load"]
    assert loads == [("a", 3.0), ("b", 5.0), ("a", 3.0)]
    assert run.switches == 3
    large = Machine((WorkerSpec("w", both, 3e9),))
    side_by_side = simulate(workload, large, replace(assignment, co_resident=[True]))
    assert side_by_side.switches == 2
    # The second load overlaps the first model's work.
    assert side_by_side.makespan_s < run.makespan_s - 3


def test_an_idle_worker_loads_its_next_model_before_it_is_needed() -> None:
    both = {"a": engine(), "b": engine(load_s=2.0)}
    operations = (
        Operation("slow tool", ToolWork("tools", 2.0)),
        Operation("y", ModelWork("b", (PromptPart("p", 10, True),), 5), (0,)),
    )
    workload = Workload(operations, (1,))
    machine = Machine((WorkerSpec("w", both, 1.5e9),), (ToolLaneSpec("tools"),))
    ahead = simulate(workload, machine, Assignment([-1, 0], [0, 1]))
    late = simulate(workload, machine, Assignment([-1, 0], [0, 1], preload=False))
    assert late.makespan_s == pytest.approx(ahead.makespan_s + 2.0)


def test_two_models_side_by_side_share_the_speed_of_the_worker() -> None:
    """The measured pair of H200 servers: alone 0.60 s and 0.23 s, together 0.75 s and 0.39 s."""
    step = AffineTimer(0.0, 0.01, 0.0)
    both = {m: engine(timer=step) for m in ("a", "b")}
    operations = (
        Operation("x", ModelWork("a", (PromptPart("p", 1, True),), 60)),
        Operation("y", ModelWork("b", (PromptPart("p", 1, True),), 23)),
    )
    workload = Workload(operations, (1,))
    machine = Machine((WorkerSpec("w", both, 1e12, ("a", "b"), co_run_throughput=1.18),))
    run = simulate(workload, machine, Assignment([0, 0], [0, 1], co_resident=[True]), timeline=True)
    ends = {s.label: s.end_s for s in run.timeline}
    assert ends["y"] == pytest.approx(0.39, abs=0.01)
    assert ends["x"] == pytest.approx(0.75, abs=0.015)


def test_an_idle_worker_steals_what_waits_elsewhere() -> None:
    spec = engine(max_running=2)
    machine = Machine(tuple(WorkerSpec(f"w{i}", {"m": spec}, 1e12, ("m",)) for i in range(2)))
    workload = Workload((call("a", out=50),), (4, 4))
    alone = simulate(workload, machine, Assignment([0, 0], [0, 1]))
    # Worker 1 has the model but no item of its own.
    helped = simulate(workload, machine, Assignment([0, 0], [0, 1], steal=True))
    assert helped.makespan_s < 0.7 * alone.makespan_s
    assert helped.workers[1].calls > 0


def test_barriers_hold_operations_back_and_soft_order_does_not() -> None:
    workload = Workload((call("a", out=50), call("b", 0, out=50)), even_groups(16, 16))
    machine = one_worker(engine(max_running=12))
    soft = simulate(workload, machine, plan(workload))
    barriers = simulate(workload, machine, plan(workload, stage=[0, 1]))
    assert barriers.makespan_s > soft.makespan_s


def test_row_lengths_may_be_given() -> None:
    op = call("a", out=10, output_tokens=[5, 50, 10])
    workload = Workload((op,), (1, 1, 1))
    run = simulate(workload, one_worker(engine()), plan(workload))
    assert run.output_tokens == 65


@pytest.mark.parametrize("rows", [64, 500])
def test_large_groups_predict_what_single_rows_do(rows: int) -> None:
    """Group-level planning against row-level simulation: within 3 %."""
    operations = (
        call("a", own=200, out=40),
        call("b", 0, own=120, out=60),
        Operation("t", ToolWork("tools", 0.01), (0,)),
        call("c", 1, 2, own=150, out=30),
    )
    spec = engine(max_running=16, chunk_tokens=2048)
    machine = Machine(
        tuple(WorkerSpec(f"w{i}", {"m": spec}, 1e12, ("m",)) for i in range(2)),
        (ToolLaneSpec("tools", 8),),
    )

    def makespan(groups: int, chunks: int) -> float:
        workload = Workload(operations, even_groups(rows, groups))
        n = len(workload.group_rows)
        worker = [g * 2 // n for _ in operations for g in range(n)]
        simulator = Simulator(workload, machine, chunks_per_event=chunks)
        return simulator.run(Assignment(worker, topological_priorities(workload))).makespan_s

    assert makespan(8, 64) == pytest.approx(makespan(rows, 1), rel=0.03)


class TestBadInput:
    def test_a_model_without_room_names_the_worker(self) -> None:
        workload = Workload((call("a"),), (1,))
        machine = Machine((WorkerSpec("tiny", {"m": engine()}, 1e8),))
        with pytest.raises(SimulationError, match="'tiny' cannot hold model 'm'"):
            simulate(workload, machine, plan(workload))

    def test_a_call_larger_than_the_cache(self) -> None:
        workload = Workload((call("a", own=5000),), (1,))
        with pytest.raises(SimulationError, match="needs 5010 tokens of KV cache"):
            simulate(workload, one_worker(engine(), 1e9 + 4000e3), plan(workload))

    def test_an_order_that_waits_for_itself(self) -> None:
        workload = Workload((call("a"), call("b", 0)), (1,))
        backwards = Assignment([0, 0], [1, 0], order="strict")
        with pytest.raises(SimulationError, match="waits for itself"):
            simulate(workload, one_worker(engine()), backwards)

    def test_a_cycle_through_two_workers(self) -> None:
        # Each worker's own order is sound: one does row 0's second call before row 1's first, the
        # other row 1's second before row 0's first. Together they wait for each other.
        workload = Workload((call("a"), call("b", 0)), (1, 1))
        workers = tuple(WorkerSpec(f"w{i}", {"m": engine()}, 1e12, ("m",)) for i in range(2))
        placement, priority = [0, 1, 1, 0], [1.0, 1.0, 0.0, 0.0]
        strict = Assignment(placement, priority, order="strict")
        with pytest.raises(SimulationError, match=r"4 items can never start .*waits for itself"):
            simulate(workload, Machine(workers), strict)
        soft = replace(strict, order="soft")
        assert simulate(workload, Machine(workers), soft).calls == 4

    def test_a_barrier_that_waits_for_what_is_behind_it(self) -> None:
        workload = Workload((call("a"), call("b", 0)), (2,))
        with pytest.raises(SimulationError, match="waits for itself"):
            simulate(workload, one_worker(engine()), plan(workload, stage=[1, 0]))

    def test_items_without_a_worker_and_lanes_that_are_missing(self) -> None:
        workload = Workload((call("a"),), (1,))
        with pytest.raises(SimulationError, match="has no worker"):
            simulate(workload, one_worker(engine()), Assignment([7], [0]))
        with pytest.raises(SimulationError, match="1 items"):
            simulate(workload, one_worker(engine()), Assignment([], []))
        tool = Workload((Operation("t", ToolWork("ftp", 1.0)),), (1,))
        with pytest.raises(SimulationError, match=r"'ftp'.*'tools'"):
            simulate(tool, one_worker(engine()), Assignment([-1], [0]))

    def test_equal_keys_of_different_lengths(self) -> None:
        operations = tuple(
            Operation(f"o{n}", ModelWork("m", (PromptPart("system", n),), 5)) for n in (10, 20)
        )
        with pytest.raises(ProfileError, match=r"'system' has 20 tokens.*and 10 in another"):
            simulate(Workload(operations, (1,)), one_worker(engine()), Assignment([0, 0], [0, 1]))

    @pytest.mark.parametrize(
        "broken",
        [
            lambda: Workload((call("a", 0),), (1,)),
            lambda: Workload((call("a"),), (-1,)),
            lambda: Workload((call("a", own=-5),), (1,)),
            lambda: Workload((call("a"),), (1,), arrival_s=(0.0, 1.0)),
            lambda: Workload((call("a"),), (1,), arrival_s=(-1.0,)),
            lambda: Workload((call("a"),), (1,), arrival_s=(float("inf"),)),
            lambda: Workload((call("a"),), (1,), priority=(-1.0,)),
            lambda: Workload((call("a"),), (1,), deadline_s=(float("nan"),)),
            lambda: Workload((Operation("t", ToolWork("tools", -1.0)),), (1,)),
            lambda: engine(max_running=0),
            lambda: engine(load_s=-1.0),
            lambda: ToolLaneSpec("x", 0),
            lambda: LinkSpec(0.0),
            lambda: AffineTimer(-1.0, 0.0, 0.0),
            lambda: Machine((WorkerSpec("w", {}, 1.0), WorkerSpec("w", {}, 1.0))),
        ],
    )
    def test_impossible_numbers_are_refused(self, broken: object) -> None:
        with pytest.raises(ProfileError):
            broken()  # type: ignore[operator]


def test_no_rows_and_no_operations_take_no_time() -> None:
    machine = one_worker(engine())
    assert simulate(Workload((call("a"),), (0,)), machine, Assignment([0], [0])).makespan_s == 0
    assert simulate(Workload((), (3,)), machine, Assignment([], [])).makespan_s == 0
