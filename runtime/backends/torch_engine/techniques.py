"""The attention techniques of `costmodel.techniques` as options of this engine."""

from __future__ import annotations

from dataclasses import replace

from costmodel.techniques.named import named_technique
from costmodel.techniques.swiftkv import KEPT_LAYERS
from runtime.backends.torch_engine.settings import TorchOptions
from runtime.errors import BackendError


def with_attention(
    options: TorchOptions, attention: str, model: str, n_layers: int
) -> TorchOptions:
    """`options` with the technique that `attention` names; empty for none. Raises `BackendError`
    for one that this engine does not have."""
    if not attention:
        return options
    technique = named_technique(attention)
    given = technique.settings
    if technique.name == "swiftkv":
        keep = int(given.get("keep_layers") or KEPT_LAYERS.get(model, n_layers // 2))
        return replace(options, swiftkv=(keep, int(given.get("group", 1))))
    if technique.name == "fastkv":
        layer = given.get("tsp_layer")
        rate, retain = float(given.get("tsp_rate", 0.2)), float(given.get("retain", 0.1))
        return replace(options, selection=(None if layer is None else int(layer), rate, retain))
    raise BackendError(
        f"the torch engine does not offer {technique.profile.title}", backend="torch"
    )
