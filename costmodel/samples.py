"""Measured batches of calls: what a calibration is fitted to and judged by, as a JSON file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from costmodel.batching import Batching, Call
from costmodel.errors import ProfileError

FORMAT = "halo-calibration-samples-1"


@dataclass(frozen=True, slots=True)
class Sample:
    """One closed batch: its calls were sent together, the last was answered `seconds` later.

    Attributes:
        held_out: whether the sample is for judging a fit alone.
        reported_cached_tokens: prompt tokens that the engine says it took from its cache, for each
            call; None where it does not say.
    """

    name: str
    calls: tuple[Call, ...]
    seconds: float
    held_out: bool = False
    reported_cached_tokens: tuple[int | None, ...] = ()


@dataclass(frozen=True)
class SampleSet:
    """Samples of one engine on one machine.

    Attributes:
        batching: how the engine fills its steps; None when nobody knows.
        facts: whatever else the measurement noted (versions, settings, the command).
    """

    engine: str
    model: str
    device: str
    samples: tuple[Sample, ...]
    batching: Batching | None = None
    facts: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @property
    def fit(self) -> tuple[Sample, ...]:
        return tuple(sample for sample in self.samples if not sample.held_out)

    @property
    def held_out(self) -> tuple[Sample, ...]:
        return tuple(sample for sample in self.samples if sample.held_out)

    @property
    def cached_tokens(self) -> tuple[int, int] | None:
        """(expected, reported) cached tokens over all calls for which the engine reports them."""
        expected = reported = 0
        known = False
        for sample in self.samples:
            for call, tokens in zip(sample.calls, sample.reported_cached_tokens, strict=False):
                if tokens is not None:
                    known = True
                    expected += call.cached_tokens
                    reported += tokens
        return (expected, reported) if known else None

    def to_json(self) -> dict[str, Any]:
        """A JSON object that `read_samples` reads."""
        batching = self.batching
        return {
            "format": FORMAT,
            "engine": self.engine,
            "model": self.model,
            "device": self.device,
            **self.facts,
            "batching": batching
            and {
                "chunk_tokens": batching.chunk_tokens,
                "max_sequences": batching.max_sequences,
                "fuse_decodes": batching.fuse_decodes,
            },
            "samples": [
                {
                    "name": sample.name,
                    "split": "held_out" if sample.held_out else "fit",
                    "seconds": sample.seconds,
                    "calls": [
                        [call.prompt_tokens, call.output_tokens, call.cached_tokens]
                        for call in sample.calls
                    ],
                    "reported_cached_tokens": list(sample.reported_cached_tokens),
                }
                for sample in self.samples
            ],
        }


def read_samples(path: Path) -> SampleSet:
    """The samples in a file. Raises `ProfileError` naming the file and the field."""

    def wrong(name: str, problem: str) -> ProfileError:
        return ProfileError(f"{path}: field {name!r} {problem}", file=str(path), field=name)

    try:
        document: Any = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ProfileError(f"{path}: cannot read it: {error.strerror}", file=str(path)) from error
    except ValueError as error:
        raise ProfileError(f"{path}: this is not JSON: {error}", file=str(path)) from error
    if not isinstance(document, dict):
        raise ProfileError(f"{path}: samples are a JSON object", file=str(path))
    fields = cast("dict[str, Any]", document)
    if fields.get("format") != FORMAT:
        raise wrong("format", f"is {fields.get('format')!r}; it must be {FORMAT!r}")
    listed: Any = fields.get("samples")
    if not isinstance(listed, list) or not listed:
        raise wrong("samples", "must be a list of at least one sample")
    samples: list[Sample] = []
    for i, item in enumerate(cast("list[object]", listed)):
        try:
            samples.append(_sample(item))
        except (TypeError, KeyError, ValueError, ProfileError) as error:
            raise wrong(f"samples[{i}]", f"is not a sample: {error}") from error
    batching: Any = fields.get("batching")
    known = ("format", "engine", "model", "device", "batching", "samples")
    try:
        rules = Batching(**batching) if batching else None
    except (TypeError, ProfileError) as error:
        raise wrong("batching", f"is not a rule for batches: {error}") from error
    return SampleSet(
        engine=str(fields.get("engine", "")),
        model=str(fields.get("model", "")),
        device=str(fields.get("device", "")),
        samples=tuple(samples),
        batching=rules,
        facts={key: value for key, value in fields.items() if key not in known},
    )


def _sample(stated: object) -> Sample:
    if not isinstance(stated, dict):
        raise TypeError(f"{stated!r} is not an object")
    item = cast("dict[str, Any]", stated)
    seconds = float(item["seconds"])
    if not 0 < seconds < float("inf"):
        raise ValueError(f"{seconds} seconds")
    calls = tuple(Call(int(p), int(o), int(c)) for p, o, c in item["calls"])
    if not calls:
        raise ValueError("no calls")
    reported: Sequence[int | None] = item.get("reported_cached_tokens") or ()
    return Sample(
        name=str(item.get("name", "")),
        calls=calls,
        seconds=seconds,
        held_out=item.get("split") == "held_out",
        reported_cached_tokens=tuple(reported),
    )
