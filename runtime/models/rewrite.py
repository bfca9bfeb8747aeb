"""Rewriting a GGUF file so that OpenVINO's reader gets its weights right.

The reader knows few quantisations, and rounds the offset of Q4_1 to a whole number, which ruins
the answers. Such tensors are dequantised to F16 once; what the reader gets right stays as it is.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from runtime.errors import ModelFileError
from runtime.models.gguf_file import GgufHeader

READABLE_TYPES = frozenset({"F32", "F16", "Q8_0", "Q4_0", "Q4_K", "Q6_K"})
_F16_MAX = 65504.0


def needs_rewrite(header: GgufHeader) -> bool:
    """Whether a tensor has a type that the reader does not get right."""
    return any(tensor.type not in READABLE_TYPES for tensor in header.tensors)


def rewrite_as_f16(header: GgufHeader, target: Path) -> None:
    """Write the model of `header` to `target` with all quantised weights as F16. Needs the package
    `gguf`. Raises `ModelFileError`."""
    try:
        import gguf
        import numpy as np
    except ImportError as error:
        raise ModelFileError(
            f"{header.path} has to be rewritten, which needs a package: {error}; "
            "pip install 'halo-flow[local]'"
        ) from error

    reader = cast("Any", gguf.GGUFReader(header.path))
    writer = cast("Any", gguf.GGUFWriter(target, header.architecture))
    try:
        for name, field in reader.fields.items():
            if name.startswith("GGUF.") or name == "general.architecture":
                continue
            if name == "general.file_type":
                writer.add_file_type(int(gguf.LlamaFileType.MOSTLY_F16))
                continue
            # An array's types are [ARRAY, the elements'].
            of = field.types[-1] if len(field.types) > 1 else None
            writer.add_key_value(name, field.contents(), field.types[0], of)
        for tensor in reader.tensors:
            data: Any = tensor.data
            if tensor.tensor_type not in (
                gguf.GGMLQuantizationType.F32,
                gguf.GGMLQuantizationType.F16,
            ):
                values: Any = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
                narrow = np.abs(values).max(initial=0.0) <= _F16_MAX
                data = values.astype(np.float16) if narrow else values
            writer.add_tensor(tensor.name, data)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    except (NotImplementedError, ValueError, KeyError) as error:
        raise ModelFileError(f"{header.path} cannot be rewritten as F16: {error}") from error
    finally:
        writer.close()
