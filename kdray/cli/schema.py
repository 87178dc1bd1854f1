"""`kdray schema`"""

from __future__ import annotations

import json

import typer


def schema() -> None:
    """Print the JSON Schema of config files, with the options of installed plugins, for editors.

    Example:

        kdray schema > .kdray.schema.json

    and in the first line of a config: `# yaml-language-server: $schema=../.kdray.schema.json`
    """
    from ..config.jsonschema import json_schema
    from ..registry import Registry

    typer.echo(json.dumps(json_schema(Registry.default()), indent=2))
