"""Attention techniques as transforms of a model's layers, with what a planner must know of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from costmodel.errors import ProfileError
from costmodel.evidence import Grade
from costmodel.layers import LayerSpec, model_layers
from costmodel.models import ModelProfile

Exactness = Literal["exact", "approximate", "different_weights"]
"""exact: the same answer as the model alone; approximate: the same weights, another answer;
different_weights: needs a checkpoint that was trained or distilled for it."""

Requirement = Literal["none", "calibration", "distilled_checkpoint", "pretrained_architecture"]

PrefixReuse = Literal["any_prefix", "chunk_aligned", "exact_length_state", "exact_prompt"]
"""What of an earlier prompt's cache a later prompt may reuse.

* any_prefix: K and V depend on the prefix alone.
* chunk_aligned: deeper K and V depend on the chunk's last queries; whole chunks are reusable.
* exact_length_state: a recurrent state exists where an earlier prompt ended, nowhere between.
* exact_prompt: the cache depends on the end of the prompt; only an equal prompt may reuse it.
"""


@dataclass(frozen=True, slots=True)
class Use:
    """What a planner knows of the calls that a technique would serve.

    Attributes:
        prompt_tokens, output_tokens: of one call.
        batch: calls in the engine at once.
        allow_approximate: whether the workflow permits answers that differ from the model's.
        shares_prefix: whether other calls (or turns) reuse this prompt's cache.
        prunable_segment: whether the prompt has a segment marked as prunable.
        checkpoints: names of techniques for which the model's checkpoint was made.
        tbt_limit_s: longest acceptable time between tokens; None for offline work.
    """

    prompt_tokens: float = 1024
    output_tokens: float = 128
    batch: float = 1
    allow_approximate: bool = False
    shares_prefix: bool = False
    prunable_segment: bool = False
    checkpoints: frozenset[str] = frozenset()
    tbt_limit_s: float | None = None


Transform = Callable[[ModelProfile, tuple[LayerSpec, ...]], tuple[LayerSpec, ...]]
Refusal = Callable[[ModelProfile, Use], "str | None"]


def _keep(model: ModelProfile, layers: tuple[LayerSpec, ...]) -> tuple[LayerSpec, ...]:
    return layers


def _never(model: ModelProfile, use: Use) -> str | None:
    return None


@dataclass(frozen=True)
class AttentionProfile:
    """One technique.

    Attributes:
        transform: the model's own layers in, the layers under the technique out.
        refuse: why the technique does not fit a use of a model (beyond exactness and
            requirements, which `refusal` checks for all); None when it fits.
        chunk_tokens: granularity of reuse when `prefix_reuse` is chunk_aligned.
        source, evidence: where the description comes from and its weakest number's grade.
    """

    name: str
    title: str
    exactness: Exactness = "exact"
    requires: Requirement = "none"
    prefix_reuse: PrefixReuse = "any_prefix"
    chunk_tokens: int = 1
    transform: Transform = _keep
    refuse: Refusal = _never
    source: str = "the model's own config"
    evidence: Grade = "printed"

    def layers(self, model: ModelProfile) -> tuple[LayerSpec, ...]:
        """The model's layers under this technique."""
        return self.transform(model, model_layers(model))

    def refusal(self, model: ModelProfile, use: Use) -> str | None:
        """Why this technique must not serve `use` of `model`, or None when it may."""
        trained = self.requires in ("distilled_checkpoint", "pretrained_architecture")
        if trained and self.name.split("(")[0] not in use.checkpoints:
            kind = self.requires.replace("_", " ")
            return f"{self.title} needs a {kind}; {model.name} has none"
        if self.exactness == "approximate" and not use.allow_approximate:
            return f"{self.title} changes answers, and the operator does not allow approximation"
        if self.prefix_reuse == "exact_prompt" and use.shares_prefix:
            return (
                f"{self.title} keeps a cache that fits one prompt alone, and other calls reuse "
                "this prefix"
            )
        return self.refuse(model, use)

    def check(self, model: ModelProfile, use: Use) -> None:
        """Raises `ProfileError` with the reason when the technique must not serve `use`."""
        if (reason := self.refusal(model, use)) is not None:
            raise ProfileError(f"{self.name} is refused: {reason}", field=self.name)

    def reusable_tokens(self, common: int, cached: int, prompt: int) -> int:
        """Tokens of a prompt of `prompt` tokens that need no prefill when its first `common`
        equal the first of an earlier prompt of `cached` tokens. At most `prompt` - 1: the last
        token is always computed.

        Example:
            >>> DENSE.reusable_tokens(700, 900, 1000)
            700
        """
        most = min(common, prompt - 1)
        match self.prefix_reuse:
            case "any_prefix":
                return most
            case "chunk_aligned":
                return most // self.chunk_tokens * self.chunk_tokens
            case "exact_length_state":
                return cached if common == cached <= most else 0
            case "exact_prompt":
                return most if common == cached == prompt else 0


DENSE = AttentionProfile(name="dense", title="attention as trained")
"""The model's own attention: full, grouped, latent, windowed or hybrid, as its config says."""


def native(model: ModelProfile) -> AttentionProfile:
    """The model's own attention, with the prefix reuse that its layers allow: recurrent and
    sliding-window layers keep a state of the end of what was read alone."""
    if "linear" in model.kinds or "window" in model.kinds:
        words = "recurrent" if "linear" in model.kinds else "sliding-window"
        return AttentionProfile(
            name="hybrid",
            title=f"hybrid attention with {words} layers",
            prefix_reuse="exact_length_state",
        )
    return DENSE
