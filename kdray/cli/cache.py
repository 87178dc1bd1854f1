"""`kdray cache`: look at teacher caches, check them, clean up."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Annotated

import typer

from .arguments import AsJson

app = typer.Typer(
    help="Look at stored answers of teachers, check them, remove what is not used.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


@app.command()
def info(
    paths: Annotated[
        list[str] | None,
        typer.Argument(help="Caches. Default: all in `cache` of kdray.toml.", metavar="[PATH]...", show_default=False),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """What caches hold: for which teacher, data and augmentation, in which form."""
    from ..config.project import find_project
    from ..errors import ConfigError
    from ..teacher.inspect import about, caches_at, caches_in
    from ..teacher.storage import open_storage

    folder, rows = find_project().cache, []
    for path in paths or map(str, caches_in(folder)):
        found = caches_at(open_storage(path))
        if not found:
            raise ConfigError(f"there is no teacher cache at {path}")
        rows += map(about, found)
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
    elif not rows:
        typer.echo(f"no caches in {folder}")
    for row in rows if not as_json else ():
        typer.echo(describe(row))


def describe(row: dict) -> str:
    from ..teacher.identity import augmentation

    answers = ", ".join(f"{count:,} {output}" for output, count in row["answers"].items()) or "none"
    lines = [row["path"], f"  answers       {answers}; {row['bytes'] / 1e6:,.1f} MB"]
    if "error" in row:
        return "\n".join([*lines, f"  error         {row['error']}"])
    teacher, stored, pictures = row["teacher"], row["stored"], row["pictures"]
    options = "".join(f", {key} {value}" for key, value in teacher["options"].items())
    top = f", the {stored['top_k']} largest logits and the rest in one" if stored["top_k"] else ""
    return "\n".join(
        [
            *lines,
            f"  stored        {stored['dtype']}{top}",
            f"  teacher       {teacher['model']}{options}, {teacher['precision']}, weights {teacher['weights'][:12]}…, "
            f"{row['accuracy']['top1']:.2%} on the test set",
            f"  data          {row['data']['samples']:,} samples, fingerprint {row['data']['fingerprint'][:12]}…",
            f"  pictures      {pictures['pages']}; augmentation: {augmentation(pictures['augmentation'])}",
        ]
    )


@app.command()
def verify(
    path: Annotated[str | None, typer.Argument(help="A cache. Default: the one that --config uses.")] = None,
    config: Annotated[
        Path | None,
        typer.Option("--config", help="Also compare with this config, and with what its teacher answers now."),
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="KEY=VALUE for the config, as of `kdray train`.")
    ] = None,
    spots: Annotated[int, typer.Option("--spots", min=1, help="Answers that the live teacher repeats.")] = 64,
    repair: Annotated[bool, typer.Option("--repair", help="Remove damaged shards.")] = False,
) -> None:
    """Check every byte of a cache; with --config, also that it is that config's, complete, and what the teacher says.

    Examples:

        kdray cache verify cache/wrn_40_2-cifar100-3f1c9a70

        kdray cache verify --config configs/crd.yaml
    """
    from ..config.load import load_config
    from ..config.project import find_project
    from ..errors import ConfigError, MismatchError
    from ..launch.arithmetic import decided
    from ..launch.precompute import Precompute
    from ..registry import Registry
    from ..run.console import Console
    from ..teacher.inspect import caches_at
    from ..teacher.storage import open_storage

    console, project = Console(), find_project()
    if path is None and config is None:
        raise ConfigError("which cache? Give its path, or --config CONFIG")
    storages = [] if config else [open_storage(path)]
    if config:
        registry = Registry.default()
        given = overrides or []
        loaded = load_config(config, given, registry=registry).config
        if path and loaded.teachers:
            raise ConfigError(
                f"{path}: of which of its teachers? Give --set teachers.NAME.cache.path=PATH in its place"
            )
        if path:
            given = [*given, f"teacher.cache.path={json.dumps(path)}"]
            loaded = load_config(config, given, registry=registry).config
        precompute, loaded = Precompute(registry, project, console, "kdray cache verify"), decided(loaded)
        parts = precompute.trained(loaded)
        storages = [open_storage(place.where, place.mirror) for place in precompute.places(loaded, parts).values()]
    caches = [cache for storage in storages for cache in caches_at(storage)]
    if not caches:
        raise ConfigError(f"there is no teacher cache at {', '.join(storage.where for storage in storages)}")
    damaged = []
    for cache in caches:
        cache.manifest()
        damaged += _check_shards(cache, console, repair)
    if damaged:
        done = "removed; `kdray precompute` computes them again" if repair else "`--repair` removes them"
        raise MismatchError("\n".join([f"{len(damaged)} damaged shards ({done}):", *damaged]))
    for work in precompute.works(loaded, parts) if config else ():  # which opens shards: they are sound by now
        work.verify(spots)
    typer.echo(f"sound: {', '.join(cache.where for cache in caches)}")


def _check_shards(cache, console, repair: bool) -> list[str]:
    """What is wrong with the shards of a cache, a line each."""
    from ..teacher.codec import OUTPUTS

    found = []
    for output in OUTPUTS:
        shards = cache.shards(output)
        with console.counting(f"{cache.where}, {output}", len(shards)) as count:
            for shard, error in cache.check(output, shards):
                if error:
                    found.append(f"  {error}")
                    if repair:
                        cache.remove(output, shard)
                count(1)
    return found


@app.command()
def prune(
    configs: Annotated[
        list[Path] | None,
        typer.Argument(help="Configs whose caches are kept. Default: all of `kdray list configs`.", show_default=False),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Remove without asking.")] = False,
) -> None:
    """Show the caches that no config refers to, and remove them after a yes."""
    import sys

    from ..config.load import load_config
    from ..config.project import find_project
    from ..errors import ConfigError
    from ..launch.arithmetic import decided
    from ..registry import Registry
    from ..teacher.inspect import unreferenced
    from .list_ import list_configs

    registry, project, loaded = Registry.default(), find_project(), []
    for file in configs or [row["path"] for row in list_configs(Path("configs"))]:
        try:
            loaded.append(decided(load_config(file, registry=registry).config))
        except ConfigError as error:
            raise ConfigError(f"what {file} refers to is not known, so nothing is removed: {error}") from error
    if not loaded:
        raise ConfigError("there is no config to keep caches for: name some, or run this where they are")
    found = [(path, why, _size(path)) for path, why in unreferenced(project.cache, loaded, registry)]
    for path, why, size in found:
        typer.echo(f"{path}  {size / 1e6:,.1f} MB: {why}")
    if not found:
        typer.echo(f"every cache in {project.cache} is some config's")
        return
    total = f"{len(found)} folders, {sum(size for *_, size in found) / 1e6:,.1f} MB"
    if not yes and not (sys.stdin.isatty() and typer.confirm(f"Remove {total}?", err=True)):
        typer.echo(f"nothing was removed; --yes removes these {total}")
        return
    for path, *_ in found:
        shutil.rmtree(path)
    typer.echo(f"removed {total}")


def _size(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
