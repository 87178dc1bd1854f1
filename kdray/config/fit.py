"""Whether the losses of a config fit its teachers and its views: what each reads, the plugin says, before anything is
built."""

from __future__ import annotations

from collections.abc import Iterator

from .explain import Fault


def misfits(value: dict, classes: dict) -> Iterator[Fault]:
    """value: of a config, well formed or not. classes: by label, the distillers of those losses that name a known one.

    What is in use is looked at only where all losses are known.
    """
    losses = {label: body for label, body in _mapping(value, "losses").items() if label in classes}
    unsure = len(losses) < len(_mapping(value, "losses")) or not losses
    yield from _of_teachers(value, losses, classes, unsure)
    views = _mapping(_mapping(value, "data"), "extra_views")
    asked = {view: label for label in losses for view in classes[label].requires.views}
    for view, label in asked.items():
        if view not in views:
            yield Fault(
                ("losses", label),
                f"it compares the picture with its view '{view}', and the config does not say what that is. Add it, "
                f"for example `data: {{extra_views: {{{view}: {{augment: [crop, flip]}}}}}}`.",
                "key",
            )
    for view in views:
        if view not in asked and not unsure:
            at = ("data", "extra_views", view)
            yield Fault(at, "no loss reads this view: remove it, or add a loss that does.", "key")


def _of_teachers(value: dict, losses: dict, classes: dict, unsure: bool) -> Iterator[Fault]:
    names = list(_mapping(value, "teachers"))
    one = value.get("teacher") is not None
    if names and one:
        yield Fault(("teachers",), "give `teacher` or `teachers`, not both.", "key")
    for name in {"average", "student"} & set(names):
        yield Fault(("teachers", name), f"'{name}' has another meaning; call this teacher otherwise.", "key")
    chosen = {}
    for label, body in _mapping(value, "losses").items():
        asked = body.get("teacher") if isinstance(body, dict) else None
        reads = classes[label].requires.teacher if label in losses else None
        for fault in _of_loss(label, asked, reads, names, one or bool(value.get("teachers"))):
            unsure = True
            yield fault
        chosen[label] = (asked or (names or ["teacher"])[0]) if reads else None
    if unsure or (names and one):
        return
    for name, at in [(name, ("teachers", name)) for name in names] or [("teacher", ("teacher",))] * one:
        if name not in chosen.values() and "average" not in chosen.values():
            take = f"`{at[-1]}: null`" if at[1:] else "`teacher: null`"
            yield Fault(
                at,
                f"none of the losses ({', '.join(losses)}) looks at this teacher. Add one that does (kd, crd), or take "
                f"the section away ({take} where it is inherited).",
                "key",
            )
        yield from _of_cache(name, at, _mapping(value, *at), chosen, classes)


def _of_loss(label: str, asked, reads: set | None, names: list[str], taught: bool) -> Iterator[Fault]:
    """asked: the teacher that the config names for the loss; reads: what it reads of one, None where nobody knows."""
    at = ("losses", label, "teacher")
    if reads == set() and asked is not None:
        yield Fault(at, "this loss looks at no teacher: remove the key.", "key")
    elif asked is not None and not (names and asked in (*names, "average")):
        known = f"has {', '.join(names)} (and `average`)" if names else "has no `teachers:`"
        yield Fault(at, f"no teacher '{asked}': this config {known}.")
    elif not reads:
        return
    elif not taught:
        text = "this loss needs a teacher, and the config names none. Add a `teacher:` section, or remove the loss."
        yield Fault(at[:2], text, "key")
    elif asked is None and len(names) > 1:
        or_all = ", or `average`" if reads == {"logits"} else ""
        yield Fault(at[:2], f"which teacher? Add `teacher:` to it, one of {', '.join(names)}{or_all}.", "key")
    elif asked == "average" and (more := reads - {"logits"}):
        yield Fault(
            at,
            f"the average of teachers has logits only, and this loss reads {', '.join(sorted(more))}. Give it one of "
            f"{', '.join(names)}, or have one such loss a teacher.",
        )


def _of_cache(name: str, at: tuple, section: dict, chosen: dict, classes: dict) -> Iterator[Fault]:
    """What a loss reads of a teacher that no cache holds."""
    from ..teacher.needs import needs

    cache = section.get("cache")
    if isinstance(cache, dict) and cache.get("fallback") != "live":
        for label, outputs in needs(name, chosen, classes).beyond.items():
            yield Fault(
                (*at, "cache"),
                f"a cache holds logits and embedding, and losses.{label} reads its {' and '.join(outputs)}. Remove "
                f"{'.'.join(at)}.cache and this loss learns from the live teacher, or take a loss that a cache can "
                "serve: column `cache` of `kdray list distillers`.",
                "key",
            )


def _mapping(value: dict, *path: str) -> dict:
    """The section of that name; an empty one where there is none."""
    for key in path:
        value = value.get(key)
        if not isinstance(value, dict):
            return {}
    return value
