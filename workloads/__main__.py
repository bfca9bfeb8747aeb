"""`halo-bench`: the demonstration and the benchmarks, JSON out."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path


def main() -> None:
    """Entry point of `halo-bench`."""
    parser = argparse.ArgumentParser(prog="halo-bench", description=__doc__)
    if sys.argv[1:2] == ["pte-evaluate"]:
        from workloads.pte_evaluate import main as evaluate

        sys.exit(evaluate(sys.argv[2:]))
    if sys.argv[1:2] == ["simulate"]:
        from workloads.compare_simulated import main as simulate

        sys.exit(simulate(sys.argv[2:]))
    parser.add_argument(
        "workload",
        nargs="+",
        help="demo, or of the benchmarks: simulator, schedule-shapes, schedule-planning, "
        "schedule-anytime, schedule-gap, client, tools, overhead, merge, pte, planner; or one of "
        "these with options of its own: pte-evaluate FILE, simulate",
    )
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="demo: run directory")
    parser.add_argument("--model", help="demo: model name")
    parser.add_argument("--engine", help="demo: engine")
    arguments = parser.parse_args()
    from halo.errors import HaloError
    from workloads.bench import BENCHMARKS

    unknown = set(arguments.workload) - {*BENCHMARKS, "demo"}
    if unknown:
        parser.error(f"no workload {', '.join(sorted(unknown))}; there are: demo, "
                     f"{', '.join(BENCHMARKS)}")  # fmt: skip
    try:
        for name in arguments.workload:
            if name == "demo":
                from workloads.demo import demo

                code = demo(arguments.out, model=arguments.model, engine=arguments.engine)
                if code:
                    sys.exit(code)
            else:
                print(json.dumps({"workload": name, **BENCHMARKS[name]()}))
    except HaloError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
