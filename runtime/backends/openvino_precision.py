"""Which arithmetic is faster on this machine: the engine's own choice, or float32.

The engine takes bfloat16 wherever the processor has the instructions. Where it also has the matrix
unit for them, or runs them at full rate, that is about twice as fast; where it has neither (as on
virtual machines that hide the matrix unit), float32 is faster. One matrix product of a model's
shape tells, in about a second; the answer is kept, so that all later runs compute alike.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any, cast

ROWS, INNER, COLUMNS = 256, 1536, 4096
ROUNDS = 7
CLEARLY = 1.1
"""float32 is taken when it is faster by this factor: the default needs less memory."""


def faster_precision(note: Path, threads: int) -> str:
    """ "f32", or "" for the engine's own choice. Kept in the file `note`."""
    try:
        return str(json.loads(note.read_text("utf-8"))["precision"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    own_s, f32_s = (measure_s(precision, threads) for precision in ("", "f32"))
    precision = "f32" if f32_s * CLEARLY < own_s else ""
    document = {"precision": precision, "own_s": own_s, "f32_s": f32_s}
    aside = note.with_name(f"{note.name}.{threads}.part")
    aside.write_text(json.dumps(document), "utf-8")
    aside.replace(note)
    return precision


def measure_s(precision: str, threads: int) -> float:
    """Seconds of one matrix product with 16-bit weights, the best of several."""
    import numpy as np
    import openvino
    from openvino import opset13

    ov, ops = cast("Any", openvino), cast("Any", opset13)
    rng = np.random.default_rng(0)
    weights = rng.standard_normal((COLUMNS, INNER)).astype(np.float16)
    data = ops.parameter([ROWS, INNER], np.float32)
    product = ops.matmul(data, ops.convert(ops.constant(weights), "f32"), False, True)
    model = ov.Model([product], [data])
    properties: dict[str, Any] = {"INFERENCE_NUM_THREADS": threads}
    if precision:
        properties["INFERENCE_PRECISION_HINT"] = precision
    compiled = ov.Core().compile_model(model, "CPU", properties)
    request = compiled.create_infer_request()
    values = rng.standard_normal((ROWS, INNER)).astype(np.float32)
    best_s = float("inf")
    for _ in range(ROUNDS):
        start_s = time.perf_counter()
        request.infer([values])
        best_s = min(best_s, time.perf_counter() - start_s)
    return best_s
