"""The one formula: what one engine step costs, from what is in it.

A step runs all layers over the prompt tokens and decodes that were scheduled together:

    time = overheads + sum over layers of
             max(linear FLOP / compute rate, weights read / bandwidth)
           + sum over prompt chunks of max(attention FLOP / compute rate, KV read / bandwidth)
           + sum over decodes of max(KV read / bandwidth, attention FLOP / compute rate)
           + choice of tokens or keys

(SARATHI's iteration time, section 4, with token counts that may differ from layer to layer.)
Schedulers, simulators and closed forms step this formula; nothing else in Halo prices a token.

`step_cost` answers one question in full. `StepModel` holds everything that does not depend on the
step, and its `step_s` answers a simulator: about a microsecond for a step of decodes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from costmodel.attention import AttentionProfile, native
from costmodel.cost import Cost
from costmodel.errors import ProfileError
from costmodel.evidence import Grade, weakest
from costmodel.hardware import HardwareProfile
from costmodel.layers import LayerSpec
from costmodel.links import LinkProfile
from costmodel.models import ModelProfile

if TYPE_CHECKING:
    from costmodel.calibration import Calibration

_PRICED = (
    "memory_bytes_per_s", "compute_efficiency", "attention_compute_efficiency",
    "weight_read_efficiency", "kv_read_efficiency", "step_overhead_s",
)  # fmt: skip
"""Numbers of a hardware profile that every price uses."""


@dataclass(frozen=True, slots=True)
class PrefillChunk:
    """Tokens of one prompt that a step computes.

    Attributes:
        tokens: tokens computed now, cache hits excluded.
        context: tokens of the same sequence that are in the cache already: hits and earlier chunks.
        samples: whether this chunk ends the prompt, so that the step gives its first answer token.
    """

    tokens: int
    context: int = 0
    samples: bool = True


@dataclass(frozen=True, slots=True)
class StepLoad:
    """What is in one step.

    Attributes:
        prefills: chunks of prompts, each of another sequence.
        decode_contexts: tokens in the cache of each decoding sequence (its own new token counts
            in); empty for a pure prefill step.
        prefill_layers: the layers that run the prefills, as (first, past the last); None for all.
            Decodes run in all layers (Layered Prefill).
    """

    prefills: tuple[PrefillChunk, ...] = ()
    decode_contexts: tuple[int, ...] = ()
    prefill_layers: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        for chunk in self.prefills:
            if chunk.tokens < 0 or chunk.context < 0:
                raise ProfileError(
                    f"a prefill chunk of {chunk.tokens} tokens behind {chunk.context}: token "
                    "counts must not be negative",
                    field="prefills",
                )
        for context in self.decode_contexts:
            if context < 0:
                raise ProfileError(
                    f"a decode behind {context} tokens: token counts must not be negative",
                    field="decode_contexts",
                )


def step_cost(
    load: StepLoad,
    model: ModelProfile,
    attention: AttentionProfile | None,
    hardware: HardwareProfile,
    calibration: Calibration | None = None,
) -> Cost:
    """The cost of one step. None for `attention` is the model's own; a calibration replaces the
    hardware profile's efficiencies and overheads by fitted ones.

    Raises `ProfileError` for negative tokens and for a dtype without a peak. Build a `StepModel`
    to price many steps.
    """
    return StepModel(model, hardware, attention, calibration=calibration).cost(load)


class StepModel:
    """The step formula for one model on one kind of device.

    Args:
        devices: devices that share each layer (tensor parallel); peaks, bandwidth, memory, power
            and price count that often, and `link` carries two exchanges a layer.
    """

    def __init__(
        self,
        model: ModelProfile,
        hardware: HardwareProfile,
        attention: AttentionProfile | None = None,
        *,
        calibration: Calibration | None = None,
        devices: int = 1,
        link: LinkProfile | None = None,
    ) -> None:
        if devices < 1:
            raise ProfileError(f"{devices} devices; there must be at least 1", field="devices")
        if calibration is not None:
            hardware = calibration.applied(hardware)
        self.model = model
        self.hardware = hardware
        self.attention = attention or native(model)
        self.devices = devices
        self.layers = self.attention.layers(model)
        grades: list[Grade] = [hardware.grade_of(number) for number in _PRICED]
        self.evidence: Grade = weakest([*grades, self.attention.evidence])
        self._link = link
        self._groups = _grouped(self.layers)
        self._spans: dict[tuple[int, int], list[tuple[LayerSpec, int, int]]] = {}
        self._peak = hardware.peak(model.dtype) * devices
        self._weight_rate = hardware.memory_bytes_per_s * hardware.weight_read_efficiency * devices
        self._kv_rate = (
            hardware.memory_bytes_per_s
            * hardware.kv_read_efficiency
            * devices
            / hardware.cache_copy_factor
        )
        self._attention_rate = self._peak * hardware.attention_compute_efficiency
        self._head_bytes = model.lm_head_params * model.weight_bytes_per_param
        self._linear: dict[int, float] = {}
        self._linear_of_decodes: list[float] = [0.0]
        self._prepare_fast_path()

    # --- the compact form, for simulators --------------------------------------------------------

    def _prepare_fast_path(self) -> None:
        """Sum what is linear over layers, so that `step_s` need not walk them."""
        hardware, rate = self.hardware, self._kv_rate
        unlimited = limited = fixed = 0.0
        limits: set[float] = set()
        for layer, count in self._groups:
            per_key = max(
                layer.kv_decode_bytes_per_token / rate,
                layer.decode_flops_per_pair * layer.kv_retain / self._attention_rate,
            )
            if layer.decode_keys_limit:
                limited += count * per_key
                limits.add(layer.decode_keys_limit)
            else:
                unlimited += count * per_key
            if layer.keys == "none":
                fixed += count * 2 * layer.state_bytes / rate
        self._key_s, self._limited_key_s = unlimited, limited
        self._keys_limit = min(limits, default=0.0)
        self._one_limit = len(limits) <= 1
        # A decode's share that does not grow with its context: sampling, recurrent states.
        self._per_decode_s = hardware.request_overhead_s + fixed
        self._overhead_s = hardware.step_overhead_s + hardware.layer_overhead_s * len(self.layers)
        self._prefill_overhead_s = self._overhead_s + hardware.prefill_step_overhead_s
        # Attention of a prompt chunk is one quadratic when every layer is dense.
        only = self._groups[0][0] if len(self._groups) == 1 else None
        self._one_dense = (
            only is not None
            and only.keys == "dense"
            and only.rest_tokens_share == 1.0
            and not only.last_tokens
            and not only.sequential
            and not only.select_pairs_share
        )
        if self._one_dense and only is not None:
            kernel = hardware.kernel_efficiency.get(only.kernel, 1.0)
            count = self._groups[0][1]
            self._pair_s = count * only.attention_flops_per_pair / (self._attention_rate * kernel)
            self._chunk_key_s = count * only.kv_bytes_per_token / rate
            self._select_token_s = (
                count * only.select_flops_per_token / (self._peak * self._efficiency(1e9))
            )

    def step_s(
        self,
        prefills: Sequence[tuple[int, int]],
        n_decodes: int,
        decode_context_tokens: int,
    ) -> float:
        """Seconds of a step with chunks (tokens, context) and `n_decodes` sequences that hold
        `decode_context_tokens` together. Every chunk is taken to give an answer token.

        Equals `cost(...).time_s`, except that window layers see the mean context of the decodes.
        Token counts are not checked: they are the caller's promise.
        """
        if not prefills:
            # Decodes alone: one look-up and three products.
            known = self._linear_of_decodes
            if n_decodes >= len(known):
                for n in range(len(known), n_decodes + 1):
                    known.append(self._linear_and_head_s(0, n, 0))
            return (
                self._overhead_s
                + known[n_decodes]
                + n_decodes * self._per_decode_s
                + decode_context_tokens * self._key_s
                + (
                    self._limited_s(n_decodes, decode_context_tokens)
                    if self._limited_key_s
                    else 0.0
                )
            )
        tokens = 0
        attention_s = 0.0
        if self._one_dense:
            pair_s, key_s = self._pair_s, self._chunk_key_s
            for n, context in prefills:
                tokens += n
                by_flops = n * (context + (n + 1) * 0.5) * pair_s
                by_bytes = (context + n) * key_s
                attention_s += by_flops if by_flops > by_bytes else by_bytes
            attention_s += tokens * self._select_token_s
        else:
            for n, context in prefills:
                tokens += n
                attention_s += self._prefill_attention_s(n, context)
        chunks = len(prefills)
        key = (tokens << 40) | (n_decodes << 20) | chunks
        linear_s = self._linear.get(key)
        if linear_s is None:
            longest = max(n for n, _ in prefills)
            linear_s = self._linear_and_head_s(tokens, n_decodes, chunks, longest)
            if not self._sequential:
                if len(self._linear) > 1_000_000:
                    self._linear.clear()
                self._linear[key] = linear_s
        return (
            self._prefill_overhead_s
            + linear_s
            + attention_s
            + chunks * self.hardware.request_overhead_s
            + n_decodes * self._per_decode_s
            + decode_context_tokens * self._key_s
            + (self._limited_s(n_decodes, decode_context_tokens) if self._limited_key_s else 0.0)
        )

    def calls_s(self, n_calls: int, prompt_tokens: int) -> float:
        """Seconds of a batch of calls outside its steps; `prompt_tokens` with hits."""
        h = self.hardware
        return (
            h.call_latency_s
            + h.call_overhead_s * n_calls
            + h.prompt_token_overhead_s * prompt_tokens
        )

    @property
    def _sequential(self) -> bool:
        return any(layer.sequential for layer, _ in self._groups)

    def _limited_s(self, n_decodes: int, context_tokens: int) -> float:
        """Attention of decodes in layers that read a limited number of keys."""
        if self._one_limit:
            return min(context_tokens, n_decodes * self._keys_limit) * self._limited_key_s
        if not n_decodes:
            return 0.0
        mean = context_tokens / n_decodes
        return n_decodes * sum(
            count * self._decode_s(layer, mean)
            for layer, count in self._groups
            if layer.decode_keys_limit
        )

    def _prefill_attention_s(self, tokens: float, context: float) -> float:
        """Attention and selection of one chunk, all layers."""
        return sum(
            count * (self._chunk_s(layer, tokens, context) + self._select_s(layer, tokens, context))
            for layer, count in self._groups
        )

    def _linear_and_head_s(
        self, prefill_tokens: int, n_decodes: int, chunks: int, longest: int = 0
    ) -> float:
        linear = sum(
            count * self._matrices(layer, prefill_tokens, n_decodes, chunks, longest)[0]
            for layer, count in self._groups
        )
        tokens = prefill_tokens + n_decodes
        link_s = self._link_s(tokens) if self.devices > 1 else 0.0
        return linear + self._head(n_decodes + chunks)[0] + link_s

    # --- one layer -------------------------------------------------------------------------------

    def _efficiency(self, tokens: float) -> float:
        return interpolated(self.hardware.compute_efficiency, tokens)

    def _tiled(self, tokens: float) -> float:
        """Tokens as the matrix kernels round them. Below one tile, smaller kernels take over."""
        tile = self.hardware.tile_tokens
        return tokens if tokens <= tile else -(-tokens // tile) * tile

    def _matrices(
        self, layer: LayerSpec, prefill_tokens: float, n_decodes: int, chunks: int, longest: float
    ) -> tuple[float, float, float, float]:
        """(seconds, FLOP, weight bytes, expert bytes) of a layer's matrices in one step."""
        if layer.sequential and prefill_tokens:
            return self._sequential_matrices(layer, prefill_tokens, n_decodes, longest)
        kv = prefill_tokens * layer.kv_tokens_share + n_decodes
        rest = prefill_tokens * layer.rest_tokens_share + layer.last_tokens * chunks + n_decodes
        most = max(kv, rest)
        if most == 0:
            return 0.0, 0.0, 0.0, 0.0
        if not self.hardware.batch_scales_decode:
            return self._one_by_one(layer, kv, rest)
        flops = 2 * (layer.params_kv * self._tiled(kv) + layer.params_rest * self._tiled(rest))
        state = layer.state_flops_per_token * rest
        experts = self._expert_bytes(layer, rest)
        compute_s = (flops + state) / (self._peak * self._efficiency(self._tiled(most)))
        read_s = (layer.weight_bytes + experts) / self._weight_rate
        return max(compute_s, read_s), flops + state, layer.weight_bytes, experts

    def _one_by_one(
        self, layer: LayerSpec, kv: float, rest: float
    ) -> tuple[float, float, float, float]:
        """A device that multiplies one vector at a time reads the weights for every token."""
        tokens = max(kv, rest)
        flops = 2 * (layer.params_kv * kv + layer.params_rest * rest)
        experts = 0.0
        if layer.experts is not None:
            experts = layer.expert_bytes * layer.experts.top_k / layer.experts.n_experts * tokens
        weights = layer.weight_bytes * tokens
        compute_s = flops / (self._peak * self._efficiency(1))
        return max(compute_s, (weights + experts) / self._weight_rate), flops, weights, experts

    def _sequential_matrices(
        self, layer: LayerSpec, prefill_tokens: float, n_decodes: int, longest: float
    ) -> tuple[float, float, float, float]:
        """A layer whose prefill goes position by position: the prompts of a step advance together,
        and only that batch amortises the weights (Recurrent Transformer)."""
        sequences = prefill_tokens / longest
        plain = replace(layer, sequential=False)
        one = self._matrices(plain, sequences, 0, 0, 1)
        with_decodes = self._matrices(plain, sequences, n_decodes, 0, 1)
        later = longest - 1
        return (
            with_decodes[0] + later * one[0],
            with_decodes[1] + later * one[1],
            with_decodes[2] + later * one[2],
            with_decodes[3] + later * one[3],
        )

    def _chunk_s(self, layer: LayerSpec, tokens: float, context: float) -> float:
        """Attention of one chunk of a prompt in one layer."""
        kernel = self.hardware.kernel_efficiency.get(layer.kernel, 1.0)
        flops = layer.attention_flops_per_pair * layer.pairs(tokens, context)
        read = layer.kv_bytes_per_token * layer.keys_read(tokens, context)
        return max(flops / (self._attention_rate * kernel), read / self._kv_rate)

    def _select_s(self, layer: LayerSpec, tokens: float, context: float) -> float:
        if not layer.select_flops_per_token and not layer.select_pairs_share:
            return 0.0
        return layer.select_flops(tokens, context) / (self._peak * self._efficiency(1e9))

    def _decode_s(self, layer: LayerSpec, context: float) -> float:
        """Attention of one decode in one layer."""
        if layer.keys == "none":
            return 2 * layer.state_bytes / self._kv_rate
        keys = min(context, layer.decode_keys_limit) if layer.decode_keys_limit else context
        return max(
            layer.kv_decode_bytes_per_token * keys / self._kv_rate,
            layer.decode_flops_per_pair * layer.kv_retain * keys / self._attention_rate,
        )

    def _head(self, logits: int) -> tuple[float, float, float]:
        """(seconds, FLOP, bytes) of turning hidden states into logits."""
        if not logits:
            return 0.0, 0.0, 0.0
        flops = 2.0 * self.model.lm_head_params * self._tiled(logits)
        read = self._head_bytes * (1 if self.hardware.batch_scales_decode else logits)
        compute_s = flops / (self._peak * self._efficiency(self._tiled(logits)))
        return max(compute_s, read / self._weight_rate), flops, read

    def head_s(self, logits: int) -> float:
        """Seconds of turning `logits` hidden states into logits."""
        return self._head(logits)[0]

    @property
    def weight_bytes_of_one_token(self) -> float:
        """Bytes of all layers' weights that a step with one token reads."""
        return sum(
            count * (layer.weight_bytes + self._expert_bytes(layer, 1))
            for layer, count in self._groups
        )

    def _expert_bytes(self, layer: LayerSpec, tokens: float) -> float:
        if layer.experts is None:
            return 0.0
        return layer.expert_bytes * layer.experts.expert_coverage(tokens)

    def _link_s(self, tokens: float) -> float:
        """Two all-reduces a layer in a ring: each moves 2 (n - 1) / n of the activations."""
        if self._link is None:
            return 0.0
        size = tokens * self.model.d_model * self.model.activation_bytes_per_element
        one = 2 * (self.devices - 1) / self.devices * size / self._link.bytes_per_s
        return 2 * len(self.layers) * (one + self._link.latency_s)

    # --- one step in full ------------------------------------------------------------------------

    def cost(self, load: StepLoad) -> Cost:
        """The cost of one step with its parts. Raises `ProfileError` for layers out of range."""
        contexts = load.decode_contexts
        n_decodes, n_chunks = len(contexts), len(load.prefills)
        tokens = sum(chunk.tokens for chunk in load.prefills)
        longest = max((chunk.tokens for chunk in load.prefills), default=0)
        if not tokens and not n_decodes:
            return Cost(evidence=self.evidence, usd=self._usd(0.0))
        linear_s = prefill_s = decode_s = select_s = flops = weights = experts = 0.0
        read = written = held = 0.0
        for layer, count, active in self._active(load):
            # `active` of the `count` equal layers run the prefills, the others decodes alone.
            for number, prompts in ((active, True), (count - active, False)):
                if not number:
                    continue
                here = (tokens, n_chunks, longest) if prompts else (0, 0, 0)
                seconds, work, plain, routed = self._matrices(
                    layer, here[0], n_decodes, here[1], here[2]
                )
                linear_s += number * seconds
                flops += number * work
                weights += number * plain
                experts += number * routed
                if prompts:
                    for chunk in load.prefills:
                        prefill_s += number * self._chunk_s(layer, chunk.tokens, chunk.context)
                        select_s += number * self._select_s(layer, chunk.tokens, chunk.context)
                        flops += number * (
                            layer.attention_flops_per_pair
                            * layer.pairs(chunk.tokens, chunk.context)
                            + layer.select_flops(chunk.tokens, chunk.context)
                        )
                        read += number * (
                            layer.kv_bytes_per_token * layer.keys_read(chunk.tokens, chunk.context)
                        )
                        written += number * layer.kv_kept_bytes_per_token * chunk.tokens
            for context in contexts:
                decode_s += count * self._decode_s(layer, context)
                keys = min(context, layer.decode_keys_limit or context)
                flops += count * layer.decode_flops_per_pair * layer.kv_retain * keys
                read += count * (layer.kv_decode_bytes_per_token * keys + layer.state_bytes)
                written += count * (layer.kv_bytes_per_token / layer.kv_share_group)
                held += count * self.kv_bytes_of_layer(layer, context)
            for chunk in load.prefills:
                held += count * self.kv_bytes_of_layer(layer, chunk.context + chunk.tokens)
        head_s, head_flops, head_bytes = self._head(
            n_decodes + sum(chunk.samples for chunk in load.prefills)
        )
        link_s = self._link_s(tokens + n_decodes) if self.devices > 1 else 0.0
        overhead_s = self._prefill_overhead_s if n_chunks else self._overhead_s
        overhead_s += self.hardware.request_overhead_s * (n_decodes + n_chunks)
        time_s = linear_s + prefill_s + decode_s + head_s + select_s + link_s + overhead_s
        traffic = weights + head_bytes + experts + read * self.hardware.cache_copy_factor + written
        return Cost(
            time_s=time_s,
            linear_s=linear_s,
            prefill_attention_s=prefill_s,
            decode_attention_s=decode_s,
            head_s=head_s,
            select_s=select_s,
            link_s=link_s,
            overhead_s=overhead_s,
            flops=flops + head_flops,
            weight_bytes=weights + head_bytes,
            expert_bytes=experts,
            kv_read_bytes=read,
            kv_write_bytes=written,
            kv_bytes=held,
            energy_j=self.energy_j(time_s - overhead_s, overhead_s, flops + head_flops, traffic),
            usd=self._usd(time_s),
            evidence=self.evidence,
        )

    def _active(self, load: StepLoad) -> list[tuple[LayerSpec, int, int]]:
        """(layer, how many are equal, how many of them run the prefills)."""
        if load.prefill_layers is None:
            return [(layer, count, count) for layer, count in self._groups]
        first, last = load.prefill_layers
        if not 0 <= first < last <= len(self.layers):
            raise ProfileError(
                f"prefill_layers is {load.prefill_layers}; layers go from 0 to {len(self.layers)}",
                field="prefill_layers",
            )
        if load.prefill_layers not in self._spans:
            inside = dict(_grouped(self.layers[first:last]))
            self._spans[load.prefill_layers] = [
                (layer, count, inside.get(layer, 0)) for layer, count in self._groups
            ]
        return self._spans[load.prefill_layers]

    # --- memory, energy, money -------------------------------------------------------------------

    def kv_bytes_of_layer(self, layer: LayerSpec, tokens: float) -> float:
        """KV cache and state that a sequence of `tokens` tokens keeps in one layer."""
        kept = min(tokens, layer.decode_keys_limit) if layer.decode_keys_limit else tokens
        return layer.kv_kept_bytes_per_token * kept + layer.state_bytes

    def kv_bytes(self, tokens: float) -> float:
        """KV cache and state of a sequence of `tokens` tokens, all layers."""
        return sum(count * self.kv_bytes_of_layer(layer, tokens) for layer, count in self._groups)

    @property
    def kv_capacity_bytes(self) -> float:
        """Memory left for KV beside the weights; negative when the weights do not fit."""
        usable = self.hardware.memory_bytes * self.hardware.usable_memory_share * self.devices
        return usable - self.model.weight_bytes

    def max_sequences(self, tokens: float) -> int:
        """Sequences of `tokens` tokens whose KV fits beside the weights (SARATHI, section 4.3.1):
        0 when the weights alone do not fit."""
        return max(0, int(self.kv_capacity_bytes // self.kv_bytes(tokens)))

    def energy_j(
        self, busy_s: float, idle_s: float, flops: float = 0.0, traffic_bytes: float = 0.0
    ) -> float:
        """Energy of the devices: full power while they work and idle power while they wait. With
        energies of a FLOP and a byte in the profile, idle power throughout and theirs on top."""
        h = self.hardware
        if h.joule_per_flop is not None and h.joule_per_byte is not None:
            at_rest = h.idle_power_w * self.devices * (busy_s + idle_s)
            return at_rest + flops * h.joule_per_flop + traffic_bytes * h.joule_per_byte
        return self.devices * (busy_s * h.power_w + idle_s * h.idle_power_w)

    def _usd(self, time_s: float) -> float | None:
        price = self.hardware.price_usd_per_h
        return None if price is None else price * self.devices * time_s / 3600


def interpolated(points: Sequence[tuple[float, float]], x: float) -> float:
    """A piecewise-linear curve, constant outside its points.

    Example:
        >>> interpolated(((1, 0.2), (3, 0.4)), 2), interpolated(((1, 0.2), (3, 0.4)), 9)
        (0.30000000000000004, 0.4)
    """
    previous = points[0]
    if x <= previous[0]:
        return previous[1]
    for point in points[1:]:
        if x <= point[0]:
            share = (x - previous[0]) / (point[0] - previous[0])
            return previous[1] + share * (point[1] - previous[1])
        previous = point
    return previous[1]


def _grouped(layers: Sequence[LayerSpec]) -> list[tuple[LayerSpec, int]]:
    """Equal layers together, in order of first appearance."""
    counts: dict[LayerSpec, int] = {}
    for layer in layers:
        counts[layer] = counts.get(layer, 0) + 1
    return list(counts.items())
