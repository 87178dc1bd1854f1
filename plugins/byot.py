"""Be your own teacher: classifiers on the student's shallower maps learn from its own deepest one."""

import torch.nn.functional as F
from pydantic import Field
from torch import nn

from kdray import ConfigError, Distiller, DistillerSpec, Options, Requires, hookimpl


class BYOTOptions(Options):
    alpha: float = Field(
        0.3, ge=0, le=1, description="α: weight of the deepest classifier's probabilities; that of the labels is 1 − α."
    )
    hint: float = Field(0.03, ge=0, description="λ: weight of the squared distance to the last map's mean.")
    temperature: float = Field(3.0, gt=0, description="T of the probabilities.")


class BYOT(Distiller):
    """Branches on the student's maps follow its own classifier and last map.

    Summed over branches i, mean over the batch: `label` (1 − α) · H(y, q_i), `logits` α · T² · KL(q_C ‖ q_i) of
    probabilities at T, `hint` λ · ‖F_i − F_C‖², where C is the student's own classifier and F_C its last map's mean.
    No gradient flows into what is followed, and there is no teacher.

    A branch stands on every map but the first and the last, and is not exported: a bottleneck of three convolutions,
    whose middle one brings the map to the last one's size, its mean F_i, and a classifier. The cross-entropy of the
    deepest classifier is the loss `ce`'s business. α and T are those of the authors' later code, which has no hints and
    no factor T².
    """

    Options = BYOTOptions
    requires = Requires(student={"logits", "features"})
    paper = (
        "Zhang, Song, Gao, Chen, Bao, Ma: Be Your Own Teacher: Improve the Performance of Convolutional Neural "
        "Networks via Self Distillation. ICCV 2019, arXiv 1905.08094"
    )
    scheduled = frozenset({"alpha", "hint", "temperature"})
    recordable = True

    def __init__(self, options, setup):
        super().__init__(options, setup)
        maps = setup.student.features
        if len(maps) < 3:
            raise ConfigError(
                f"byot: branches stand between the student's first and last map, and it has {len(maps)} maps. Take "
                "another student, or name more layers in its section"
            )
        dim, height, _ = maps[-1]
        self.bottlenecks = nn.ModuleList(bottleneck(shape[0], dim, shape[1] // height) for shape in maps[1:-1])
        self.classifiers = nn.ModuleList(nn.Linear(dim, setup.num_classes) for _ in maps[1:-1])

    def forward(self, student, teacher, batch, step):
        o, T = self.options, self.options.temperature
        log_q_C = F.log_softmax(student.logits.detach() / T, dim=1)
        F_C = student.features[-1].detach().mean(dim=(2, 3))
        label = logits = hint = 0.0
        for x, layers, classifier in zip(student.features[1:-1], self.bottlenecks, self.classifiers):
            F_i = layers(x).mean(dim=(2, 3))
            z = classifier(F_i)
            label = label + F.cross_entropy(z, batch.target)
            log_q = F.log_softmax(z / T, dim=1)
            logits = logits + F.kl_div(log_q, log_q_C, reduction="batchmean", log_target=True)
            hint = hint + (F_i - F_C).square().sum(dim=1).mean()
        return {"label": (1 - o.alpha) * label, "logits": o.alpha * T**2 * logits, "hint": o.hint * hint}


def bottleneck(wide, dim, factor):
    """(B, wide, H, W) to (B, dim, H / factor, W / factor), by way of dim / 4 channels."""
    narrow = max(dim // 4, 1)
    sizes = [(wide, narrow, 1), (narrow, narrow, max(factor, 1)), (narrow, dim, 1)]
    return nn.Sequential(
        *(layer for a, b, k in sizes for layer in (nn.Conv2d(a, b, k, stride=k), nn.BatchNorm2d(b), nn.ReLU()))
    )


@hookimpl
def kdray_distillers():
    return [DistillerSpec("byot", BYOT)]
