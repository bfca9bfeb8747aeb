"""What `halo-bench --help` names is what there is."""

from __future__ import annotations

import sys

import pytest

from workloads.__main__ import main
from workloads.bench import BENCHMARKS


def test_help_names_every_benchmark(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["halo-bench", "--help"])
    monkeypatch.setenv("COLUMNS", "1000")
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    told = capsys.readouterr().out
    assert [
        name for name in (*BENCHMARKS, "demo") if f"{name}," not in told.replace(";", ",")
    ] == []
