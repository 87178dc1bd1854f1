"""DiffKD: a diffusion model that learns the teacher's features takes the noise out of the student's."""

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import nn

from kdray import Distiller, DistillerSpec, Options, Requires, hookimpl, last_maps, same_size

TIMES = 1000
"""Of the diffusion that is learned."""


class DiffKDOptions(Options):
    steps: int = Field(5, ge=1, le=TIMES // 2, description="In which the student's features are denoised.")
    latent: int = Field(0, ge=0, description="Channels of the teacher's encoded map; 0: half of its own.")
    temperature: float = Field(1.0, gt=0, description="T: logits are divided by it before the softmax.")


class DiffKD(Distiller):
    """mean (D(S) − E(T))² + T² KL(softmax(z_t / T) ‖ softmax(D(z_s) / T)): terms `map`, `logits` (Huang et al.).

    S, T: last maps. E, a 1×1 convolution with batch norm, learns `reconstruction`: mean (E′(E(T)) − T)²; E′ is another
    convolution; the other terms take E(T) as given. The larger of S and T is pooled to the size of the smaller.

    D(x), one for maps and one for logits: x goes through a 1×1 convolution, is mixed with noise in a ratio that a
    network finds for each sample, and walks back from half of the times to the first in `steps` steps of DDIM; then a
    1×1 convolution with batch norm, as in the authors' training code; their core code has no batch norm there. The
    denoiser learns `diffusion`: mean (ε̂(√ᾱ h + √(1 − ᾱ) ε, time) − ε)², where h is E(T) or z_t, ε noise and the time
    drawn for each sample; ᾱ is the product of 1 − β, and β grows from 1e-4 to 0.02.
    """

    Options = DiffKDOptions
    requires = Requires(student={"last_map", "logits"}, teacher={"last_map", "logits"})
    paper = (
        "Huang, Zhang, Zheng, You, Wang, Qian, Xu: Knowledge Diffusion for Distillation. NeurIPS 2023, arXiv 2305.15712"
    )
    scheduled = frozenset({"temperature"})
    recordable = True

    def __init__(self, options, setup):
        super().__init__(options, setup)
        shape_s, shape_t = last_maps("diffkd", student=setup.student, teacher=setup.teacher)
        latent, classes = options.latent or max(1, shape_t[0] // 2), setup.num_classes
        self.encode = nn.Sequential(*convolution(shape_t[0], latent))
        self.decode = nn.Conv2d(latent, shape_t[0], 1)
        self.maps = Diffusion(
            nn.Conv2d(shape_s[0], latent, 1),
            denoiser=nn.Sequential(Bottleneck(latent, 4), Bottleneck(latent, 4), *convolution(latent, latent)),
            adapter=Bottleneck(latent, 8),
        )
        self.logits = Diffusion(
            nn.Conv2d(classes, classes, 1),
            denoiser=nn.Sequential(*perceptron(classes, 4), *perceptron(classes, 4)[:-1]),
            adapter=nn.Sequential(*perceptron(classes, 2)),
        )

    def forward(self, student, teacher, batch, step):
        T, steps, generator = self.options.temperature, self.options.steps, step.device_generator
        s, t = same_size(student.last_map, teacher.last_map)
        z_s, z_t = (x.logits[:, :, None, None] for x in (student, teacher))
        hidden = self.encode(t)
        reconstruction, hidden = F.mse_loss(self.decode(hidden), t), hidden.detach()

        def noise_like(x):
            """Drawn for the global batch, of which these rows take theirs."""
            drawn = torch.randn((batch.size, *x.shape[1:]), generator=generator, device=generator.device)
            return drawn[batch.offset : batch.offset + len(x)].to(x)

        refined = self.maps.refined(s, noise_like(hidden), steps)
        z = self.logits.refined(z_s, noise_like(z_t), steps)
        log_p_s, log_p_t = (F.log_softmax(x.flatten(1) / T, dim=1) for x in (z, z_t))
        time = torch.randint(TIMES, (batch.size,), generator=generator, device=generator.device)
        time = time[batch.offset : batch.offset + len(s)]
        diffusion = self.maps.error(hidden, noise_like(hidden), time) + self.logits.error(z_t, noise_like(z_t), time)
        return {
            "map": F.mse_loss(refined, hidden),
            "logits": T**2 * F.kl_div(log_p_s, log_p_t, reduction="batchmean", log_target=True),
            "diffusion": diffusion,
            "reconstruction": reconstruction,
        }


class Diffusion(nn.Module):
    """`denoiser` tells the noise in maps (B, width, …) at a time, `adapter` how much of it the student's lack."""

    def __init__(self, enter: nn.Conv2d, denoiser: nn.Module, adapter: nn.Module):
        super().__init__()
        width = enter.out_channels
        self.enter, self.denoiser, self.adapter = enter, denoiser, adapter
        self.time = nn.Embedding(TIMES, width)
        self.mix = nn.Linear(width, 1)
        self.leave = nn.Sequential(*convolution(width, width))
        # ᾱ of the times −1, which is 1, to TIMES − 1.
        kept = 1 - torch.linspace(1e-4, 0.02, TIMES, dtype=torch.float64)
        self.register_buffer("alpha", torch.cat([kept.new_ones(1), kept.cumprod(0)]).float())

    def predicted(self, x, time):
        return self.denoiser(x + self.time(time)[..., None, None])

    def error(self, h, noise, time):
        alpha = self.alpha[time + 1].view(-1, 1, 1, 1)
        return F.mse_loss(self.predicted(alpha.sqrt() * h + (1 - alpha).sqrt() * noise, time), noise)

    def refined(self, x, noise, steps):
        x = self.enter(x)
        share = self.mix(self.adapter(x).mean(dim=(2, 3))).sigmoid()[:, :, None, None]
        x = share * x + (1 - share) * noise
        stride = TIMES // (2 * steps)
        for number in reversed(range(steps)):
            noise = self.predicted(x, torch.full((), number * stride, device=x.device))
            now, earlier = self.alpha[number * stride + 1], self.alpha[max(0, (number - 1) * stride + 1)]
            clean = (x - (1 - now).sqrt() * noise) / now.sqrt()
            x = earlier.sqrt() * clean + (1 - earlier).sqrt() * noise
        return self.leave(x)


class Bottleneck(nn.Module):
    """x + convolutions 1×1, 3×3 and 1×1 of it, the inner ones with width / reduction channels."""

    def __init__(self, width: int, reduction: int):
        super().__init__()
        inner = max(1, width // reduction)
        self.block = nn.Sequential(
            *convolution(width, inner), nn.ReLU(), *convolution(inner, inner, 3), nn.ReLU(), *convolution(inner, width)
        )

    def forward(self, x):
        return x + self.block(x)


def perceptron(width: int, factor: int) -> list[nn.Module]:
    return [*convolution(width, factor * width), nn.ReLU(), *convolution(factor * width, width)]


def convolution(inputs: int, outputs: int, size: int = 1) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, size, padding=size // 2), nn.BatchNorm2d(outputs)]


@hookimpl
def kdray_distillers():
    return [DistillerSpec("diffkd", DiffKD)]
