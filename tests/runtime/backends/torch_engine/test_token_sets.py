"""FastKV and SwiftKV: exact at rate 1, and what they drop is what they say."""

from __future__ import annotations

import itertools
import math
import random
from typing import Any

import pytest
import tiny_models
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_exactness import engine_of
from tiny_models import ANSWER_TOKENS, Tiny

from runtime.backends.torch_engine.engine import Engine, EngineConfig
from runtime.backends.torch_engine.errors import RequestRefusedError
from runtime.backends.torch_engine.model import Model
from runtime.backends.torch_engine.scheduler import SchedulerConfig
from runtime.backends.torch_engine.sequence import GenerationRequest, TokenSelection
from runtime.backends.torch_engine.token_sets import (
    SwiftKV,
    top_positions,
    window_scores,
)

N_LAYERS = 8


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Model:
    directory = tmp_path_factory.mktemp("deep")
    tiny_models.save("qwen3", directory, N_LAYERS)
    return tiny_models.load(directory, keep_projections=True)


def deep_engine(deep: Model, **options: Any) -> Engine:
    ticks = itertools.count()
    return Engine(deep, lambda: float(next(ticks)), EngineConfig(2_000, **options))


def long_prompt(n: int) -> list[int]:
    return [random.Random(11).randrange(tiny_models.VOCAB) for _ in range(n)]


def linear_flops(deep: Model, request: GenerationRequest, **options: Any) -> int:
    engine = deep_engine(deep, **options)
    before = deep.counters.linear_flops
    engine.generate([request])
    return deep.counters.linear_flops - before


def test_fastkv_that_keeps_everything_is_exact(tiny: Tiny) -> None:
    engine = engine_of(tiny)
    keep_all = TokenSelection(layer=1, rate=1.0, retain=1.0)
    results = engine.generate(
        [GenerationRequest(p, ANSWER_TOKENS, selection=keep_all) for p in tiny.prompts]
    )
    assert [r.ids for r in results] == tiny.answers
    engine.check()
    assert engine.tree.tokens == 0  # selected keys are of no use to another prompt


def test_fastkv_beside_exact_requests_changes_none_of_them(tiny: Tiny) -> None:
    engine = engine_of(tiny)
    selection = TokenSelection(layer=0, rate=0.5, retain=0.3)
    requests = [GenerationRequest(p, ANSWER_TOKENS) for p in tiny.prompts]
    selected = [GenerationRequest(p, ANSWER_TOKENS, selection=selection) for p in tiny.prompts[:4]]
    results = engine.generate([*requests[:6], *selected, *requests[6:]])
    engine.check()
    exact = [r.ids for r in results[:6] + results[10:]]
    assert exact == tiny.answers


def test_fastkv_computes_and_keeps_what_its_formula_says(deep: Model) -> None:
    n_prompt, layer, rate, retain = 400, 3, 0.2, 0.1
    selection = TokenSelection(layer, rate, retain)
    one = GenerationRequest(long_prompt(n_prompt), 1)
    full = linear_flops(deep, one)
    part = linear_flops(deep, GenerationRequest(one.ids, 1, selection=selection))
    share = (layer + 1) / N_LAYERS
    assert part / full == pytest.approx(share + (1 - share) * rate, rel=0.01)
    engine = deep_engine(deep)
    sequence = engine.submit(GenerationRequest(one.ids, 5, selection=selection))
    engine.step()
    assert sequence.n_kv == math.floor(retain * n_prompt)
    assert sequence.n_tokens == n_prompt + 1  # positions go on from the whole prompt
    while engine.has_work:
        engine.step()
    engine.check()
    assert engine.pool.free_slots == engine.pool.n_slots


def test_fastkv_gets_room_from_open_prompts_alone(tiny: Tiny) -> None:
    """Open prompts that hold the whole pool give way to one that can answer."""
    engine = engine_of(tiny, 100)
    opened = engine.submit(GenerationRequest(list(range(95)), 5), is_open=True)
    while engine.step() is not None:
        pass
    assert opened.n_kv == 94
    whole = TokenSelection(0, 1.0, 1.0)
    request = GenerationRequest(tiny.prompts[0], ANSWER_TOKENS, selection=whole)
    (result,) = engine.generate([request])
    assert result.ids == tiny.answers[0] and opened.preemptions == 1
    engine.close_prompt(opened)
    while engine.has_work:
        engine.step()
    engine.check()
    assert opened.result is not None


@given(
    st.lists(st.integers(0, 50), min_size=1, max_size=40, unique=True),
    st.integers(1, 40),
    st.integers(1, 8),
)
def test_kept_tokens_are_in_order_and_hold_the_window(
    scores: list[int], n_keep: int, window: int
) -> None:
    n = len(scores)
    n_keep, window = min(n_keep, n), min(window, n)
    kept = top_positions(torch.tensor(scores, dtype=torch.float32), n_keep, window).tolist()
    assert len(kept) == n_keep and kept == sorted(set(kept))
    tail = range(n - min(window, n_keep), n)
    assert set(tail) <= set(kept)
    others = [i for i in range(n - window) if i not in kept]
    chosen = [i for i in kept if i < n - window]
    if chosen and others:
        assert min(scores[i] for i in chosen) >= max(scores[i] for i in others)


def test_window_scores_are_smoothed_attention_weights() -> None:
    torch.manual_seed(0)
    q, k = torch.randn(20, 4, 8), torch.randn(20, 2, 8)
    weights = torch.zeros(4, 20)
    for head, row in itertools.product(range(4), range(17, 20)):
        scores = k[: row + 1, head // 2] @ q[row, head] / math.sqrt(8)
        weights[head, : row + 1] += torch.softmax(scores, 0)
    padded = torch.nn.functional.pad(weights, (3, 3))
    smooth = torch.stack([padded[:, i : i + 7].sum(1) / 7 for i in range(20)], 1)
    torch.testing.assert_close(window_scores(q, k, 3), smooth)


@pytest.mark.parametrize(
    ("selection", "why"),
    [
        (TokenSelection(9), "layer 9"),
        (TokenSelection(1, rate=0.1, retain=0.5), "retain <= rate"),
        (TokenSelection(1, window=0), "window"),
    ],
)
def test_impossible_selections_are_refused(tiny: Tiny, selection: TokenSelection, why: str) -> None:
    with pytest.raises(RequestRefusedError, match=why):
        engine_of(tiny).submit(GenerationRequest([1, 2], 1, selection=selection))


@pytest.mark.parametrize(("keep", "group"), [(4, 1), (4, 2), (5, 3), (8, 1)])
def test_swiftkv_chunked_equals_whole(deep: Model, keep: int, group: int) -> None:
    swiftkv = SwiftKV(keep, group)
    prompts = [long_prompt(n) for n in (5, 40, 77)]
    requests = [GenerationRequest(p, 8) for p in prompts]
    whole = deep_engine(deep, swiftkv=swiftkv)
    chunked = deep_engine(deep, swiftkv=swiftkv, scheduler=SchedulerConfig(chunk_tokens=13))
    alone = [deep_engine(deep, swiftkv=swiftkv).generate([r])[0].ids for r in requests]
    assert [r.ids for r in whole.generate(requests)] == alone
    assert [r.ids for r in chunked.generate(requests)] == alone
    assert whole.pool.k.shape[0] == keep + math.ceil((N_LAYERS - keep) / group)
    if keep == N_LAYERS:
        assert [r.ids for r in deep_engine(deep).generate(requests)] == alone


def test_swiftkv_prefill_work_follows_its_formula(deep: Model) -> None:
    """L F_kv + f L (F_q + F_o + F_mlp) a token, against L of everything."""
    request, shape = GenerationRequest(long_prompt(400), 1), deep.shape
    full = linear_flops(deep, request)
    swift = linear_flops(deep, request, swiftkv=SwiftKV(N_LAYERS // 2))
    kv = 2 * shape.n_kv_heads * shape.head_dim * shape.d_model
    q_and_o = 2 * shape.n_heads * shape.head_dim * shape.d_model
    rest = q_and_o + 3 * shape.d_ff * shape.d_model
    assert swift / full == pytest.approx((kv + rest / 2) / (kv + rest), rel=0.01)


def test_swiftkv_and_exact_prefixes_are_kept_apart(deep: Model) -> None:
    assert SwiftKV(4).namespace != SwiftKV(4, 2).namespace != ""


def test_swiftkv_refuses_what_it_cannot_do(deep: Model, tiny: Tiny) -> None:
    with pytest.raises(RequestRefusedError, match="keep_layers is 9"):
        engine_of(tiny, swiftkv=SwiftKV(9))
    with pytest.raises(RequestRefusedError, match="layer groups"):
        engine_of(tiny, swiftkv=SwiftKV(2), scheduler=SchedulerConfig(layer_groups=2))
    engine = deep_engine(deep, swiftkv=SwiftKV(4))
    with pytest.raises(RequestRefusedError, match="scoring"):
        engine.submit(GenerationRequest([1, 2, 3], 0, score_from=1))


def test_layer_groups_read_fewer_experts_than_chunks(tmp_path: Any) -> None:
    """Layered Prefill's point, counted. With G groups, each layer is met by the whole prompt once
    and by the decodes alone G - 1 times: G [c_d (1 - 1/G) + c_all / G] banks a layer, against
    c_chunk for every chunk."""
    directory = tmp_path / "moe"
    tiny_models.save("qwen3moe", directory, 8)
    model = tiny_models.load(directory)

    def loads(scheduler: SchedulerConfig) -> tuple[int, int]:
        """Expert banks read, and steps taken, while a 256-token prompt is prefilled beside one
        decode."""
        ticks = itertools.count()
        engine = Engine(model, lambda: float(next(ticks)), EngineConfig(2_000, scheduler))
        running = engine.submit(GenerationRequest([5, 6, 7], 60))
        while not running.output:
            engine.step()
        prompt = engine.submit(GenerationRequest(long_prompt(256), 1))
        before, steps = model.counters.expert_loads, 0
        while prompt.result is None:
            engine.step()
            steps += 1
        return model.counters.expert_loads - before, steps

    groups = 4
    layered, layered_steps = loads(SchedulerConfig(layer_groups=groups))
    chunked, chunked_steps = loads(SchedulerConfig(max_step_tokens=65, chunk_tokens=64))
    whole, whole_steps = loads(SchedulerConfig())
    assert (layered_steps, chunked_steps, whole_steps) == (groups, groups, 1)
    decode_alone = 2 * N_LAYERS  # one row, two experts a layer
    assert layered == pytest.approx((groups - 1) * decode_alone + whole, rel=0.05)
    assert layered < 0.75 * chunked
