"""Factor transfer: an autoencoder paraphrases the teacher's last map, and the student's translation follows."""

from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import nn

from kdray import Distiller, DistillerSpec, Options, Published, Requires, Stage, hookimpl, paired_maps, same_size


class FTOptions(Options):
    factors: Literal["learned", "maps"] = Field(
        "learned", description="`learned`: by paraphraser and translator. `maps`: the bare maps, without a first stage."
    )
    rate: float = Field(0.5, gt=0, description="k: channels of a factor over those of the teacher's map.")
    init_epochs: int = Field(30, ge=1, description="Epochs of the first stage, which trains the paraphraser.")
    init_lr: float | None = Field(0.01, gt=0, description="Learning rate of the first stage; null: the run's.")
    p1: float = Field(2.0, ge=1, description="A position's factor is the mean over channels of |f|^p1.")
    p2: float = Field(1.0, ge=1, description="Factors are compared by the mean of |difference|^p2.")
    map: int = Field(-1, description="Which map: 0 is the stem's, −1 the last; the same place in both networks.")


class FT(Distiller):
    """mean |Q_s − Q_t|^p2 over samples and positions, Q = mean over channels of |factor|^p1, as a vector of length 1.

    Stage `paraphraser` trains encoder and decoder on the teacher's maps, mean((decoded − map)²); frozen, its code is
    the teacher's factor, and a translator of the student's map, trained with the student, gives the other one. As in
    RepDistiller; the paper compares whole factors of length 1, without the mean over channels.
    """

    Options = FTOptions
    requires = Requires(student={"features"}, teacher={"features"})
    paper = "Kim, Park, Kwak: Paraphrasing Complex Network: Network Compression via Factor Transfer. NeurIPS 2018"
    published = Published(resnet8x4=72.86, wrn_16_2=73.25, source="RepDistiller README, last epoch, 5 runs")
    recordable = True

    def __init__(self, options, setup):
        super().__init__(options, setup)
        (self.map,) = paired_maps("ft", setup, "features", [options.map])
        if options.factors == "learned":
            C_s, C_t = setup.student.features[self.map][0], setup.teacher.features[self.map][0]
            C = max(int(options.rate * C_t), 1)
            encoder = layers(nn.Conv2d, (C_t, C_t, C, C))
            self.paraphraser = nn.ModuleDict(
                {"encoder": encoder, "decoder": layers(nn.ConvTranspose2d, (C, C, C_t, C_t))}
            )
            self.translator = layers(nn.Conv2d, (C_s, C_s, C, C), norm=True)

    def stages(self):
        if self.options.factors == "maps":
            return []
        modules = (self.paraphraser,)
        return [
            Stage("paraphraser", self.options.init_epochs, self.paraphrase, modules=modules, lr=self.options.init_lr)
        ]

    def paraphrase(self, student, teacher, batch, step):
        f_t = teacher.features[self.map]
        return F.mse_loss(self.paraphraser["decoder"](self.paraphraser["encoder"](f_t)), f_t)

    def forward(self, student, teacher, batch, step):
        f_s, f_t = student.features[self.map], teacher.features[self.map]
        if self.options.factors == "learned":
            f_s = self.translator(f_s)
            with torch.no_grad():
                f_t = self.paraphraser["encoder"](f_t)
        f_s, f_t = same_size(f_s, f_t)
        return (self.factor(f_s) - self.factor(f_t)).abs().pow(self.options.p2).mean()

    def factor(self, f):
        return F.normalize(f.abs().pow(self.options.p1).mean(dim=1).flatten(1), dim=1)


def layers(conv, widths, norm=False):
    """3×3 convolutions through channels `widths`, a leaky ReLU after each, batch norm before it where asked for."""
    found = nn.Sequential()
    for inputs, outputs in pairwise(widths):
        found.extend([conv(inputs, outputs, 3, padding=1), *([nn.BatchNorm2d(outputs)] if norm else [])])
        found.append(nn.LeakyReLU(0.1))
    return found


@hookimpl
def kdray_distillers():
    return [DistillerSpec("ft", FT)]
