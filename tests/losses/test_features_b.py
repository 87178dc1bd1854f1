"""NORM, KD++, PEFD, VkD, CAT-KD, MGD, WKD-F and DiffKD against plain loops over their formulas, in float64."""

import pytest
import torch
from torch import nn

from kdray.distiller import Batch, Outputs, Setup, Shapes, Step
from kdray.errors import ConfigError
from kdray.registry import Registry
from kdray.testing import evaluate

B, CLASSES = 4, 5
TARGETS = torch.tensor([0, 3, 1, 3])


def random(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed + sum(shape)))


def network(*last_map, seed, classes=CLASSES):
    """A last map of the given shape, its mean as the embedding, and a classifier."""
    maps = random(B, *last_map, seed=seed)
    head = random(classes, last_map[0], seed=seed + 1), random(classes, seed=seed + 2)
    return {"last_map": maps, "embedding": maps.mean(dim=(2, 3)), "head": head}


def only(given, *kinds):
    return {kind: given[kind] for kind in kinds}


def check(name, loops, options=None, *, student, teacher, state=None):
    """Values and all gradients of `name` equal those of `loops(student, teacher, state)`, whose heads are drawn."""
    given = {"student": student, "teacher": teacher, "targets": TARGETS, "num_classes": CLASSES}
    start = evaluate(name, options, **given).state
    drawn = {k: random(*v.shape, seed=len(k)) for k, v in start.items() if v.is_floating_point()} | (state or {})
    found = evaluate(name, options, **given, state=drawn)

    leaves = {k: x.clone().requires_grad_() for k, x in flat(student).items()}
    heads = {k: v.clone().requires_grad_() for k, v in drawn.items()}
    terms = loops(leaves, flat(teacher), heads)
    terms = terms if isinstance(terms, dict) else {"": terms}
    assert terms.keys() == found.terms.keys()
    for key, value in terms.items():
        torch.testing.assert_close(found.terms[key], value.detach(), rtol=1e-6, atol=1e-12)
    sum(terms.values()).backward()
    expected = {k: x.grad for k, x in (leaves | heads).items() if x.grad is not None}
    reached = [{k for k, g in gradients.items() if g.abs().max() > 1e-10} for gradients in (found.gradients, expected)]
    assert reached[0] and reached[0] == reached[1]
    for key in reached[0]:
        torch.testing.assert_close(found.gradients[key], expected[key], rtol=1e-6, atol=1e-9, msg=f"gradient of {key}")
    return found


def flat(given):
    given = dict(given)
    if "head" in given:
        given["head.weight"], given["head.bias"] = given.pop("head")
    return given


# Layers, written as sums.


def linear(x, weight, bias=None):
    """Of one sample: x (D)."""
    rows = [sum(weight[o, i] * x[i] for i in range(len(x))) for o in range(len(weight))]
    return torch.stack(rows if bias is None else [row + bias[o] for o, row in enumerate(rows)])


def convolution(maps, weight, bias=None, stride=1):
    """3×3 with an edge of zeros, or 1×1. Each value is a sum over the values around it."""
    size, reach = weight.shape[2], weight.shape[2] // 2
    samples = []
    for x in maps:
        rows, columns = x.shape[1:]
        places = [(r, c) for r in range(0, rows, stride) for c in range(0, columns, stride)]
        values = []
        for o in range(len(weight)):
            for r, c in places:
                total = 0.0 if bias is None else bias[o]
                for dr in range(size):
                    for dc in range(size):
                        near = r + dr - reach, c + dc - reach
                        if 0 <= near[0] < rows and 0 <= near[1] < columns:
                            total = total + (weight[o, :, dr, dc] * x[:, near[0], near[1]]).sum()
                values.append(total)
        samples.append(torch.stack(values).view(len(weight), -(-rows // stride), -(-columns // stride)))
    return torch.stack(samples)


def transposed(maps, weight):
    """4×4, stride 2: each value is spread over the places around the doubled one; an edge of 1 is cut off."""
    samples = []
    for x in maps:
        rows, columns = x.shape[1:]
        wide = torch.zeros(weight.shape[1], 2 * rows + 2, 2 * columns + 2, dtype=x.dtype)
        for r in range(rows):
            for c in range(columns):
                spread = sum(x[i, r, c] * weight[i] for i in range(len(x)))
                wide = wide + nn.functional.pad(spread, (2 * c, 2 * columns - 2 - 2 * c, 2 * r, 2 * rows - 2 - 2 * r))
        samples.append(wide[:, 1:-1, 1:-1])
    return torch.stack(samples)


def batch_norm(x, scale, shift):
    channels = []
    for c in range(x.shape[1]):
        values = x[:, c]
        mean = values.sum() / values.numel()
        variance = ((values - mean) ** 2).sum() / values.numel()
        channels.append(scale[c] * (values - mean) / torch.sqrt(variance + 1e-5) + shift[c])
    return torch.stack(channels, dim=1)


def blocks(x, rows, columns):
    """((r, c), values (C, n)) of each of rows × columns equal blocks of a map (C, H, W)."""
    height, width = x.shape[1] // rows, x.shape[2] // columns
    for r in range(rows):
        for c in range(columns):
            yield (r, c), x[:, r * height : (r + 1) * height, c * width : (c + 1) * width].flatten(1)


def length(x):
    return torch.sqrt(sum(value**2 for value in x))


# NORM


def extended(maps, state):
    """The wide map, and what goes on to the pooling."""
    wide = convolution(maps, state["expand.0.weight"])
    wide = batch_norm(wide, state["expand.1.weight"], state["expand.1.bias"])
    back = convolution(wide, state["reduce.0.weight"])
    return wide, maps + batch_norm(back, state["reduce.1.weight"], state["reduce.1.bias"])


def norm_loops(copies, alpha, gamma, scale):
    def loops(student, teacher, state):
        maps_t = teacher["last_map"]
        wide, maps = extended(student["last_map"], state)
        width = maps_t.shape[1]
        rows, columns = (min(a, b) for a, b in zip(wide.shape[2:], maps_t.shape[2:]))
        match = target = 0.0
        for b in range(B):
            f, t = ({place: v.amax(dim=1) for place, v in blocks(x[b], rows, columns)} for x in (wide, maps_t))
            for n in range(copies):
                for place in t:
                    group = f[place][n * width : (n + 1) * width]
                    match = match + ((group - t[place]) ** 2).sum() / (B * width * rows * columns)
            z = linear(maps[b].flatten(1).mean(dim=1), student["head.weight"], student["head.bias"])
            if scale:
                mean = z.sum() / CLASSES
                z = scale * (z - mean) / torch.sqrt(((z - mean) ** 2).sum() / CLASSES + 1e-7)
            target = target + (torch.log(sum(torch.exp(value) for value in z)) - z[TARGETS[b]]) / B
        return {"match": alpha * match, "target": gamma * target}

    return loops


@pytest.mark.parametrize(
    ("options", "size_s", "size_t"),
    [
        ({"copies": 2}, 4, 4),
        ({"copies": 3, "alpha": 0.5, "gamma": 0.1, "scale": 0}, 4, 2),
        ({"copies": 1, "scale": 1.5}, 2, 4),
    ],
)
def test_norm(options, size_s, size_t):
    filled = {"copies": 8, "alpha": 1.0, "gamma": 1.0, "scale": 2.5} | options
    check(
        "norm",
        norm_loops(**filled),
        options,
        student=only(network(3, size_s, size_s, seed=1), "last_map", "head"),
        teacher=only(network(2, size_t, size_t, seed=2), "last_map"),
    )


def built(name, options, student, teacher, batch_size=B):
    setup = Setup(Shapes(**student), Shapes(**teacher), CLASSES, B, TARGETS, torch.Generator(), None, batch_size)
    spec = Registry.default().get("distillers", name)
    return spec.cls(spec.cls.Options(**options), setup).double()


def test_norm_exports_the_student_with_the_module():
    distiller = built("norm", {"copies": 2}, {"last_map": (3, 4, 4)}, {"last_map": (2, 4, 4)})
    given = network(3, 4, 4, seed=1)
    weight, bias = given["head"]

    class Student(nn.Module):
        def forward(self, pictures):
            return Outputs(last_map=pictures, head=(weight, bias))

    for norm in (distiller.expand[1], distiller.reduce[1]):  # as if trained
        norm.running_mean, norm.running_var = random(len(norm.weight)), random(len(norm.weight)).exp()
        norm.weight.data, norm.bias.data = random(len(norm.weight), seed=1), random(len(norm.weight), seed=2)
    deployed = distiller.deployed(Student()).eval()
    x = given["last_map"]
    with torch.no_grad():
        maps = x + deployed.reduce(deployed.expand(x))
        expected = torch.stack([linear(row.flatten(1).mean(dim=1), weight, bias) for row in maps])
        torch.testing.assert_close(deployed(x), expected)


def test_norm_of_equal_logits_is_finite():
    given = only(network(3, 4, 4, seed=1), "last_map", "head")
    given["head"] = torch.zeros(2, 3), torch.zeros(2)
    given["last_map"] = given["last_map"].float()
    teacher = {"last_map": random(B, 2, 4, 4).float()}
    found = evaluate("norm", {}, student=given, teacher=teacher, targets=TARGETS % 2, num_classes=2)
    torch.testing.assert_close(found.terms["target"], torch.tensor(2.0).log())
    assert all(gradient.isfinite().all() for gradient in found.gradients.values())


# KD++


def directions(num_classes, width):
    centres = random(num_classes, width, seed=9)
    return centres / centres.norm(dim=1, keepdim=True)


def nd(s, t, centres):
    """The ND loss of lists of vectors."""
    total = 0.0
    for b in range(B):
        e = centres[TARGETS[b]]
        longest = length(s[b]) if length(s[b]) > length(t[b]) else length(t[b])
        total = total + (1 - sum(e[i] * s[b][i] for i in range(len(e))) / longest) / B
    return total


@pytest.mark.parametrize("scale", [0.01, 1.0, 100.0])
def test_kdpp_of_equal_widths(scale):
    centres = directions(CLASSES, 3)
    check(
        "kdpp",
        lambda student, teacher, state: nd(student["embedding"], teacher["embedding"], centres),
        student={"embedding": scale * random(B, 3, seed=1)},
        teacher={"embedding": random(B, 3, seed=2)},
        state={"centres": centres},
    )


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_kdpp_of_other_widths(dropout):
    """The mask is what the step's generator draws."""
    centres = directions(CLASSES, 4)
    drawn = torch.rand(B, 3, generator=torch.Generator().manual_seed(0))

    def loops(student, teacher, state):
        x = batch_norm(student["embedding"], state["norm.weight"], state["norm.bias"])
        x = torch.stack(
            [x[b, i] / (1 - dropout) if drawn[b, i] >= dropout else 0 * x[b, i] for b in range(B) for i in range(3)]
        ).view(B, 3)
        s = [linear(row, state["project.weight"], state["project.bias"]) for row in x]
        return nd(s, teacher["embedding"], centres)

    check(
        "kdpp",
        loops,
        {"dropout": dropout},
        student={"embedding": random(B, 3, seed=1)},
        teacher={"embedding": random(B, 4, seed=2)},
        state={"centres": centres},
    )


def test_kdpp_looks_for_the_class_means():
    """Of two batches, the last one smaller; a class without pictures has no direction."""
    distiller = built("kdpp", {}, {"embedding": (3,)}, {"embedding": (3,)})
    seen, targets = random(6, 3, seed=5), torch.tensor([0, 3, 1, 3, 0, 1])
    (stage,) = distiller.stages()
    assert (stage.epochs, stage.student) == (1, False)
    for number, rows in enumerate((slice(0, 4), slice(4, 6))):
        batch = Batch(index=torch.arange(6)[rows], target=targets[rows], size=len(targets[rows]))
        assert stage.loss(Outputs(), Outputs(embedding=seen[rows]), batch, Step(number, 0, torch.Generator())) == {}
    stage.finish()
    for c in range(CLASSES):
        members = [seen[i] for i in range(6) if targets[i] == c]
        expected = torch.zeros(3, dtype=torch.float64)
        if members:
            mean = sum(members) / len(members)
            expected = mean / length(mean)
        torch.testing.assert_close(distiller.centres[c], expected)


def test_kdpp_of_zero_vectors_is_finite():
    zero = torch.zeros(B, 3)
    state = {"centres": directions(CLASSES, 3).float()}
    given = {"student": {"embedding": zero}, "teacher": {"embedding": zero}, "targets": TARGETS, "num_classes": CLASSES}
    found = evaluate("kdpp", {}, **given, state=state)
    assert found.loss == 1
    torch.testing.assert_close(found.gradients["embedding"], -state["centres"][TARGETS] / B)


# PEFD


@pytest.mark.parametrize("projectors", [1, 3])
def test_pefd(projectors):
    def loops(student, teacher, state):
        total = 0.0
        for s, t in zip(student["embedding"], teacher["embedding"]):
            answers = [
                torch.stack([v if v > 0 else 0 * v for v in linear(s, state[f"{p}.weight"], state[f"{p}.bias"])])
                for p in (f"projectors.{k}" for k in range(projectors))
            ]
            mean = sum(answers) / projectors
            total = total + (1 - sum(mean[i] * t[i] for i in range(len(t))) / (length(mean) * length(t))) / B
        return total

    check(
        "pefd",
        loops,
        {"projectors": projectors},
        student={"embedding": random(B, 3, seed=1)},
        teacher={"embedding": random(B, 4, seed=2).abs()},
    )


# VkD


@pytest.mark.parametrize(("width_s", "width_t"), [(3, 3), (3, 5), (5, 3)])
def test_vkd(width_s, width_t):
    """Against loops with the weight of the projection; its parameter's gradient against finite differences."""
    embeddings = {"embedding": random(B, width_s, seed=1)}, {"embedding": 3 * random(B, width_t, seed=2)}
    given = {"student": embeddings[0], "teacher": embeddings[1], "targets": TARGETS, "num_classes": CLASSES}
    start = evaluate("vkd", **given).state
    parameter = "project.parametrizations.weight.original"
    state = start | {parameter: start[parameter] + 0.3 * random(*start[parameter].shape, seed=3)}
    found = evaluate("vkd", **given, state=state)

    distiller = built("vkd", {}, {"embedding": (width_s,)}, {"embedding": (width_t,)})
    distiller.load_state_dict(state)
    weight = distiller.project.weight.detach()
    shorter = weight if width_t <= width_s else weight.T
    torch.testing.assert_close(shorter @ shorter.T, torch.eye(len(shorter), dtype=torch.float64), rtol=0, atol=1e-6)

    s = embeddings[0]["embedding"].clone().requires_grad_()
    loss = 0.0
    for b, t in enumerate(embeddings[1]["embedding"]):
        mean = sum(t) / width_t
        std = torch.sqrt(sum((v - mean) ** 2 for v in t) / width_t + 1e-5)
        for value, wanted in zip(linear(s[b], weight), (t - mean) / std):
            off = abs(value - wanted)
            loss = loss + (off**2 / 2 if off < 1 else off - 0.5) / (B * width_t)
    loss.backward()
    torch.testing.assert_close(found.loss, loss.detach(), rtol=1e-6, atol=1e-12)
    torch.testing.assert_close(found.gradients["embedding"], s.grad, rtol=1e-6, atol=1e-12)

    direction, step = random(*state[parameter].shape, seed=4), 1e-5
    ahead, behind = (
        evaluate("vkd", **given, state=state | {parameter: state[parameter] + way * step * direction}).loss
        for way in (1, -1)
    )
    slope = (found.gradients[parameter] * direction).sum()
    torch.testing.assert_close((ahead - behind) / (2 * step), slope, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(("width_s", "width_t"), [(3, 3), (3, 5), (5, 3)])
def test_vkd_stays_orthogonal_under_weight_decay(width_s, width_t):
    project = built("vkd", {}, {"embedding": (width_s,)}, {"embedding": (width_t,)}).project
    optimizer = torch.optim.SGD(project.parameters(), lr=0.1, weight_decay=0.1)
    for step in range(5):
        optimizer.zero_grad()
        (project(random(B, width_s, seed=step)) - 1).square().sum().backward()
        optimizer.step()
    shorter = project.weight if width_t <= width_s else project.weight.T
    torch.testing.assert_close(shorter @ shorter.T, torch.eye(len(shorter), dtype=torch.float64), rtol=0, atol=1e-6)


# CAT-KD


def catkd_loops(resolution, normalise):
    def activation(network, b, c):
        """Of one class: the map first, then the pooling."""
        weights, maps = network["head.weight"][c], network["last_map"][b]
        cam = sum(weights[k] * maps[k] for k in range(len(maps)))
        pooled = [values.mean() for _, values in blocks(cam[None], resolution, resolution)]
        return [value / length(pooled) for value in pooled] if normalise else pooled

    def loops(student, teacher, state):
        total = 0.0
        for b in range(B):
            for c in range(CLASSES):
                for s, t in zip(activation(student, b, c), activation(teacher, b, c)):
                    total = total + (s - t) ** 2 / (B * CLASSES * resolution**2)
        return total

    return loops


@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize(("resolution", "size_s", "size_t"), [(2, 4, 8), (2, 4, 2), (4, 4, 4)])
def test_catkd(resolution, normalise, size_s, size_t):
    check(
        "catkd",
        catkd_loops(resolution, normalise),
        {"resolution": resolution, "normalise": normalise},
        student=only(network(3, size_s, size_s, seed=1), "last_map", "head"),
        teacher=only(network(2, size_t, size_t, seed=2), "last_map", "head"),
    )


def test_catkd_at_resolution_1_compares_logits_without_bias():
    student, teacher = network(3, 4, 4, seed=1), network(2, 4, 4, seed=2)
    given = [only(network, "last_map", "head") for network in (student, teacher)]
    found = evaluate("catkd", {"resolution": 1}, student=given[0], teacher=given[1], targets=TARGETS)
    z_s, z_t = (network["embedding"] @ network["head"][0].T for network in (student, teacher))
    torch.testing.assert_close(found.loss, ((z_s - z_t) ** 2).mean())


@pytest.mark.parametrize("normalise", [False, True])
def test_catkd_of_silent_maps_is_finite(normalise):
    given = only(network(3, 4, 4, seed=1), "last_map", "head")
    given = {"last_map": torch.zeros(B, 3, 4, 4), "head": tuple(x.float() for x in given["head"])}
    found = evaluate("catkd", {"normalise": normalise}, student=given, teacher=given, targets=TARGETS)
    assert found.loss == 0 and all(gradient.isfinite().all() for gradient in found.gradients.values())


# MGD


def mgd_loops(drawn, masked, rows, columns):
    """drawn: what the step's generator gives, (B, D_t, 1, 1) or (B, 1, H, W)."""

    def mean_blocks(maps):
        pooled = [torch.stack([v.mean(dim=1) for _, v in blocks(x, rows, columns)], dim=1) for x in maps]
        return torch.stack(pooled).unflatten(2, (rows, columns))

    def loops(student, teacher, state):
        s, t = mean_blocks(student["last_map"]), mean_blocks(teacher["last_map"])
        if "align.weight" in state:
            s = convolution(s, state["align.weight"], state["align.bias"])
        holes = drawn.expand(s.shape) < masked
        s = torch.where(holes, 0 * s, s)
        s = convolution(s, state["generate.0.weight"], state["generate.0.bias"])
        s = convolution(torch.where(s > 0, s, 0 * s), state["generate.2.weight"], state["generate.2.bias"])
        return sum(((s[b] - t[b]) ** 2).sum() for b in range(B)) / B

    return loops


@pytest.mark.parametrize(
    ("mask", "masked", "width_s", "size_s", "size_t"),
    [("channels", 0.4, 2, 4, 4), ("positions", 0.4, 3, 4, 2), ("channels", 0.0, 3, 2, 4)],
)
def test_mgd(mask, masked, width_s, size_s, size_t):
    size = min(size_s, size_t)
    shape = (B, 3, 1, 1) if mask == "channels" else (B, 1, size, size)
    drawn = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    assert not masked or 0 < (drawn < masked).sum() < drawn.numel()
    check(
        "mgd",
        mgd_loops(drawn, masked, size, size),
        {"mask": mask, "masked": masked},
        student=only(network(width_s, size_s, size_s, seed=1), "last_map"),
        teacher=only(network(3, size_t, size_t, seed=2), "last_map"),
    )


# WKD-F


def wkd_f_loops(grid, mean_ratio, eps, size_s, size_t):
    def gaussians(x):
        for _, values in blocks(x, grid, grid):
            count = values.shape[1]
            mean = values.sum(dim=1) / count
            yield mean, torch.sqrt(((values - mean[:, None]) ** 2).sum(dim=1) / (count - 1) + eps)

    def loops(student, teacher, state):
        weight = state["connector.0.weight"]
        if 2 * size_s == size_t:
            s = transposed(student["last_map"], weight)
        else:
            s = convolution(student["last_map"], weight, stride=size_s // size_t)
        s = batch_norm(s, state["connector.1.weight"], state["connector.1.bias"])
        s = torch.where(s > 0, s, 0 * s)
        means = deviations = 0.0
        for b in range(B):
            for (mean_s, std_s), (mean_t, std_t) in zip(gaussians(s[b]), gaussians(teacher["last_map"][b])):
                means = means + ((mean_s - mean_t) ** 2).sum() / (grid**2 * B)
                deviations = deviations + ((std_s - std_t) ** 2).sum() / (grid**2 * B)
        return {"mean": mean_ratio * means, "deviation": deviations}

    return loops


@pytest.mark.parametrize(
    ("options", "size_s", "size_t"),
    [({}, 4, 4), ({"grid": 2, "mean_ratio": 3.0}, 4, 4), ({"eps": 1e-3}, 4, 2), ({"grid": 2}, 2, 4)],
)
def test_wkd_f(options, size_s, size_t):
    filled = {"grid": 1, "mean_ratio": 4.0, "eps": 1e-5} | options
    check(
        "wkd_f",
        wkd_f_loops(**filled, size_s=size_s, size_t=size_t),
        options,
        student=only(network(3, size_s, size_s, seed=1), "last_map"),
        teacher=only(network(2, size_t, size_t, seed=2), "last_map"),
    )


@pytest.mark.parametrize(
    ("options", "shape_s", "shape_t", "message"),
    [
        ({}, (3, 3, 3), (2, 4, 4), "half as large"),
        ({"grid": 3}, (3, 4, 4), (2, 4, 4), "3×3 equal cells"),
        ({"grid": 4}, (3, 4, 4), (2, 4, 4), "at least two positions"),
        ({}, (3, 1, 1), (2, 1, 1), "at least two positions"),
    ],
)
def test_wkd_f_says_what_it_cannot_compare(options, shape_s, shape_t, message):
    with pytest.raises(ConfigError, match=message):
        built("wkd_f", options, {"last_map": shape_s}, {"last_map": shape_t})


# DiffKD


def alphas():
    """ᾱ by time, from −1 on."""
    kept = [1.0]
    for time in range(1000):
        kept.append(kept[-1] * (1 - (1e-4 + (0.02 - 1e-4) * time / 999)))
    return torch.tensor(kept, dtype=torch.float64)


def relu(x):
    return torch.where(x > 0, x, 0 * x)


def layers(x, state, *places):
    """Convolutions with batch norm at these places of the state, ReLU between them."""
    for number, place in enumerate(places):
        *path, index = place.split(".")
        conv, norm = place, ".".join([*path, str(int(index) + 1)])
        x = convolution(relu(x) if number else x, state[f"{conv}.weight"], state[f"{conv}.bias"])
        x = batch_norm(x, state[f"{norm}.weight"], state[f"{norm}.bias"])
    return x


def bottleneck(x, state, name):
    return x + layers(x, state, f"{name}.block.0", f"{name}.block.3", f"{name}.block.6")


def predicted_noise(x, times, state, name):
    shift = torch.stack([state[f"{name}.time.weight"][time] for time in times])
    x = x + shift[:, :, None, None]
    if name == "maps":
        x = bottleneck(bottleneck(x, state, "maps.denoiser.0"), state, "maps.denoiser.1")
        return layers(x, state, "maps.denoiser.2")
    x = layers(x, state, "logits.denoiser.0", "logits.denoiser.3")
    x = relu(layers(x, state, "logits.denoiser.5"))
    return convolution(x, state["logits.denoiser.8.weight"], state["logits.denoiser.8.bias"])


def refined(x, noise, steps, state, name):
    x = convolution(x, state[f"{name}.enter.weight"], state[f"{name}.enter.bias"])
    if name == "maps":
        seen = bottleneck(x, state, "maps.adapter")
    else:
        seen = layers(x, state, "logits.adapter.0", "logits.adapter.3")
    mixed = []
    for b in range(B):
        share = linear(seen[b].flatten(1).mean(dim=1), state[f"{name}.mix.weight"], state[f"{name}.mix.bias"])
        share = 1 / (1 + torch.exp(-share))
        mixed.append(share * x[b] + (1 - share) * noise[b])
    x = torch.stack(mixed)
    alpha, every = alphas(), 1000 // (2 * steps)
    for time in range((steps - 1) * every, -1, -every):
        now, earlier = alpha[1 + time], alpha[1 + time - every] if time else torch.tensor(1.0).double()
        noise = predicted_noise(x, B * [time], state, name)
        clean = (x - torch.sqrt(1 - now) * noise) / torch.sqrt(now)
        x = torch.sqrt(earlier) * clean + torch.sqrt(1 - earlier) * noise
    return layers(x, state, f"{name}.leave.0")


def mean_square(x):
    return sum(value**2 for value in x.flatten()) / x.numel()


def diffkd_loops(steps, T, size):
    def loops(student, teacher, state):
        s, t = (
            torch.stack([torch.stack([v.mean(dim=1) for _, v in blocks(x, size, size)], dim=1) for x in network])
            for network in (student["last_map"], teacher["last_map"])
        )
        s, t = s.unflatten(2, (size, size)), t.unflatten(2, (size, size))
        encoded = layers(t, state, "encode.0")
        decoded = convolution(encoded, state["decode.weight"], state["decode.bias"])
        targets = {"maps": encoded.detach(), "logits": teacher["logits"][:, :, None, None]}
        generator = torch.Generator().manual_seed(0)

        def drawn():
            return {name: torch.randn(x.shape, generator=generator).double() for name, x in targets.items()}

        noise = drawn()
        given = {"maps": s, "logits": student["logits"][:, :, None, None]}
        answers = {name: refined(x, noise[name], steps, state, name) for name, x in given.items()}
        divergence = 0.0
        for b in range(B):
            z_s, z_t = answers["logits"][b, :, 0, 0] / T, teacher["logits"][b] / T
            p_s, p_t = (torch.exp(z) / torch.exp(z).sum() for z in (z_s, z_t))
            divergence = divergence + sum(p_t[c] * torch.log(p_t[c] / p_s[c]) for c in range(CLASSES)) / B

        times = torch.randint(1000, (B,), generator=generator).tolist()
        diffusion, alpha = 0.0, alphas()
        for name, noise in drawn().items():
            mixed = [
                torch.sqrt(alpha[1 + time]) * h + torch.sqrt(1 - alpha[1 + time]) * n
                for time, h, n in zip(times, targets[name], noise)
            ]
            told = predicted_noise(torch.stack(mixed), times, state, name)
            diffusion = diffusion + mean_square(told - noise)
        return {
            "map": mean_square(answers["maps"] - targets["maps"]),
            "logits": T**2 * divergence,
            "diffusion": diffusion,
            "reconstruction": mean_square(decoded - t),
        }

    return loops


@pytest.mark.parametrize(
    ("options", "latent", "size_s", "size_t"),
    [({"latent": 3, "steps": 2}, 3, 4, 2), ({"steps": 3, "temperature": 4.0}, 2, 2, 2)],
)
def test_diffkd(options, latent, size_s, size_t):
    student, teacher = network(3, size_s, size_s, seed=1), network(4, size_t, size_t, seed=2)
    student["logits"], teacher["logits"] = random(B, CLASSES, seed=3), random(B, CLASSES, seed=4)
    found = check(
        "diffkd",
        diffkd_loops(options["steps"], options.get("temperature", 1.0), min(size_s, size_t)),
        options,
        student=only(student, "last_map", "logits"),
        teacher=only(teacher, "last_map", "logits"),
        state={"maps.alpha": alphas(), "logits.alpha": alphas()},
    )
    assert found.state["encode.0.weight"].shape[0] == latent


def test_diffkd_knows_the_times():
    alpha = built("diffkd", {}, {"last_map": (3, 2, 2)}, {"last_map": (4, 2, 2)}).maps.alpha
    torch.testing.assert_close(alpha, alphas(), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", ["norm", "catkd", "mgd", "wkd_f", "diffkd"])
def test_maps_are_asked_for(name):
    with pytest.raises(ConfigError, match="last_map"):
        built(name, {}, {"last_map": (3,)}, {"last_map": (2, 4, 4)})
