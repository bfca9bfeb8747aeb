"""Greedy tokens equal the float32 reference, however the work is cut and packed."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace
from typing import Any

import pytest
import tiny_models
import torch
from tiny_models import ANSWER_TOKENS, Tiny

from runtime.backends.torch_engine.engine import Engine, EngineConfig
from runtime.backends.torch_engine.scheduler import SchedulerConfig
from runtime.backends.torch_engine.sequence import GenerationRequest
from runtime.backends.torch_engine.token_sets import SwiftKV


def engine_of(tiny: Tiny, max_kv_tokens: int = 2_000, **options: Any) -> Engine:
    ticks = itertools.count()
    scheduler = options.pop("scheduler", SchedulerConfig())
    config = EngineConfig(max_kv_tokens, scheduler, **options)
    return Engine(tiny.model, lambda: float(next(ticks)), config)


def answers_of(engine: Engine, prompts: list[list[int]]) -> list[list[int]]:
    results = engine.generate([GenerationRequest(p, ANSWER_TOKENS) for p in prompts])
    engine.check()
    assert engine.pool.free_slots + engine.tree.tokens == engine.pool.n_slots
    return [r.ids for r in results]


@pytest.mark.parametrize("family", tiny_models.FAMILIES)
def test_every_family_answers_as_transformers_does(tiny_of: Any, family: str) -> None:
    tiny = tiny_of(family)
    assert answers_of(engine_of(tiny), tiny.prompts) == tiny.answers


SCHEDULES = {
    "chunks of 7": SchedulerConfig(chunk_tokens=7),
    "a budget of 16": SchedulerConfig(max_step_tokens=16),
    "a budget of 64": SchedulerConfig(max_step_tokens=64),
    "a budget of 257": SchedulerConfig(max_step_tokens=257),
    "three at once": SchedulerConfig(max_running=3),
    "one at a time": SchedulerConfig(max_running=1),
    "one layer group": SchedulerConfig(layer_groups=1),
    "two layer groups": SchedulerConfig(layer_groups=2),
    "a layer a step": SchedulerConfig(layer_groups=3, cohort_tokens=90),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_no_schedule_changes_an_answer(tiny: Tiny, name: str) -> None:
    order = list(range(len(tiny.prompts)))
    random.Random(name).shuffle(order)
    answers = answers_of(
        engine_of(tiny, scheduler=SCHEDULES[name]), [tiny.prompts[i] for i in order]
    )
    assert answers == [tiny.answers[i] for i in order]


@pytest.mark.parametrize("layer_groups", [None, 2])
def test_experts_answer_alike_in_any_schedule(tiny_of: Any, layer_groups: int | None) -> None:
    tiny = tiny_of("qwen3moe")
    scheduler = SchedulerConfig(chunk_tokens=11, max_step_tokens=40, layer_groups=layer_groups)
    assert answers_of(engine_of(tiny, scheduler=scheduler), tiny.prompts) == tiny.answers


def test_a_request_alone_answers_as_in_a_batch(tiny: Tiny) -> None:
    for prompt, answer in zip(tiny.prompts, tiny.answers, strict=True):
        assert answers_of(engine_of(tiny), [prompt]) == [answer]


def test_a_warm_cache_changes_no_answer(tiny: Tiny) -> None:
    engine = engine_of(tiny)
    cold = answers_of(engine, tiny.prompts)
    results = engine.generate([GenerationRequest(p, ANSWER_TOKENS) for p in tiny.prompts])
    assert [r.ids for r in results] == cold == tiny.answers
    # All but the last token of each prompt was there.
    assert [r.cached_tokens for r in results] == [len(p) - 1 for p in tiny.prompts]


def test_a_follow_up_reuses_the_answer_before_it(tiny: Tiny) -> None:
    engine = engine_of(tiny)
    (first,) = engine.generate([GenerationRequest(tiny.prompts[0], ANSWER_TOKENS)])
    follow_up = [*tiny.prompts[0], *first.ids, 3, 5, 8]
    (second,) = engine.generate([GenerationRequest(follow_up, ANSWER_TOKENS)])
    assert second.cached_tokens == len(tiny.prompts[0]) + len(first.ids) - 1
    assert [second.ids] == answers_of(engine_of(tiny), [follow_up])


@pytest.mark.parametrize("max_kv_tokens", [100, 120, 200])
def test_preemption_and_eviction_change_no_answer(tiny: Tiny, max_kv_tokens: int) -> None:
    engine = engine_of(tiny, max_kv_tokens)
    assert answers_of(engine, tiny.prompts) == tiny.answers
    assert engine.tree.stats.evicted_tokens > 0


def test_a_preempted_request_goes_on_where_it_was(tiny: Tiny) -> None:
    """Three answers that grow beyond the pool: the last comer gives way and is computed again."""
    prompts, wide = [[7, 1, 2], [8, 3, 4], [9, 5, 6]], engine_of(tiny)
    requests = [GenerationRequest(p, 60, seed=i, temperature=0.8) for i, p in enumerate(prompts)]
    narrow = engine_of(tiny, 100)
    results = narrow.generate(requests)
    narrow.check()
    assert narrow.scheduler.preempted > 0
    assert results[0].preemptions == 0
    assert [r.ids for r in results] == [r.ids for r in wide.generate(requests)]


def test_cascade_is_exact_and_reads_shared_keys_once(tiny: Tiny) -> None:
    stem = [random.Random(1).randrange(tiny_models.VOCAB) for _ in range(300)]
    prompts = [[*stem, i, i + 1] for i in range(6)]
    with_cascade, without = engine_of(tiny), engine_of(tiny, cascade=False)
    shared = 0

    def watch(_: object) -> None:
        nonlocal shared
        shared = max(shared, with_cascade.decode_batch.shared_tokens)

    with_cascade._on_step = watch
    assert answers_of(with_cascade, prompts) == answers_of(without, prompts)
    assert shared == len(stem)
    assert without.decode_batch.shared_tokens == 0


def test_logits_of_packed_prompts_equal_those_of_single_ones(tiny: Tiny) -> None:
    """Prepacking's condition: lengths from a log-normal, packed without padding."""
    rng = random.Random(5)
    lengths = [max(8, min(200, round(rng.lognormvariate(4, 1)))) for _ in range(16)]
    prompts = [[rng.randrange(tiny_models.VOCAB) for _ in range(n)] for n in lengths]
    requests = [GenerationRequest(p, 1, logprobs=True) for p in prompts]
    packed = engine_of(tiny, 4_000)
    together = packed.generate(requests)
    alone = [engine_of(tiny).generate([replace(r)])[0] for r in requests]
    assert [r.ids for r in together] == [r.ids for r in alone]
    gaps = [abs(a.logprobs[0] - b.logprobs[0]) for a, b in zip(together, alone, strict=True)]
    assert max(gaps) < 1e-4


def test_a_decode_is_not_stalled_for_more_than_one_chunk(tiny: Tiny) -> None:
    engine = engine_of(tiny, scheduler=SchedulerConfig(chunk_tokens=16, max_step_tokens=24))
    first = engine.submit(GenerationRequest(tiny.prompts[0], 40))
    while not first.output:
        engine.step()
    engine.submit(GenerationRequest([1, 2, 3] * 60, 2))
    while first.result is None:
        before = len(first.output)
        metrics = engine.step()
        assert metrics is not None and metrics.prefilled_tokens <= 16
        assert len(first.output) == before + 1


def test_decodes_go_on_while_a_prompt_passes_the_layer_groups(tiny: Tiny) -> None:
    engine = engine_of(tiny, scheduler=SchedulerConfig(layer_groups=3))
    first = engine.submit(GenerationRequest(tiny.prompts[0], 30))
    while not first.output:
        engine.step()
    second = engine.submit(GenerationRequest(tiny.prompts[1], ANSWER_TOKENS))
    for group in range(3):
        before = len(first.output)
        engine.step()
        assert len(first.output) == before + 1
        assert len(second.output) == (group == 2)
    while second.result is None:
        engine.step()
    assert second.output == tiny.answers[1]


@pytest.mark.parametrize("chunk_tokens", [None, 9])
@pytest.mark.parametrize("family", ["llama3", "qwen2", "qwen3"])
def test_swiftkv_that_keeps_all_layers_is_exact(
    tiny_of: Any, family: str, chunk_tokens: int | None
) -> None:
    tiny = tiny_of(family)
    scheduler = SchedulerConfig(chunk_tokens=chunk_tokens)
    engine = engine_of(tiny, scheduler=scheduler, swiftkv=SwiftKV(3))
    assert answers_of(engine, tiny.prompts) == tiny.answers


def test_bfloat16_and_int8_stay_near_the_reference(tiny: Tiny) -> None:
    """Rounded weights may choose another token; the scores of the reference's own may not move
    far."""
    ids = [*tiny.prompts[3], *tiny.answers[3]]
    scored = GenerationRequest(ids, 0, score_from=len(tiny.prompts[3]))
    (exact,) = engine_of(tiny).generate([scored])
    for precision in ("bfloat16", "int8"):
        model = tiny_models.load(tiny.directory, precision)
        ticks = itertools.count()
        engine = Engine(model, lambda t=ticks: float(next(t)), EngineConfig(500))
        (rounded,) = engine.generate([scored])
        gaps = [abs(a - b) for a, b in zip(exact.logprobs, rounded.logprobs, strict=True)]
        assert sum(gaps) / len(gaps) < 0.35


def test_scores_are_the_references_log_probabilities(tiny: Tiny) -> None:
    from transformers import AutoModelForCausalLM

    reference = AutoModelForCausalLM.from_pretrained(tiny.directory, dtype=torch.float32)
    ids, start = tiny.prompts[1], 4
    with torch.inference_mode():
        odds = torch.log_softmax(reference(torch.tensor([ids])).logits[0], -1)
    wanted = [float(odds[i - 1, ids[i]]) for i in range(start, len(ids))]
    for chunk_tokens in (None, 5):
        scheduler = SchedulerConfig(chunk_tokens=chunk_tokens)
        (result,) = engine_of(tiny, scheduler=scheduler).generate(
            [GenerationRequest(ids, 0, score_from=start)]
        )
        assert result.finish_reason == "scored" and not result.ids
        assert result.logprobs == pytest.approx(wanted, abs=1e-4)
