"""The command line, a verb a file. torch and Ray are imported inside the verbs: `kdray --help` answers at once."""

from __future__ import annotations

import contextlib
import signal
import sys

import typer

from . import (
    cache,
    compare,
    doctor,
    evaluate,
    export,
    list_,
    plugins,
    precompute,
    predict,
    probe,
    report,
    reproduce,
    resume,
    runs,
    schema,
    serve,
    show,
    stop,
    train,
    tune,
    validate,
)
from .verbs import Verbs

app = typer.Typer(
    name="kdray",
    cls=Verbs,
    help="Distributed knowledge distillation with plugins, on Ray Train.\n\n"
    "Start with: kdray train configs/quickstart.yaml",
    epilog="Plugins may add verbs: `kdray list commands` shows them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
)
app.command("train")(train.train)
app.command("precompute")(precompute.precompute)
app.command("tune")(tune.tune)
app.command("reproduce")(reproduce.reproduce)
app.command("resume")(resume.resume)
app.command("stop")(stop.stop)
app.command("evaluate")(evaluate.evaluate)
app.command("probe")(probe.probe)
app.command("report")(report.report)
app.command("compare")(compare.compare)
app.command("predict")(predict.predict)
app.command("export")(export.export)
app.command("serve")(serve.serve)
app.command("show")(show.show)
app.command("validate")(validate.validate)
app.command("schema")(schema.schema)
app.command("list")(list_.list_)
app.command("runs")(runs.runs)
app.add_typer(cache.app, name="cache")
app.add_typer(plugins.app, name="plugins")
app.command("doctor")(doctor.doctor)
VERBS = frozenset(verb.name for verb in (*app.registered_commands, *app.registered_groups))
"""The names that no plugin's command may have."""


def _version(wanted: bool) -> None:
    if wanted:
        from .. import __version__

        typer.echo(f"kdray {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Show the version."),
) -> None:
    pass


def main() -> None:
    """Exit codes: 0 done, 1 the run failed, 2 config or arguments, 3 a plugin, 4 a mismatch, 130 interrupted."""
    from ..errors import KdrayError
    from ..launch.signals import interrupt

    with contextlib.suppress(ValueError):  # outside the main thread
        signal.signal(signal.SIGTERM, interrupt)
    try:
        app()
    except KdrayError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
