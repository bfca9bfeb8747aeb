"""The shape of a checkpoint: what its layers compute and hold, counted from its configuration."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Literal

from costmodel.errors import ProfileError
from costmodel.evidence import Evidence, Grade
from costmodel.profile_file import PROFILES, ProfileReader, profile_names, profile_path

LayerKind = Literal["full", "window", "linear"]
"""How a layer attends: to everything before, to the last `window_tokens`, or through a recurrent
state of constant size."""


@dataclass(frozen=True, slots=True)
class Experts:
    """The mixture of experts of a model.

    Attributes:
        d_ff: width of one expert; `shared_d_ff` is the width of all shared experts together.
        n_shared: experts that every token passes.
        n_dense_layers: leading layers that have a dense MLP instead.
        coverage_alpha: exponent of `expert_coverage`: 1 for uniform routing (random weights), 0.71
            fits trained routers (Layered Prefill, Table 1).
        weight_bytes_per_param: of the experts' weights, when they are stored apart (MXFP4).
    """

    n_experts: int
    top_k: int
    d_ff: int
    n_shared: int = 0
    shared_d_ff: int = 0
    n_dense_layers: int = 0
    coverage_alpha: float = 0.71
    weight_bytes_per_param: float | None = None

    def expert_coverage(self, n_tokens: float) -> float:
        """Expected share of a layer's experts that `n_tokens` tokens of one step touch:
        1 - (1 - k/E)^(n^alpha) (Layered Prefill; alpha from its Table 1)."""
        if n_tokens <= 0:
            return 0.0
        miss: float = 1 - self.top_k / self.n_experts
        return 1.0 - math.pow(miss, math.pow(n_tokens, self.coverage_alpha))


@dataclass(frozen=True, slots=True)
class LatentAttention:
    """Multi-head latent attention (DeepSeek-V2): one compressed vector a token instead of K and V.

    `q_lora_rank` is 0 when queries are not compressed. Head dimensions: `nope` without position,
    `rope` with it (its key is shared by all heads and stored beside the latent), `value`.
    """

    kv_lora_rank: int
    q_lora_rank: int
    nope_head_dim: int
    rope_head_dim: int
    value_head_dim: int


@dataclass(frozen=True, slots=True)
class LinearAttention:
    """Layers with a recurrent state of constant size (gated delta rule and its kin).

    The state is `n_value_heads * key_head_dim * value_head_dim` elements of `state_bytes` bytes and
    a convolution window of `conv_kernel - 1` inputs.
    """

    n_key_heads: int
    n_value_heads: int
    key_head_dim: int
    value_head_dim: int
    conv_kernel: int = 4
    state_bytes: float = 4.0


@dataclass(frozen=True)
class ModelProfile:
    """One checkpoint.

    Attributes:
        mlp_matrices: matrices of width d_ff in a dense MLP: 3 gated, 2 plain.
        qkv_bias: whether the q, k and v projections add a bias.
        layer_kinds: how each layer attends.
        window_tokens: keys that a window layer sees; 0 when there is none.
        weight_bytes_per_param, kv_bytes_per_element, activation_bytes_per_element: storage.
        dtype: of the arithmetic; picks the hardware's peak.
        max_context_tokens: positions that the checkpoint was trained or extended for.
        printed_params, printed_active_params: what the model's authors print, for comparison with
            `params` and `active_params`; None when unknown.
    """

    name: str
    title: str
    family: str
    n_layers: int
    d_model: int
    n_query_heads: int
    n_kv_heads: int
    head_dim: int
    d_ff: int
    vocab_size: int
    mlp_matrices: int = 3
    tied_embeddings: bool = False
    qkv_bias: bool = False
    layer_kinds: tuple[LayerKind, ...] = ()
    window_tokens: int = 0
    experts: Experts | None = None
    latent: LatentAttention | None = None
    linear: LinearAttention | None = None
    output_gate: bool = False
    weight_bytes_per_param: float = 2.0
    kv_bytes_per_element: float = 2.0
    activation_bytes_per_element: float = 2.0
    dtype: str = "bf16"
    max_context_tokens: int = 4096
    printed_params: float | None = None
    printed_active_params: float | None = None
    aliases: tuple[str, ...] = ()
    evidence: Mapping[str, Evidence] = field(default_factory=dict[str, Evidence], repr=False)

    # --- parameters ------------------------------------------------------------------------------

    @cached_property
    def kinds(self) -> tuple[LayerKind, ...]:
        """`layer_kinds`, spelled out."""
        if self.layer_kinds:
            return self.layer_kinds
        full: tuple[LayerKind, ...] = ("full",)
        return full * self.n_layers

    @cached_property
    def attention_params_kv(self) -> int:
        """Weights of one full-attention layer's K and V projections (MLA: of the latent)."""
        if self.latent is not None:
            return self.d_model * (self.latent.kv_lora_rank + self.latent.rope_head_dim)
        width = 2 * self.n_kv_heads * self.head_dim
        return self.d_model * width + (width if self.qkv_bias else 0)

    @cached_property
    def attention_params_q_and_o(self) -> int:
        """Weights of one full-attention layer's query and output projections (MLA: also of the
        projections that expand latents into heads)."""
        if (m := self.latent) is not None:
            heads = self.n_query_heads
            query_width = heads * (m.nope_head_dim + m.rope_head_dim)
            if m.q_lora_rank:
                query = self.d_model * m.q_lora_rank + m.q_lora_rank * query_width
            else:
                query = self.d_model * query_width
            expand = m.kv_lora_rank * heads * (m.nope_head_dim + m.value_head_dim)
            return query + expand + heads * m.value_head_dim * self.d_model
        width = self.n_query_heads * self.head_dim
        gate = self.d_model * width if self.output_gate else 0
        return 2 * self.d_model * width + gate + (width if self.qkv_bias else 0)

    @cached_property
    def linear_attention_params(self) -> int:
        """Weights of one linear-attention layer: q, k, v, output gate, output, decay and beta,
        convolution."""
        if (m := self.linear) is None:
            return 0
        keys, values = m.n_key_heads * m.key_head_dim, m.n_value_heads * m.value_head_dim
        projections = self.d_model * (2 * keys + 2 * values + 2 * m.n_value_heads)
        return projections + values * self.d_model + (2 * keys + values) * m.conv_kernel

    @cached_property
    def dense_mlp_params(self) -> int:
        return self.mlp_matrices * self.d_model * self.d_ff

    @cached_property
    def expert_params(self) -> int:
        """Weights of one routed expert; 0 for a dense model."""
        return 0 if self.experts is None else self.mlp_matrices * self.d_model * self.experts.d_ff

    @cached_property
    def shared_expert_params(self) -> int:
        """Weights of one layer's shared experts and router."""
        if (e := self.experts) is None:
            return 0
        return self.mlp_matrices * self.d_model * e.shared_d_ff + self.d_model * e.n_experts

    def is_moe_layer(self, layer: int) -> bool:
        return self.experts is not None and layer >= self.experts.n_dense_layers

    @cached_property
    def embedding_params(self) -> int:
        """The table of input embeddings."""
        return self.vocab_size * self.d_model

    @cached_property
    def lm_head_params(self) -> int:
        """Weights that turn a hidden state into logits (also when they are the embedding table)."""
        return self.vocab_size * self.d_model

    @cached_property
    def non_embedding_params(self) -> int:
        """Weights of all layers, norms not counted (they are under 0.1 %)."""
        return self._layer_params(active=False)

    @cached_property
    def active_non_embedding_params(self) -> int:
        """Weights of all layers that one token multiplies."""
        return self._layer_params(active=True)

    @cached_property
    def params(self) -> int:
        """All stored weights; a tied embedding table counts once."""
        tables = self.embedding_params * (1 if self.tied_embeddings else 2)
        return self.non_embedding_params + tables

    @cached_property
    def active_params(self) -> int:
        """Weights of layers and tables that one token uses: what model cards call active."""
        tables = self.embedding_params * (1 if self.tied_embeddings else 2)
        return self.active_non_embedding_params + tables

    def _layer_params(self, *, active: bool) -> int:
        total = 0
        for layer, kind in enumerate(self.kinds):
            if kind == "linear":
                total += self.linear_attention_params
            else:
                total += self.attention_params_kv + self.attention_params_q_and_o
            if self.experts is not None and self.is_moe_layer(layer):
                used = self.experts.top_k if active else self.experts.n_experts
                total += self.shared_expert_params + used * self.expert_params
            else:
                total += self.dense_mlp_params
        return total

    # --- bytes -----------------------------------------------------------------------------------

    @cached_property
    def expert_bytes_per_param(self) -> float:
        apart = None if self.experts is None else self.experts.weight_bytes_per_param
        return self.weight_bytes_per_param if apart is None else apart

    @cached_property
    def weight_bytes(self) -> float:
        """All stored weights."""
        routed = 0
        if (e := self.experts) is not None:
            routed = (self.n_layers - e.n_dense_layers) * e.n_experts * self.expert_params
        plain = (self.params - routed) * self.weight_bytes_per_param
        return plain + routed * self.expert_bytes_per_param

    @cached_property
    def kv_elements_per_layer(self) -> int:
        """Elements that one token keeps in one full-attention layer."""
        if self.latent is not None:
            return self.latent.kv_lora_rank + self.latent.rope_head_dim
        return 2 * self.n_kv_heads * self.head_dim

    @cached_property
    def kv_bytes_per_token(self) -> float:
        """KV cache of one token, all layers that keep one (window layers as if unbounded)."""
        keeping = sum(kind != "linear" for kind in self.kinds)
        return keeping * self.kv_elements_per_layer * self.kv_bytes_per_element

    @cached_property
    def kv_bytes_per_token_beyond_window(self) -> float:
        """KV cache that one more token adds once the windows of window layers are full."""
        full = sum(kind == "full" for kind in self.kinds)
        return full * self.kv_elements_per_layer * self.kv_bytes_per_element

    @cached_property
    def state_bytes_per_sequence(self) -> float:
        """Recurrent state of one sequence, all linear-attention layers."""
        if (m := self.linear) is None:
            return 0.0
        keys, values = m.n_key_heads * m.key_head_dim, m.n_value_heads * m.value_head_dim
        state = m.n_value_heads * m.key_head_dim * m.value_head_dim * m.state_bytes
        conv = (2 * keys + values) * (m.conv_kernel - 1) * self.activation_bytes_per_element
        return self.kinds.count("linear") * (state + conv)

    def grade_of(self, number: str) -> Grade:
        """The grade of a number, by field name; "assumed" for one without evidence."""
        known = self.evidence.get(number)
        return "assumed" if known is None else known.grade


def checked(model: ModelProfile, file: str) -> ModelProfile:
    """`model`, unless its numbers contradict each other. Raises `ProfileError`."""

    def refuse(name: str, problem: str) -> ProfileError:
        return ProfileError(f"{file}: field {name!r} {problem}", file=file, field=name)

    sizes: Sequence[tuple[str, int]] = (
        ("n_layers", model.n_layers), ("d_model", model.d_model),
        ("n_query_heads", model.n_query_heads), ("n_kv_heads", model.n_kv_heads),
        ("head_dim", model.head_dim), ("d_ff", model.d_ff), ("vocab_size", model.vocab_size),
        ("max_context_tokens", model.max_context_tokens),
    )  # fmt: skip
    for name, value in sizes:
        if value < 1:
            raise refuse(name, f"is {value}; it must be at least 1")
    if model.n_query_heads % model.n_kv_heads:
        raise refuse(
            "n_kv_heads", f"is {model.n_kv_heads}; it must divide n_query_heads = "
            f"{model.n_query_heads}",
        )  # fmt: skip
    if model.mlp_matrices not in (2, 3):
        raise refuse("mlp_matrices", f"is {model.mlp_matrices}; it must be 2 or 3")
    if model.layer_kinds and len(model.layer_kinds) != model.n_layers:
        raise refuse(
            "layer_kinds", f"has {len(model.layer_kinds)} entries for {model.n_layers} layers"
        )
    if "window" in model.kinds and model.window_tokens < 1:
        raise refuse("window_tokens", "is missing, although some layers see a window only")
    if "linear" in model.kinds and model.linear is None:
        raise refuse("linear", "is missing, although some layers are linear")
    if (e := model.experts) is not None and not 1 <= e.top_k <= e.n_experts:
        raise refuse("experts.top_k", f"is {e.top_k}; it must be from 1 to {e.n_experts}")
    return model


def model_names() -> tuple[str, ...]:
    """Names of the shipped model profiles."""
    return profile_names("models")


def load_model(name: str | Path) -> ModelProfile:
    """A shipped model profile by name or alias, the profile in a `.toml` file, or the model whose
    Hugging Face `config.json` (or folder) is given as a path.

    Raises `ProfileError` naming the file and the field, or the nearest known name.

    Example:
        >>> load_model("llama-3.1-8b").kv_bytes_per_token
        131072.0
        >>> load_model("Llama-3.1-8B-Instruct").name
        'llama-3.1-8b'
    """
    path = Path(name)
    if path.suffix == ".json" or (path / "config.json").is_file():
        from costmodel.model_config import model_from_config

        return model_from_config(path)
    return read_model(profile_path("models", name, _aliases()))


@lru_cache(maxsize=1)
def _aliases() -> Mapping[str, str]:
    found: dict[str, str] = {}
    for path in (PROFILES / "models").glob("*.toml"):
        found.update(dict.fromkeys(read_model(path).aliases, path.stem))
    return found


def read_model(path: Path) -> ModelProfile:
    """The model profile in a TOML file. Raises `ProfileError`."""
    reader = ProfileReader.open(path)
    n_layers = reader.integer("n_layers", least=1)
    model = ModelProfile(
        name=path.stem,
        title=reader.text("title"),
        family=reader.text("family"),
        n_layers=n_layers,
        d_model=reader.integer("d_model", least=1),
        n_query_heads=reader.integer("n_query_heads", least=1),
        n_kv_heads=reader.integer("n_kv_heads", least=1),
        head_dim=reader.integer("head_dim", least=1),
        d_ff=reader.integer("d_ff", least=1),
        vocab_size=reader.integer("vocab_size", least=1),
        mlp_matrices=reader.integer("mlp_matrices", 3, least=2),
        tied_embeddings=reader.boolean("tied_embeddings", False),
        qkv_bias=reader.boolean("qkv_bias", False),
        layer_kinds=_layer_kinds(reader, n_layers),
        window_tokens=reader.integer("window_tokens", 0) if reader.has("window_tokens") else 0,
        experts=_experts(reader),
        latent=_latent(reader),
        linear=_linear(reader),
        output_gate=reader.boolean("output_gate", False),
        weight_bytes_per_param=reader.number("weight_bytes_per_param", 2.0, above=0),
        kv_bytes_per_element=reader.number("kv_bytes_per_element", 2.0, above=0),
        activation_bytes_per_element=reader.number("activation_bytes_per_element", 2.0, above=0),
        dtype=reader.text("dtype", "bf16"),
        max_context_tokens=reader.integer("max_context_tokens", least=1),
        printed_params=reader.optional("printed_params"),
        printed_active_params=reader.optional("printed_active_params"),
        aliases=reader.texts("aliases"),
        evidence=reader.evidence,
    )
    reader.finish()
    return checked(model, str(path))


def _layer_kinds(reader: ProfileReader, n_layers: int) -> tuple[LayerKind, ...]:
    """`layer_pattern`, repeated over the layers: `["window", "full"]` alternates."""
    pattern = reader.texts("layer_pattern")
    kinds: list[LayerKind] = []
    for word in pattern:
        if word == "full":
            kinds.append("full")
        elif word == "window":
            kinds.append("window")
        elif word == "linear":
            kinds.append("linear")
        else:
            raise reader.error("layer_pattern", f"has {word!r}; write full, window or linear")
    return tuple(kinds[i % len(kinds)] for i in range(n_layers)) if kinds else ()


def _experts(reader: ProfileReader) -> Experts | None:
    table = reader.table("experts")
    if table is None:
        return None
    n_shared = table.integer("n_shared", 0)
    d_ff = table.integer("d_ff", least=1)
    experts = Experts(
        n_experts=table.integer("n_experts", least=1),
        top_k=table.integer("top_k", least=1),
        d_ff=d_ff,
        n_shared=n_shared,
        shared_d_ff=table.integer("shared_d_ff", n_shared * d_ff),
        n_dense_layers=table.integer("n_dense_layers", 0),
        coverage_alpha=table.number("coverage_alpha", 0.71, above=0, most=1),
        weight_bytes_per_param=table.optional("weight_bytes_per_param"),
    )
    table.finish()
    return experts


def _latent(reader: ProfileReader) -> LatentAttention | None:
    table = reader.table("latent")
    if table is None:
        return None
    latent = LatentAttention(
        kv_lora_rank=table.integer("kv_lora_rank", least=1),
        q_lora_rank=table.integer("q_lora_rank", 0),
        nope_head_dim=table.integer("nope_head_dim", least=1),
        rope_head_dim=table.integer("rope_head_dim", least=1),
        value_head_dim=table.integer("value_head_dim", least=1),
    )
    table.finish()
    return latent


def _linear(reader: ProfileReader) -> LinearAttention | None:
    table = reader.table("linear")
    if table is None:
        return None
    linear = LinearAttention(
        n_key_heads=table.integer("n_key_heads", least=1),
        n_value_heads=table.integer("n_value_heads", least=1),
        key_head_dim=table.integer("key_head_dim", least=1),
        value_head_dim=table.integer("value_head_dim", least=1),
        conv_kernel=table.integer("conv_kernel", 4, least=1),
        state_bytes=table.number("state_bytes", 4.0, above=0),
    )
    table.finish()
    return linear
