"""Commands whose modules are imported only when they run: `--help` of the whole must stay quick."""

from __future__ import annotations

import importlib

import typer


def add(app: typer.Typer, name: str, module: str, text: str) -> None:
    """Add a command that hands all its arguments to the Typer named `app` in `module`."""

    @app.command(
        name,
        help=text,
        add_help_option=False,
        context_settings={"ignore_unknown_options": True, "allow_extra_args": True, "allow_interspersed_args": False},
    )
    def run(context: typer.Context) -> None:
        sub: typer.Typer = importlib.import_module(module).app
        typer.main.get_command(sub)(args=context.args, prog_name=f"spliceway {name}")
