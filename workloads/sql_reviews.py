"""2,000 generated reviews, seeded: products, stars, languages, and texts of which many repeat."""

from __future__ import annotations

import random
from dataclasses import asdict, dataclass
from typing import Any

_TEXT = (
    "parcel late broken great refund box cold kind slow blue loud courier missing perfect cheap "
    "screen battery handle colour size friendly never again quick torn wet scratched gift warm"
)
WORDS = tuple(_TEXT.split())


@dataclass(frozen=True)
class Review:
    """One review. Bodies repeat: shops get the same three words many times."""

    id: int
    product_id: int
    stars: int
    lang: str
    body: str


def reviews(count: int = 2000, distinct: int = 700, seed: int = 1) -> list[Review]:
    """`count` reviews with at most `distinct` different texts."""
    draw = random.Random(seed)
    bodies = [" ".join(draw.choices(WORDS, k=draw.randint(6, 24))) for _ in range(distinct)]
    return [
        Review(
            i,
            draw.randint(1, 40),
            draw.choice([1, 1, 2, 3, 4, 5, 5]),
            draw.choice(["en", "en", "en", "de"]),
            draw.choice(bodies),
        )
        for i in range(count)
    ]


def rows(count: int = 2000) -> list[dict[str, Any]]:
    """The reviews as objects."""
    return [asdict(review) for review in reviews(count)]
