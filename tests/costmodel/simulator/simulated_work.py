"""Random workloads, machines and assignments that several simulator tests draw."""

from __future__ import annotations

from hypothesis import strategies as st

from costmodel.simulator import (
    AffineTimer,
    Assignment,
    EngineSpec,
    Machine,
    ModelWork,
    Operation,
    PromptPart,
    ToolLaneSpec,
    ToolWork,
    WorkerSpec,
    Workload,
)

TIMER = AffineTimer(per_prefill_token_s=1e-4, decode_s=0.01, per_request_s=1e-4)


def engine(
    *,
    timer: AffineTimer = TIMER,
    max_running: int = 8,
    chunk_tokens: int = 512,
    mixed: bool = False,
    load_s: float = 0.0,
    block_tokens: int = 1,
    shares_in_batch: bool = True,
) -> EngineSpec:
    return EngineSpec(
        timer,
        1e9,
        1e3,
        load_s=load_s,
        wake_s=load_s,
        max_running=max_running,
        chunk_tokens=chunk_tokens,
        mixed=mixed,
        block_tokens=block_tokens,
        shares_in_batch=shares_in_batch,
    )


@st.composite
def workloads(draw: st.DrawFn, *, tools: bool = True, models: tuple[str, ...] = ("a", "b")) -> (
    Workload
):  # fmt: skip
    n_ops = draw(st.integers(1, 6))
    operations: list[Operation] = []
    for i in range(n_ops):
        inputs = tuple(sorted(draw(st.sets(st.integers(0, i - 1), max_size=2)))) if i else ()
        if tools and draw(st.booleans()) and draw(st.booleans()):
            work: ModelWork | ToolWork = ToolWork("tools", draw(st.sampled_from([0.0, 0.1, 1.0])))
        else:
            system = draw(st.integers(0, 1))
            parts = [PromptPart(f"s{system}", (7, 45)[system])]
            if draw(st.booleans()):
                parts.append(PromptPart("row", 50, True))
            parts.append(PromptPart(f"own{i}", draw(st.integers(1, 40)), True))
            work = ModelWork(draw(st.sampled_from(models)), tuple(parts), draw(st.integers(0, 20)))
        per_row = draw(st.sampled_from([1.0, 1.0, 1.0, 0.5, 2.0]))
        operations.append(Operation(f"op{i}", work, inputs, calls_per_row=per_row))
    groups = draw(st.lists(st.integers(1, 5), min_size=1, max_size=4))
    return Workload(tuple(operations), tuple(groups))


@st.composite
def cases(draw: st.DrawFn) -> tuple[Workload, Machine, Assignment]:
    """A workload on one to three workers, placed and ordered at random."""
    workload = draw(workloads())
    n_workers = draw(st.integers(1, 3))
    both = {m: engine(mixed=draw(st.booleans()), load_s=draw(st.sampled_from([0.0, 0.5])))
            for m in ("a", "b")}  # fmt: skip
    # Room for the weights of both models, or of one, and for a few calls.
    memory = draw(st.sampled_from([1.002e9, 3e9]))
    resident = draw(st.sampled_from([(), ("a",)]))
    machine = Machine(
        tuple(WorkerSpec(f"w{i}", both, memory, resident) for i in range(n_workers)),
        (ToolLaneSpec("tools", draw(st.integers(1, 4))),),
    )
    n = len(workload.operations) * len(workload.group_rows)
    worker = [draw(st.integers(0, n_workers - 1)) for _ in range(n)]
    priority = [float(p) for p in draw(st.permutations(range(n)))]
    stage = None
    if draw(st.booleans()) and draw(st.booleans()):
        stage = list(range(len(workload.operations)))
    return (
        workload,
        machine,
        Assignment(
            worker,
            priority,
            order=draw(st.sampled_from(["soft", "soft", "longest_prefix"])),
            switching=draw(st.sampled_from(["drain", "priority"])),
            co_resident=[memory > 2e9 and draw(st.booleans())] * n_workers,
            preload=draw(st.booleans()),
            steal=draw(st.booleans()),
            stage=stage,
            # A barrier would wait for groups that may not start.
            groups_in_flight=None if stage else draw(st.sampled_from([None, None, 1, 2])),
        ),
    )
