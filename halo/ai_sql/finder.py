"""Finding calls in a tree, and what can be evaluated without them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sqlglot import exp

from halo.ai_sql.block import clauses, has_window, is_volatile, own_nodes
from halo.ai_sql.errors import SqlError
from halo.ai_sql.functions import FOREIGN, MASKED
from halo.ai_sql.host import Host
from halo.ai_sql.lift import Lifter
from halo.ai_sql.literals import offset_of
from halo.ai_sql.trees import in_filter


class CallFinder:
    """Finds the calls of one statement."""

    def __init__(self, host: Host, lifter: Lifter) -> None:
        self._host = host
        self._lifter = lifter
        self._root: Any = None

    def _calls_in(self, root: Any) -> list[Any]:
        return [
            node
            for node in root.walk()
            if isinstance(node, exp.Anonymous) and self._lifter.is_call(node)
        ]

    def _calls_in_block(self, select: exp.Select) -> list[Any]:
        found: list[Any] = []
        for _, root in clauses(select):
            found += [
                n
                for n in own_nodes(root)
                if isinstance(n, exp.Anonymous) and self._lifter.is_call(n)
            ]
        return found

    def _ready_calls(self, root: Any) -> list[Any]:
        """Calls of this block whose arguments hold no call, in the order in which to ask: tests of
        CASE before arms, plain calls before those under OR and CASE, as written otherwise."""
        if root is None:
            return []
        ready: list[Any] = []
        for node in own_nodes(root):
            if not isinstance(node, exp.Anonymous) or not self._lifter.is_call(node):
                continue
            inner = [
                n
                for each in node.expressions
                for n in each.walk()
                if isinstance(n, exp.Anonymous) and self._lifter.is_call(n)
            ]
            if not inner:
                ready.append(node)
        # The condition of an aggregate's FILTER guards what the aggregate is of.
        return sorted(ready, key=lambda node: 0 if in_filter(node) else 1)

    def _free(self, node: Any) -> bool:
        """Whether a condition can be evaluated now: it holds no call, and always answers alike."""
        return not self._calls_in(node) and not is_volatile(node)

    def _ready_condition(self, pre: bool) -> Callable[[Any], bool]:
        def ready(node: Any) -> bool:
            if not self._free(node) or has_window(node):
                return False
            return not pre or not any(self._is_aggregate(each) for each in own_nodes(node))

        return ready

    def _is_aggregate(self, node: Any) -> bool:
        if isinstance(node, exp.AggFunc):
            return not isinstance(node.parent, exp.Window)
        if isinstance(node, exp.Anonymous) and not isinstance(node.parent, exp.Window):
            return self._host.is_aggregate(str(node.this).lower()) or (
                str(node.this).upper() in ("ZZ_AGG", "ZZ_SUMMARIZE_AGG", "ZZM_REDUCE")
            )
        return False

    def _aggregates(self, root: Any) -> bool:
        return any(self._is_aggregate(node) for node in own_nodes(root))

    def _is_grouped(self, select: exp.Select) -> bool:
        if select.args.get("group") or select.args.get("having"):
            return True
        roots = [root for name, root in clauses(select) if name in ("select", "order", "qualify")]
        return any(self._is_aggregate(node) for root in roots for node in own_nodes(root))

    def _refuse(self, code: str, node: Any, message: str) -> SqlError:
        name = ""
        if isinstance(node, exp.Anonymous):
            name = MASKED.get(str(node.this).upper(), str(node.this).upper())
            name = FOREIGN.get(name, name) + ": "
        return SqlError(code, f"{name}{message}", text=self._lifter.text, offset=offset_of(node))
