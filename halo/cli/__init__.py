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
        code = app(_with_rules(sys.argv[1:]), standalone_mode=False)
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


def _with_rules(arguments: list[str]) -> list[str]:
    """`--no-<rule>` as `--off <rule>`, for every rewrite rule there is; dashes may stand for
    underscores. Other options that begin with `--no-` stay as they are, and so does `halo sql`,
    which has rules of its own beside them."""
    if arguments[:1] == ["sql"] or not any(each.startswith("--no-") for each in arguments):
        return arguments
    from planner.rules import RULES

    names = {rule.name for rule in RULES}
    found: list[str] = []
    for each in arguments:
        name = each.removeprefix("--no-").replace("-", "_")
        found += ["--off", name] if each.startswith("--no-") and name in names else [each]
    return found
