"""What authors of distillers test with."""

from .evaluate import Evaluation, evaluate

__all__ = ["Evaluation", "evaluate"]
