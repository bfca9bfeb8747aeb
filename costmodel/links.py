"""What moves bytes between devices and hosts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from costmodel.errors import ProfileError
from costmodel.evidence import Evidence
from costmodel.profile_file import PROFILES, ProfileReader, profile_names, profile_path


@dataclass(frozen=True)
class LinkProfile:
    """One link, one direction.

    Attributes:
        peak_bytes_per_s: rate on the data sheet.
        bytes_per_s: rate that a large transfer reaches (the rate to plan with).
        latency_s: time before the first byte.
        layerwise_overlap: share of the time of a prefill under which its own KV transfer can hide
            when KV is sent layer by layer: 0 nothing, 1 all.
        utilisation_cap: share of `bytes_per_s` that plans may fill, so that queues stay short.
        evidence: grade and source of each number.
    """

    name: str
    title: str
    peak_bytes_per_s: float
    bytes_per_s: float
    latency_s: float
    layerwise_overlap: float = 0.0
    utilisation_cap: float = 1.0
    aliases: tuple[str, ...] = ()
    evidence: Mapping[str, Evidence] = field(default_factory=dict[str, Evidence], repr=False)

    def transfer_s(self, n_bytes: float, hidden_under_s: float = 0.0) -> float:
        """Seconds by which a transfer of `n_bytes` delays what waits for it, when it may hide under
        `hidden_under_s` seconds of the prefill that makes the bytes."""
        if n_bytes < 0:
            raise ProfileError(f"{n_bytes} bytes to transfer; there cannot be fewer than 0")
        if n_bytes == 0:
            return 0.0
        visible = n_bytes / self.bytes_per_s - self.layerwise_overlap * hidden_under_s
        return self.latency_s + max(0.0, visible)


def link_names() -> tuple[str, ...]:
    """Names of the shipped link profiles."""
    return profile_names("links")


def load_link(name: str | Path) -> LinkProfile:
    """A shipped link profile by name or alias, or the profile in a `.toml` file.

    Raises `ProfileError` naming the file and the field, or the nearest known name.
    """
    return read_link(profile_path("links", name, _aliases()))


@lru_cache(maxsize=1)
def _aliases() -> Mapping[str, str]:
    found: dict[str, str] = {}
    for path in (PROFILES / "links").glob("*.toml"):
        found.update(dict.fromkeys(read_link(path).aliases, path.stem))
    return found


def read_link(path: Path) -> LinkProfile:
    """The link profile in a TOML file. Raises `ProfileError`."""
    reader = ProfileReader.open(path)
    link = LinkProfile(
        name=path.stem,
        title=reader.text("title"),
        peak_bytes_per_s=reader.number("peak_bytes_per_s", above=0),
        bytes_per_s=reader.number("bytes_per_s", above=0),
        latency_s=reader.number("latency_s"),
        layerwise_overlap=reader.number("layerwise_overlap", 0.0, most=1),
        utilisation_cap=reader.number("utilisation_cap", 1.0, above=0, most=1),
        aliases=reader.texts("aliases"),
        evidence=reader.evidence,
    )
    reader.finish()
    if link.bytes_per_s > link.peak_bytes_per_s:
        raise reader.error("bytes_per_s", f"is above peak_bytes_per_s ({link.peak_bytes_per_s:g})")
    return link
