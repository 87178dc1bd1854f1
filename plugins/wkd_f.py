"""WKD-F: Wasserstein distance of the last maps, each seen as a Gaussian over its positions."""

from pydantic import Field
from torch import nn

from kdray import ConfigError, Distiller, DistillerSpec, Options, Published, Requires, hookimpl


class WKDFOptions(Options):
    mean_ratio: float = Field(4.0, ge=0, description="Weight of the means beside the standard deviations.")
    grid: int = Field(1, ge=1, description="Maps are cut into grid × grid cells, each with a Gaussian of its own.")
    eps: float = Field(1e-5, gt=0, description="Added to a variance before its root is taken.")


class WKDF(Distiller):
    """r ‖μ_s − μ_t‖² + ‖σ_s − σ_t‖², mean over the cells and the batch (Lv et al.). Terms `mean` and `deviation`.

    μ, σ (D_t): mean and standard deviation of each channel over the positions of a cell, of n − 1 degrees of freedom.
    With r = 1 it is the squared Wasserstein distance of two Gaussians with diagonal covariances. The student's last map
    goes through a convolution to the teacher's channels, batch norm and ReLU; the convolution also halves or doubles
    its sides where they are twice or half the teacher's.
    """

    Options = WKDFOptions
    requires = Requires(student={"last_map"}, teacher={"last_map"})
    paper = (
        "Lv, Yang, Li: Wasserstein Distance Rivals Kullback-Leibler Divergence for Knowledge Distillation. "
        "NeurIPS 2024, arXiv 2412.08139"
    )
    published = Published(resnet8x4=76.77, source="WKD README")
    scheduled = frozenset({"mean_ratio"})

    def __init__(self, options, setup):
        super().__init__(options, setup)
        shape_s, shape_t = setup.student.last_map, setup.teacher.last_map
        if len(shape_s) != 3 or len(shape_t) != 3:
            raise ConfigError(
                f"wkd_f compares last maps (C, H, W); the student's has the shape {shape_s}, the teacher's {shape_t}. "
                "Name others in the models' `layers: {last_map: ...}`."
            )
        self.connector = nn.Sequential(convolution(shape_s, shape_t), nn.BatchNorm2d(shape_t[0]), nn.ReLU())
        sides, grid = shape_t[1:], options.grid
        if any(side % grid for side in sides) or sides[0] * sides[1] < 2 * grid**2:
            raise ConfigError(
                f"wkd_f cannot cut the teacher's last map of {sides[0]}×{sides[1]} into {grid}×{grid} equal cells of "
                "at least two positions; choose another `grid`."
            )

    def forward(self, student, teacher, batch, step):
        mean_s, std_s = self.gaussians(self.connector(student.last_map))
        mean_t, std_t = self.gaussians(teacher.last_map)
        return {
            "mean": self.options.mean_ratio * ((mean_s - mean_t) ** 2).sum(dim=1).mean(),
            "deviation": ((std_s - std_t) ** 2).sum(dim=1).mean(),
        }

    def gaussians(self, maps):
        """Means and standard deviations (B, D_t, grid, grid)."""
        grid = self.options.grid
        cells = maps.unflatten(3, (grid, -1)).unflatten(2, (grid, -1))
        return cells.mean(dim=(3, 5)), (cells.var(dim=(3, 5)) + self.options.eps).sqrt()


def convolution(shape_s, shape_t) -> nn.Module:
    (inputs, *sides_s), (outputs, *sides_t) = shape_s, shape_t
    if sides_s == sides_t:
        return nn.Conv2d(inputs, outputs, 1, bias=False)
    if sides_s == [2 * side for side in sides_t]:
        return nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=False)
    if sides_t == [2 * side for side in sides_s]:
        return nn.ConvTranspose2d(inputs, outputs, 4, stride=2, padding=1, bias=False)
    raise ConfigError(
        f"wkd_f needs last maps of equal sides, or of one twice as large as the other; the student's has the shape "
        f"{tuple(shape_s)}, the teacher's {tuple(shape_t)}. Name others in the models' `layers: {{last_map: ...}}`."
    )


@hookimpl
def kdray_distillers():
    return [DistillerSpec("wkd_f", WKDF)]
