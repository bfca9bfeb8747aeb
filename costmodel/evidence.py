"""Where a number of a profile comes from, and how far it can be trusted."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Grade = Literal["measured", "printed", "derived", "fitted", "assumed"]
"""How a number was obtained, the best first.

* measured: on the engine and machine that it describes, with the command in the source.
* printed: in a data sheet, a paper, a model card or a config file.
* derived: arithmetic on printed or measured numbers.
* fitted: chosen so that a formula reproduces printed or measured numbers.
* assumed: nobody said so; a value that is plausible for its kind.
"""

GRADES: tuple[Grade, ...] = ("measured", "printed", "derived", "fitted", "assumed")


@dataclass(frozen=True, slots=True)
class Evidence:
    """The grade of a number and its source in words."""

    grade: Grade
    source: str


def weakest(grades: Iterable[Grade]) -> Grade:
    """The grade of a result that uses numbers of all these grades; "measured" for none.

    Example:
        >>> weakest(("printed", "fitted", "measured"))
        'fitted'
    """
    found: Grade = "measured"
    for grade in grades:
        if GRADES.index(grade) > GRADES.index(found):
            found = grade
    return found
