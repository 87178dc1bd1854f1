"""Verbs of plugins: found when one is asked for that kdray itself does not have."""

from __future__ import annotations

import typer
from typer.core import TyperGroup


class Verbs(TyperGroup):
    """kdray's own verbs. Plugins, which import torch, are loaded only for a verb that is none of them."""

    def get_command(self, ctx, name):
        own = super().get_command(ctx, name)
        if own is not None:
            return own
        from ..registry import Registry

        return command(Registry.default().get("commands", name, known=self.commands))


def command(spec):
    """The command of a `CommandSpec`, as Typer makes it out of the function's parameters."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    app.command(spec.name, help=spec.help or None)(spec.function)
    return typer.main.get_command(app)
