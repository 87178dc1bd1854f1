"""The shape of a config file. The descriptions are the documentation that `kdray schema` and the editor show."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, WithJsonSchema, field_validator, model_validator

from ..options import Options
from .tune import TuneConfig

Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, lt=1)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]  # of a folder
Precision = Literal["fp32", "bf16", "fp64"]
Label = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_-]*$")]
_RANGE = r"^([1-9]\d*)\.\.([1-9]\d*)$"


def _range(text: str) -> str:
    found = re.match(_RANGE, text)
    if not found or int(found[1]) > int(found[2]):
        raise ValueError(f"must be a whole number, or two with the smaller first, as in 2..8; not the text '{text}'")
    return text


Range = Annotated[str, AfterValidator(_range), WithJsonSchema({"type": "string", "pattern": _RANGE})]


class Open(BaseModel):
    """A section whose further keys belong to a plugin: they are checked against that plugin's own options."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True, allow_inf_nan=False, validate_default=True)

    @property
    def options(self) -> dict:
        """The keys that belong to the plugin."""
        return dict(self.__pydantic_extra__ or {})


class Normalize(Options):
    mean: list[float] = Field(description="Channel means of pictures scaled to 0..1.")
    std: list[Positive] = Field(description="Channel deviations of pictures scaled to 0..1.")


class LayersConfig(Options):
    """Dotted module paths (`layer3`, or `fc:input` for what goes into a module)."""

    head: str = Field("", description="The classifier. Default: the last nn.Linear.")
    embedding: str = Field("", description="The pooled vector before the classifier. Default: the head's input.")
    features: list[str] = Field([], description="Feature maps, shallow to deep.")
    preactivations: list[str] = Field([], description="The same before their last activation.")
    last_map: str = Field("", description="The map whose spatial mean is the embedding. Default: the last of features.")


class ExtraView(Options):
    """A further picture of each sample in the same step, for losses that compare views."""

    of: Literal["picture", "base"] = Field(
        "picture", description="picture: drawn anew from the original. base: made of the very picture the student sees."
    )
    augment: list[str | dict[str, dict]] = Field([], description="Augmentations, in order, as in data.augment.")


class MixOptions(Options):
    alpha: Positive = Field(1.0, description="α of Beta(α, α), the distribution of λ: small ones leave one of the two.")
    p: float = Field(1.0, ge=0, le=1, description="Probability that a picture is mixed at all.")


class Mix(Options):
    """How a training picture is made of two."""

    mixup: MixOptions | None = Field(None, description="λ x_i + (1 − λ) x_j (Zhang et al., ICLR 2018).")
    cutmix: MixOptions | None = Field(
        None, description="A box of x_j in x_i, of area share 1 − λ (Yun et al., ICCV 2019)."
    )

    @model_validator(mode="after")
    def one_way(self):
        given = [name for name in ("mixup", "cutmix") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} are given: a picture is mixed in one way")
        if not given:
            raise ValueError("give mixup or cutmix (`mixup: {}` for the defaults)")
        return self

    @property
    def way(self) -> tuple[str, MixOptions]:
        """Which one, and its options."""
        return ("mixup", self.mixup) if self.mixup else ("cutmix", self.cutmix)


class DataConfig(Open):
    name: str = Field(description="Name of the data set (`kdray list datasets`).")
    path: str | None = Field(None, description="Where its files are. Default: <data folder of kdray.toml>/<name>.")
    batch_size: int = Field(gt=0, description="Global batch size, over all workers.")
    augment: list[str | dict[str, dict]] = Field(
        [], description="Augmentations of the training pictures, in order: a name, or {name: {option: value}}."
    )
    extra_views: dict[Label, ExtraView] = Field(
        {}, description="Further pictures of each sample by name, for losses that read them (`kdray list distillers`)."
    )
    mix: Literal["mixup", "cutmix"] | Mix | None = Field(
        None, description="Make every training picture of two samples: a name, or {name: {option: value}}."
    )
    evaluate: list[str | dict[str, dict]] = Field(
        [], description="What is done to pictures at evaluation, in order (resize, center_crop)."
    )
    normalize: Normalize | None = Field(None, description="Mean and deviation. Default: those of the data set.")
    samples: Annotated[int, Field(gt=0)] | None = Field(
        None, description="Use only so many training samples, drawn evenly over the classes by the seed."
    )
    validation: Share = Field(0.0, description="Share of the training set held out for validation, drawn by the seed.")
    leave_out: list[Annotated[int, Field(ge=0)]] = Field(
        [], description="Numbers of classes of which nothing is trained on. They stay in validation and test."
    )
    label_noise: Share = Field(
        0.0, description="Share of the training samples whose class is another one, drawn by the seed."
    )
    views: Annotated[int, Field(gt=0)] | Literal["all"] | None = Field(
        None,
        description="Epoch e uses view e mod this number. Default: a view an epoch. all: the same, of augmentations "
        "that make a limited number of pictures of a sample (crop, flip); a cache can hold them all.",
    )
    in_memory: Literal["auto"] | bool = Field(
        "auto",
        description="Decode once and keep as uint8 in memory. auto: when all pictures have one size and fit in 2 GiB.",
    )
    last_batch: Literal["keep", "drop"] = Field(
        "keep", description="What becomes of the samples that do not fill a whole batch at an epoch's end."
    )
    threads: Annotated[int, Field(ge=1)] = Field(
        4, description="Decoding threads a worker, when pictures are streamed."
    )

    @field_validator("mix")
    @classmethod
    def with_options(cls, mix):
        return Mix(**{mix: MixOptions()}) if isinstance(mix, str) else mix

    @model_validator(mode="after")
    def classes_are_told(self):
        if len(set(self.leave_out)) < len(self.leave_out):
            raise ValueError(f"leave_out names a class twice: {self.leave_out}")
        if self.leave_out and self.label_noise:
            raise ValueError("leave_out and label_noise are given: a wrong label may name a class that is left out")
        return self

    @model_validator(mode="after")
    def views_are_mixed_too(self):
        for name, view in self.extra_views.items():
            if self.mix and view.of == "picture":
                raise ValueError(
                    f"the view '{name}' is drawn anew from the original, and would not show what the mixed one shows: "
                    f"write extra_views.{name}.of: base, or remove mix"
                )
        return self


class PrunedConfig(Options):
    """A narrower network, as `student.prune` has written it into a run's config."""

    share: Share = Field(0.0, description="The share of channels that was taken out.")
    source: str = Field("", description="The file of weights that it was taken out of.")
    weights: str = Field("", description="SHA-256 of the weights that were left.")
    widths: dict[str, list[Annotated[int, Field(gt=0)]]] = Field(
        min_length=1,
        description="What is left of each layer, by module path: `[out, in]` of its weight, `[n]` of a normalisation.",
    )


class ModelConfig(Open):
    model: str = Field(
        description="A name of `kdray list models`, or `module:factory` for any function that returns an nn.Module."
    )
    checkpoint: str | None = Field(
        None,
        description="Weights: .safetensors, or a torch file with a state dict, plain or under `state_dict` or `model`; "
        "or the folder of a run, for its student's.",
    )
    weights: str | None = Field(None, description="Name of published weights, for models that offer them (DEFAULT).")
    layers: LayersConfig | None = Field(
        None,
        description="Where outputs are tapped. Needed for losses on the feature maps of networks unknown to kdray.",
    )
    pruned: PrunedConfig | None = Field(
        None, description="Narrower layers than the network's own. Runs with `student.prune` write it themselves."
    )


class StudentConfig(ModelConfig):
    prune: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None,
        description="Share of the channels to take out of the trained network of `checkpoint` (or `weights`) before "
        "the run: docs/pruning.md.",
    )
    int8: bool = Field(
        False,
        description="Train for 8 bits: what convolutions and linear layers read, and their weights, are rounded to 256 "
        "levels, as in a file of `kdray export --int8` (docs/export.md).",
    )

    @model_validator(mode="after")
    def what_is_pruned(self):
        if self.prune and not (self.checkpoint or self.weights):
            raise ValueError("prune takes channels out of a trained network: give its checkpoint (or weights)")
        return self


class CacheConfig(Options):
    """Answers of the teacher that `kdray precompute` has stored, in the place of the teacher."""

    path: str | None = Field(
        None,
        description="Folder, or s3://… or gs://…. Default: one in `cache` of kdray.toml, named after what is in it.",
    )
    dtype: Literal["fp32", "fp16", "bf16"] = Field("fp16", description="How numbers are stored.")
    top_k: Annotated[int, Field(gt=0)] | None = Field(
        None, description="Store the k largest logits and the log-sum-exp of the rest. Default: all logits."
    )
    fill: bool = Field(
        False, description="The live teacher answers what is not stored yet, and its answers are stored."
    )
    fallback: Literal["live"] | None = Field(
        None, description="live: where the cache cannot serve, say so and ask the live teacher. Default: an error."
    )


class PlacementConfig(Options):
    """The teacher as a pool of Ray actors beside the training's workers: on other devices, ahead of them."""

    workers: Annotated[int, Field(ge=1)] = Field(1, description="Actors that answer.")
    cpus: Positive = Field(1.0, description="CPUs each, fractions allowed; as many torch threads, at least one.")
    gpus: Annotated[float, Field(ge=0)] = Field(0.0, description="GPUs each, fractions allowed.")
    resources: dict[str, Positive] = Field(
        {}, description="Ray's custom resources each, which keep them to the nodes that have these."
    )
    ahead: Annotated[int, Field(ge=1)] = Field(
        4, description="Batches that a training worker asks for before it needs the answers."
    )


class TeacherConfig(ModelConfig):
    train: str | None = Field(
        None, description="Config that trains this teacher when it has not been trained yet; relative to this file."
    )
    normalize: Normalize | None = Field(
        None,
        description="The teacher's own mean and deviation. Default: those of its published weights, else of the data.",
    )
    min_accuracy: Annotated[float, Field(ge=0, le=1)] | None = Field(
        None, description="Refuse a teacher whose test accuracy (0..1) is lower."
    )
    precision: Precision | None = Field(None, description="The teacher's own arithmetic. Default: engine.precision.")
    cache: CacheConfig | None = Field(None, description="Use stored answers of this teacher (`kdray precompute`).")
    placement: PlacementConfig | None = Field(
        None, description="Let it answer in Ray actors of its own, on other devices than the student's."
    )

    @model_validator(mode="after")
    def one_source(self):
        given = [k for k in ("train", "checkpoint", "weights") if getattr(self, k) is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} are given: a teacher comes from one of train, checkpoint, weights")
        if not given:
            raise ValueError("an untrained teacher teaches nothing: give train, checkpoint or weights")
        return self

    @model_validator(mode="after")
    def one_place(self):
        if self.placement and self.cache and self.cache.fill:
            raise ValueError("placement and cache.fill are given: a cache is filled by a teacher of the worker's own")
        return self


class WeightSchedule(Options):
    """A weight that moves: linearly from `start` to `value` over `warmup` epochs, to `end` over the last `decay`."""

    value: float = Field(ge=0, description="The weight after the warm-up.")
    start: Annotated[float, Field(ge=0)] | None = Field(None, description="The weight at epoch 0. Default: 0.")
    warmup: float = Field(0.0, ge=0, description="Epochs of the warm-up.")
    end: Annotated[float, Field(ge=0)] | None = Field(None, description="The weight at the last epoch. Default: 0.")
    decay: float = Field(0.0, ge=0, description="Epochs of the decay at the end of the run.")

    @model_validator(mode="after")
    def complete(self):
        for edge, epochs in (("start", "warmup"), ("end", "decay")):
            if getattr(self, edge) is not None and not getattr(self, epochs):
                raise ValueError(f"{edge} has no effect without {epochs}, a number of epochs")
        return self


class OptionSchedule(Options):
    """An option that moves: linearly from `start` to its own value over `warmup` epochs, to `end` over the last
    `decay`."""

    start: float | None = Field(None, description="The value at epoch 0. Default: the option's own.")
    warmup: float = Field(0.0, ge=0, description="Epochs from `start` to the option's own value.")
    end: float | None = Field(None, description="The value at the last epoch. Default: the option's own.")
    decay: float = Field(0.0, ge=0, description="Epochs from the option's own value to `end`, at the end of the run.")

    @model_validator(mode="after")
    def complete(self):
        for edge, epochs in (("start", "warmup"), ("end", "decay")):
            if (getattr(self, edge) is None) != (not getattr(self, epochs)):
                raise ValueError(f"{edge} and {epochs} go together")
        return self


class LossConfig(Open):
    use: str | None = Field(None, description="The distiller, where the label is not its name.")
    weight: Annotated[float, Field(ge=0)] | WeightSchedule = Field(
        1.0, description="Factor of this loss, or a schedule."
    )
    teacher: str | None = Field(
        None, description="Which of `teachers` it learns from; `average`: the mean of the logits of all."
    )
    schedule: dict[str, OptionSchedule] = Field(
        {}, description="Options that move over the epochs: `{temperature: {start: 8.0, warmup: 20}}`."
    )


class OptimizerConfig(Open):
    name: str = Field("sgd", description="`sgd`, `adamw`, or an optimizer of a plugin.")
    lr: Positive = Field(description="Base learning rate.")


class ScheduleConfig(Options):
    epochs: int = Field(gt=0, description="Passes over the training set.")
    name: Literal["constant", "multistep", "step", "cosine"] = Field(
        "constant", description="How the learning rate falls."
    )
    milestones: list[Annotated[int, Field(gt=0)]] = Field(
        [], description="multistep: finished epochs after which lr is multiplied by gamma."
    )
    step: Annotated[int, Field(gt=0)] | None = Field(
        None, description="step: epochs between two multiplications by gamma."
    )
    gamma: Annotated[float, Field(gt=0, le=1)] = Field(0.1, description="Factor of multistep and step.")
    warmup: Annotated[float, Field(ge=0)] = Field(0.0, description="Epochs of linear warm-up from 0, in front.")
    end: Share = Field(0.0, description="cosine: the last lr as a share of the first.")

    @model_validator(mode="after")
    def complete(self):
        if self.name == "multistep" and not self.milestones:
            raise ValueError("multistep needs milestones")
        if self.name == "step" and not self.step:
            raise ValueError("step needs step, the number of epochs between two falls")
        if self.milestones != sorted(set(self.milestones)):
            raise ValueError("milestones must rise")
        return self


class EngineConfig(Options):
    precision: Literal["auto", Precision] = Field(
        "fp32",
        description="Arithmetic of the networks: fp32, bf16 (autocast, losses in fp32), or fp64. auto: bf16 where a "
        "measurement before the run shows that it is faster, else fp32; the run's own config then names it.",
    )
    batch_norm: Literal["global", "local"] = Field(
        "global", description="Batch statistics over the global batch, or over each worker's part."
    )
    clip_norm: Positive | None = Field(None, description="Largest norm of the gradient.")
    accumulate: Annotated[int, Field(ge=1)] = Field(
        1, description="Batches an optimizer step. Losses are defined over each batch; gradients are averaged."
    )
    log_every: Annotated[int, Field(ge=1)] = Field(
        50, description="Steps between two rows of loss terms in metrics.jsonl."
    )
    ema: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None, description="Decay of an exponential moving average of the student, evaluated in its stead."
    )
    compile: bool = Field(
        False,
        description="Compile the networks where steps are recorded (`record`): fewer and larger kernels, which round "
        "in other places, after some 20 seconds of compiling.",
    )
    record: bool = Field(
        True,
        description="On one GPU, record the step of the main loop once, as a CUDA graph, and replay it, where all "
        "losses allow it: several times faster for small networks.",
    )
    nonfinite: Literal["stop", "skip"] = Field(
        "stop",
        description="What a loss that is no finite number does: stop the run, or leave that batch's update out (every "
        "step then waits for the device; 20 batches in a row stop the run all the same).",
    )


class ScaleConfig(Options):
    """How many workers, on what. These change the speed, never the objective."""

    num_workers: Annotated[int, Field(ge=0)] | Range = Field(
        1, description="Ray Train workers; 0 runs in this process. 2..8: as many of them as the cluster has room for."
    )
    cpus_per_worker: Positive | None = Field(
        None, description="CPUs a worker, fractions allowed. Default: the CPUs shared out evenly, at least one each."
    )
    use_gpu: Literal["auto"] | bool = Field(
        "auto", description="One GPU a worker. auto: where every worker can have one."
    )
    shard: list[Literal["student", "teachers"]] = Field(
        [],
        description="Networks of which each worker keeps a share only (FSDP), for those that do not fit one device.",
    )
    max_failures: Annotated[int, Field(ge=0)] = Field(
        3, description="How often a lost worker may restart the group from the last checkpoint."
    )
    hang_after: Positive = Field(
        1800.0, description="Seconds without a finished step after which Ray workers are given up, with their stacks."
    )

    @property
    def elastic(self) -> bool:
        """Whether the number of workers follows the cluster."""
        return isinstance(self.num_workers, str)

    @property
    def fewest(self) -> int:
        return int(self.num_workers.partition("..")[0]) if self.elastic else self.num_workers

    @property
    def most(self) -> int:
        return int(self.num_workers.partition("..")[2]) if self.elastic else self.num_workers


class CheckpointConfig(Options):
    every_epochs: Annotated[int, Field(ge=1)] = Field(
        1, description="Epochs between two checkpoints; the last epoch always has one."
    )
    every_steps: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Also after so many steps, inside an epoch."
    )
    keep: Annotated[int, Field(ge=1)] = Field(2, description="How many are kept.")


class RunFolder(Options):
    dir: str | None = Field(None, description="Folder of all runs. Default: `runs` of kdray.toml.")
    name: Name | None = Field(None, description="Name of this run's folder. Default: the config's name.")


class Config(Options):
    """A run of kdray: a student, what it learns from, and how."""

    name: Name = Field(description="Name of the experiment: letters, digits, '.', '_' and '-', at most 100.")
    seed: Annotated[int, Field(ge=0, lt=2**31)] = Field(0, description="Everything that is drawn follows from it.")
    data: DataConfig
    teacher: TeacherConfig | None = None
    teachers: dict[Label, TeacherConfig] = Field(
        {}, description="Several teachers by name, in place of `teacher`; each loss says which one it learns from."
    )
    student: StudentConfig
    losses: dict[Label, LossConfig] = Field(
        min_length=1, description="Label to distiller: `kd: {weight: 1.0, temperature: 4.0}`."
    )
    optimizer: OptimizerConfig
    schedule: ScheduleConfig
    engine: EngineConfig = EngineConfig()
    scale: ScaleConfig = ScaleConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    run: RunFolder = RunFolder()
    trackers: list[str | dict[str, dict]] = Field(
        [{"tensorboard": {}}],
        description="What follows the run (`kdray list trackers`): names, or {name: {option: value}}.",
    )
    tune: TuneConfig | None = Field(
        None, description="What `kdray tune` searches; `kdray train` runs the plain values."
    )
    baseline: bool = Field(
        False,
        description="Also train the student alone (the same recipe with ce only), once, and show it beside.",
    )

    @field_validator("trackers")
    @classmethod
    def each_once(cls, trackers):
        names = [name for entry in trackers for name in ([entry] if isinstance(entry, str) else entry)]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"'{name}' is named twice")
        return trackers

    @model_validator(mode="after")
    def can_be_compiled(self):
        if self.engine.compile and self.student.int8:
            raise ValueError("engine.compile and student.int8 are given: torch.compile does not know the rounding")
        return self

    @property
    def views(self) -> int:
        """Epoch e shows view e mod this number."""
        return self.data.views if isinstance(self.data.views, int) else self.schedule.epochs

    @property
    def all_teachers(self) -> dict[str, TeacherConfig]:
        """By name; the only one of `teacher` is called `teacher`."""
        return {"teacher": self.teacher} if self.teacher else self.teachers
