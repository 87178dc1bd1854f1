"""OFD, ReviewKD, SRRL, SimKD, SemCKD, ITRD and SRD against plain loops over their formulas, in float64."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from kdray_plugins.reviewkd import hcl
from torch import nn

from kdray.distiller import Batch, Outputs, Setup, Shapes, Step
from kdray.errors import ConfigError
from kdray.registry import Registry
from kdray.testing import evaluate

GOLDEN = Path(__file__).parent.parent / "golden"
B, CLASSES = 4, 5
TARGETS = torch.tensor([0, 3, 1, 3])


def random(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed + sum(shape)))


def maps(*shapes, seed):
    return [random(B, *shape, seed=seed + 10 * place) for place, shape in enumerate(shapes)]


def check(name, loops, options=None, *, student, teacher, **more):
    """Values and all gradients of `name`, from drawn heads, equal those of `loops(student, teacher, state)`."""
    given = {"student": student, "teacher": teacher, "targets": TARGETS, "num_classes": CLASSES} | more
    start = evaluate(name, options, **given).state
    state = {k: v if k.endswith("num_batches_tracked") else random(*v.shape, seed=len(k)) for k, v in start.items()}
    state |= {k: v.abs() + 0.5 for k, v in state.items() if k.endswith("running_var")}
    state |= {k: more["state"][k] for k in more.get("state", {})}
    found = evaluate(name, options, **(given | {"state": state}))

    leaves = leaves_of(student)
    heads = {k: v.clone().requires_grad_(v.is_floating_point()) for k, v in state.items()}
    terms = loops(Outputs(**rebuilt(student, leaves)), Outputs(**teacher), heads)
    terms = terms if isinstance(terms, dict) else {"": terms}
    assert terms.keys() == found.terms.keys()
    for key, value in terms.items():
        torch.testing.assert_close(found.terms[key], value.detach(), rtol=1e-6, atol=1e-9)
    sum(terms.values()).backward()
    expected = {k: x.grad for k, x in (leaves | heads).items() if x.grad is not None}
    reached = [{k for k, g in grads.items() if g.abs().max() > 1e-10} for grads in (found.gradients, expected)]
    assert reached[0] and reached[0] == reached[1]
    for key, gradient in found.gradients.items():
        want = expected.get(key, torch.zeros_like(gradient))
        torch.testing.assert_close(gradient, want, rtol=1e-6, atol=1e-8, msg=lambda m, key=key: f"{key}: {m}")
    return found


def leaves_of(student):
    flat = {}
    for key, value in student.items():
        many = {f"{key}.{i}": x for i, x in enumerate(value)} if isinstance(value, list) else {key: value}
        flat |= {k: x.clone().requires_grad_() for k, x in many.items()}
    return flat


def rebuilt(student, leaves):
    return {
        key: [leaves[f"{key}.{i}"] for i in range(len(value))] if isinstance(value, list) else leaves[key]
        for key, value in student.items()
    }


# Layers, written as sums.


def convolution(x, weight, bias=None):
    rows, columns, size = x.shape[2], x.shape[3], weight.shape[2]
    padded = torch.zeros(len(x), x.shape[1], rows + size - 1, columns + size - 1, dtype=x.dtype)
    edge = size // 2
    padded[:, :, edge : edge + rows, edge : edge + columns] = x
    outputs = []
    for o in range(len(weight)):
        total = torch.zeros(len(x), rows, columns, dtype=x.dtype) + (0 if bias is None else bias[o])
        for i in range(x.shape[1]):
            for dy in range(size):
                for dx in range(size):
                    total = total + weight[o, i, dy, dx] * padded[:, i, dy : dy + rows, dx : dx + columns]
        outputs.append(total)
    return torch.stack(outputs, dim=1)


def batch_norm(x, scale=None, shift=None, eps=1e-5):
    channels = []
    for c in range(x.shape[1]):
        values = x[:, c]
        mean = values.sum() / values.numel()
        variance = ((values - mean) ** 2).sum() / values.numel()
        channel = (values - mean) / torch.sqrt(variance + eps)
        channels.append(channel if scale is None else scale[c] * channel + shift[c])
    return torch.stack(channels, dim=1)


def conv_bn(x, state, conv, norm):
    return batch_norm(
        convolution(x, state[f"{conv}.weight"], state.get(f"{conv}.bias")),
        state[f"{norm}.weight"],
        state[f"{norm}.bias"],
    )


def relu(x):
    return torch.where(x > 0, x, torch.zeros_like(x))


def linear(x, weight, bias):
    return torch.stack(
        [sum(weight[o, i] * x[:, i] for i in range(x.shape[1])) + bias[o] for o in range(len(weight))], 1
    )


def pooled(x, size):
    """Mean over equal blocks."""
    high, wide = x.shape[2] // size[0], x.shape[3] // size[1]
    rows = [
        torch.stack([block(x, r, c, high, wide).mean(dim=(2, 3)) for c in range(size[1])], dim=2)
        for r in range(size[0])
    ]
    return torch.stack(rows, dim=2)


def block(x, r, c, high, wide):
    return x[:, :, r * high : (r + 1) * high, c * wide : (c + 1) * wide]


def nearest(x, size):
    rows = [r * x.shape[2] // size[0] for r in range(size[0])]
    columns = [c * x.shape[3] // size[1] for c in range(size[1])]
    return torch.stack([torch.stack([x[:, :, r, c] for c in columns], dim=2) for r in rows], dim=2)


def mean_square(a, b):
    return ((a - b) ** 2).sum() / a.numel()


def kl(z_t, z_s, T):
    total = 0.0
    for a, b in zip(z_t, z_s):
        p, q = ((x / T - (x / T).max()).exp() for x in (a, b))
        p, q = p / p.sum(), q / q.sum()
        total = total + sum(p[c] * (torch.log(p[c]) - torch.log(q[c])) for c in range(len(p)))
    return T**2 * total / len(z_t)


# OFD


def ofd_loops(student, teacher, state):
    """The partial distance value by value, from its cases."""
    pairs = list(zip(student.preactivations[-2:], teacher.preactivations[-2:]))
    loss, first = 0.0, 0
    for place, (s, t) in enumerate(pairs):
        s = conv_bn(s, state, f"connectors.{place}.0", f"connectors.{place}.1")
        t = pooled(t, s.shape[2:])
        for c in range(s.shape[1]):
            margin = float(state["margin"].detach()[first + c])
            for a, b in zip(s[:, c].flatten(), t[:, c].flatten()):
                target = max(float(b), margin)
                if not (float(a.detach()) <= target <= 0):
                    loss = loss + (a - target) ** 2 / len(s) / 2 ** (len(pairs) - 1 - place)
        first += s.shape[1]
    return loss


def test_ofd():
    """The networks have stems of their own and the teacher one stage more, of another size."""
    margin = -random(5, seed=3).abs()
    check(
        "ofd",
        ofd_loops,
        student={"preactivations": maps((2, 4, 4), (2, 2, 2), (3, 2, 2), seed=0)},
        teacher={"preactivations": maps((2, 8, 8), (2, 4, 4), (2, 4, 4), (3, 2, 2), seed=1)},
        state={"margin": margin},
    )


def test_ofd_margins_are_means_of_negative_values():
    student = {"preactivations": maps((2, 4, 4), (2, 2, 2), (3, 2, 2), seed=0)}
    teacher = {"preactivations": maps((2, 8, 8), (2, 4, 4), (3, 2, 2), seed=1)}
    teacher["preactivations"][2][:, 1].abs_()  # a channel that is never negative
    found = evaluate("ofd", student=student, teacher=teacher, targets=TARGETS, stage="margins")
    assert found.terms == {} and found.gradients == {}
    expected = []
    for x in teacher["preactivations"][1:]:
        for c in range(x.shape[1]):
            negative = [float(v) for v in x[:, c].flatten() if v < 0]
            expected.append(sum(negative) / len(negative) if negative else 0.0)
    assert expected[3] == 0
    torch.testing.assert_close(found.state["margin"], torch.tensor(expected, dtype=torch.float64))


def test_ofd_margins_over_workers():
    """Each worker has its rows, and all of them the margins of the whole."""
    shapes = Shapes(preactivations=((2, 4, 4), (2, 2, 2)))
    teacher = maps(*shapes.preactivations, seed=1)
    cls = Registry.default().get("distillers", "ofd").cls
    setup = Setup(shapes, shapes, CLASSES, B, torch.arange(B), torch.Generator())
    given = []

    def look(rows, gather):
        ofd = cls(cls.Options(), setup).double()
        step = Step(0, 0, torch.Generator(), _gather=gather)
        (stage,) = ofd.stages()
        stage.loss(Outputs(), Outputs(preactivations=[x[rows] for x in teacher]), None, step)
        stage.finish()
        return ofd.margin

    whole = look(slice(0, B), lambda x, differentiable: given.append(x) or x)
    for rows in (slice(0, 3), slice(3, 4)):
        every = iter(given)
        assert torch.equal(look(rows, lambda x, differentiable, every=every: next(every)), whole)


# ReviewKD


@pytest.mark.parametrize("which", ["a", "b"])
def test_hcl(which):
    arrays = np.load(GOLDEN / f"losses_{which}.npz")
    student = [torch.from_numpy(arrays[f"student_map_same_{i}"]).requires_grad_() for i in range(3)]
    teacher = [torch.from_numpy(arrays[f"teacher_map_{i}"]) for i in range(3)]
    loss = sum(hcl(s, t) for s, t in zip(student, teacher))
    loss.backward()
    torch.testing.assert_close(loss.detach(), torch.from_numpy(arrays["review_hcl/loss"]), rtol=1e-6, atol=1e-12)
    for i, s in enumerate(student):
        torch.testing.assert_close(s.grad, torch.from_numpy(arrays[f"review_hcl/grad_{i}"]), rtol=1e-6, atol=1e-12)


def reviewkd_loops(student, teacher, state):
    maps_s = [student.embedding[:, :, None, None], *student.features[::-1]]
    maps_t = [teacher.embedding[:, :, None, None], *teacher.preactivations[::-1]]
    loss, carried = 0.0, None
    for place in range(3):
        s, t, name = maps_s[place], maps_t[place], f"fusions.{place}"
        x = conv_bn(s, state, f"{name}.enter.0", f"{name}.enter.1")
        if place:
            carried = nearest(carried, x.shape[2:])
            both = torch.cat([x, carried], dim=1)
            z = convolution(both, state[f"{name}.attend.weight"], state[f"{name}.attend.bias"])
            z = 1 / (1 + torch.exp(-z))
            x = torch.stack([x[:, c] * z[:, 0] + carried[:, c] * z[:, 1] for c in range(x.shape[1])], dim=1)
        carried = nearest(x, t.shape[2:])
        answer = conv_bn(carried, state, f"{name}.leave.0", f"{name}.leave.1")
        sizes = [size for size in (4, 2, 1) if size < t.shape[2]]
        parts = [mean_square(answer, t)]
        parts += [mean_square(pooled(answer, (n, n)), pooled(t, (n, n))) for n in sizes]
        weights = [0.5**k for k in range(len(parts))]
        loss = loss + sum(w * p for w, p in zip(weights, parts)) / sum(weights)
    return loss


def test_reviewkd():
    """Maps of the teacher are smaller in one stage and larger in another; the student has one stage more."""
    check(
        "reviewkd",
        reviewkd_loops,
        student={"features": maps((2, 8, 8), (2, 4, 4), (3, 4, 4), (4, 2, 2), seed=0), "embedding": random(B, 4)},
        teacher={"preactivations": maps((2, 8, 8), (3, 8, 8), (2, 2, 2), seed=1), "embedding": random(B, 3)},
    )


@pytest.mark.parametrize("sizes", [((64, 8, 8), (128, 4, 4), (256, 2, 2)), ((240, 4, 4), (480, 2, 2), (960, 1, 1))])
def test_reviewkd_has_the_published_shapes(sizes):
    """As published, the middle width is the embedding's, at most 512, and each answer has the teacher's channels."""
    width = sizes[-1][0]
    student = Shapes(features=((24, 8, 8), *sizes), embedding=(width,))
    teacher = Shapes(preactivations=((32, 8, 8), (64, 8, 8), (128, 4, 4), (256, 2, 2)), embedding=(256,))
    cls = Registry.default().get("distillers", "reviewkd").cls
    fusions = cls(cls.Options(), Setup(student, teacher, 5, 8, torch.zeros(8).long(), torch.Generator())).fusions
    assert [f.enter[0].weight.shape[:2] for f in fusions] == [(min(512, width), n) for n in (width, *widths(sizes))]
    assert [f.leave[0].out_channels for f in fusions] == [256, 256, 128, 64]
    assert [f.attend is None for f in fusions] == [True, False, False, False]


def widths(sizes):
    return [shape[0] for shape in sizes[::-1]]


# SRRL and SimKD


def head_of(width, bias=True):
    return random(CLASSES, width, seed=7), random(CLASSES, seed=8) if bias else None


@pytest.mark.parametrize("bias", [True, False])
def test_srrl(bias):
    weight, offset = head_of(3, bias)

    def loops(student, teacher, state):
        x = relu(conv_bn(student.last_map, state, "connector.0", "connector.1"))
        h = sum(x[:, :, r, c] for r in range(2) for c in range(2)) / 4
        z = linear(h, weight, offset if bias else torch.zeros(CLASSES))
        return {"feature": mean_square(h, teacher.embedding), "regression": mean_square(z, teacher.logits)}

    check(
        "srrl",
        loops,
        student={"last_map": random(B, 2, 2, 2)},
        teacher={"embedding": random(B, 3), "logits": random(B, CLASSES)},
        teacher_head=(weight, offset),
        state={"weight": weight} | ({"bias": offset} if bias else {}),
    )


def project(x, state):
    for place in (1, 4, 7):
        x = relu(conv_bn(x, state, f"projector.{place}", f"projector.{place + 1}"))
    return x


@pytest.mark.parametrize("factor", [1, 2, 8])
@pytest.mark.parametrize("student_size, teacher_size", [((4, 4), (2, 2)), ((2, 2), (4, 4))])
def test_simkd(factor, student_size, teacher_size):
    def loops(student, teacher, state):
        small = (2, 2)
        assert state["projector.1.weight"].shape[0] == max(1, 4 // factor)
        return mean_square(project(pooled(student.last_map, small), state), pooled(teacher.last_map, small))

    check(
        "simkd",
        loops,
        {"factor": factor},
        student={"last_map": random(B, 3, *student_size)},
        teacher={"last_map": random(B, 4, *teacher_size)},
        teacher_head=head_of(4),
    )


class Body(nn.Module):
    """A student: pictures (B, 3, 4, 4) to what it says of them."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(3, 2, 3, padding=1)

    def forward(self, x):
        return Outputs(logits=x.new_zeros(len(x), CLASSES), last_map=self.layer(x))


@pytest.mark.parametrize("bias", [True, False])
def test_simkd_deploys_the_projector_and_the_teachers_classifier(bias):
    cls = Registry.default().get("distillers", "simkd").cls
    shapes = Shapes(last_map=(2, 4, 4)), Shapes(last_map=(6, 2, 2))
    weight, offset = head_of(6, bias)
    setup = Setup(*shapes, CLASSES, 8, torch.zeros(8).long(), torch.Generator(), teacher_head=(weight, offset))
    simkd, body = cls(cls.Options(), setup).double(), Body().double()
    network = simkd.deployed(body)
    pictures = random(B, 3, 4, 4)

    state = {k: v.detach() for k, v in simkd.state_dict().items()}
    small = pooled(convolution(pictures, body.layer.weight, body.layer.bias), (2, 2))
    embedding = project(small, state).mean(dim=(2, 3))
    expected = linear(embedding, weight, offset if bias else torch.zeros(CLASSES))
    torch.testing.assert_close(network(pictures), expected, rtol=1e-6, atol=1e-9)

    # What the loss trains is what is deployed, with the running statistics, and nothing of it is left behind.
    before = network.eval()(pictures)
    simkd.train()
    simkd(body(pictures), Outputs(last_map=random(B, 6, 2, 2)), None, None).backward()
    with torch.no_grad():
        for parameter in simkd.parameters():
            parameter -= 0.1 * parameter.grad
    assert not torch.equal(network.eval()(pictures), before)
    assert torch.equal(network.get_buffer("weight"), weight) and not network.get_buffer("weight").requires_grad
    other = cls(cls.Options(), setup).double().deployed(Body().double())
    other.load_state_dict(network.state_dict())
    torch.testing.assert_close(other.eval()(pictures), network(pictures))


# SemCKD


def mlp(rows, state, name):
    x = relu(linear(rows, state[f"{name}.0.weight"], state[f"{name}.0.bias"]))
    x = linear(x, state[f"{name}.2.weight"], state[f"{name}.2.bias"])
    return [v / torch.sqrt((v * v).sum()) for v in x]


def semckd_loops(batch_size, temperature):
    def similarity(x):
        flat = x.flatten(1)
        n = len(flat)
        return torch.stack(
            [
                torch.stack([(flat[a] * flat[b]).sum() if b < n else flat.new_zeros(()) for b in range(batch_size)])
                for a in range(n)
            ]
        )

    def loops(student, teacher, state):
        maps_s, maps_t = student.features[1:], teacher.features[1:]
        q = [mlp(similarity(x), state, f"queries.{i}") for i, x in enumerate(maps_s)]
        k = [mlp(similarity(x), state, f"keys.{j}") for j, x in enumerate(maps_t)]
        n = len(maps_s[0])
        loss = 0.0
        for i, s in enumerate(maps_s):
            errors = []
            for j, t in enumerate(maps_t):
                size = min(s.shape[2], t.shape[2])
                x, y = pooled(s, (size, size)), pooled(t, (size, size))
                name = f"regressors.{i}.{j}"
                x = relu(conv_bn(x, state, f"{name}.0", f"{name}.1"))
                x = relu(conv_bn(x, state, f"{name}.3", f"{name}.4"))
                errors.append((convolution(x, state[f"{name}.6.weight"]) - y) ** 2)
            for b in range(n):
                energy = [torch.exp((q[i][b] * k[j][b]).sum() / temperature) for j in range(len(maps_t))]
                for j, e in enumerate(energy):
                    loss = loss + e / sum(energy) * errors[j][b].mean() / (n * len(maps_s))
        return loss

    return loops


@pytest.mark.parametrize("batch_size", [B, 11], ids=["full", "smaller last batch"])
@pytest.mark.parametrize("temperature", [1.0, 0.3])
def test_semckd(batch_size, temperature):
    check(
        "semckd",
        semckd_loops(batch_size, temperature),
        {"temperature": temperature},
        student={"features": maps((2, 4, 4), (2, 4, 4), (3, 2, 2), seed=0)},
        teacher={"features": maps((2, 4, 4), (2, 4, 4), (2, 4, 4), (3, 2, 2), seed=1)},
        batch_size=batch_size,
    )


def test_semckd_width_of_queries_and_keys():
    given = {"student": {"features": maps((1, 2, 2), (2, 2, 2), seed=0)}, "targets": TARGETS, "num_classes": CLASSES}
    given["teacher"] = {"features": maps((1, 2, 2), (2, 2, 2), seed=1)}
    for batch_size, factor, width in ((64, 4, 16), (64, 8, 8), (4, 8, 1)):
        state = evaluate("semckd", {"factor": factor}, batch_size=batch_size, **given).state
        assert state["queries.0.0.weight"].shape == state["keys.0.0.weight"].shape == (2 * width, batch_size)
        assert state["queries.0.2.weight"].shape == (width, 2 * width)


# ITRD and SRD


def itrd_loops(alpha, correlation, mutual):
    def gram(x):
        unit = [v / torch.sqrt((v * v).sum()) for v in x]
        return [[(a * b).sum() for b in unit] for a in unit]

    def loops(student, teacher, state):
        s, t = student.embedding, teacher.embedding
        n = len(s)
        f = linear(s, state["embed.weight"], state["embed.bias"])
        total = 0.0
        for d in range(t.shape[1]):
            columns = []
            for x in (f[:, d], t[:, d]):
                mean = x.sum() / n
                columns.append((x - mean) / torch.sqrt(((x - mean) ** 2).sum() / (n - 1)))
            c = (columns[0] * columns[1]).sum() / n
            total = total + abs(c - 1) ** (2 * alpha)
        G_s, G_t = gram(s if s.shape == t.shape else f), gram(t)
        trace_s, trace_st = sum(G_s[i][i] for i in range(n)), sum(G_s[i][i] * G_t[i][i] for i in range(n))
        squares = sum((G_s[i][j] / trace_s) ** 2 for i in range(n) for j in range(n))
        squares_st = sum((G_s[i][j] * G_t[i][j] / trace_st) ** 2 for i in range(n) for j in range(n))
        return {
            "correlation": correlation * torch.log(total) / math.log(2),
            "mutual": mutual * (squares - squares_st),
        }

    return loops


@pytest.mark.parametrize("width", [3, 6], ids=["embedded", "same width"])
@pytest.mark.parametrize("alpha, correlation, mutual", [(1.01, 2.0, 1.0), (1.5, 2.0, 0.05)])
def test_itrd(width, alpha, correlation, mutual):
    check(
        "itrd",
        itrd_loops(alpha, correlation, mutual),
        {"alpha": alpha, "correlation": correlation, "mutual": mutual},
        student={"embedding": random(B, width)},
        teacher={"embedding": random(B, 6, seed=1)},
    )


def srd_loops(exponent, factor, temperature):
    def loops(student, teacher, state):
        s = batch_norm(linear(student.embedding, state["projector.weight"], state["projector.bias"]), eps=1e-4)
        t = batch_norm(teacher.embedding, eps=1e-4)
        total = sum(abs(a - b) ** exponent for a, b in zip(s.flatten(), t.flatten()))
        return {"feature": factor * torch.log(total), "kd": kl(teacher.logits, student.logits, temperature)}

    return loops


@pytest.mark.parametrize("exponent, factor, temperature", [(4.0, 2.0, 1.0), (1.5, 1.0, 4.0)])
def test_srd(exponent, factor, temperature):
    check(
        "srd",
        srd_loops(exponent, factor, temperature),
        {"exponent": exponent, "feature": factor, "temperature": temperature},
        student={"embedding": random(B, 3), "logits": random(B, CLASSES)},
        teacher={"embedding": random(B, 6), "logits": random(B, CLASSES, seed=5)},
    )


# Where published code divides by zero


@pytest.mark.parametrize("name", ["itrd", "srd", "semckd"])
@pytest.mark.parametrize("rows", [1, 3])
def test_dead_entries_and_a_batch_of_one_stay_finite(name, rows):
    """float32: embeddings and maps that are 0 in a channel, or everywhere in a sample, and logits of 1000."""

    def cut(x):
        x = x[:rows].float().clone()
        x[:, 0], x[0] = 0, 0
        return x

    def side(seed):
        return {
            "embedding": cut(random(B, 4, seed=seed)),
            "logits": 1e3 * random(B, CLASSES, seed=seed)[:rows].float(),
            "features": [cut(x) for x in maps((2, 4, 4), (2, 2, 2), seed=seed)],
        }

    found = evaluate(name, student=side(0), teacher=side(1), targets=TARGETS[:rows], num_classes=CLASSES, batch_size=B)
    assert all(x.isfinite().all() for x in (found.loss, *found.gradients.values()))


# Over several workers


def outputs(tensors, rows=slice(None)):
    return Outputs(**{k: [x[rows] for x in v] if isinstance(v, list) else v[rows] for k, v in tensors.items()})


@pytest.mark.parametrize("name", ["itrd", "srd", "semckd"])
def test_workers_together_have_the_loss_of_the_global_batch(name):
    """Batch norm of the heads stands still here: making it global is not the plugin's business."""
    cls = Registry.default().get("distillers", name).cls
    sides = [
        {
            "embedding": random(B, 4, seed=seed),
            "logits": random(B, CLASSES, seed=seed),
            "features": maps((2, 4, 4), (2, 2, 2), seed=seed),
        }
        for seed in (0, 1)
    ]
    shapes = [
        Shapes(embedding=(4,), logits=(CLASSES,), features=tuple(tuple(x.shape[1:]) for x in side["features"]))
        for side in sides
    ]
    setup = Setup(*shapes, CLASSES, B, torch.arange(B) % CLASSES, torch.Generator(), batch_size=B)
    distiller = cls(cls.Options(), setup).double().eval()

    gathered = []

    def record(x, differentiable):
        gathered.append(x if differentiable else x.detach())
        return gathered[-1]

    def loss(rows, gather):
        offset = rows.start or 0
        index = torch.arange(B)[rows]
        batch = Batch(index=index, target=TARGETS[rows], offset=offset, size=B)
        return distiller(
            outputs(sides[0], rows), outputs(sides[1], rows), batch, Step(0, 0, torch.Generator(), _gather=gather)
        )

    whole = loss(slice(0, B), record)
    parts = []
    for rows in (slice(0, 3), slice(3, 4)):
        values = iter(gathered)

        def answer(x, differentiable, rows=rows, values=values):
            every = next(values)
            torch.testing.assert_close(every[rows], x)
            return every

        parts.append((rows.stop - rows.start, loss(rows, answer)))
        assert next(values, None) is None
    as_dict = [x if isinstance(x, dict) else {"": x} for x in (whole, *(part for _, part in parts))]
    for key, value in as_dict[0].items():
        mean = sum(n * part[key] for (n, _), part in zip(parts, as_dict[1:])) / B
        torch.testing.assert_close(mean, value)


def test_maps_are_asked_for():
    for name, key in (("ofd", "preactivations"), ("reviewkd", "features"), ("semckd", "features")):
        side = {"embedding": random(B, 4), key: maps((2, 4, 4), seed=0), "preactivations": maps((2, 4, 4), seed=0)}
        with pytest.raises(ConfigError, match=rf"{name} compares the maps .*`layers: ?"):
            evaluate(name, student=side, teacher=side, targets=TARGETS)
    flat = {"last_map": random(B, 6)}
    for name in ("srrl", "simkd"):
        with pytest.raises(ConfigError, match="last_map"):
            evaluate(name, student=flat, teacher=flat | {"embedding": random(B, 6)}, targets=TARGETS)
