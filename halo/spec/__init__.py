"""The YAML front end: documents become the same logical plans as Python workflows, and back."""

from __future__ import annotations

from halo.spec.dump import dump_spec
from halo.spec.flow import SpecFlow, load_spec, load_spec_text

__all__ = ["SpecFlow", "dump_spec", "load_spec", "load_spec_text"]
