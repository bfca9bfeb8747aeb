"""AdaptInfer: three layers drop the tokens of one segment that the text attends to least.

The paper prunes vision tokens. Pruning any marked segment of a prompt this way is Halo's own
generalisation, and experimental.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, replace

from costmodel.attention import AttentionProfile, Use
from costmodel.errors import ProfileError
from costmodel.layers import LayerSpec
from costmodel.models import ModelProfile

PRUNE_LAYERS: Mapping[str, tuple[int, ...]] = {
    "llava-1.5-7b": (1, 10, 20), "llava-1.5-13b": (1, 10, 20), "qwen2-vl": (0, 9, 19),
}  # fmt: skip
KEPT_TOKENS: Mapping[str, Mapping[int, tuple[int, ...]]] = {
    "llava-1.5-7b": {128: (290, 72, 18), 64: (133, 27, 3), 48: (80, 24, 2), 32: (40, 12, 0)},
    "llava-1.5-13b": {128: (300, 94, 30), 64: (148, 40, 5)},
}
"""Tokens kept from each pruning layer on, by model and named budget (released code)."""
KEPT_RATIOS: Mapping[str, tuple[float, ...]] = {"qwen2-vl": (0.17, 0.6, 0.3)}
"""Share of the tokens present that each pruning layer keeps."""
START_TOKENS = 576
"""Vision tokens of an image in LLaVA-1.5."""


@dataclass(frozen=True, slots=True)
class PruningSchedule:
    """`kept[i]` tokens of the segment remain from layer `layers[i]` on; `start` before."""

    start: int
    layers: tuple[int, ...]
    kept: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.layers) != len(self.kept) or list(self.layers) != sorted(set(self.layers)):
            raise ProfileError(
                f"a pruning schedule needs rising layers, one for each count: {self.layers}, "
                f"{self.kept}",
                field="layers",
            )
        counts = (self.start, *self.kept)
        if any(later > now for now, later in itertools.pairwise(counts)) or min(counts) < 0:
            raise ProfileError(
                f"kept tokens must fall from {self.start}: {self.kept}", field="kept"
            )

    def at(self, layer: int) -> int:
        """Tokens of the segment that pass `layer`."""
        left = self.start
        for first, kept in zip(self.layers, self.kept, strict=True):
            if layer >= first:
                left = kept
        return left

    def layer_average(self, n_layers: int) -> float:
        """Mean over layers: the budget that a schedule is named after."""
        return sum(self.at(layer) for layer in range(n_layers)) / n_layers


def adaptinfer_schedule(model: str, budget: int) -> PruningSchedule:
    """The schedule of the released code for a named budget. Raises `ProfileError`."""
    budgets = KEPT_TOKENS.get(model, {})
    if budget not in budgets:
        known = ", ".join(f"{m}: {sorted(b)}" for m, b in KEPT_TOKENS.items())
        raise ProfileError(f"no schedule for {model} at {budget} tokens; there are: {known}")
    return PruningSchedule(START_TOKENS, PRUNE_LAYERS[model], budgets[budget])


def segment_pruning(other_tokens: int, schedule: PruningSchedule) -> AttentionProfile:
    """Pruning of a segment in prompts with `other_tokens` tokens beside it.

    Prefill = sum over layers of F_lin n(l) + attention over n(l); KV n(l) tokens a layer; scoring
    needs explicit attention of the text rows at each pruning layer.
    """
    if other_tokens < 0:
        raise ProfileError(f"{other_tokens} other tokens; there cannot be fewer than 0")
    whole = other_tokens + schedule.start

    def transform(model: ModelProfile, layers: tuple[LayerSpec, ...]) -> tuple[LayerSpec, ...]:
        return tuple(
            _pruned(model, layer, i, other_tokens, schedule, whole)
            for i, layer in enumerate(layers)
        )

    def refuse(model: ModelProfile, use: Use) -> str | None:
        if not use.prunable_segment:
            return "segment pruning needs a prompt segment marked as prunable"
        if model.linear is not None:
            return f"segment pruning needs attention rows; {model.name} has layers without them"
        return None

    kept = ",".join(map(str, schedule.kept))
    return AttentionProfile(
        name=f"segment-pruning({other_tokens},{schedule.start}->{kept})",
        title="AdaptInfer segment pruning",
        exactness="approximate",
        prefix_reuse="exact_prompt",
        transform=transform,
        refuse=refuse,
        source="AdaptInfer: released code and cost equations",
        evidence="printed",
    )


def _pruned(
    model: ModelProfile,
    layer: LayerSpec,
    index: int,
    other_tokens: int,
    schedule: PruningSchedule,
    whole: int,
) -> LayerSpec:
    present = other_tokens + schedule.at(index)
    score = 0.0
    if index in schedule.layers:
        # Text rows against all tokens present at the layer before.
        before = other_tokens + schedule.at(index - 1) if index else whole
        score = 2.0 * other_tokens * before * model.n_query_heads * model.head_dim / whole
    return replace(
        layer,
        kv_tokens_share=present / whole,
        rest_tokens_share=present / whole,
        kv_retain=present / whole,
        select_flops_per_token=score,
    )
