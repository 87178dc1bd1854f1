"""`kdray plugins`: every plugin that was found, what it provides, and why it failed."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from ..run.tables import new_table
from . import plugins_check, plugins_new

app = typer.Typer(rich_markup_mode=None)
app.command("check")(plugins_check.check)
app.command("new")(plugins_new.new)


@app.callback(invoke_without_command=True)
def plugins(
    context: typer.Context,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON array of objects with `name`.")] = False,
) -> None:
    """Show all plugins: built in, of installed packages, and the local ones that kdray.toml names.

    A broken plugin is shown with its error and does not make this command fail. To switch one off, put its
    distribution, its name, or `distribution:name` under `[plugins] block` in kdray.toml, or into the environment
    variable KDRAY_BLOCK.

    Examples:

        kdray plugins

        kdray plugins --json

        KDRAY_BLOCK=kdray-foo kdray plugins
    """
    if context.invoked_subcommand:
        return
    from ..registry import Registry

    registry = Registry.default()
    if as_json:
        typer.echo(json.dumps([_describe(info) for info in registry.host.plugins], indent=2))
    else:
        _print_table(registry.host.plugins)
    for conflict in registry.conflicts():
        typer.echo(f"conflict: {conflict}", err=True)


def _describe(info) -> dict:
    return {
        "name": info.name,
        "distribution": info.dist,
        "version": info.version,
        "status": info.status,
        "provides": {kind: sorted(specs) for kind, specs in info.specs.items()},
        "hooks": info.hooks,
        "phase": info.phase,
        "error": info.error,
        "path": info.source_path,
        "sha256": info.sha256,
    }


def _print_table(infos) -> None:
    from rich.console import Console
    from rich.text import Text

    table = new_table("name", "distribution", "status", "provides")
    for info in infos:
        origin = f"{info.dist} {info.version}" if info.dist else info.source_path
        style = {"failed": "red", "blocked": "dim"}.get(info.status, "")
        table.add_row(info.name, Text(origin), Text(info.status, style), Text(_provides(info)))
    Console(highlight=False).print(table)
    for info in infos:
        if info.status == "failed":  # in full: a terminal may be too narrow for a path in a column
            typer.echo(f"{info.id} failed ({info.phase}): {info.error}")


def _provides(info) -> str:
    """What a plugin provides, at most four names a kind."""
    parts = []
    for kind, specs in info.specs.items():
        names = sorted(specs)
        more = f" and {len(names) - 4} more" if len(names) > 4 else ""
        parts.append(f"{kind}: {', '.join(names[:4])}{more}")
    lifecycle = [hook for hook in info.hooks if hook.removeprefix("kdray_") not in info.specs]
    return "; ".join(parts + lifecycle)
