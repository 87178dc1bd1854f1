"""WKD-F: Wasserstein distance of the last maps, each seen as a Gaussian over its positions."""

from pydantic import Field
from torch import nn

from kdray import (
    ConfigError,
    Distiller,
    DistillerSpec,
    Options,
    Published,
    Requires,
    hookimpl,
    last_maps,
    map_connector,
)


class WKDFOptions(Options):
    mean_ratio: float = Field(4.0, ge=0, description="Weight of the means beside the standard deviations.")
    grid: int = Field(1, ge=1, description="Maps are cut into grid × grid cells, each with a Gaussian of its own.")
    eps: float = Field(1e-5, gt=0, description="Added to a variance before its root is taken.")


class WKDF(Distiller):
    """r ‖μ_s − μ_t‖² + ‖σ_s − σ_t‖², mean over the cells and the batch (Lv et al.). Terms `mean` and `deviation`.

    μ, σ (D_t): mean and standard deviation of each channel over the positions of a cell, of n − 1 degrees of freedom.
    With r = 1 it is the squared Wasserstein distance of two Gaussians with diagonal covariances. The student's last map
    goes through a convolution to the teacher's channels and size, batch norm and ReLU.
    """

    Options = WKDFOptions
    requires = Requires(student={"last_map"}, teacher={"last_map"})
    paper = (
        "Lv, Yang, Li: Wasserstein Distance Rivals Kullback-Leibler Divergence for Knowledge Distillation. "
        "NeurIPS 2024, arXiv 2412.08139"
    )
    published = Published(resnet8x4=76.77, source="WKD README")
    scheduled = frozenset({"mean_ratio"})
    recordable = True

    def __init__(self, options, setup):
        super().__init__(options, setup)
        shape_s, shape_t = last_maps("wkd_f", student=setup.student, teacher=setup.teacher)
        self.connector = nn.Sequential(map_connector("wkd_f", shape_s, shape_t), nn.BatchNorm2d(shape_t[0]), nn.ReLU())
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


@hookimpl
def kdray_distillers():
    return [DistillerSpec("wkd_f", WKDF)]
