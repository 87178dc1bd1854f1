"""SemCKD: attention says which of the teacher's stages teaches which of the student's, sample by sample."""

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import nn

from kdray import ConfigError, Distiller, DistillerSpec, Options, Published, Requires, hookimpl, same_size


class SemCKDOptions(Options):
    temperature: float = Field(1.0, gt=0, description="Inner products of queries and keys are divided by it.")
    factor: int = Field(4, ge=1, description="Queries and keys have batch_size / factor entries.")


class SemCKD(Distiller):
    """(1 / n_s) Σ_i Σ_j α_ij · mean (r_ij(S_i) − T_j)², mean over the batch (Chen et al.).

    S_i, T_j: maps (C, H, W) of the n_s and n_t stages. r_ij: convolutions 1×1, 3×3, 1×1 to the teacher's channels;
    before it the larger of the two maps is pooled to the size of the smaller. α_i· = softmax_j(q_i · k_j): a query of
    the student's stage and a key of the teacher's, of length 1, both by an MLP from the sample's row of the stage's
    similarity matrix F Fᵀ over the batch, F the maps laid flat. The student learns through α too.

    The matrix is that of the global batch, and its side the width of the MLPs' input. Published code skips a last batch
    that is smaller; here the samples it lacks have similarity 0, and it counts like the others.
    """

    Options = SemCKDOptions
    requires = Requires(student={"features"}, teacher={"features"})
    paper = (
        "Chen, Mei, Zhang, Wang, Wang, Feng, Chen: Cross-Layer Distillation with Semantic Calibration. AAAI 2021, "
        "arXiv 2012.03236"
    )
    published = Published(resnet8x4=76.23, source="SemCKD and SimKD READMEs, with cross-entropy and KD")
    scope = "batch"
    scheduled = frozenset({"temperature"})

    def __init__(self, options, setup):
        super().__init__(options, setup)
        shapes_s, shapes_t = setup.student.features[1:], setup.teacher.features[1:]
        if not shapes_s or not shapes_t or any(len(shape) != 3 for shape in (*shapes_s, *shapes_t)):
            raise ConfigError(
                "semckd compares the maps (C, H, W) of the stages, the first map (the stem's) excepted; after it the "
                f"student has {list(shapes_s)}, the teacher {list(shapes_t)}. Name at least two in the models' "
                "`layers: {features: [...]}`."
            )
        self.batch_size = setup.batch_size
        width = max(1, setup.batch_size // options.factor)
        self.queries = nn.ModuleList(mlp(setup.batch_size, width) for _ in shapes_s)
        self.keys = nn.ModuleList(mlp(setup.batch_size, width) for _ in shapes_t)
        self.regressors = nn.ModuleList(nn.ModuleList(regressor(s[0], t[0]) for t in shapes_t) for s in shapes_s)

    def forward(self, student, teacher, batch, step):
        maps_s, maps_t = student.features[1:], teacher.features[1:]
        q = self.embed(self.queries, maps_s, step)  # (b, n_s, width)
        k = self.embed(self.keys, maps_t, step)  # (b, n_t, width)
        attention = F.softmax(q @ k.transpose(1, 2) / self.options.temperature, dim=2)
        rows = [
            torch.stack([distance(s, t, regress) for t, regress in zip(maps_t, row)], dim=1)
            for s, row in zip(maps_s, self.regressors)
        ]
        return (attention * torch.stack(rows, dim=1)).sum(dim=2).mean()

    def embed(self, mlps, maps, step):
        return torch.stack([F.normalize(m(self.similarity(x, step)), dim=1) for m, x in zip(mlps, maps)], dim=1)

    def similarity(self, x, step):
        """Rows (b, batch_size) of the matrix that belong to this worker's samples."""
        flat = x.flatten(1)
        every = step.gather(flat, differentiable=flat.requires_grad)
        return F.pad(flat @ every.T, (0, self.batch_size - len(every)))


def distance(s, t, regress):
    """Mean square of r(s) − t for each sample (b,), in the smaller size of the two."""
    s, t = same_size(s, t)
    return (regress(s) - t).pow(2).mean(dim=(1, 2, 3))


def mlp(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, 2 * outputs), nn.ReLU(), nn.Linear(2 * outputs, outputs))


def regressor(inputs: int, outputs: int) -> nn.Sequential:
    middle = 2 * outputs
    return nn.Sequential(
        nn.Conv2d(inputs, middle, 1, bias=False),
        nn.BatchNorm2d(middle),
        nn.ReLU(inplace=True),
        nn.Conv2d(middle, middle, 3, padding=1, bias=False),
        nn.BatchNorm2d(middle),
        nn.ReLU(inplace=True),
        nn.Conv2d(middle, outputs, 1, bias=False),
    )


@hookimpl
def kdray_distillers():
    return [DistillerSpec("semckd", SemCKD)]
