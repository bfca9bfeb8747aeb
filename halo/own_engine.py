"""What an engine of one's own is made of: what it is asked, what it answers, and what it says of
itself. Engines outside the package implement `Backend`."""

from __future__ import annotations

from costmodel.usage import Usage
from runtime.backends.base import Backend, Capabilities, Completion, Request

__all__ = ["Backend", "Capabilities", "Completion", "Request", "Usage"]
