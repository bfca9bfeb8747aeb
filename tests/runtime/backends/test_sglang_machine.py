"""Where SGLang's CPU server is not tried, the reason is given."""

from __future__ import annotations

import pytest
from sglang_machine import X86_64_V2, why_not

GOOD = ("Linux", "x86_64", "2.36", (3, 11), X86_64_V2 | {"avx2"})


@pytest.mark.parametrize(
    ("at", "value", "said"),
    [
        (0, "Darwin", "Linux x86_64 only; this is Darwin"),
        (1, "aarch64", "this is Linux aarch64"),
        (2, "2.31", "glibc 2.34"),
        (2, "", "another C library"),
        (3, (3, 14), "here is 3.14"),
        (4, X86_64_V2 - {"sse4_2", "popcnt"}, "lacks popcnt, sse4_2"),
    ],
)
def test_the_reason_is_given(at: int, value: object, said: str) -> None:
    machine = [*GOOD]
    machine[at] = value
    assert said in why_not(*machine)  # type: ignore[arg-type]


def test_a_common_machine_will_do() -> None:
    assert why_not(*GOOD) == ""
    assert why_not(*GOOD[:4], X86_64_V2) == ""
