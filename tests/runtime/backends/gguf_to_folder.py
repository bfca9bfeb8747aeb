"""A GGUF file as a model folder: `python gguf_to_folder.py FILE FOLDER`, with SGLang's Python.

Weights are stored as bfloat16, beside the tokenizer and the chat template of the file.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path


def main() -> None:
    """Write the folder."""
    shim = Path(__file__).parents[3] / "runtime" / "backends" / "sglang_cpu.py"
    spec = importlib.util.spec_from_file_location("sglang_cpu", shim)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    import torch

    # transformers imports torchvision, which needs this beside a CPU torch.
    module.declare_torchvision_operators(torch)
    from transformers import AutoModelForCausalLM, AutoTokenizer

    file, folder = Path(sys.argv[1]).absolute(), sys.argv[2]
    AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name)
    model.to(torch.bfloat16).save_pretrained(folder)


if __name__ == "__main__":
    main()
