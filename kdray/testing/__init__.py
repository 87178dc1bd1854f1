"""What authors of distillers test with."""

from .conformance import CHECKS, Verdict, check_distiller, examine
from .evaluate import Evaluation, evaluate

__all__ = ["CHECKS", "Evaluation", "Verdict", "check_distiller", "evaluate", "examine"]
