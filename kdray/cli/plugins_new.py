"""`kdray plugins new NAME`: a package with one distiller and its tests, to begin from."""

from __future__ import annotations

import keyword
import os
import re
from pathlib import Path
from typing import Annotated

import typer

from ..errors import ConfigError


def new(
    name: Annotated[str, typer.Argument(help="Of the loss, as configs will name it: small letters, digits and _.")],
    folder: Annotated[Path, typer.Option("--dir", help="Where the package's folder is made.", metavar="DIR")] = Path(),
) -> None:
    """Write a package with a small working distiller of that name, tests and a README.

    Examples:

        kdray plugins new soft_mse

        kdray plugins new soft_mse --dir ~/work
    """
    from ..registry import Registry

    if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", name) or keyword.iskeyword(name):
        raise ConfigError(
            f"'{name}' cannot be the name of a loss and of a Python module: take small letters, digits and single _ "
            "between them, as in soft_mse"
        )
    if ("distillers", name) in Registry.default().owners:
        owner = Registry.default().owners["distillers", name][0]
        raise ConfigError(f"there is a distiller '{name}' already, of plugin {owner}; choose another name")
    package = Path(os.path.expanduser(folder)) / f"kdray-{name.replace('_', '-')}"
    if package.exists():
        raise ConfigError(f"{package} exists already; choose another name, or --dir")
    words = {"NAME": name, "CLASS": "".join(map(str.capitalize, name.split("_"))), "DIST": package.name}
    try:
        for place, text in FILES.items():
            file = package / _filled(place, words)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(_filled(text, words), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{package} cannot be written: {error.strerror}") from error
    typer.echo(package)
    typer.echo(f"next: pip install -e {package}; kdray plugins check {name}; pytest {package}", err=True)


def _filled(text: str, words: dict[str, str]) -> str:
    return re.sub("@(NAME|CLASS|DIST)@", lambda match: words[match[1]], text)


FILES = {
    "pyproject.toml": """\
[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"

[project]
name = "@DIST@"
version = "0.1.0"
description = "A distillation loss for kdray"
readme = "README.md"
requires-python = ">=3.11"
dependencies = ["kdray"]

[project.optional-dependencies]
test = ["pytest>=8"]

[project.entry-points.kdray]
@NAME@ = "kdray_@NAME@"

[tool.setuptools]
py-modules = ["kdray_@NAME@"]
""",
    "kdray_@NAME@.py": '''\
"""@CLASS@: the student's softened log-probabilities come close to the teacher's."""

import torch.nn.functional as F
from pydantic import Field

from kdray import Distiller, DistillerSpec, Options, Requires, hookimpl

kdray_api = 1


class @CLASS@Options(Options):
    temperature: float = Field(4.0, gt=0, description="T: both logits are divided by it before the softmax.")


class @CLASS@(Distiller):
    """Squared distance of log softmax(z_s / T) and log softmax(z_t / T), mean over classes and batch."""

    Options = @CLASS@Options
    requires = Requires(student={"logits"}, teacher={"logits"})
    scheduled = frozenset({"temperature"})

    def forward(self, student, teacher, batch, step):
        T = self.options.temperature
        return F.mse_loss(F.log_softmax(student.logits / T, dim=1), F.log_softmax(teacher.logits / T, dim=1))


@hookimpl
def kdray_distillers():
    return [DistillerSpec("@NAME@", @CLASS@)]
''',
    "tests/test_@NAME@.py": """\
import pytest
import torch
from kdray.testing import CHECKS, check_distiller, evaluate


@pytest.mark.parametrize("check", CHECKS)
def test_contract(check):
    check_distiller("@NAME@", checks=[check])


def test_value():
    z_s, z_t = torch.tensor([[1.0, 0.0]]).double(), torch.tensor([[0.0, 2.0]]).double()
    result = evaluate(
        "@NAME@", {"temperature": 1.0}, student={"logits": z_s}, teacher={"logits": z_t}, targets=torch.tensor([0])
    )
    expected = sum((s - t) ** 2 for s, t in zip(z_s.softmax(1).log()[0], z_t.softmax(1).log()[0])) / 2
    torch.testing.assert_close(result.loss, expected)


def test_a_student_that_is_right_has_no_loss():
    z = torch.tensor([[1.0, -1.0, 3.0]]).double()
    result = evaluate("@NAME@", student={"logits": z}, teacher={"logits": z}, targets=torch.tensor([0]))
    assert result.loss == 0
""",
    "README.md": """\
# @DIST@

The distillation loss `@NAME@` for kdray.

```bash
pip install -e '.[test]'
kdray plugins check @NAME@
pytest
```

In a config:

```yaml
losses:
  ce: {weight: 1.0}
  @NAME@: {weight: 1.0, temperature: 4.0}
```
""",
}
"""Path to text of the package's files. @NAME@: the loss; @CLASS@: its class; @DIST@: the distribution."""
