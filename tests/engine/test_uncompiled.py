"""Where nothing is compiled, torch's compiler is not imported; who needs it finds it all the same."""

import subprocess
import sys

CODE = """
import sys, torch
import torch.distributed as dist
from kdray.engine.optimizers import SGDOptions, sgd
from kdray.engine.uncompiled import distributed

dist.init_process_group("gloo", init_method="file://" + sys.argv[1], rank=0, world_size=1)
layer = torch.nn.Linear(3, 2)
wrapped = distributed(layer, gradient_as_bucket_view=True)
optimizer = sgd(list(layer.parameters()), SGDOptions(lr=0.1))
before = layer.bias.detach().clone()
with wrapped.no_sync():
    wrapped(torch.ones(4, 3)).sum().backward()
wrapped(torch.ones(4, 3)).sum().backward()
optimizer.step()
torch.testing.assert_close(layer.bias.detach(), before - 0.8)  # two batches of 4
assert "torch._dynamo" not in sys.modules
assert torch.compile(lambda x: x + 1, backend="eager")(torch.ones(1)) == 2
assert "torch._dynamo" in sys.modules
assert distributed(layer)(torch.ones(4, 3)).shape == (4, 2)
dist.destroy_process_group()
"""


def test_ddp_and_an_optimizer_without_the_compiler(tmp_path):
    command = [sys.executable, "-c", CODE, str(tmp_path / "meeting")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
