"""VkD: an orthogonal projection brings the student's embedding to the teacher's, standardised."""

import torch.nn.functional as F
from torch import nn

from kdray import Distiller, DistillerSpec, Requires, hookimpl


class VkD(Distiller):
    """Smooth L1 of P s and (t − mean(t)) / std(t), mean over the D_t entries and the batch (Miles et al.).

    s, t: embeddings (D_s) and (D_t). P (D_t, D_s) has orthonormal rows, or columns where there are fewer of them: it
    trains along the orthogonal matrices, so that it keeps the angles between samples and cannot learn in the student's
    stead. Mean and standard deviation are those of each embedding over its entries.

    Standardisation is the normalisation for classification; the paper's other one, whitening for generating images, is
    not here. The authors' code leaves the way to parametrise P to PyTorch, which for unequal widths keeps signs in the
    parameter and cuts them to integers: under weight decay P becomes 0. Here it is Cayley's map, for all widths.
    """

    requires = Requires(student={"embedding"}, teacher={"embedding"})
    paper = (
        "Miles, Elezi, Deng: VkD: Improving Knowledge Distillation using Orthogonal Projections. CVPR 2024, "
        "arXiv 2403.06213"
    )

    def __init__(self, options, setup):
        super().__init__(options, setup)
        (width_s,), (width_t,) = setup.student.embedding, setup.teacher.embedding
        self.project = nn.utils.parametrizations.orthogonal(
            nn.Linear(width_s, width_t, bias=False), orthogonal_map="cayley"
        )

    def forward(self, student, teacher, batch, step):
        t = teacher.embedding
        return F.smooth_l1_loss(self.project(student.embedding), F.layer_norm(t, t.shape[1:]))


@hookimpl
def kdray_distillers():
    return [DistillerSpec("vkd", VkD)]
