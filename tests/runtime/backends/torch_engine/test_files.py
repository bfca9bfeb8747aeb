"""Model files: the same weights from every format, and clear errors for bad ones."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from gguf import GGMLQuantizationType
from safetensors.torch import load_file, save_file
from test_exactness import answers_of, engine_of
from tiny_checkpoint import write_checkpoint
from tiny_gguf import write_gguf
from tiny_models import Tiny

from runtime.backends.torch_engine.engine import Engine, EngineConfig
from runtime.backends.torch_engine.loading import find_model, load_model
from runtime.backends.torch_engine.model import Model
from runtime.backends.torch_engine.sequence import GenerationRequest
from runtime.backends.torch_engine.settings import read_facts
from runtime.backends.torch_engine.tokenizer import directory_tokenizer, gguf_tokenizer
from runtime.backends.torch_engine.weights import GgufSource, read_config, read_gguf_weights
from runtime.errors import ModelFileError, ModelNotFoundError
from runtime.models.gguf_file import read_gguf

CPU = torch.device("cpu")


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "qwen3moe"])
def test_a_gguf_file_gives_the_same_answers(tiny_of: Any, tmp_path: Path, family: str) -> None:
    tiny: Tiny = tiny_of(family)
    header = read_gguf(write_gguf(tiny.directory, tmp_path / "model.gguf"))
    shape, source = read_gguf_weights(header)
    assert isinstance(source, GgufSource)
    # The file holds the norm's epsilon in float32.
    wanted = read_config(tiny.directory)
    assert replace(shape, norm_eps=wanted.norm_eps) == wanted
    assert shape.norm_eps == pytest.approx(wanted.norm_eps)
    model = Model(shape, source)
    engine = Engine(model, lambda: 0.0, EngineConfig(2_000))
    assert answers_of(engine, tiny.prompts) == tiny.answers


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_0", "Q4_1"])
def test_quantized_tensors_are_near_the_weights(tmp_path: Path, kind: str) -> None:
    checkpoint = write_checkpoint(tmp_path / "c")
    path = write_gguf(checkpoint, tmp_path / "q.gguf", quantization=GGMLQuantizationType[kind])
    _, source = read_gguf_weights(read_gguf(path))
    exact = load_file(checkpoint / "model.safetensors")
    limit = {"F16": 1e-3, "BF16": 5e-3, "Q8_0": 5e-3}.get(kind, 0.1)
    for name in ("model.layers.0.self_attn.q_proj.weight", "model.layers.1.mlp.down_proj.weight"):
        assert float((source.get(name) - exact[name]).abs().max()) < limit


def test_a_checkpoint_in_several_files_is_one_model(tiny: Tiny, tmp_path: Path) -> None:
    tensors = load_file(tiny.directory / "model.safetensors")
    names = sorted(tensors)
    shutil.copy(tiny.directory / "config.json", tmp_path)
    for i in range(2):
        save_file({n: tensors[n] for n in names[i::2]}, tmp_path / f"model-{i}.safetensors")
    engine = Engine(tiny_models.load(tmp_path), lambda: 0.0, EngineConfig(2_000))
    assert answers_of(engine, tiny.prompts) == tiny.answers


def edited(checkpoint: Path, **changes: Any) -> Path:
    path = checkpoint / "config.json"
    config = json.loads(path.read_text("utf-8")) | changes
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not None}), "utf-8")
    return checkpoint


def cut(path: Path, share: float) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])


def without_tensor(checkpoint: Path) -> None:
    path = checkpoint / "model.safetensors"
    tensors = load_file(path)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, path)


def pickled(checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").rename(checkpoint / "pytorch_model.bin")


BAD_CHECKPOINTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no configuration": (lambda c: (c / "config.json").write_text("{"), "no readable model config"),
    "another architecture": (
        lambda c: edited(c, architectures=["GPT2LMHeadModel"]),
        "GPT2LMHeadModel; the torch engine runs LlamaForCausalLM",
    ),
    "no architecture": (lambda c: edited(c, architectures=None), "architecture not named"),
    "no layers": (lambda c: edited(c, num_hidden_layers=None), "num_hidden_layers is None"),
    "no heads": (lambda c: edited(c, num_attention_heads=0), "n_heads is 0|division"),
    "odd heads": (lambda c: edited(c, num_key_value_heads=3), "cannot share 3"),
    "odd dimension": (lambda c: edited(c, head_dim=15), "head_dim is 15"),
    "quantized": (lambda c: edited(c, quantization_config={"bits": 4}), "quantized"),
    "unknown rope": (
        lambda c: edited(c, rope_scaling={"rope_type": "yarn", "factor": 4.0}),
        "RoPE scaling 'yarn'",
    ),
    "wrong shape": (
        lambda c: edited(c, intermediate_size=95),
        r"mlp.gate_proj.weight' has shape \(96, 64\).*\(95, 64\)",
    ),
    "missing tensor": (without_tensor, "model.layers.1.mlp.up_proj.weight' is missing"),
    "truncated weights": (
        lambda c: cut(c / "model.safetensors", 0.6), "not a whole safetensors file"
    ),
    "pickled weights": (pickled, "pickle"),
    "bad tokenizer": (lambda c: (c / "tokenizer.json").write_text("[]"), "no readable tokenizer"),
    "no tokenizer": (lambda c: (c / "tokenizer.json").unlink(), "no readable tokenizer"),
    "no end token": (
        lambda c: (edited(c, eos_token_id=None), (c / "tokenizer_config.json").write_text("{}")),
        "no end-of-text token",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_CHECKPOINTS)
def test_a_bad_checkpoint_is_a_clear_error(tmp_path: Path, name: str) -> None:
    damage, message = BAD_CHECKPOINTS[name]
    checkpoint = write_checkpoint(tmp_path / "c")
    damage(checkpoint)
    with pytest.raises(ModelFileError, match=message) as caught:
        load_model(checkpoint, "float32", CPU)
    assert caught.value.backend == "torch" and not caught.value.retryable


BAD_GGUF: dict[str, tuple[dict[str, Any], str]] = {
    "another architecture": ({"architecture": "gpt2"}, "architecture 'gpt2'"),
    "another tokenizer": ({"tokenizer": {"model": "llama"}}, "tokenizer 'llama'"),
    "another split": ({"tokenizer": {"pre": "tekken"}}, "split as 'tekken'"),
    "bad merges": ({"tokenizer": {"merges": ["x yy"]}}, "cannot be built"),
    "no end token": ({"tokenizer": {"eos": False}}, "no end-of-text token"),
}


@pytest.mark.parametrize("name", BAD_GGUF)
def test_a_bad_gguf_is_a_clear_error(tmp_path: Path, name: str) -> None:
    options, message = BAD_GGUF[name]
    path = write_gguf(write_checkpoint(tmp_path / "c"), tmp_path / "m.gguf", **options)
    with pytest.raises(ModelFileError, match=message):
        load_model(path, "float32", CPU)


@pytest.mark.parametrize("share", [0.0001, 0.05, 0.5, 0.99])
def test_a_truncated_gguf_is_a_clear_error(tmp_path: Path, share: float) -> None:
    path = write_gguf(write_checkpoint(tmp_path / "c"), tmp_path / "m.gguf")
    cut(path, share)
    with pytest.raises(ModelFileError, match=r"truncated|damaged|ends|not a GGUF|whole"):
        load_model(path, "float32", CPU)


def test_a_model_is_found_by_path_or_the_error_says_how_to_get_it(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "c")
    assert find_model(str(checkpoint)) == checkpoint
    facts = read_facts(str(checkpoint), None)
    assert facts.context_tokens == 2048 and facts.kv_values_per_token == 2 * 2 * 2 * 16
    gguf = write_gguf(checkpoint, tmp_path / "m.gguf")
    assert find_model(str(gguf)) == gguf
    assert read_facts(str(gguf), None) == facts
    with pytest.raises(ModelNotFoundError, match="no file"):
        find_model(str(tmp_path / "gone.gguf"))
    with pytest.raises(ModelNotFoundError, match="no-such-model"):
        find_model("no-such-model", tmp_path)
    with pytest.raises(ModelNotFoundError, match="halo models pull smollm2-135m-instruct"):
        find_model("smollm2-135m-instruct", tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelFileError, match="neither a GGUF file"):
        find_model(str(tmp_path / "empty"), tmp_path)


def test_both_tokenizers_keep_text_and_know_control_tokens(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "c")
    path = write_gguf(checkpoint, tmp_path / "m.gguf")
    for tokenizer in (directory_tokenizer(checkpoint), gguf_tokenizer(read_gguf(path))):
        text = "hello wörld 123 <|im_end|> \U0001f30d"
        ids = tokenizer.encode_answer(text)
        assert tokenizer.decode(ids) == text
        assert not tokenizer.stop_ids & set(ids)  # what the text spells is no control token
        assert tokenizer.encode(["<|im_end|>"]) == [tokenizer.end_id]
        stream = tokenizer.stream()
        assert "".join(stream.push(i) for i in ids) == text


def test_the_gguf_tokenizer_merges(tmp_path: Path) -> None:
    path = write_gguf(write_checkpoint(tmp_path / "c"), tmp_path / "m.gguf")
    tokenizer = gguf_tokenizer(read_gguf(path))
    assert len(tokenizer.encode(["hello"])) == len(("he", "ll", "o"))
    assert tokenizer.decode(tokenizer.encode(["hello"])) == "hello"


def test_a_token_that_the_model_lacks_is_refused(tiny: Tiny) -> None:
    with pytest.raises(Exception, match="token ids from 1 to 999"):
        engine_of(tiny).submit(GenerationRequest([1, 999]))
