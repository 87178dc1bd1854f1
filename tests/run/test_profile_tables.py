"""The tables of `--profile`."""

from __future__ import annotations

from kdray.run.profile import operator_table

KERNELS = {
    "void at::native::norm<at::Var, c10::BFloat16, 4>(c10::BFloat16 const*, float*, int)": "at::native::norm",
    "void at::native::(anonymous namespace)::apply<at::Pair<float, at::Op<2> >, 4>(at::Op<2>)": "at::native::apply",
    "void kernel<128, at::run(at::Base&)::{lambda(int)#1}>(int, at::run(at::Base&))": "kernel",
    "aten::convolution": "aten::convolution",
    "Memset (Device)": "Memset (Device)",
}


def test_kernels_are_told_without_their_types():
    rows = [{"name": name, "calls": 1, "seconds": 0.001, "share": 0.2} for name in KERNELS]
    (names, *_) = operator_table(rows, "student").columns
    assert list(names.cells) == list(KERNELS.values())


def test_a_long_name_is_cut():
    (names, *_) = operator_table([{"name": "k" * 200, "calls": 1, "seconds": 0.0, "share": 0.0}], "x").columns
    assert list(names.cells) == ["k" * 59 + "…"]
