"""Moments of two rehearsals side by side."""

from __future__ import annotations

from dataclasses import replace

import torch

from .rehearsal import Moment, demand


def where(moment: Moment) -> str:
    return f" in stage '{moment.phase}'" if moment.phase else ""


def difference(ours: Moment, theirs: Moment, tolerance: float) -> str:
    """What differs first: a term, a gradient or a buffer. An absent gradient is one of zeros."""
    for what in ("terms", "inputs", "parameters", "buffers"):
        a, b = getattr(ours, what), getattr(theirs, what)
        if a.keys() != b.keys():
            return f"which {what} there are ({', '.join(sorted(a.keys() ^ b.keys()))})"
        for name in a:
            x, y = a[name], b[name]
            if x is None and y is None:
                continue
            x, y = torch.zeros_like(y) if x is None else x, torch.zeros_like(x) if y is None else y
            if x.shape != y.shape or x.dtype != y.dtype:
                return f"the shape or type of {name}"
            same = (
                torch.allclose(x, y, rtol=tolerance, atol=tolerance * 1e-3, equal_nan=True)
                if tolerance
                else torch.equal(x, y)
            )
            if not same:
                kind = {"terms": "the term", "buffers": "the buffer"}.get(what, "the gradient of")
                far = (x.double() - y.double()).abs().max()
                return f"{kind} {name or 'loss'} (by {far:.1e})"
    return ""


def joined(together: tuple[Moment, ...], rank: int) -> Moment:
    """The moment of the global batch as the workers have it together, with the parameters and buffers of one."""
    total, mine = sum(moment.rows for moment in together), together[rank]

    def of_all(name):
        parts = [moment.inputs[name] for moment in together]  # a head is every worker's own, other outputs have rows
        return (sum(parts) if "head" in name.split(".") else torch.cat(parts)) / len(together)

    return replace(
        mine,
        terms={name: sum(m.rows * m.terms[name] for m in together) / total for name in mine.terms},
        inputs={name: of_all(name) for name in mine.inputs},
    )


def assert_close(exact: Moment, moment: Moment, tolerance: float, how: str) -> None:
    for name, term in exact.terms.items():
        other = moment.terms[name].double()
        demand(other.isfinite(), f"the term {name or 'loss'} is not finite with {how}{where(exact)}")
        demand(
            torch.isclose(other, term, rtol=tolerance, atol=tolerance / 10),
            f"the term {name or 'loss'} is {other:.4g} with {how}{where(exact)}, {term:.4g} with exact ones",
        )
