import copy
import gc
import weakref

import pytest
import torch
from torch import nn

from kdray import ConfigError, Layers
from kdray.models.taps import Tapped, probe
from kdray.registry import Registry

ALL = frozenset({"embedding", "features", "preactivations", "head"})


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.bn = nn.BatchNorm2d(4)
        self.relu = nn.ReLU(inplace=True)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.unused = nn.Linear(4, 4)
        self.fc = nn.Linear(4, 3)

    def forward(self, x):
        return self.fc(self.pool(self.relu(self.bn(self.conv(x)))).flatten(1))


LAYERS = Layers(features=("relu",), preactivations=("relu:input",))


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net()


def pictures(n=5):
    return torch.randn(n, 1, 6, 6)


def test_outputs_are_those_of_the_layers(net):
    tapped = Tapped(net, LAYERS, ALL)
    for mode in (True, False, True):
        tapped.train(mode)
        for _ in range(2):
            x = pictures()
            out = tapped(x)
            before = (nn.functional.batch_norm if mode else net.bn)(
                *((net.conv(x), None, None, net.bn.weight, net.bn.bias, True) if mode else (net.conv(x),))
            )
            torch.testing.assert_close(out.preactivations[0], before)
            torch.testing.assert_close(out.features[0], before.relu())
            torch.testing.assert_close(out.embedding, before.relu().mean((2, 3)))
            torch.testing.assert_close(out.logits, nn.functional.linear(out.embedding, *out.head))
    assert out.head[0] is net.fc.weight and out.head[1] is net.fc.bias


def test_only_what_is_wanted(net):
    out = Tapped(net, LAYERS, frozenset({"logits"}))(pictures())
    assert out.logits.shape == (5, 3)
    assert out.embedding is None and out.head is None and out.features == [] and out.preactivations == []
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


def test_gradients_flow_through_taps(net):
    x = pictures()
    Tapped(net, LAYERS, ALL)(x).preactivations[0].sum().backward()
    assert net.bn.bias.grad.abs().sum() > 0 and net.fc.weight.grad is None


def test_an_explicit_embedding_is_flattened(net):
    out = Tapped(net, Layers(head="fc", embedding="pool"), ALL - {"features", "preactivations"})(pictures())
    assert out.embedding.shape == (5, 4)
    with pytest.raises(ConfigError, match=r"embedding \('relu'\) has shape \(5, 4, 6, 6\)"):
        Tapped(net, Layers(embedding="relu"), frozenset({"embedding"}))(pictures())


def test_nothing_outlives_a_step(net):
    tapped = Tapped(net, LAYERS, ALL)
    out = tapped(pictures())
    gone = weakref.ref(out.features[0])
    del out
    gc.collect()
    assert gone() is None
    with pytest.raises(RuntimeError):
        tapped(torch.zeros(5, 2, 6, 6))
    assert tapped._log.seen == {} and not tapped._log.on
    net(pictures())  # the network by itself leaves nothing either
    assert tapped._log.seen == {}


def test_a_copy_has_its_own_outputs(net):
    tapped = Tapped(net, LAYERS, ALL)
    other = copy.deepcopy(tapped)
    with torch.no_grad():
        other.model.bn.bias.add_(1.0)
    x = pictures()
    ours, theirs = tapped(x), other(x)
    torch.testing.assert_close(theirs.preactivations[0], ours.preactivations[0] + 1)


def test_the_last_run_of_a_module_counts():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.relu, self.fc = nn.ReLU(), nn.Linear(4, 2)

        def forward(self, x):
            return self.fc(self.relu(self.relu(x) - 1))

    x = torch.randn(3, 4)
    out = Tapped(Twice(), Layers(features=("relu",), preactivations=("relu:input",)), ALL)(x)
    torch.testing.assert_close(out.preactivations[0], x.relu() - 1)


@pytest.mark.parametrize("mode", [True, False])
def test_probe_leaves_no_trace(net, mode):
    net.train(mode)
    net.bn.eval()
    tapped = Tapped(net, LAYERS, ALL)
    state = copy.deepcopy(net.state_dict())
    shapes = probe(tapped, pictures(2))
    assert (shapes.logits, shapes.embedding, shapes.features, shapes.preactivations) == (
        (3,), (4,), ((4, 6, 6),), ((4, 6, 6),),
    )  # fmt: skip
    assert all(torch.equal(state[k], v) for k, v in net.state_dict().items())
    assert net.conv.training is mode and net.bn.training is False


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (Layers(features=("rel",), preactivations=("relu",)), r"layers.features\[0\]: .*'rel'.* Did you mean 'relu'"),
        (Layers(features=("relu:output",), preactivations=("relu",)), "write 'relu' or 'relu:input'"),
        (Layers(features=("",), preactivations=("relu",)), r"no module ''"),
        (Layers(head="clasifier", features=("relu",)), r"layers.head: there is no module 'clasifier'"),
        (Layers(head="conv", features=("relu",)), r"'conv' is a Conv2d, not an nn.Linear"),
        (Layers(preactivations=("relu",)), r"student: a loss reads its features.*layers: \{features: .*conv, bn, relu"),
    ],
)
def test_wrong_layers_are_refused(net, layers, message):
    with pytest.raises(ConfigError, match=message):
        Tapped(net, layers, ALL, name="student")


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (Layers(features=("bn",)), "'bn' gives is overwritten in place"),
        (Layers(features=("unused",)), "'unused' never runs"),
        (Layers(head="unused", embedding="pool", features=("relu",)), "'unused' gives 4 values.*logits of shape"),
    ],
)
def test_probe_finds_wrong_layers(net, layers, message):
    wants = frozenset({"features", "head"})
    with pytest.raises(ConfigError, match=message):
        probe(Tapped(net, layers, wants), pictures())


def test_probe_names_pictures_that_do_not_fit(net):
    with pytest.raises(ConfigError, match="cannot take pictures of 3×6×6"):
        probe(Tapped(net, LAYERS, ALL), torch.zeros(2, 3, 6, 6))


def test_a_network_must_return_logits():
    class Pair(nn.Linear):
        def forward(self, x):
            return super().forward(x), x

    with pytest.raises(ConfigError, match="returns a tuple"):
        Tapped(Pair(2, 2), Layers())(torch.zeros(1, 2))


def test_a_network_without_linear_layer_has_no_head():
    net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(ConfigError, match=r"no nn\.Linear"):
        Tapped(net, Layers(), frozenset({"embedding"}))
    assert Tapped(net, Layers(embedding="1"), frozenset({"embedding"}))(pictures()).embedding.shape == (5, 2)


def test_compiles_in_one_graph(net):
    tapped = Tapped(net, LAYERS, ALL).eval()
    x = pictures()
    compiled, eager = torch.compile(tapped, backend="eager", fullgraph=True)(x), tapped(x)
    assert torch.equal(compiled.features[0], eager.features[0]) and torch.equal(compiled.embedding, eager.embedding)


@pytest.mark.parametrize("name", sorted(name for name in Registry.default().models if "/" not in name))
def test_the_mean_of_the_last_map_is_the_embedding(name):
    spec = Registry.default().models[name]
    model = spec.build(num_classes=5, in_channels=3, weights=None, options=spec.Options())
    tapped = Tapped(model, getattr(model, "kdray_layers", spec.layers), {"last_map", "embedding"})
    shapes = probe(tapped, torch.randn(2, 3, 32, 32))
    assert shapes.last_map[0] == shapes.embedding[0] and len(shapes.last_map) == 3
