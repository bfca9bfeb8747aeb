"""What calls cost, for those who ask without running: the step formula, its profiles, and the
prefix cache without an engine. `halo.scheduling` has the scheduler and the simulator."""

from __future__ import annotations

from costmodel.batching import Batching, Call, batch_s
from costmodel.cost import Cost
from costmodel.hardware import HardwareProfile, hardware_names, load_hardware
from costmodel.links import LinkProfile, link_names, load_link
from costmodel.model_config import model_from_config
from costmodel.models import ModelProfile, load_model, model_names
from costmodel.radix_cache import RadixCache, Served, serve_all
from costmodel.step import PrefillChunk, StepLoad, StepModel, step_cost

__all__ = [
    "Batching",
    "Call",
    "Cost",
    "HardwareProfile",
    "LinkProfile",
    "ModelProfile",
    "PrefillChunk",
    "RadixCache",
    "Served",
    "StepLoad",
    "StepModel",
    "batch_s",
    "hardware_names",
    "link_names",
    "load_hardware",
    "load_link",
    "load_model",
    "model_from_config",
    "model_names",
    "serve_all",
    "step_cost",
]
