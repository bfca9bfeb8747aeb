"""Tiny checkpoints, written once a session, with the answers that `transformers` gives them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="the extra `torch` is not installed")
sys.path.insert(0, str(Path(__file__).parent))

import tiny_models
import torch
from tiny_models import ANSWER_TOKENS, Tiny


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_of(tmp_path_factory: pytest.TempPathFactory) -> Any:
    made: dict[str, Tiny] = {}

    def get(family: str) -> Tiny:
        if family not in made:
            directory = tmp_path_factory.mktemp(family)
            reference = tiny_models.reference(tiny_models.save(family, directory))
            prompts = tiny_models.prompts()
            answers = [tiny_models.greedy(reference, p, ANSWER_TOKENS) for p in prompts]
            model = tiny_models.load(directory, keep_projections=True)
            made[family] = Tiny(family, directory, model, prompts, answers)
        return made[family]

    return get


@pytest.fixture
def tiny(tiny_of: Any) -> Tiny:
    """The smallest dense family, for what does not depend on the family."""
    return tiny_of("qwen3")
