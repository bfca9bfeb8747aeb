"""What an SGLang server says of itself: model, limits, and which of its features are switched on.

Features are read from the server's own description, never from its version.
"""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from runtime.backends.http_errors import error_message, not_an_answer, status_error, unreachable
from runtime.errors import BackendError

NAME = "sglang"
PROBE_TIMEOUT_S = 10.0
MOST_RUNNING = 1024
"""More requests than this at once are not worth it: steps get longer, rows do not end earlier."""


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """One server.

    Attributes:
        models: names under which requests may ask for the model, the first one preferred.
        context_tokens: prompt and answer together; None when the server does not say.
        cache_tokens: size of the KV pool, which is also the radix cache.
        chunk_tokens: prompt tokens that one prefill step takes.
        priorities: whether requests are queued by priority and may have as many different ones as
            they like; `low_first` whether small numbers go first.
        gauged_priorities: whether the server queues by priority, but sets gauges of its metrics for
            every value that it has ever seen, in every prefill step: after 5,000 calls with
            priorities of their own that is tens of milliseconds a step, until it is restarted.
        takes_seeds: whether a request may carry a seed; `seeded` whether that decides what is
            sampled.
        host_cache: whether evicted prefixes are kept in host memory.
        adapters: names of loaded LoRA adapters.
        memory_saver: whether memory can be released and resumed.
    """

    url: str
    models: tuple[str, ...]
    model_path: str
    tokenizer_path: str
    version: str
    context_tokens: int | None
    max_running: int
    cache_tokens: int | None
    page_tokens: int
    chunk_tokens: int
    policy: str
    prefix_cache: bool
    priorities: bool
    gauged_priorities: bool
    low_first: bool
    takes_seeds: bool
    seeded: bool
    grammars: bool
    host_cache: bool
    adapters: tuple[str, ...]
    memory_saver: bool

    def serves(self, model: str) -> bool:
        """Whether `model` names this server's model: by name, path or the last part of a path. The
        empty name is everybody's."""
        return not model or any(
            model in (name, name.rstrip("/").rpartition("/")[2]) for name in self.models
        )


def probe(url: str, api_key: str = "") -> ServerInfo:
    """Ask the server at `url`; blocks. Raises `BackendError`."""
    described = _get(url, "/server_info", api_key) or _get(url, "/get_server_info", api_key)
    model = _get(url, "/model_info", api_key) or _get(url, "/get_model_info", api_key) or {}
    if described is None:
        raise BackendError(
            f"{url} answers, but is no SGLang server: it has no /server_info; for another "
            f"OpenAI-compatible server use --engine openai={url}/v1",
            backend=NAME,
        )
    listed = _get(url, "/v1/models", api_key) or {}
    cards = cast("list[dict[str, Any]]", listed.get("data") or [])
    return read_info(url, described, model, cards)


def read_info(
    url: str,
    described: Mapping[str, Any],
    model: Mapping[str, Any],
    cards: list[dict[str, Any]],
) -> ServerInfo:
    """From the documents of `/server_info`, `/model_info` and the entries of `/v1/models`."""
    model_path = str(model.get("model_path") or described.get("model_path") or "")
    base = [c for c in cards if not c.get("parent")]
    adapters = tuple(str(c["id"]) for c in cards if c.get("parent"))
    names = [str(c["id"]) for c in base]
    names += [str(described.get("served_model_name") or ""), model_path]
    context = next((c["max_model_len"] for c in base if c.get("max_model_len")), None)
    context = context or described.get("context_length") or described.get("max_req_input_len")
    running = described.get("max_running_requests") or _internal(
        described, "effective_max_running_requests_per_dp"
    )
    by_priority = bool(described.get("enable_priority_scheduling"))
    metrics = bool(described.get("enable_metrics"))
    return ServerInfo(
        url=url,
        models=tuple(dict.fromkeys(name for name in names if name)),
        model_path=model_path,
        tokenizer_path=str(model.get("tokenizer_path") or described.get("tokenizer_path") or ""),
        version=str(described.get("version") or "unknown"),
        context_tokens=int(context) if context else None,
        max_running=min(MOST_RUNNING, int(running)) if running else MOST_RUNNING,
        cache_tokens=_whole(described.get("max_total_num_tokens")),
        page_tokens=int(described.get("page_size") or 1),
        chunk_tokens=max(512, int(described.get("chunked_prefill_size") or 8192)),
        policy=str(described.get("schedule_policy") or "fcfs"),
        prefix_cache=not described.get("disable_radix_cache"),
        priorities=by_priority and not metrics,
        gauged_priorities=by_priority and metrics,
        low_first=bool(described.get("schedule_low_priority_values_first")),
        takes_seeds="enable_deterministic_inference" in described,
        seeded=bool(described.get("enable_deterministic_inference")),
        grammars=described.get("grammar_backend") not in ("none", "None"),
        host_cache=bool(
            described.get("enable_hierarchical_cache") or described.get("enable_hicache")
        ),
        adapters=adapters,
        memory_saver=bool(described.get("enable_memory_saver")),
    )


def request_fields(url: str, api_key: str = "") -> frozenset[str] | None:
    """What a body of `POST /generate` may hold; None when the server does not publish it. Blocks.
    A field that a server does not know is dropped by it without a word."""
    schema: Any = _get(url, "/openapi.json", api_key)
    for name in ("components", "schemas", "GenerateReqInput", "properties"):
        schema = cast("dict[str, Any]", schema).get(name) if isinstance(schema, dict) else None
    return frozenset(cast("dict[str, Any]", schema)) if isinstance(schema, dict) else None


def choose_servers(infos: list[ServerInfo], model: str) -> list[ServerInfo]:
    """The servers of `model`, in order; several are replicas. Raises `BackendError` when there is
    none, or when no model is named and the servers have different ones."""
    chosen = [info for info in infos if info.serves(model)]
    have = ", ".join(sorted({info.models[0] for info in infos if info.models}))
    if not chosen:
        from runtime.errors import ModelNotFoundError

        raise ModelNotFoundError(
            f"no server for model {model!r}; the servers given have: {have}", backend=NAME
        )
    if len({info.models[:1] for info in chosen}) > 1:
        raise BackendError(
            f"the servers have different models ({have}): say which one with --model, or in the "
            "workflow",
            backend=NAME,
        )
    return chosen


def _internal(described: Mapping[str, Any], name: str) -> Any:
    states = cast("list[dict[str, Any]]", described.get("internal_states") or [])
    return next((s[name] for s in states if s.get(name)), None)


def _whole(value: Any) -> int | None:
    return int(value) if value else None


def _get(url: str, route: str, api_key: str) -> dict[str, Any] | None:
    """The JSON object of a route; None when the server has no such route."""
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    request = urllib.request.Request(url + route, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=PROBE_TIMEOUT_S) as answer:
            body = answer.read().decode("utf-8", errors="replace")
    except urllib.error.HTTPError as error:
        body = error.read().decode("utf-8", errors="replace")
        if error.code == 404:
            return None
        raise status_error(
            error.code, dict(error.headers), error_message(body), backend=NAME, url=url + route
        ) from error
    except (OSError, ValueError) as error:
        raise unreachable(url, error, backend=NAME) from error
    try:
        document: Any = json.loads(body)
    except ValueError as error:
        raise not_an_answer(url + route, body, backend=NAME) from error
    if not isinstance(document, dict):
        raise not_an_answer(url + route, body, backend=NAME)
    return cast("dict[str, Any]", document)
