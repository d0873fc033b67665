"""`everypool doctor`: what is installed, what runs, and what is missing."""

from __future__ import annotations

import click

from everypool.cli.diagnosis import print_findings

__all__ = ["command"]


@click.command("doctor")
def command() -> int:
    """What is installed, which implementation runs and why, and what is missing.

    Ends with 1 if the compiled loops are missing: all works without them, slower. Needs no extra.
    """
    return print_findings()
