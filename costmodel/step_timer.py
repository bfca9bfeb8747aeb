"""The step formula under the name and arguments that the simulator calls it by."""

from __future__ import annotations

from costmodel.step import StepModel


class ModelTimer:
    """A `StepModel` as a timer of steps: prompt tokens and decodes in sum.

    Several chunks in a step count as one behind their mean context, which is exact for the linear
    layers and, for attention, when their contexts are equal.
    """

    def __init__(self, model: StepModel) -> None:
        self.model = model

    def step_s(
        self, prefill_tokens: int, prefill_context: int, decodes: float, context_tokens: float
    ) -> float:
        """Seconds of one step: prompt tokens computed, the tokens before them that they attend to,
        requests that decode, and the tokens that those hold together."""
        chunks = ((prefill_tokens, prefill_context),) if prefill_tokens else ()
        n = int(decodes)
        seconds = self.model.step_s(chunks, n, int(context_tokens)) if chunks or n else 0.0
        if decodes == n:
            return seconds
        # A fractional request: between the steps of its neighbours.
        more = self.model.step_s(chunks, n + 1, int(context_tokens))
        return seconds + (decodes - n) * (more - seconds)
