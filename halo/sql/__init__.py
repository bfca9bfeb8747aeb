"""SQL with AI functions: from text to the logical plan, and back to rows.

The package is also the function `halo.sql(text, ...)` of `halo.dsl.sql`: importing a part of it
makes Python bind the name `halo.sql` to the package, and users write `halo.sql(...)` all the same.
"""

from __future__ import annotations

import os
import sys
from types import ModuleType
from typing import Any


class _CallableModule(ModuleType):
    """A module that is called as the function of its name."""

    def __call__(self, text: str, /, **params: Any) -> Any:
        from halo.dsl.sql import sql

        return sql(text, **params)

    def readonly(self, path: str | os.PathLike[str]) -> Any:
        """See `halo.dsl.sql.SqlFunction.readonly`."""
        from halo.dsl.sql import sql

        return sql.readonly(path)


sys.modules[__name__].__class__ = _CallableModule
