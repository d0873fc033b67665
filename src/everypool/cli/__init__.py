"""The command line: `everypool COMMAND`. Importing this needs no extra; running a command does."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Sequence

from everypool.backends import cpu
from everypool.cli.diagnosis import print_findings
from everypool.cli.extras import install_command

__all__ = ["main"]

BAD, INTERRUPTED = 2, 130


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command that the arguments name and exit with its code: 0, 2 for bad arguments, 130 if interrupted."""
    code: int | str | None = 1
    try:
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="replace")  # a terminal that lacks a character shows "?" instead of stopping us
        code = run(arguments)
        sys.stdout.flush()
    except BrokenPipeError:
        code = hang_up()
    except KeyboardInterrupt:
        code = INTERRUPTED
    sys.exit(code)


def run(arguments: Sequence[str] | None) -> int:
    """The exit code; errors of the user become one line on standard error, all others pass."""
    asked = sys.argv[1:] if arguments is None else [*arguments]
    if asked[:1] == ["doctor"] and importlib.util.find_spec("click") is None:  # it says what is missing, click too
        return print_findings()
    if cpu.library() is None and asked[:1] != ["doctor"]:
        print("everypool: the compiled loops are not installed, so all runs slower; see: everypool doctor", file=sys.stderr)
    try:
        import click

        from everypool.cli.group import group

        result = group.main(asked, prog_name="everypool", standalone_mode=False)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == "everypool":
            raise
        return complain(f"{error.name!r} is not installed; install it with: {install_command(error.name)}")
    except click.exceptions.Abort:
        return INTERRUPTED
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        return complain(error.format_message(), context.command_path if context else "everypool")
    except BrokenPipeError:
        raise
    except OSError as error:
        if error.filename is None:
            complain(str(error))
            return 1
        return complain(f"{str(error.filename)!r}: {error.strerror}")
    except (ValueError, TypeError, NotImplementedError) as error:
        if not str(error).startswith("`"):  # the package's own messages begin with the name of the argument
            raise
        return complain(str(error))
    return result if isinstance(result, int) else 0


def complain(message: str, command: str = "everypool") -> int:
    """Say in one line what is wrong."""
    print(f"{command}:", " ".join(message.split()), file=sys.stderr)
    return BAD


def hang_up() -> int:
    """The reader of our output has left, as in `everypool list | head`: no more output, not even on the way out."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1
