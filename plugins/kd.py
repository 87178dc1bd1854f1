"""Knowledge distillation: the student's softened class probabilities follow the teacher's."""

import torch.nn.functional as F
from pydantic import Field

from kdray import Distiller, DistillerSpec, Options, Published, Requires, SearchSpaceSpec, hookimpl


class KDOptions(Options):
    temperature: float = Field(4.0, gt=0, description="T: both logits are divided by it before the softmax.")


class KD(Distiller):
    """T² · KL(softmax(z_t / T) ‖ softmax(z_s / T)), mean over the batch (Hinton et al., section 2).

    T² keeps the gradient's size when T changes (their equation 4).
    """

    Options = KDOptions
    requires = Requires(student={"logits"}, teacher={"logits"})
    paper = "Hinton, Vinyals, Dean: Distilling the Knowledge in a Neural Network. NIPS workshop 2014, arXiv 1503.02531"
    published = Published(resnet8x4=73.33, wrn_16_2=74.92, source="RepDistiller README: weight 0.9, ce 0.1, last epoch")
    scheduled = frozenset({"temperature"})
    recordable = True

    def forward(self, student, teacher, batch, step):
        T = self.options.temperature
        log_p_s = F.log_softmax(student.logits / T, dim=1)
        log_p_t = F.log_softmax(teacher.logits / T, dim=1)
        return T**2 * F.kl_div(log_p_s, log_p_t, reduction="batchmean", log_target=True)


class ViewKD(KD):
    """T² · KL(softmax(z_t(x′) / T) ‖ softmax(z_s(x) / T)): the teacher is asked about another view of the sample.

    x′ is `data.extra_views.teacher`, which the student does not see. Without augmentation it is the picture as it is,
    always the same: the fixed teacher that Beyer et al. (figure 3) compare with a consistent one.
    """

    requires = Requires(student={"logits"}, teacher={"logits"}, views=("teacher",), student_views=False)
    paper = (
        "Beyer et al.: Knowledge Distillation: A Good Teacher Is Patient and Consistent. CVPR 2022, arXiv 2106.05237"
    )
    published = None

    def forward(self, student, teacher, batch, step):
        return super().forward(student, teacher.views["teacher"], batch, step)


@hookimpl
def kdray_distillers():
    fixed = "Knowledge distillation from what the teacher says of another view: fixed, or drawn anew"
    return [DistillerSpec("kd", KD), DistillerSpec("viewkd", ViewKD, summary=fixed)]


@hookimpl
def kdray_search_spaces():
    return [SearchSpaceSpec("kd", {"temperature": {"loguniform": [1.0, 16.0]}, "weight": {"loguniform": [0.1, 10.0]}})]
