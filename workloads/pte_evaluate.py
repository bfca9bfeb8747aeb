"""`halo-bench pte-evaluate FILE`: PTE against the model time that a real server needed."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path


def main(arguments: Sequence[str]) -> int:
    """Print the correlations of raw measurements of workloads/gpu/pte_sglang.py."""
    parser = argparse.ArgumentParser(prog="halo-bench pte-evaluate", description=__doc__)
    parser.add_argument("file", type=Path, help="what pte_sglang.py wrote")
    parser.add_argument("--hardware", help="a profile, when the file's device is not known")
    parser.add_argument("--model", help="a model, when the file has no configuration")
    parser.add_argument("--json", action="store_true", help="one JSON document")
    given = parser.parse_args(arguments)
    from halo.errors import HaloError
    from halo.pte_evaluation import evaluate, render_evaluation

    try:
        found = evaluate(given.file, given.hardware, given.model)
    except HaloError as error:
        print(f"error: {error}")
        return 1
    print(json.dumps(found) if given.json else render_evaluation(found))
    return 0
