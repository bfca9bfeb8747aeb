"""The workloads of the engine comparison, by name."""

from __future__ import annotations

from workloads.graph import Workload
from workloads.primitives import DEBATE, ITERATIVE, MAP_REDUCE, PARALLEL, REFLECT, TRADING
from workloads.w_shapes import W1, W2, W3, W4, W5, W6

WORKLOADS: tuple[Workload, ...] = (
    W1, W2, W3, W4, W5, W6, MAP_REDUCE, DEBATE, REFLECT, ITERATIVE, PARALLEL, TRADING,
)  # fmt: skip


def named(names: str) -> list[Workload]:
    """The workloads in a comma-separated list; all of them for an empty one. Raises
    `ValueError`."""
    known = {workload.name: workload for workload in WORKLOADS}
    wanted = [name for name in names.split(",") if name]
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise ValueError(f"no workload {', '.join(unknown)}; there are: {', '.join(known)}")
    return [known[name] for name in wanted] or list(WORKLOADS)
