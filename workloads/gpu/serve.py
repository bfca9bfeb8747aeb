"""An SGLang server whose model is scripted: `python serve.py [--cpu-shim FILE] [--emulated-card
MODEL:SLOWER:LOCK] SERVER FLAGS...`

Scheduler, cache, kernels and HTTP are SGLang's own and do all the work. What changes is the text of
an answer: with random weights it would be noise that differs from run to run, and with it every
prompt built from it. Here the text is a function of the prompt and has as many bytes as tokens were
decoded. All systems that are compared so get the same answers, hence send the same prompts.
Answers always have their full length (`ignore_eos`). With an emulated card the model computes
nothing and takes a card's time (`emulated_card.py`).
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.util
import os
import sys
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any, cast

SHIM = "HALO_SGLANG_CPU_SHIM"
"""Environment variable with the launcher for machines without an accelerator. Spawned processes
need it too."""
CARD = "HALO_SGLANG_EMULATED_CARD"
"""Likewise, for what `--emulated-card` was given."""


@functools.lru_cache(maxsize=65_536)
def scripted(prompt: str, n_bytes: int) -> str:
    """The answer to a prompt."""
    words: Any = importlib.import_module("workload_text")
    return str(words.words(hashlib.sha256(prompt.encode()).hexdigest(), n_bytes))


def script_answers(manager: type[Any]) -> None:
    """Let a tokenizer manager hand out scripted answers."""
    original = manager.generate_request

    async def generate_request(
        self: Any, request: Any, *arguments: Any, **named: Any
    ) -> AsyncGenerator[Any, None]:
        prompt: Any = request.text if request.text is not None else repr(request.input_ids)
        sampling: Any = request.sampling_params
        if isinstance(prompt, str) and isinstance(sampling, dict):
            sampling["ignore_eos"] = True
        async for out in original(self, request, *arguments, **named):
            if isinstance(prompt, str) and isinstance(out, dict):
                answer = cast("dict[str, Any]", out)
                answer["text"] = scripted(prompt, int(answer["meta_info"]["completion_tokens"]))
            yield out

    manager.generate_request = generate_request


def load(name: str, path: Path) -> Any:
    """A module from a file."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


for flag, variable in (("--cpu-shim", SHIM), ("--emulated-card", CARD)):
    if __name__ == "__main__" and flag in sys.argv:
        at = sys.argv.index(flag)
        os.environ[variable] = sys.argv[at + 1]
        del sys.argv[at : at + 2]
if __name__ in ("__main__", "__mp_main__") and os.environ.get(SHIM):
    load("halo_sglang_cpu", Path(os.environ[SHIM])).prepare()
if __name__ == "__mp_main__" and os.environ.get(CARD):
    emulated: Any = load("halo_emulated_card", Path(__file__).parent / "emulated_card.py")
    emulated.replace_model(emulated.from_words(os.environ[CARD]))
if __name__ == "__main__":
    load("workload_text", Path(__file__).parent.parent / "text.py")
    tokenizer_manager: Any = importlib.import_module("sglang.srt.managers.tokenizer_manager")
    script_answers(tokenizer_manager.TokenizerManager)
    launch: Any = importlib.import_module("sglang.launch_server")
    server_args: Any = importlib.import_module("sglang.srt.server_args")
    utils: Any = importlib.import_module("sglang.srt.utils")
    try:
        launch.run_server(server_args.prepare_server_args(sys.argv[1:]))
    finally:
        utils.kill_process_tree(os.getpid(), include_parent=False)
