"""Neuron selectivity transfer: the distribution of where channels respond is the teacher's."""

import torch.nn.functional as F

from kdray import Distiller, DistillerSpec, MapChoice, Options, Published, Requires, hookimpl, paired_maps, same_size


class NSTOptions(Options):
    maps: MapChoice = None


class NST(Distiller):
    """Σ_maps squared maximum mean discrepancy between the student's and the teacher's channels, kernel k(x, y) =
    ⟨x, y⟩²; each channel's map, flattened, is a sample x of length 1. Mean over the batch.

    The larger map is pooled to the size of the smaller. The paper has ½ in front.
    """

    Options = NSTOptions
    requires = Requires(student={"features"}, teacher={"features"})
    paper = "Huang, Wang: Like What You Like: Knowledge Distill via Neuron Selectivity Transfer. arXiv 1707.01219, 2017"
    published = Published(resnet8x4=73.30, wrn_16_2=73.68, source="RepDistiller README, last epoch, 5 runs")
    recordable = True

    def __init__(self, options, setup):
        super().__init__(options, setup)
        self.maps = paired_maps("nst", setup, "features", options.maps)

    def forward(self, student, teacher, batch, step):
        return sum(discrepancy(student.features[i], teacher.features[i]) for i in self.maps)


def discrepancy(f_s, f_t):
    f_s, f_t = same_size(f_s, f_t)
    x, y = F.normalize(f_s.flatten(2), dim=2), F.normalize(f_t.flatten(2), dim=2)
    return kernel(x, x) + kernel(y, y) - 2 * kernel(x, y)


def kernel(x, y):
    """Mean of ⟨x, y⟩² over all pairs of channels."""
    return (x @ y.mT).square().mean()


@hookimpl
def kdray_distillers():
    return [DistillerSpec("nst", NST)]
