"""A decision for the simulator: where each operation runs each group of rows, and in what order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

Order = Literal["soft", "strict", "longest_prefix"]
Switching = Literal["drain", "priority"]


@dataclass(frozen=True)
class Assignment:
    """Items are (operation, group) pairs, number `operation * groups + group`.

    Attributes:
        worker: of each item; -1 for tool calls.
        priority: of each item; smaller first.
        order: `soft`: among ready items the smallest priority goes first and a worker never waits
            for one that is not ready; `strict`: a worker takes its items in exactly this order;
            `longest_prefix`: among ready items, the one with the most cached tokens a call.
        switching: when a worker changes models: `drain`: when the resident ones have nothing left
            to do; `priority`: as soon as the first ready item asks for another one.
        co_resident: for each worker, whether models may stay loaded side by side. The memory for
            KV cache is then divided between the models that the worker is assigned.
        preload: whether an idle worker loads the model of its next item before that is ready.
        steal: whether an idle worker takes waiting calls of another one with the same model.
        migrate: whether cached prefixes move over the machine's link when that is cheaper than
            computing them.
        stage: of each operation, for barriers: one stage ends before the next begins; None for no
            barriers.
        groups_in_flight: groups under way at once; None for no limit.
        group_order: in which groups are admitted; input order when empty.
    """

    worker: Sequence[int]
    priority: Sequence[float]
    order: Order = "soft"
    switching: Switching = "drain"
    co_resident: Sequence[bool] = ()
    preload: bool = True
    steal: bool = False
    migrate: bool = False
    stage: Sequence[int] | None = None
    groups_in_flight: int | None = None
    group_order: Sequence[int] = field(default=())
