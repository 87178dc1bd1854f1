"""The base of everything that a user sets: strict types, no unknown keys, no NaN."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Options(BaseModel):
    """Base class of the options of distillers, data sets, models, augmentations and optimizers.

    Every field carries `Field(description=...)`: it becomes the documentation, the JSON schema and the `--help` text.
    Types are strict (the string "4" is not a number) and an unknown key is an error.
    """

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        validate_default=True,
        use_attribute_docstrings=False,
    )
