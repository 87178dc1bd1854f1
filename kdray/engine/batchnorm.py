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
    @staticmethod
    def forward(ctx, x, weight, bias, eps):
        axes = [0, *range(2, x.dim())]
        values = x if x.dtype == torch.float64 else x.float()
        count = values.new_tensor([float(values.numel() // values.shape[1])])
        var, mean = torch.var_mean(values, dim=axes, correction=0)

        # Each worker's count, mean and sum of squares around its own mean combine without cancellation (Chan et al.,
        # 1979).
        mine = torch.cat([count, mean, var * count])
        parts = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, mine)
        parts = torch.stack(parts)  # (workers, 1 + 2 C)
        counts, means, squares = parts[:, :1], parts[:, 1 : 1 + len(mean)], parts[:, 1 + len(mean) :]
        total = counts.sum()
        mean = (means * counts).sum(0) / total
        var = (squares.sum(0) + (counts * (means - mean) ** 2).sum(0)) / total

        invstd = torch.rsqrt(var + eps)
        ctx.save_for_backward(x, weight, mean, invstd, total)
        # torch's own kernel normalises, with the global statistics in the place of running ones.
        y = F.batch_norm(x, mean.to(values.dtype), var.to(values.dtype), weight, bias, False, 0.0, eps)
        ctx.mark_non_differentiable(mean, var, total)
        return y, mean, var, total

    @staticmethod
    def backward(ctx, dy, *_):
        x, weight, mean, invstd, total = ctx.saved_tensors
        axes = [0, *range(2, x.dim())]
        shape = [1, -1] + [1] * (x.dim() - 2)
        wide = torch.float64 if x.dtype == torch.float64 else torch.float32
        dy = dy.to(wide)
        normalised = (x.to(wide) - mean.view(shape)) * invstd.view(shape)
        sum_dy, sum_dy_n = dy.sum(axes), (dy * normalised).sum(axes)
        # The parameters' gradients stay local, as those of every other parameter: DDP averages them.
        d_weight, d_bias = (sum_dy_n, sum_dy) if weight is not None else (None, None)
        sums = torch.cat([sum_dy, sum_dy_n])
        dist.all_reduce(sums)
        mean_dy, mean_dy_n = (sums / total).view(2, -1)
        scale = invstd if weight is None else invstd * weight
        dx = (dy - mean_dy.view(shape) - normalised * mean_dy_n.view(shape)) * scale.view(shape)
        return dx.to(x.dtype), d_weight, d_bias, None


def synchronise(module: nn.Module, device: torch.device) -> nn.Module:
    """Replace every batch norm of `module` by one over the global batch; parameters, buffers and names stay."""
    if device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(module)
    for name, child in module.named_children():
        if isinstance(child, nn.modules.batchnorm._BatchNorm):
            twin = GlobalBatchNorm(
                child.num_features, child.eps, child.momentum, child.affine, child.track_running_stats
            )
            twin.train(child.training)
            twin._parameters, twin._buffers = child._parameters, child._buffers
            twin._forward_hooks, twin._forward_pre_hooks = child._forward_hooks, child._forward_pre_hooks
            setattr(module, name, twin)
        else:
            synchronise(child, device)
    return module
