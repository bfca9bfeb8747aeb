"""Pack what Halo and the LangGraph baseline need for a GPU machine that reaches no package index.

    python workloads/gpu/pack_halo.py .whl

Downloads wheels for CPython 3.12 on Linux x86-64 and writes `DIR/halo.tar.xz`, a folder of
importable
packages. What SGLang's own environment already has (aiohttp, pydantic, typer, ...) is left out.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

WANTED = (
    *("duckdb==1.5.5", "jsonschema-rs", "minijinja", "networkx", "pydantic-settings", "PyYAML"),
    *("httptools", "python-dotenv", "sqlglot", "stamina", "tenacity"),
    *("langgraph", "langgraph-checkpoint", "langgraph-prebuilt", "langgraph-sdk", "langchain-core"),
    *("langchain-protocol", "langsmith", "ormsgpack", "jsonpatch", "jsonpointer", "packaging"),
    *("uuid-utils", "requests-toolbelt", "zstandard", "requests", "charset-normalizer", "urllib3"),
    *("httpx2", "httpcore2", "truststore", "websockets"),
)
"""Without their dependencies: those are here or beside SGLang."""

PLATFORMS = (
    *(f"manylinux_2_{n}_x86_64" for n in (39, 35, 34, 31, 28, 27, 26, 24, 17, 12, 5)),
    *("manylinux2014_x86_64", "any"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    out: Path = parser.parse_args().out
    target = ["--python-version", "3.12", "--implementation", "cp", "--only-binary=:all:"]
    target += ["--no-deps", *(a for p in PLATFORMS for a in ("--platform", p))]
    with tempfile.TemporaryDirectory() as scratch:
        site = Path(scratch) / "site"
        pip = [sys.executable, "-m", "pip", "-q", "install", "--no-compile"]
        subprocess.run([*pip, *target, "--target", str(site), *WANTED], check=True)
        for folder in ("bin", "networkx/algorithms/tests"):
            shutil.rmtree(site / folder, ignore_errors=True)
        for tests in [p for p in site.rglob("tests") if p.is_dir()]:
            shutil.rmtree(tests, ignore_errors=True)
        for library in site.rglob("*.so"):
            subprocess.run(["strip", "--strip-unneeded", str(library)], check=False)
        out.mkdir(parents=True, exist_ok=True)
        packed = out / "halo.tar.xz"
        with packed.open("wb") as file:
            tar = subprocess.Popen(
                ["tar", "-C", str(site), "--sort=name", "-cf", "-", "."], stdout=subprocess.PIPE
            )
            subprocess.run(
                ["xz", "-T2", "--x86", "--lzma2=preset=9e,dict=128MiB"],
                stdin=tar.stdout, stdout=file, check=True,
            )  # fmt: skip
    print(f"{packed}: {packed.stat().st_size / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
