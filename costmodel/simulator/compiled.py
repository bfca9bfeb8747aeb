"""A workload laid out for the simulator: flat lists by item, prompt pieces as integer nodes."""

from __future__ import annotations

from dataclasses import dataclass

from costmodel.errors import ProfileError
from costmodel.simulator.workload import ModelWork, Workload


@dataclass(frozen=True, slots=True)
class Path:
    """A prompt as nodes of the tree of all prompts.

    Attributes:
        nodes: (node, tokens, per row) from the beginning; `per row` is true from the first piece
            that differs between rows on.
        tokens: of the whole prompt.
        answer_node: node of prompt + answer, when a later prompt goes on from it; else -1.
    """

    nodes: tuple[tuple[int, int, bool], ...]
    tokens: int
    answer_node: int


class CompiledWorkload:
    """Everything about a workload that does not depend on the assignment.

    Attributes:
        n_groups, n_items: item = operation * n_groups + group.
        calls: of each item.
        users: of each operation, the operations that wait for it.
        paths: of each operation; None for tools.
        first_row: of each group, in the numbering of per-row lengths.
    """

    def __init__(self, workload: Workload) -> None:
        self.workload = workload
        ops = workload.operations
        n_groups = self.n_groups = len(workload.group_rows)
        self.n_items = len(ops) * n_groups
        self.users: list[list[int]] = [[] for _ in ops]
        for position, op in enumerate(ops):
            for i in dict.fromkeys(op.inputs):
                self.users[i].append(position)
        self.inputs = [tuple(dict.fromkeys(op.inputs)) for op in ops]
        self.calls: list[int] = []
        starts = [0]
        for rows in workload.group_rows:
            starts.append(starts[-1] + rows)
        self.first_row = starts
        for op in ops:
            if op.calls_per_row == 1.0:
                self.calls.extend(workload.group_rows)
                continue
            before = 0
            for g in range(n_groups):
                until = round(op.calls_per_row * starts[g + 1])
                self.calls.append(until - before)
                before = until
        self.paths: list[Path | None] = []
        self._build_paths()

    def _build_paths(self) -> None:
        ops = self.workload.operations
        nodes: dict[tuple[int, str, bool], int] = {}
        per_row_calls = [op.calls_per_row for op in ops]
        answers: list[tuple[int, int]] = []
        sizes: dict[int, int] = {}
        for position, op in enumerate(ops):
            work = op.work
            if not isinstance(work, ModelWork):
                self.paths.append(None)
                continue
            at = -1
            differs = False
            path: list[tuple[int, int, bool]] = []
            for part in work.prompt:
                differs = differs or part.per_row
                # A map's calls of one row differ from each other: their pieces are their own.
                key = part.key
                if differs and per_row_calls[position] > 1:
                    key = f"{key}#{position}"
                at = nodes.setdefault((at, f"{work.model}/{key}", differs), len(nodes))
                if sizes.setdefault(at, part.tokens) != part.tokens:
                    raise ProfileError(
                        f"prompt piece {part.key!r} has {part.tokens} tokens in operation "
                        f"{op.name!r} and {sizes[at]} in another one: equal keys are equal texts"
                    )
                path.append((at, part.tokens, differs))
            answers.append((position, at))
            self.paths.append(Path(tuple(path), work.prompt_tokens, -1))
        for position, end in answers:
            op = ops[position]
            work = op.work
            assert isinstance(work, ModelWork)
            answer = nodes.get((end, f"{work.model}/answer:{op.name}", True))
            path_of = self.paths[position]
            if answer is not None and path_of is not None:
                self.paths[position] = Path(path_of.nodes, path_of.tokens, answer)
