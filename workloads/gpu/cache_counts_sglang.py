"""Compare the cache model with SGLang's own counts of cached tokens, request by request.

    python -m workloads.gpu.cache_counts_sglang --url http://127.0.0.1:30000 --out counts.json

Three workloads (questions over documents, chats that grow, experts over rows), each after a flush
and one request at a time: first with room for everything, then, where the server's cache is small
enough to overflow in reasonable time (start it with --max-total-tokens 60000), with one and a half
times as many tokens as fit. Prompts are random token ids, answers have forced lengths; an answer's
own ids are asked for, since they stay in the cache.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp

from halo.costs import RadixCache

Tokens = list[int]
PromptOf = Callable[[int, Tokens], Tokens]
ANSWER_TOKENS = 8
LARGEST_PRESSED_CACHE = 200_000


class Server:
    """SGLang's own API, one request at a time."""

    def __init__(self, url: str, session: aiohttp.ClientSession, vocab: int) -> None:
        self._url = url.rstrip("/")
        self._session = session
        self.vocab = vocab

    async def info(self) -> dict[str, Any]:
        for path in ("/server_info", "/get_server_info"):
            async with self._session.get(self._url + path) as response:
                if response.status == 200:
                    found: dict[str, Any] = await response.json()
                    return found
        return {}

    async def flush(self) -> None:
        async with self._session.post(self._url + "/flush_cache") as response:
            response.raise_for_status()

    async def generate(self, prompt: Tokens) -> tuple[Tokens, int]:
        """(answer ids, cached tokens of the prompt)."""
        body = {
            "input_ids": prompt,
            "sampling_params": {
                "max_new_tokens": ANSWER_TOKENS, "temperature": 0, "ignore_eos": True,
            },
            # The ids come with the log-probabilities of the answer, or by themselves.
            "return_logprob": True,
        }  # fmt: skip
        async with self._session.post(self._url + "/generate", json=body) as response:
            response.raise_for_status()
            answered: dict[str, Any] = await response.json()
        meta = answered["meta_info"]
        ids = answered.get("output_ids") or [entry[1] for entry in meta["output_token_logprobs"]]
        return [int(i) for i in ids], int(meta["cached_tokens"])


def questions_over_documents(rng: random.Random, vocab: int, tokens: int) -> tuple[PromptOf, int]:
    """A system prompt, one of the documents, a question."""
    system = _text(rng, vocab, 400)
    documents = [_text(rng, vocab, rng.randint(1000, 3000)) for _ in range(max(4, tokens // 2000))]
    return (
        lambda i, answer: system + rng.choice(documents) + _text(rng, vocab, rng.randint(10, 60)),
        3 * len(documents),
    )


def growing_chats(rng: random.Random, vocab: int, tokens: int) -> tuple[PromptOf, int]:
    """Chats in turns: each prompt is the one before, its answer and a new message."""
    chats = [_text(rng, vocab, 500) for _ in range(max(4, tokens // 1400))]

    def prompt(i: int, answer: Tokens) -> Tokens:
        if i:
            chats[(i - 1) % len(chats)] += answer + _text(rng, vocab, rng.randint(50, 250))
        return list(chats[i % len(chats)])

    return prompt, 6 * len(chats)


def experts_over_rows(rng: random.Random, vocab: int, tokens: int) -> tuple[PromptOf, int]:
    """Experts with a long role each over the same rows, and every fourth prompt again."""
    roles = [_text(rng, vocab, 800) for _ in range(6)]
    rows = [_text(rng, vocab, rng.randint(100, 500)) for _ in range(max(4, tokens // 1900))]
    seen: list[Tokens] = []

    def prompt(i: int, answer: Tokens) -> Tokens:
        if seen and i % 4 == 3:
            return list(rng.choice(seen))
        seen.append(roles[i % 6] + rows[i // 6 % len(rows)])
        return list(seen[-1])

    return prompt, 8 * len(rows)


WORKLOADS = (questions_over_documents, growing_chats, experts_over_rows)


def _text(rng: random.Random, vocab: int, length: int) -> Tokens:
    return [rng.randrange(1000, vocab) for _ in range(length)]


async def compare(
    server: Server,
    workload: Callable[[random.Random, int, int], tuple[PromptOf, int]],
    capacity: int,
    tokens: int,
    seed: int,
) -> dict[str, Any]:
    """One workload of about `tokens` different tokens: counts predicted and reported."""
    await server.flush()
    prompt_of, n_requests = workload(random.Random(seed), server.vocab, tokens)
    model = RadixCache(capacity)
    answer: Tokens = []
    predicted: list[int] = []
    reported: list[int] = []
    prompted = 0
    for i in range(n_requests):
        prompt = prompt_of(i, answer)
        answer, cached = await server.generate(prompt)
        prompted += len(prompt)
        reported.append(cached)
        predicted.append(model.serve(prompt, answer).cached_tokens)
    total = sum(reported)
    result = {
        "workload": workload.__name__,
        "requests": n_requests,
        "prompt_tokens": prompted,
        "reported_cached_tokens": total,
        "predicted_cached_tokens": sum(predicted),
        "relative_error": sum(predicted) / total - 1 if total else None,
        "predicted_evicted_tokens": model.stats.evicted_tokens,
        "capacity_tokens": capacity,
        "by_request": [list(pair) for pair in zip(predicted, reported, strict=True)],
    }
    shown = {key: value for key, value in result.items() if key != "by_request"}
    print(json.dumps(shown), file=sys.stderr)
    return result


async def run(args: argparse.Namespace) -> dict[str, Any]:
    timeout = aiohttp.ClientTimeout(total=None, sock_read=300)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        server = Server(args.url, session, args.vocab)
        info = await server.info()
        capacity = int(args.capacity or info.get("max_total_num_tokens") or 0)
        if not capacity:
            raise SystemExit("the server does not say its cache size; pass --capacity")
        results: list[dict[str, Any]] = []
        for workload in WORKLOADS:
            room = min(capacity // 2, 40_000)
            results.append(await compare(server, workload, capacity, room, args.seed))
        if capacity <= LARGEST_PRESSED_CACHE:
            for workload in WORKLOADS:
                pressed = capacity * 3 // 2
                results.append(await compare(server, workload, capacity, pressed, args.seed))
        else:
            print(f"no pressure: the cache has {capacity} tokens", file=sys.stderr)
    return {
        "engine": f"sglang {info.get('version', '')}".strip(),
        "command": " ".join(["python -m workloads.gpu.cache_counts_sglang", *sys.argv[1:]]),
        "results": results,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--url", default="http://127.0.0.1:30000")
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--vocab", type=int, default=128000, help="token ids stay below this")
    parser.add_argument("--capacity", type=int, help="tokens of the server's cache")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    document = asyncio.run(run(args))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(document) + "\n", encoding="utf-8")
    errors: list[float] = [
        abs(r["relative_error"]) for r in document["results"] if r["relative_error"] is not None
    ]
    print(f"largest error {max(errors):.2%} over {len(errors)} workloads: {args.out}")


if __name__ == "__main__":
    main()
