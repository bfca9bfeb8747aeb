"""The engine's greedy answers against `transformers` in float32, on the dequantised SmolLM2.

Needs the dependency group `live` (torch, transformers) and fetches the model.
"""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any, cast

import pytest

from runtime.backends.base import Message, Request
from runtime.backends.openvino_engine import Engine, open_engine
from runtime.backends.openvino_settings import EngineSettings
from runtime.models.store import ModelStore, StoredModel

pytestmark = [
    pytest.mark.live,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

NAME = "smollm2-135m-instruct"
N_TOKENS = 32
SUBJECTS = ("rivers", "bread", "the moon", "a chess opening", "photosynthesis", "winter", "maps")
TASKS = (
    "Name three facts about {}.",
    "Write one sentence about {} for a child.",
    "Translate to French: I like {}.",
    "Is {} older than the telephone? Answer briefly.",
    "List two words that rhyme with a word in: {}.",
    "Explain {} in ten words.",
    "What would a farmer say about {}?",
    "Write a JSON object that describes {}.",
)
PROMPTS = [task.format(subject) for task in TASKS for subject in SUBJECTS]


@pytest.fixture(scope="module")
def model() -> StoredModel:
    return ModelStore().pull(NAME)


@pytest.fixture(scope="module")
def reference(model: StoredModel) -> tuple[Any, Any]:
    """The tokenizer and the model of `transformers`, in float32."""
    transformers = cast("Any", pytest.importorskip("transformers"))
    torch = cast("Any", pytest.importorskip("torch"))
    torch.manual_seed(0)
    folder, file = str(model.weights.parent), model.weights.name
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, gguf_file=file)
    network = transformers.AutoModelForCausalLM.from_pretrained(
        folder, gguf_file=file, dtype=torch.float32
    )
    return tokenizer, network.eval()


@pytest.fixture(scope="module")
def engine(model: StoredModel, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    derived = str(tmp_path_factory.mktemp("derived") / "openvino")
    assert model.context_tokens is not None
    settings = EngineSettings(
        str(model.weights), derived, 2, model.context_tokens, 16_384, 16, exact=True
    )
    return open_engine(settings)


def request(prompt: str) -> Request:
    return Request(prompt, NAME, (Message("user", prompt),), max_tokens=N_TOKENS)


def test_prompts_are_tokenized_as_the_model_was_trained(
    engine: Engine, reference: tuple[Any, Any]
) -> None:
    tokenizer, _ = reference
    texts = [
        *PROMPTS, "", " ", "\n\n\n", "a  b\t\tc", "12345 6 78", "naïve café", "日本語のテキスト",
        "🎉🎉",
        "x = {'a': [1, 2]}  # comment", "    indented\n\tcode", "ALL CAPS don't I'll we've",
        "trailing space ", " leading", "\r\n windows", "…—“quotes”", "a" * 300,
    ]  # fmt: skip
    for text in texts:
        chat = [{"role": "user", "content": text}]
        expected = tokenizer.apply_chat_template(
            chat, add_generation_prompt=True, tokenize=True, return_dict=False
        )
        assert engine._vocabulary.prompt_ids(request(text)) == list(expected), repr(text)


def test_greedy_answers_equal_the_reference(engine: Engine, reference: tuple[Any, Any]) -> None:
    torch = cast("Any", pytest.importorskip("torch"))
    tokenizer, network = reference
    for number, prompt in enumerate(PROMPTS):
        assert engine.add(number, request(prompt)) is None
    answers: dict[int, str] = {}
    while engine.busy:
        answers |= {e["id"]: e["text"] for e in engine.step() if e["event"] == "done"}
    assert len(PROMPTS) >= 50
    different: list[str] = []
    for number, prompt in enumerate(PROMPTS):
        ids = torch.tensor([engine._vocabulary.prompt_ids(request(prompt))])
        with torch.inference_mode():
            output = network.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=N_TOKENS,
                do_sample=False,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.eos_token_id,
            )
        expected = tokenizer.decode(output[0][ids.shape[1] :], skip_special_tokens=True)
        if answers[number] != expected:
            different.append(
                f"{prompt!r}\n  engine    {answers[number]!r}\n  reference {expected!r}"
            )
    gc.collect()
    assert not different, f"{len(different)} of {len(PROMPTS)} differ:\n" + "\n".join(different)


def test_the_file_is_the_dequantised_one(model: StoredModel) -> None:
    assert model.weights == Path(model.folder) / "model.gguf"
    assert model.sha256.startswith("b179c952")
