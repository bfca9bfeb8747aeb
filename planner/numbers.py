"""Numbers as EXPLAIN writes them."""

from __future__ import annotations


def whole(value: float) -> str:
    """A count with separators.

    Example:
        >>> whole(2140.2)
        '2,140'
    """
    return f"{value:,.0f}"


def compact(value: float) -> str:
    """A large count in thousands or millions.

    Example:
        >>> compact(950), compact(2_140), compact(61_300), compact(1_932_000)
        ('950', '2.1 k', '61 k', '1.9 M')
    """
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        # 999,950 reads as 1.0 M, not as 1000 k.
        if value >= size * 0.9995:
            scaled = value / size
            return f"{scaled:.1f} {unit}" if scaled < 9.95 else f"{scaled:.0f} {unit}"
    return f"{value:.0f}"


def percent(part: float, of: float) -> str:
    """A share.

    Example:
        >>> percent(71, 100), percent(1, 0)
        ('71 %', '0 %')
    """
    return f"{100 * part / of if of else 0:.0f} %"


def deviation(estimate: float, actual: float) -> str:
    """By how much an estimate was off, in percent of what happened.

    Example:
        >>> deviation(90, 100), deviation(110, 100), deviation(0, 0), deviation(5, 0)
        ('-10 %', '+10 %', '+0 %', 'none happened')
    """
    if not actual:
        return "+0 %" if not estimate else "none happened"
    return f"{100 * (estimate - actual) / actual:+.0f} %"
