"""Makes the helpers of the planner's tests importable; lets plans take their time to be drawn."""

from __future__ import annotations

import sys
from pathlib import Path

from hypothesis import HealthCheck, settings

sys.path.insert(0, str(Path(__file__).parent))

# Plans are large examples; how long drawing one takes says more about the machine than about them.
settings.register_profile(
    "plans", suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
settings.load_profile("plans")
