"""The same answers on CUDA as on the CPU.

Needs torch, numpy, safetensors and pytest, so that it also runs on a machine with little else:

    PYTHONPATH=.:tests/runtime/backends/torch_engine \\
        python -m pytest --noconftest -m gpu tests/runtime/backends/torch_engine/test_gpu.py
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import tiny_models
import torch
from tiny_models import ANSWER_TOKENS, Tiny

from runtime.backends.torch_engine.engine import Engine, EngineConfig
from runtime.backends.torch_engine.kv_transfer import export_prefix, import_prefix
from runtime.backends.torch_engine.scheduler import SchedulerConfig
from runtime.backends.torch_engine.sequence import GenerationRequest, TokenSelection
from runtime.backends.torch_engine.token_sets import SwiftKV

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device"),
]


@pytest.fixture(scope="module")
def tiny_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Tiny]:
    """As elsewhere, but with the answers of this engine on the CPU, which other tests compare with
    the reference's."""

    @functools.cache
    def get(family: str) -> Tiny:
        directory = tiny_models.save(family, tmp_path_factory.mktemp(family))
        model, prompts = tiny_models.load(directory), tiny_models.prompts()
        engine = Engine(model, lambda: 0.0, EngineConfig(2_000))
        answers = engine.generate([GenerationRequest(p, ANSWER_TOKENS) for p in prompts])
        return Tiny(family, directory, model, prompts, [a.ids for a in answers])

    return get


@pytest.fixture
def tiny(tiny_of: Callable[[str], Tiny]) -> Tiny:
    return tiny_of("qwen3")


def cuda_engine(tiny: Tiny, max_kv_tokens: int = 2_000, **options: Any) -> Engine:
    model = tiny_models.load(tiny.directory, device=torch.device("cuda"), keep_projections=True)
    ticks = itertools.count()
    return Engine(model, lambda: float(next(ticks)), EngineConfig(max_kv_tokens, **options))


CONFIGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "chunks": {"scheduler": SchedulerConfig(chunk_tokens=7)},
    "crowded": {"max_kv_tokens": 120},
    "layer groups": {"scheduler": SchedulerConfig(layer_groups=2)},
    "swiftkv": {"swiftkv": SwiftKV(3)},
    "no cascade": {"cascade": False},
}


@pytest.mark.parametrize("name", CONFIGS)
def test_float32_answers_are_the_references(tiny: Tiny, name: str) -> None:
    engine = cuda_engine(tiny, **CONFIGS[name])
    results = engine.generate([GenerationRequest(p, ANSWER_TOKENS) for p in tiny.prompts])
    engine.check()
    assert [r.ids for r in results] == tiny.answers


@pytest.mark.parametrize("family", tiny_models.FAMILIES)
def test_every_family_runs(tiny_of: Any, family: str) -> None:
    tiny = tiny_of(family)
    results = cuda_engine(tiny).generate(
        [GenerationRequest(p, ANSWER_TOKENS) for p in tiny.prompts]
    )
    assert [r.ids for r in results] == tiny.answers


def test_fastkv_and_sampling_and_transfer(tiny: Tiny) -> None:
    engine = cuda_engine(tiny)
    keep_all = TokenSelection(1, 1.0, 1.0)
    prompt, answer = tiny.prompts[0], tiny.answers[0]
    (selected,) = engine.generate([GenerationRequest(prompt, ANSWER_TOKENS, selection=keep_all)])
    assert selected.ids == answer
    hot = GenerationRequest(prompt, ANSWER_TOKENS, temperature=0.8, top_p=0.9, seed=5)
    assert len({tuple(r.ids) for r in engine.generate([hot, hot])}) == 1
    other = cuda_engine(tiny)
    assert import_prefix(other, export_prefix(engine, prompt)) == len(prompt)
    (moved,) = other.generate([GenerationRequest(prompt, ANSWER_TOKENS)])
    assert moved.ids == answer and moved.cached_tokens == len(prompt) - 1


def test_bfloat16_runs_and_stays_near(tiny: Tiny) -> None:
    model = tiny_models.load(tiny.directory, "bfloat16", device=torch.device("cuda"))
    ids = [*tiny.prompts[3], *tiny.answers[3]]
    request = GenerationRequest(ids, 0, score_from=len(tiny.prompts[3]))
    (rounded,) = Engine(model, lambda: 0.0, EngineConfig(500)).generate([request])
    (exact,) = cuda_engine(tiny).generate([request])
    gaps = [abs(a - b) for a, b in zip(exact.logprobs, rounded.logprobs, strict=True)]
    assert sum(gaps) / len(gaps) < 0.35
