"""Other engines on the same weights and token ids, for the benchmark of this one.

Run as a process of its own for each engine, in whichever environment has it:

    python contenders.py ENGINE < job.json > figures.json

It imports nothing of Halo but, for the engine `torch`, this package, so that an environment with
another engine's pins needs no Halo. A job is {"model": directory, "gguf": file, "threads": n,
"precision": ..., "repeats": n, "loads": [{"name", "prompts", "output_tokens", "prime"}]}; `prompts`
is a list of repeats of lists of prompts, so that no repeat finds the last one's prefixes. Every
answer has exactly `output_tokens` tokens, greedy. `prime` is a prompt that goes first, alone, as
Halo's dispatcher sends it to engines that share nothing between requests of one moment.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Job = dict[str, Any]
Generate = Callable[[list[list[int]], int], object]


def torch_engine(job: Job) -> tuple[Generate, str]:
    """This package's engine."""
    import torch

    from runtime.backends.torch_engine.engine import Engine, EngineConfig
    from runtime.backends.torch_engine.model import Model
    from runtime.backends.torch_engine.sequence import GenerationRequest
    from runtime.backends.torch_engine.weights import SafetensorsSource, read_config

    torch.set_num_threads(job["threads"])
    directory = Path(job["model"])
    model = Model(read_config(directory), SafetensorsSource(directory), job["precision"])
    engine = Engine(model, time.perf_counter, EngineConfig(65_536))

    def generate(prompts: list[list[int]], n: int) -> object:
        return engine.generate([GenerationRequest(p, n) for p in prompts])

    return generate, f"torch {torch.__version__}"


def openvino(job: Job) -> tuple[Generate, str]:
    """OpenVINO GenAI's continuous batching, set up as Halo's local engine sets it up."""
    genai = importlib.import_module("openvino_genai")
    np = importlib.import_module("numpy")
    ov = importlib.import_module("openvino")
    scheduler = genai.SchedulerConfig()
    scheduler.enable_prefix_caching = True
    scheduler.dynamic_split_fuse = True
    scheduler.max_num_seqs = 64
    scheduler.max_num_batched_tokens = 2048
    scheduler.cache_size = 4
    properties: dict[str, Any] = {"INFERENCE_NUM_THREADS": job["threads"]}
    if job["precision"] == "float32":
        properties |= {"INFERENCE_PRECISION_HINT": "f32"}
    pipeline = genai.ContinuousBatchingPipeline(job["gguf"], scheduler, "CPU", properties)
    number = iter(range(1 << 40))

    def generate(prompts: list[list[int]], n: int) -> object:
        config = genai.GenerationConfig(max_new_tokens=n, do_sample=False, ignore_eos=True)
        handles = [
            pipeline.add_request(next(number), ov.Tensor(np.array([p], np.int64)), config)
            for p in prompts
        ]
        while pipeline.has_non_finished_requests():
            pipeline.step()
        return [h.read_all() for h in handles]

    return generate, f"openvino-genai {genai.__version__}"


def transformers(job: Job) -> tuple[Generate, str]:
    """`generate` over one left-padded batch."""
    torch = importlib.import_module("torch")
    library = importlib.import_module("transformers")
    torch.set_num_threads(job["threads"])
    model = library.AutoModelForCausalLM.from_pretrained(
        job["model"], dtype=getattr(torch, job["precision"])
    ).eval()

    def generate(prompts: list[list[int]], n: int) -> object:
        longest = max(map(len, prompts))
        ids = torch.tensor([[0] * (longest - len(p)) + p for p in prompts])
        mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
        with torch.inference_mode():
            return model.generate(
                ids, attention_mask=mask, max_new_tokens=n, min_new_tokens=n, do_sample=False,
                pad_token_id=0,
            )  # fmt: skip

    return generate, f"transformers {library.__version__}"


def vllm(job: Job) -> tuple[Generate, str]:
    """vLLM's CPU build, prefix caching on."""
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "4")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    # As many threads as OMP_NUM_THREADS says: by itself it leaves one core for its scheduler.
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    library = importlib.import_module("vllm")
    engine = library.LLM(
        model=job["model"], dtype=job["precision"], enable_prefix_caching=True, max_num_seqs=64,
        max_model_len=2048, enforce_eager=True, skip_tokenizer_init=True,
    )  # fmt: skip

    def generate(prompts: list[list[int]], n: int) -> object:
        sampling = library.SamplingParams(
            temperature=0.0, max_tokens=n, min_tokens=n, ignore_eos=True, detokenize=False
        )
        return engine.generate([{"prompt_token_ids": p} for p in prompts], sampling, use_tqdm=False)

    return generate, f"vllm {library.__version__}"


def llama_cpp(job: Job) -> tuple[Generate, str]:
    """llama.cpp's batch API, the common prefix computed once and shared by hand (`seq_cp`)."""
    library = importlib.import_module("llama_cpp")
    np = importlib.import_module("numpy")
    library.llama_backend_init()
    model = library.llama_model_load_from_file(
        job["gguf"].encode(), library.llama_model_default_params()
    )
    vocab = library.llama_model_get_vocab(model)
    n_vocab = library.llama_vocab_n_tokens(vocab)
    params = library.llama_context_default_params()
    params.n_ctx, params.n_batch, params.n_ubatch, params.n_seq_max = 40_960, 2048, 512, 64
    params.n_threads = params.n_threads_batch = job["threads"]
    params.kv_unified = True
    context = library.llama_init_from_model(model, params)
    memory = library.llama_get_memory(context)
    batch = library.llama_batch_init(2048, 0, 1)

    def run(rows: list[tuple[int, int, int, bool]]) -> list[int]:
        """Decode rows of (token, position, sequence, wants logits); returns the likeliest tokens of
        the rows that want them."""
        chosen: list[int] = []
        for start in range(0, len(rows), 2048):
            part = rows[start : start + 2048]
            batch.n_tokens = len(part)
            for i, (token, position, sequence, wanted) in enumerate(part):
                batch.token[i], batch.pos[i] = token, position
                batch.n_seq_id[i], batch.seq_id[i][0] = 1, sequence
                batch.logits[i] = wanted
            if library.llama_decode(context, batch):
                raise RuntimeError("llama_decode failed")
            for i, row in enumerate(part):
                if row[3]:
                    logits = library.llama_get_logits_ith(context, i)
                    chosen.append(int(np.ctypeslib.as_array(logits, (n_vocab,)).argmax()))
        return chosen

    def generate(prompts: list[list[int]], n: int) -> object:
        library.llama_memory_clear(memory, True)
        shared = len(os.path.commonprefix([p[:-1] for p in prompts])) if len(prompts) > 1 else 0  # noqa: RUF071
        run([(t, i, 0, False) for i, t in enumerate(prompts[0][:shared])])
        for sequence in range(1, len(prompts)):
            if shared:
                library.llama_memory_seq_cp(memory, 0, sequence, 0, shared)
        tokens = run(
            [
                (t, i, s, i == len(p) - 1)
                for s, p in enumerate(prompts)
                for i, t in enumerate(p)
                if i >= shared
            ]
        )
        answers = [[t] for t in tokens]
        for step in range(n - 1):
            tokens = run([(a[-1], len(prompts[s]) + step, s, True) for s, a in enumerate(answers)])
            for answer, token in zip(answers, tokens, strict=True):
                answer.append(token)
        return answers

    return generate, f"llama-cpp-python {library.__version__}"


ENGINES = {e.__name__: e for e in (torch_engine, openvino, transformers, vllm, llama_cpp)}


def multiplies_bfloat16() -> bool:
    """Whether the processor does, as far as it says. Elsewhere engines convert at every product,
    which takes hours and tells nothing."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
        flags = next((x for x in lines if x.startswith(("flags", "Features"))), "").split()
    except OSError:
        return True
    return bool({"avx512_bf16", "amx_bf16", "bf16"} & set(flags)) or not flags


def measure(engine: str, job: Job) -> dict[str, Any]:
    """Seconds of each repeat of each load, after one small request to warm up."""
    if job["precision"] == "bfloat16" and not multiplies_bfloat16():
        raise SystemExit("this processor has no bfloat16 products")
    begin_s = time.perf_counter()
    generate, version = ENGINES[engine](job)
    ready_s = time.perf_counter() - begin_s
    generate([[5, 6, 7, 8] * 16] * 2, 4)
    loads: dict[str, list[float]] = {}
    for load in job["loads"]:
        for prompts in load["prompts"]:
            begin_s = time.perf_counter()
            if load.get("prime"):
                generate(prompts[:1], load["output_tokens"])
                generate(prompts[1:], load["output_tokens"])
            else:
                generate(prompts, load["output_tokens"])
            loads.setdefault(load["name"], []).append(time.perf_counter() - begin_s)
    return {"engine": engine, "version": version, "ready_s": ready_s, "seconds": loads}


if __name__ == "__main__":
    figures = measure(sys.argv[1], json.load(sys.stdin))
    print("\n" + json.dumps(figures))
