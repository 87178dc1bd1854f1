"""`kdray tune`: `prepare` writes a search out, `Tune` carries it out."""

from .prepared import Prepared, prepare
from .search import Tune

__all__ = ["Prepared", "Tune", "prepare"]
