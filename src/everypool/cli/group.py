"""The commands: each is a module of this folder with an attribute `command`, imported only when it is asked for."""

from __future__ import annotations

import importlib

import click

from everypool import __version__
from everypool import _check as check

__all__ = ["COMMANDS", "group"]

COMMANDS = {
    "claims": "Put the claims of the source article to the test.",
    "compare": "Train a small network with each pooling; table and report.html.",
    "doctor": "What is installed, what runs, and what is missing.",
    "explain": "Which implementation runs an operation, why, and what it costs.",
    "export": "A model as ONNX, compared in ONNX Runtime at sizes never seen.",
    "inspect": "The poolings of a model: where they stand, and their share of its costs.",
    "list": "All operations in one table.",
    "report": "The report of finished trials, once more.",
    "show": "A picture of what an operation does to a photograph.",
}


class Lazy(click.Group):
    """A group that knows its commands' names without importing them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"everypool.cli.{cmd_name}").command
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        if args and not args[0].startswith("-"):
            check.choice("COMMAND", args[0], list(COMMANDS))
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=Lazy, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, package_name="everypool", prog_name="everypool", message="%(prog)s %(version)s")
@click.pass_context
def group(ctx: click.Context) -> None:
    """Every pooling operation that a neural network uses: look at them, and compare them on real data."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())
