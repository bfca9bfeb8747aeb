"""From `sglang=URL[,URL...]` and a model to an engine: probe, choose the model's servers, open."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from runtime.backends.base import Backend, Capabilities
from runtime.backends.sglang import SglangBackend, capabilities_of
from runtime.backends.sglang_info import NAME, ServerInfo, choose_servers, probe, request_fields
from runtime.backends.sglang_wire import WireOptions
from runtime.chat.format import ChatFormat
from runtime.chat.tokenizer_files import find_tokenizer
from runtime.clock import Clock
from runtime.errors import BackendError
from runtime.fleet.replicas import FleetBackend, together


def split_urls(address: str) -> list[str]:
    """The addresses in `URL,URL`. Raises `BackendError`.

    Example:
        >>> split_urls("http://a:30000/, http://b:30000")
        ['http://a:30000', 'http://b:30000']
    """
    urls = [url.strip().rstrip("/") for url in address.split(",") if url.strip()]
    for url in urls:
        if not url.startswith(("http://", "https://")):
            raise BackendError(
                f"{url!r} is not the address of a server; write --engine "
                f"sglang=http://127.0.0.1:30000",
                backend=NAME,
            )
    if not urls:
        raise BackendError(
            "no address: write --engine sglang=http://127.0.0.1:30000, or start a server with "
            "`halo engine start`",
            backend=NAME,
        )
    return urls


def find_servers(address: str, model: str, api_key: str = "") -> list[ServerInfo]:
    """The servers of `model` among those at `address`; blocks. Raises `BackendError`."""
    urls = split_urls(address)
    with ThreadPoolExecutor(len(urls)) as pool:
        infos = list(pool.map(probe, urls, [api_key] * len(urls)))
    return choose_servers(infos, model)


def describe(
    address: str,
    model: str,
    *,
    api_key: str = "",
    tokenizer: Path | None = None,
    max_in_flight: int | None = None,
) -> Capabilities:
    """What the servers of `model` offer together."""
    infos = find_servers(address, model, api_key)
    template = chat_format(infos[0], tokenizer)
    return together([capabilities_of(info, template, max_in_flight) for info in infos])


async def open_backend(
    address: str,
    model: str,
    clock: Clock,
    *,
    api_key: str = "",
    tokenizer: Path | None = None,
    tenant: str = "",
    max_in_flight: int | None = None,
    steer: bool = True,
) -> Backend:
    """The engine. Raises `BackendError`."""
    infos = await asyncio.to_thread(find_servers, address, model, api_key)
    if tenant:
        await asyncio.gather(*(asyncio.to_thread(_keeps_apart, i.url, api_key) for i in infos))
    template = chat_format(infos[0], tokenizer)
    return FleetBackend(
        [
            SglangBackend(
                info,
                template,
                clock,
                api_key=api_key,
                options=WireOptions(tenant),
                max_in_flight=max_in_flight,
                steer=steer,
            )
            for info in infos
        ],
        clock,
    )


def _keeps_apart(url: str, api_key: str) -> None:
    """Raises `BackendError` when the cache of a server knows no tenants."""
    fields = request_fields(url, api_key)
    if fields is not None and "extra_key" not in fields:
        raise BackendError(
            f"the SGLang at {url} is too old to keep the prefixes of tenants apart (its requests "
            "have no `extra_key`); update it, or run without `tenant`",
            backend=NAME,
        )


def chat_format(info: ServerInfo, tokenizer: Path | None) -> ChatFormat:
    """The chat format of a server's model. Raises `BackendError` when it cannot be read here."""
    folder = tokenizer or find_tokenizer(info.tokenizer_path)
    if folder is None:
        raise BackendError(
            f"the tokenizer of {info.url} ({info.tokenizer_path!r}) is not on this machine; copy "
            "the model's tokenizer files and set `tokenizer = FOLDER`, or use the server's own "
            f"chat route with --engine openai={info.url}/v1",
            backend=NAME,
        )
    return ChatFormat(folder, backend=NAME)
