"""Halo's errors, all of them, as users meet them.

HaloError
├── WorkflowError            a workflow is wrong: DSL, YAML (file, line, field), missing column
├── SqlError                 a SQL statement is wrong or failed (.code, .line, .column)
│   └── SqlRefusedError      it asks for what policy refuses: a file, a kind of statement
├── InputError               rows or traces cannot be read (file, line)
│   └── TraceFormatError     a file is in no known trace format (.tried: what, and why not)
├── PlanError                a plan cannot mean anything: cycle, duplicate name, bad bound
│   └── TechniqueRefusedError an attention technique does not fit (.setting, .worker, .reason)
├── InvariantError           a defect in Halo: a plan broke a promise, naming the stage
├── ProfileError             a hardware, model or link profile is wrong
│   └── CalibrationError     a calibration is refused: it predicts badly, or has too few samples
├── SimulationError          a plan cannot be simulated: no room for a model, a circular order
├── BackendError             an engine could not answer (.backend, .retryable)
│   ├── ContextOverflowError prompt and answer exceed the model's context (both numbers)
│   ├── ModelNotFoundError   no such model (what exists, how to add one)
│   ├── ModelFileError       a model's files are damaged or of a kind that is not read
│   └── ModelFetchError      a model could not be fetched from the package index
├── ToolError                a tool raised (.tool, .retryable)
│   └── ToolTimeoutError     a tool did not answer in time
├── OutputTypeError          an answer does not fit its type after the retry
├── ValueTypeError           a value has not the shape an operator needs
├── CacheError               the answer cache cannot be used
├── BudgetError              a budget cannot be read, or not be kept for want of prices
├── ConfigError              a setting is unknown or wrong (where it was set)
└── RunDirectoryError        a run directory cannot be used
    └── RunLockedError       another process holds it
"""

from __future__ import annotations

from costmodel.errors import CalibrationError, HaloError, ProfileError, SimulationError
from halo.ai_sql.errors import SqlError, SqlRefusedError
from planner.errors import InvariantError, PlanError, TechniqueRefusedError
from runtime.errors import (
    BackendError,
    BudgetError,
    CacheError,
    ContextOverflowError,
    ModelFetchError,
    ModelFileError,
    ModelNotFoundError,
    OutputTypeError,
    RunDirectoryError,
    RunLockedError,
    ToolError,
    ToolTimeoutError,
    ValueTypeError,
)


class ConfigError(HaloError):
    """A setting is unknown or has a wrong value; the message names where it was set."""


class WorkflowError(HaloError):
    """A workflow is wrong: where, what was attempted, and which Halo name does it."""


class InputError(HaloError):
    """Rows cannot be read: the file, the line, and what was expected."""


class TraceFormatError(InputError):
    """A file is in no trace format that Halo reads.

    Attributes:
        tried: (format, first mismatch) of every reader.
    """

    def __init__(self, path: str, tried: list[tuple[str, str]]) -> None:
        self.tried = tried
        lines = "\n".join(f"  {name}: {mismatch}" for name, mismatch in tried)
        super().__init__(
            f"{path}: no reader knows this format; tried, with the first mismatch:\n{lines}"
        )


__all__ = [
    "BackendError",
    "BudgetError",
    "CacheError",
    "CalibrationError",
    "ConfigError",
    "ContextOverflowError",
    "HaloError",
    "InputError",
    "InvariantError",
    "ModelFetchError",
    "ModelFileError",
    "ModelNotFoundError",
    "OutputTypeError",
    "PlanError",
    "ProfileError",
    "RunDirectoryError",
    "RunLockedError",
    "SimulationError",
    "SqlError",
    "SqlRefusedError",
    "TechniqueRefusedError",
    "ToolError",
    "ToolTimeoutError",
    "TraceFormatError",
    "ValueTypeError",
    "WorkflowError",
]
