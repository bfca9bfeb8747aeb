"""Start a real SGLang server where there is no accelerator: `python sglang_cpu.py --model-path
...`.

Runs with the Python of SGLang's own environment, as a file: it imports nothing of Halo. SGLang's
kernels for CPUs are not published as a package; without them its layers fall back to plain PyTorch.
What still stands in the way is put right here before sglang is imported. SGLang spawns its worker
processes, and a spawned process executes the main file's top level again, so they get it as well.

Scheduler, radix cache, memory pool, tokenizer processes and HTTP server are SGLang's own. Each
thing is put right where it is missing, whatever the release. Add these flags: `--device cpu
--attention-backend torch_native --disable-overlap-schedule --cuda-graph-backend-decode disabled
--cuda-graph-backend-prefill disabled`, and set OMP_NUM_THREADS to the number of free cores, not
more.
"""

from __future__ import annotations

import functools
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import os
import sys
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

FACTORIES = (
    *("empty", "zeros", "ones", "full", "tensor", "arange"),
    *("empty_like", "zeros_like", "ones_like", "full_like"),
)
"""Functions of torch that take `pin_memory`."""


LAYERS = "sglang.srt.layers"
BORROWED = (
    "vllm",
    "vllm._custom_ops",
    "vllm.model_executor",
    "vllm.model_executor.layers",
    "vllm.model_executor.layers.activation",
    "vllm.model_executor.layers.layernorm",
)
"""What releases up to 0.5.9 import from vLLM where there is neither CUDA nor AMX."""


def declare_torchvision_operators(torch: Any) -> None:
    """The published torchvision is linked against CUDA. Beside a CPU torch its own operators do not
    load, and its import fails for want of the schema of these two."""
    if torch.version.cuda is not None:
        return
    for name in ("nms", "qnms"):
        torch.library.define(
            f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
        )


def answer_for_amx(torch: Any) -> None:
    """Older releases ask for it in a way that torch no longer offers. What it is wanted for,
    kernels of SGLang, is not there."""
    if not hasattr(torch._C._cpu, "_is_amx_tile_supported"):
        torch._C._cpu._is_amx_tile_supported = lambda: False


def drop_pinned_memory(torch: Any) -> None:
    """Without an accelerator there is no pinned memory; asking for it raises."""

    def unpinned(make: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(make)
        def call(*args: Any, **options: Any) -> Any:
            options.pop("pin_memory", None)
            return make(*args, **options)

        return call

    for name in FACTORIES:
        setattr(torch, name, unpinned(getattr(torch, name)))

    def pin_memory(tensor: Any, *_: Any, **__: Any) -> Any:
        return tensor

    torch.Tensor.pin_memory = pin_memory


class AbsentKernel:
    """A kernel that is not there: any attribute is another one, calling it raises."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __call__(self, *_: Any, **__: Any) -> Any:
        raise RuntimeError(f"{self._name} needs SGLang's compiled kernels; this is the CPU server")

    def __getattr__(self, name: str) -> AbsentKernel:
        if name.startswith("__"):
            raise AttributeError(name)
        return AbsentKernel(f"{self._name}.{name}")


class AbsentModule(types.ModuleType):
    """A module of absent kernels."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return AbsentKernel(f"{self.__name__}.{name}")


class OwnLayer(AbsentModule):
    """A module of vLLM's layers that holds SGLang's own: they can run in plain PyTorch. Older
    releases take activations and norms from vLLM on such a machine; this gives them back their own,
    which they have defined by then."""

    def __getattr__(self, name: str) -> Any:
        folder, _, module = self.__name__.rpartition(".")
        if folder == "vllm.model_executor.layers" and not name.startswith("__"):
            return getattr(sys.modules[f"{LAYERS}.{module}"], name)
        return super().__getattr__(name)


class StandIns(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Lets the import of every `wanted` module succeed, with a module of the given kind."""

    def __init__(self, wanted: Callable[[str], bool], kind: type[types.ModuleType]) -> None:
        self._wanted = wanted
        self._kind = kind

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if not self._wanted(fullname):
            return None
        return importlib.machinery.ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        module = self._kind(spec.name)
        module.__path__ = []
        return module

    def exec_module(self, module: types.ModuleType) -> None:
        pass


def is_kernel(fullname: str) -> bool:
    return fullname.partition(".")[0] == "sgl_kernel"


class AfterImport(importlib.abc.MetaPathFinder):
    """Runs a function on a module once it has been executed."""

    def __init__(self, actions: dict[str, Callable[[Any], None]]) -> None:
        self._actions = actions

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        action = self._actions.pop(fullname, None)
        if action is None:
            return None
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            loader: Any = spec.loader
            execute = loader.exec_module

            def exec_module(module: types.ModuleType) -> None:
                execute(module)
                action(module)

            loader.exec_module = exec_module
        return spec


def mask_grammars_on_cpu(module: Any) -> None:
    """SGLang's xgrammar backend refuses logits on a CPU, although xgrammar itself masks them."""
    xgrammar = importlib.import_module("xgrammar")

    def apply_vocab_mask(_: Any, logits: Any, vocab_mask: Any) -> None:
        xgrammar.apply_token_bitmask_inplace(logits, vocab_mask)

    module.XGrammarGrammar.apply_vocab_mask = apply_vocab_mask


def prepare() -> None:
    """Everything that has to happen before sglang is imported."""
    os.environ.setdefault("SGLANG_USE_CPU_ENGINE", "1")
    torch = importlib.import_module("torch")
    declare_torchvision_operators(torch)
    drop_pinned_memory(torch)
    answer_for_amx(torch)
    after: dict[str, Callable[[Any], None]] = {
        "sglang.srt.constrained.xgrammar_backend": mask_grammars_on_cpu
    }
    sys.meta_path[:0] = [StandIns(is_kernel, AbsentModule), AfterImport(after)]
    sys.meta_path.append(StandIns(BORROWED.__contains__, OwnLayer))  # an installed vLLM comes first


def load_beside(name: str) -> Any:
    """The module of a file beside this one."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main(arguments: list[str]) -> None:
    """Serve until stopped."""
    flags = load_beside("sglang_launch").fit_to_this_sglang(arguments)
    launch: Any = importlib.import_module("sglang.launch_server")
    server_args: Any = importlib.import_module("sglang.srt.server_args")
    utils: Any = importlib.import_module("sglang.srt.utils")
    try:
        # Older releases have one kind of server only.
        serve: Any = getattr(launch, "run_server", None) or launch.launch_server
        serve(server_args.prepare_server_args(flags))
    finally:
        utils.kill_process_tree(os.getpid(), include_parent=False)


if __name__ in ("__main__", "__mp_main__"):
    # `__mp_main__` is this file in a spawned process.
    prepare()
if __name__ == "__main__":
    main(sys.argv[1:])
