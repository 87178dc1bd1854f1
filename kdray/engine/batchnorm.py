"""Batch normalisation over the global batch, on any device.

torch.nn.SyncBatchNorm does this on GPUs and refuses the CPU; this one serves the CPU. Same results as one process's
nn.BatchNorm.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn


class GlobalBatchNorm(nn.modules.batchnorm._BatchNorm):
    def _check_input_dim(self, x: Tensor) -> None:
        if x.dim() < 2:
            raise ValueError(f"batch normalisation needs (B, C, …), not {tuple(x.shape)}")

    def forward(self, x: Tensor) -> Tensor:
        self._check_input_dim(x)
        if not self.training:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
        y, mean, var, count = _Normalize.apply(x, self.weight, self.bias, self.eps)
        if self.track_running_stats:
            self.num_batches_tracked += 1
            momentum = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
            self.running_mean.lerp_(mean, momentum)
            self.running_var.lerp_(var * (count / (count - 1).clamp(min=1)), momentum)
        return y


class _Normalize(torch.autograd.Function):
    """torch's fused CPU kernels do the passes over the pictures; only per-channel sums are exchanged."""

    @staticmethod
    def forward(ctx, x, weight, bias, eps):
        wide = torch.float64 if x.dtype == torch.float64 else torch.float32
        # The running statistics handed over (and not moved: momentum 0) make the kernel answer in their dtype.
        zeros, ones = x.new_zeros(x.shape[1], dtype=wide), x.new_ones(x.shape[1], dtype=wide)
        mean, var = torch.batch_norm_update_stats(x, zeros, ones, 0.0)

        # Each worker's count, mean and sum of squares around its own mean combine without cancellation (Chan et al.,
        # 1979).
        count = mean.new_tensor([float(x.numel() // x.shape[1])])
        parts = _gather(torch.cat([count, mean, var * count]))  # (workers, 1 + 2 C)
        counts, means, squares = parts[:, :1], parts[:, 1 : 1 + len(mean)], parts[:, 1 + len(mean) :]
        total = counts.sum()
        mean = (means * counts).sum(0) / total
        var = (squares.sum(0) + (counts * (means - mean) ** 2).sum(0)) / total

        ctx.save_for_backward(x, weight, mean, var, total)
        ctx.eps = eps
        y = F.batch_norm(x, mean, var, weight, bias, False, 0.0, eps)
        ctx.mark_non_differentiable(mean, var, total)
        return y, mean, var, total

    @staticmethod
    def backward(ctx, dy, *_):
        x, weight, mean, var, total = ctx.saved_tensors
        scale = torch.ones_like(mean) if weight is None else weight
        # With statistics held fixed: dx₀ = dy · γ/σ, Σ dy · x̂ and Σ dy.
        dx, sum_dy_n, sum_dy = torch.ops.aten.native_batch_norm_backward(
            dy, x, scale, mean, var, None, None, False, ctx.eps, [True, True, True]
        )
        # The parameters' gradients stay local, as those of every other parameter: DDP averages them.
        d_weight, d_bias = (sum_dy_n, sum_dy) if weight is not None else (None, None)
        mean_dy, mean_dy_n = (_gather(torch.cat([sum_dy, sum_dy_n])).sum(0) / total).view(2, -1)
        # What flows through the global statistics, −γ/σ · (mean dy + x̂ · mean(dy · x̂)), is affine in x̂: the forward
        # kernel with other parameters. (x̂ has no γ; the kernel's σ gives x̂, so γ/σ comes in by hand.)
        slope = scale * torch.rsqrt(var + ctx.eps)
        dx = dx + F.batch_norm(x, mean, var, -slope * mean_dy_n, -slope * mean_dy, False, 0.0, ctx.eps)
        return dx, d_weight, d_bias, None


def _gather(mine: Tensor) -> Tensor:
    """(workers, n). For vectors as short as these, gloo gathers in a third of the time in which it reduces."""
    parts = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, mine)
    return torch.stack(parts)


def synchronise(module: nn.Module, device: torch.device) -> nn.Module:
    """Replace every batch norm of `module` by one over the global batch; parameters, buffers and names stay."""
    cls = nn.SyncBatchNorm if device.type == "cuda" else GlobalBatchNorm
    for name, child in module.named_children():
        if isinstance(child, nn.modules.batchnorm._BatchNorm):
            twin = cls(child.num_features, child.eps, child.momentum, child.affine, child.track_running_stats)
            twin.train(child.training)
            twin._parameters, twin._buffers = child._parameters, child._buffers
            twin._forward_hooks, twin._forward_pre_hooks = child._forward_hooks, child._forward_pre_hooks
            setattr(module, name, twin)
        else:
            synchronise(child, device)
    return module
