"""What all commands share: errors as one line, exit codes, --debug, and output that keeps stdout pure.

A command is a function decorated with ``@click.command(cls=Command)``; ``cli.py`` adds it to its group.
Exit codes: 0 done, 1 a check failed, 2 bad input or environment, 130 interrupted.
"""

import json
import sys
import traceback
from collections.abc import Sequence
from typing import Any, NoReturn

import click

from dspark_compiler.errors import CheckFailedError, DSparkError

_DEBUG = "dspark_compiler.debug"


def debug_option() -> click.Option:
    """``--debug``, which every command has."""

    def remember(context: click.Context, _parameter: click.Parameter, value: bool) -> None:
        context.meta[_DEBUG] = value

    return click.Option(
        ["--debug"], is_flag=True, expose_value=False, callback=remember, help="Show the traceback of an error."
    )


class Command(click.Command):
    """A command whose failures end in ``error: …`` on stderr and the right exit code."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params.append(debug_option())

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the handler."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise  # whoever read our output has gone; click ends quietly
        except (DSparkError, OSError) as error:
            if ctx.meta.get(_DEBUG):
                traceback.print_exc()
            _fail(_one_line(error), 1 if isinstance(error, CheckFailedError) else 2)
        except ModuleNotFoundError as error:
            if ctx.meta.get(_DEBUG):
                traceback.print_exc()
            _fail(f"this command needs the package {error.name}; pip install 'dspark-compile[compile]' brings it", 2)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise  # click's own ways to end
        except Exception as error:  # noqa: BLE001 - nobody but a developer is helped by a traceback
            if ctx.meta.get(_DEBUG):
                traceback.print_exc()
            name = type(error).__name__
            _fail(f"internal error, please report it with what --debug prints: {name}: {_one_line(error)}", 2)

    def main(self, args: Sequence[str] | None = None, prog_name: str | None = None, **extra: Any) -> NoReturn:  # type: ignore[override]
        """Runs from the command line and exits."""
        run_main(super().main, args, prog_name, extra)


class Group(click.Group):
    """A command with subcommands, which are Commands."""

    command_class = Command

    def main(self, args: Sequence[str] | None = None, prog_name: str | None = None, **extra: Any) -> NoReturn:  # type: ignore[override]
        """Runs from the command line and exits."""
        run_main(super().main, args, prog_name, extra)


def run_main(main: Any, args: Sequence[str] | None, prog_name: str | None, extra: dict[str, Any]) -> NoReturn:
    """Calls click's ``main`` and gives its exceptions our form."""
    try:
        code = main(args=args, prog_name=prog_name, **(extra | {"standalone_mode": False}))
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(2)
    except click.UsageError as error:
        usage = f" (see {error.ctx.command_path} --help)" if error.ctx else ""
        _fail(error.format_message().rstrip(".") + usage, 2)
    except click.ClickException as error:
        _fail(error.format_message(), 2)
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        sys.exit(130)
    # A handler's return value is no exit code; only ctx.exit gives one.
    sys.exit(code if isinstance(code, int) else 0)


def _one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return " ".join(str(error).split())


def _fail(message: str, code: int) -> NoReturn:
    click.echo(f"error: {message}", err=True)
    sys.exit(code)


def print_json(data: object) -> None:
    """One line of JSON on stdout."""
    click.echo(json.dumps(data, ensure_ascii=False))
