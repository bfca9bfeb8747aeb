"""The command line. `main` is the entry point; one module a verb, imported when it is called."""

from __future__ import annotations

import sys

from halo.errors import HaloError


def main() -> None:
    """Run the command line and exit with its code: 0 done, 1 error, 2 usage, 3 finished with
    failed rows, 4 budget reached, 5 refused by policy, 130 interrupted."""
    from typer import TyperException

    from halo.cli.app import app

    try:
        code = app(standalone_mode=False)
    except TyperException as error:
        context = getattr(error, "ctx", None)
        command = context.command_path if context is not None else "halo"
        print(f"error: {error.format_message()} (`{command} --help` tells more)", file=sys.stderr)
        sys.exit(error.exit_code)
    except HaloError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print(
            "interrupted; `halo resume DIR` continues a run that has a directory", file=sys.stderr
        )
        sys.exit(130)
    sys.exit(code or 0)
