"""`kdray evaluate`: how often weights are right, what their confidence is worth, how they agree with their teachers,
and what they do on pictures that are made worse."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from ..config.schema import Config
from ..data.build import Data, evaluation_pipeline, load_data, load_source
from ..data.other import with_test_set
from ..errors import ConfigError, KdrayError
from ..launch.measure import Rebuilt, accuracy, chosen, rebuild, this_device
from ..registry import Registry
from ..run import analysis
from ..run.console import Console
from ..run.folder import RunFolder
from .finished import teacher_weights
from .networks import logits_of, own_data
from .robustness import EACH, corrupted


@dataclass(frozen=True)
class Subject:
    """What is evaluated. config: with the values of the command line; role: "student", or the name of a teacher.

    run, trained_as: the run that the weights are of, and its config as it was; None of a file of weights."""

    weights: Path
    config: Config
    role: str = "student"
    run: RunFolder | None = None
    trained_as: Config | None = None


@dataclass
class Evaluation:
    subject: Subject
    registry: Registry
    data_root: Path

    def __post_init__(self):
        self.device, self.notes = this_device(), []
        self.is_other = False
        """Whether the data are others than the weights were trained on."""

    def __call__(self, split: str, corrupt: Console | None = None) -> dict:
        """weights, split, top1, top5, loss, samples. Of test and validation split `calibration`; of a run with teachers
        `agreement`, by teacher; where asked for, `corrupted`; `notes`: what is left out and why, and what else one
        should know. corrupt: where the progress of corrupted pictures is shown.

        Raises ConfigError for weights, data or a split that cannot be had or do not fit."""
        data = self._data(split)
        of, found = chosen(data, split), self._network(self.subject.weights, self.subject.role, data)
        result = {"weights": str(self.subject.weights), "split": split}
        if split == "train":  # its pictures may be too many for their answers to be kept, and it has learned them
            result |= accuracy(found, of)
        else:
            logits = logits_of(found, of, self.subject.weights)
            result |= analysis.scores(logits, of.labels)
            result["calibration"] = self._calibration(found, split, logits)
            result["agreement"] = self._agreement(split, logits, data)
        if corrupt:
            with corrupt.counting("corrupted pictures", EACH * len(of)) as done:
                result["corrupted"] = corrupted(found, of, self.subject.config.seed, done)
        return {**result, "notes": self.notes}

    def _network(self, weights: Path, role: str, data: Data) -> Rebuilt:
        return rebuild(self.subject.config, self.registry, self.data_root, str(weights), role, self.device, data)

    # -- the data ------------------------------------------------------------------------------------------------------

    def _data(self, split: str) -> Data:
        config, run, before = self.subject.config, self.subject.run, self.subject.trained_as
        if run and _place(config) != _place(before):
            return self._other_data(split)
        data = load_data(config.data, config.seed, self.registry, self.data_root)
        if run and run.data and data.fingerprint() != run.data:
            self.notes.append("the pictures are others than those that the run began with")
        return data

    def _other_data(self, split: str) -> Data:
        """The command line names a data set or a place that is not the run's: its own pictures, which have moved; or
        others, which are measured as the run's test set, by its classes and its normalisation."""
        config, run = self.subject.config, self.subject.run
        own, why = None, f"of which alone there is --split {split}"
        if split == "test":
            try:
                own = own_data(run, self.subject.trained_as, self.registry, self.data_root)
            except ConfigError as error:
                why = f"whose classes and normalisation are needed: {error}"
        if own is None:
            if (moved := self._moved()) is not None:
                return moved
            raise ConfigError(f"{config.data.name} is not what {run.name} was trained on, {why}")
        if config.data.normalize:
            own = replace(own, mean=tuple(config.data.normalize.mean), std=tuple(config.data.normalize.std))
        self.is_other = True
        source = load_source(config.data, "test", self.registry, self.data_root)
        if source.class_names != own.train.source.class_names:
            self.notes.append(
                f"classes are matched by name: {source.num_classes} of the {own.num_classes} that the network knows; "
                "an answer that is none of them counts as wrong"
            )
        return with_test_set(own, config.data.name, source, evaluation_pipeline(config.data, self.registry))

    def _moved(self) -> Data | None:
        """The run's own pictures, where they are what the command line names."""
        config = self.subject.config
        try:
            data = load_data(config.data, config.seed, self.registry, self.data_root)
        except ConfigError:
            return None
        return data if data.fingerprint() == self.subject.run.data else None

    # -- beyond accuracy -----------------------------------------------------------------------------------------------

    def _calibration(self, found: Rebuilt, split: str, logits: Tensor) -> dict:
        """ece and nll of all pictures; scaled: before and after a temperature is fitted, of pictures that it was not
        fitted on."""
        data = found.parts.data
        labels = chosen(data, split).labels
        held_out = None
        # A teacher's own training set may hold the validation split; other data than the run's have none.
        if split == "test" and self.subject.role == "student" and data.validation and not self.is_other:
            held_out = logits_of(found, data.validation, self.subject.weights), data.validation.labels
        scaled = analysis.calibrated(logits, labels, held_out)
        return {
            "ece": analysis.reliability(logits, labels).ece,
            "nll": analysis.nll(logits, labels),
            "scaled": {
                "temperature": scaled.temperature,
                "fitted_on": "the validation split" if held_out else "every second picture",
                "samples": int(scaled.before.counts.sum()),
                "before": {"ece": scaled.before.ece, "nll": scaled.nll_before},
                "after": {"ece": scaled.after.ece, "nll": scaled.nll_after},
            },
        }

    def _agreement(self, split: str, logits: Tensor, data: Data) -> dict:
        """With each teacher of a run that can be had."""
        subject, found = self.subject, {}
        for name in subject.config.all_teachers if subject.run else ():
            heading = "teacher" if subject.config.teacher else f"teacher {name}"
            try:
                weights = teacher_weights(subject.run, subject.config, name)
                teacher = logits_of(self._network(weights, name, data), chosen(data, split), weights)
            except KdrayError as error:
                self.notes.append(f"left out: agreement with the {heading}: {error}")
                continue
            found[heading] = {
                "top1": analysis.agreement(teacher, logits),
                "kl": float(analysis.divergences(teacher, logits).mean()),
            }
        return found


def _place(config: Config) -> tuple:
    """What tells one data set from another, before it is looked at."""
    return config.data.name, config.data.path, config.data.options
