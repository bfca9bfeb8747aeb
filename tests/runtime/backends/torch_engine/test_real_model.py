"""SmolLM2-135M: the engine's float32 answers are those of `transformers` on the same weights."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import ANSWER_TOKENS

from runtime.backends.base import Message, Request
from runtime.backends.torch_engine.engine import Engine, EngineConfig
from runtime.backends.torch_engine.export import export_checkpoint
from runtime.backends.torch_engine.loading import find_model, load_model
from runtime.backends.torch_engine.model import Model
from runtime.backends.torch_engine.scheduler import SchedulerConfig
from runtime.backends.torch_engine.sequence import GenerationRequest
from runtime.backends.torch_engine.token_sets import SwiftKV
from runtime.backends.torch_engine.weights import SafetensorsSource, read_config

pytestmark = pytest.mark.live

QUESTIONS = (
    "What is the capital of France?",
    "Name three rivers of Europe.",
    "Write a sentence about the sea.",
    "What is 12 times 12?",
    "Is water wet? Answer in one word.",
    "Translate 'good morning' into Spanish.",
)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The checkpoint, its tokenizer's prompts, and the reference's answers."""
    from transformers import AutoModelForCausalLM

    path = find_model("smollm2-135m-instruct", announce=print)
    directory = tmp_path_factory.mktemp("smollm2")
    export_checkpoint(path, directory)
    tokenizer = load_model(path, "float32", torch.device("cpu")).tokenizer
    prompts = [
        tokenizer.encode(
            tokenizer.template.pieces(Request("k", "m", (Message("user", q),)).messages)
        )
        for q in QUESTIONS
    ]
    reference = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    answers = []
    for prompt in prompts:
        out = reference.generate(
            torch.tensor([prompt]), max_new_tokens=2 * ANSWER_TOKENS, do_sample=False,
            min_new_tokens=2 * ANSWER_TOKENS, pad_token_id=0,
        )  # fmt: skip
        answers.append(out[0, len(prompt) :].tolist())
    return directory, prompts, answers


@pytest.mark.parametrize(
    "config",
    [
        EngineConfig(4_096),
        EngineConfig(4_096, SchedulerConfig(chunk_tokens=16)),
        EngineConfig(200, SchedulerConfig(max_step_tokens=40)),
        EngineConfig(4_096, SchedulerConfig(layer_groups=5)),
        EngineConfig(4_096, SchedulerConfig(layer_groups=30)),
        EngineConfig(4_096, swiftkv=SwiftKV(30)),
    ],
    ids=["plain", "chunks", "crowded", "five groups", "thirty groups", "swiftkv 30"],
)
def test_answers_are_the_references(exported: tuple[Path, Any, Any], config: EngineConfig) -> None:
    directory, prompts, answers = exported
    keep = config.swiftkv is not None
    model = Model(read_config(directory), SafetensorsSource(directory), keep_projections=keep)
    engine = Engine(model, lambda: 0.0, config)
    # The reference was told not to stop: its end token is an ordinary one here too, but it may not
    # be chosen first, as the reference may not either.
    results = engine.generate([GenerationRequest(p, 2 * ANSWER_TOKENS) for p in prompts])
    for result, answer in zip(results, answers, strict=True):
        n = next((i for i, pair in enumerate(zip(result.ids, answer, strict=True))
                  if pair[0] != pair[1]), len(answer))  # fmt: skip
        # Where they part, the engine chose the end of the turn, which the reference had to avoid.
        assert n == len(answer) or result.ids[n] == 2
        assert n >= 3
    engine.check()


def test_swiftkv_at_half_the_layers_does_the_work_its_formula_says(
    exported: tuple[Path, Any, Any],
) -> None:
    """0.531 of the prefill work without the output matrix at 15 of 30 layers."""
    directory = exported[0]
    ids = [random.Random(1).randrange(1_000, 40_000) for _ in range(400)]
    model = Model(read_config(directory), SafetensorsSource(directory), keep_projections=True)

    def flops(config: EngineConfig) -> int:
        before = model.counters.linear_flops
        Engine(model, lambda: 0.0, config).generate([GenerationRequest(ids, 0)])
        return model.counters.linear_flops - before

    ratio = flops(EngineConfig(1_024, swiftkv=SwiftKV(15))) / flops(EngineConfig(1_024))
    assert ratio == pytest.approx(0.531, rel=0.01)
