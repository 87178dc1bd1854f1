"""Probabilistic knowledge transfer: the same neighbours are probable in the student's embedding as in the teacher's."""

from kdray import Distiller, DistillerSpec, Published, Requires, hookimpl

EPSILON = 1e-7


class PKT(Distiller):
    """mean_ij p_t(j|i) log((p_t(j|i) + ε) / (p_s(j|i) + ε)), p(j|i) = K_ij / Σ_k K_ik, K_ij = (1 + cos(e_i, e_j)) / 2,
    over all pairs of the global batch.

    As in the authors' code: the mean over B² pairs, j = i among them, where the paper sums over j ≠ i.
    """

    requires = Requires(student={"embedding"}, teacher={"embedding"})
    paper = "Passalis, Tefas: Learning Deep Representations with Probabilistic Knowledge Transfer. ECCV 2018"
    published = Published(resnet8x4=73.64, wrn_16_2=74.54, source="RepDistiller README, last epoch, 5 runs")
    scope = "batch"
    recordable = True

    def forward(self, student, teacher, batch, step):
        p_s = probabilities(step.gather(student.embedding, differentiable=True))
        p_t = probabilities(step.gather(teacher.embedding))
        return (p_t * ((p_t + EPSILON) / (p_s + EPSILON)).log()).mean()


def probabilities(e):
    x = e / (e.norm(dim=1, keepdim=True) + EPSILON)
    K = (1 + x @ x.T) / 2
    return K / K.sum(dim=1, keepdim=True)


@hookimpl
def kdray_distillers():
    return [DistillerSpec("pkt", PKT)]
