"""EXPLAIN ANALYZE of a run directory: the plan as it was run, with what the journal recorded."""

from __future__ import annotations
