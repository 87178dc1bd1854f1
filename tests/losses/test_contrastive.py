"""The contrastive family against loops over samples, written from the formulas."""

import threading
from copy import deepcopy

import pytest
import torch

from kdray.contrast.draws import OtherClasses
from kdray.distiller import Batch, Outputs, Setup, Shapes, Step
from kdray.errors import ConfigError
from kdray.registry import Registry
from kdray.testing import evaluate

N, B, C, DIM, WIDE_S, WIDE_T = 30, 6, 3, 4, 5, 7
LABELS = torch.arange(N) % C
INDICES = torch.tensor([3, 17, 22, 8, 29, 12]), torch.tensor([5, 17, 9, 20, 3, 6])  # two samples come twice
_G = torch.Generator().manual_seed(0)
STUDENT = torch.randn(2, B, WIDE_S, generator=_G, dtype=torch.float64)
TEACHER = torch.randn(2, B, WIDE_T, generator=_G, dtype=torch.float64)
LOGITS = torch.randn(2, 2, B, C, generator=_G, dtype=torch.float64)


def run(name, options, number=0, state=None, rows=slice(None), **given):
    """Step `number` of the method on our embeddings and logits."""
    index = INDICES[number][rows]
    return evaluate(
        name,
        options,
        student={"embedding": STUDENT[number][rows], "logits": LOGITS[0, number][rows]} | given.get("student", {}),
        teacher={"embedding": TEACHER[number][rows], "logits": LOGITS[1, number][rows]} | given.get("teacher", {}),
        targets=given.get("targets", LABELS[index]),
        indices=index,
        num_samples=N,
        labels=LABELS,
        state=state,
        step=number,
    )


def initial(name, options):
    """The state before the first step."""
    cls = Registry.default().get("distillers", name).cls
    setup = Setup(
        Shapes(embedding=(WIDE_S,), logits=(C,)),
        Shapes(embedding=(WIDE_T,), logits=(C,)),
        C,
        N,
        LABELS,
        torch.Generator().manual_seed(0),
    )
    torch.manual_seed(0)
    return cls(cls.Options.model_validate(options), setup).double(), setup


def unit(x):
    return x / x.norm()


def linear(p, name, x):
    return p[f"{name}.weight"] @ x + p[f"{name}.bias"]


def check(name, options, reference, perturb=()):
    """Two steps: loss, gradients of the student's inputs and of the heads, and the state, against
    `reference(number, student rows, teacher rows, parameters and buffers, state after)`."""
    distiller, _ = initial(name, options)
    trained = {k for k, p in distiller.named_parameters() if p.requires_grad}
    state = {k: v.clone() for k, v in distiller.state_dict().items()}
    for k in perturb:  # what an optimizer would have moved
        state[k] += 0.1
    for number in (0, 1):
        logits = name == "ckd"
        x_s = (LOGITS[0, number] if logits else STUDENT[number]).clone().requires_grad_()
        x_t = LOGITS[1, number] if logits else TEACHER[number]
        p = {k: v.clone().requires_grad_(k in trained) for k, v in state.items()}
        after = {k: v.clone() for k, v in state.items()}
        loss = reference(number, list(x_s), list(x_t), p, after)
        leaves = {"logits" if logits else "embedding": x_s} | {k: p[k] for k in trained}
        expected = dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values()))))

        found = run(name, options, number, state)
        torch.testing.assert_close(found.loss, loss.detach(), rtol=1e-9, atol=1e-12)
        assert found.gradients.keys() - {"logits"} == expected.keys() - {"logits"}
        for k, gradient in expected.items():
            torch.testing.assert_close(found.gradients[k], gradient, rtol=1e-6, atol=1e-10, msg=lambda m, k=k: k + m)
        assert found.state.keys() == after.keys()
        for k, value in after.items():
            torch.testing.assert_close(found.state[k], value, rtol=1e-6, atol=1e-10, msg=lambda m, k=k: k + m)
        state = found.state
    return found


# CRD: three choices, each by name.


def binary_nce(sets, tau, Z):
    """Equations 18 and 19, the expectation over the positives as a mean."""
    total = 0.0
    for anchor, positives, negatives in sets:
        c = len(negatives) / N
        for v in positives:
            a = (anchor @ v / tau).exp() / Z
            total = total + (a / (a + c + 1e-7)).log() / len(positives)
        for v in negatives:
            total = total + (c / ((anchor @ v / tau).exp() / Z + c + 1e-7)).log()
    return -total / len(sets)


def first_constant(sets, tau):
    every = [(a @ v / tau).exp() for a, positives, negatives in sets for v in positives + negatives]
    return (sum(every) / len(every) * N).detach()


def softmax_nce(sets, tau):
    """The mean over positives outside of the logarithm."""
    total = 0.0
    for anchor, positives, negatives in sets:
        whole = sum((anchor @ v / tau).exp() for v in positives + negatives)
        total = total - sum(((anchor @ v / tau).exp() / whole).log() for v in positives) / len(positives)
    return total / len(sets)


def crd_reference(options):
    pool, tau = options["negatives"], options.get("temperature", 0.07)
    kind, other, by_class = pool["kind"], pool.get("other", "class"), options.get("positives") == "class"
    slow, m = options.get("slow", 0), pool.get("momentum", 0.5)

    def sets_of(number, p, anchors, keys, side, drawn):
        """(anchor, positives, negatives) for each row; `side`: the memory the anchors meet."""
        sets = []
        for i in range(B):
            index, target = int(INDICES[number][i]), int(LABELS[INDICES[number][i]])
            positives, negatives = [], []
            if kind in ("bank", "shared", "all"):
                memory = p[f"contrast.memory_{side}"]
                mine = [j for j in range(N) if LABELS[j] == target] if by_class else [index]
                positives = [memory[j] for j in mine]
                among = range(N) if kind == "all" else drawn[i] if kind == "bank" else drawn
                others = [j for j in among if LABELS[j] != target]
                negatives = [memory[j] for j in others]
            if kind == "queue":
                positives = [keys[i]]
                for j in range(pool["count"]):
                    same = int(p["contrast.classes"][j]) == target
                    itself = int(p["contrast.samples"][j]) == index
                    row = p[f"contrast.queue_{side}"][j]
                    if by_class and same:
                        positives.append(row)
                    if not (same if other == "class" else itself):
                        negatives.append(row)
            if kind == "batch":
                classes = LABELS[INDICES[number]].tolist()
                positives = [keys[j] for j in range(B) if (classes[j] == target if by_class else j == i)]
                negatives = [keys[j] for j in range(B) if (classes[j] != target if other == "class" else j != i)]
            sets.append((anchors[i], positives, negatives))
        return sets

    def reference(number, x_s, x_t, p, after):
        g_s = [unit(linear(p, "embed_s", x)) for x in x_s]
        g_t = [unit(linear(p, "embed_t", x)) for x in x_t]
        k_s, k_t = g_s, g_t
        if slow:
            for side in "st":
                for part in ("weight", "bias"):
                    name = f"slow_{side}.copy.{part}"
                    after[name] = slow * p[name] + (1 - slow) * p[f"embed_{side}.{part}"].detach()
            k_s = [unit(linear(after, "slow_s.copy", x)).detach() for x in x_s]
            k_t = [unit(linear(after, "slow_t.copy", x)).detach() for x in x_t]
        drawn = None
        if kind == "bank":
            rows = Batch(INDICES[number], LABELS[INDICES[number]], 0, 0, B)
            step = Step(number, 0, torch.Generator().manual_seed(number))
            drawn = OtherClasses(pool["count"], LABELS)(rows, step).tolist()
        if kind == "shared":
            drawn = torch.randperm(N, generator=torch.Generator().manual_seed(number))[: pool["count"]].tolist()
        loss = 0.0
        for anchors, keys, side, z in ((g_s, k_t, "t", "z_s"), (g_t, k_s, "s", "z_t")):
            sets = sets_of(number, p, anchors, keys, side, drawn)
            if options.get("objective") == "infonce":
                loss = loss + softmax_nce(sets, tau)
            else:
                after[z] = first_constant(sets, tau) if number == 0 else after[z]
                loss = loss + binary_nce(sets, tau, after[z])
        for i in range(B):
            for side, keys in (("s", k_s), ("t", k_t)):
                key = keys[i].detach()
                if kind in ("bank", "shared", "all"):
                    row = int(INDICES[number][i])
                    after[f"contrast.memory_{side}"][row] = unit(m * p[f"contrast.memory_{side}"][row] + (1 - m) * key)
                if kind == "queue":
                    after[f"contrast.queue_{side}"][(number * B + i) % pool["count"]] = key
            if kind == "queue":
                place = (number * B + i) % pool["count"]
                after["contrast.classes"][place] = LABELS[INDICES[number][i]]
                after["contrast.samples"][place] = INDICES[number][i]
        if kind == "queue":
            after["contrast.head"] = torch.tensor((number + 1) * B % pool["count"])
        return loss

    return reference


POOLS = {
    "bank": {"kind": "bank", "count": 7},
    "shared": {"kind": "shared", "count": 20},
    "all": {"kind": "all", "momentum": 0.8},
    "queue": {"kind": "queue", "count": 10},
    "batch": {"kind": "batch"},
}


@pytest.mark.parametrize("objective", ["nce", "infonce"])
@pytest.mark.parametrize("positives", ["own", "class"])
@pytest.mark.parametrize("kind", POOLS)
def test_crd_by_its_choices(kind, positives, objective):
    options = {"dim": DIM, "temperature": 0.3, "negatives": POOLS[kind], "positives": positives, "objective": objective}
    check("crd", options, crd_reference(options))


@pytest.mark.parametrize("kind", ["queue", "batch"])
def test_all_other_samples_repel_but_never_the_own_one(kind):
    """The second step finds its samples 17 and 3 in the queue."""
    options = {"dim": DIM, "negatives": POOLS[kind] | {"other": "sample"}, "objective": "infonce", "temperature": 0.3}
    found = check("crd", options, crd_reference(options))
    by_class = run("crd", options | {"negatives": POOLS[kind]}, 1)
    assert not torch.isclose(found.loss, by_class.loss)


@pytest.mark.parametrize("kind", ["queue", "batch", "all"])
def test_slow_heads_give_the_keys(kind):
    options = {"dim": DIM, "negatives": POOLS[kind], "objective": "infonce", "slow": 0.9, "temperature": 0.3}
    check("crd", options, crd_reference(options), perturb=["embed_s.weight", "embed_t.bias"])


@pytest.mark.parametrize(
    "negatives, problem",
    [({"kind": "batch", "other": "sample"}, "repels"), ({"kind": "bank", "mode": "relax"}, "draws one sample")],
)
def test_choices_that_contradict_each_other(negatives, problem):
    with pytest.raises(ConfigError, match=problem):
        run("crd", {"negatives": negatives, "positives": "class"})


# Soft relations


def cross_entropy(scores_t, scores_s, tau_t, tau_s, entropy=False):
    """−Σ p_t log p_s; with `entropy`, the divergence Σ p_t (log p_t − log p_s)."""
    e_t, e_s = [(s / tau_t).exp() for s in scores_t], [(s / tau_s).exp() for s in scores_s]
    total = 0.0
    for t, s in zip(e_t, e_s):
        p_t, p_s = t / sum(e_t), s / sum(e_s)
        total = total + p_t * ((p_t.log() if entropy else 0.0) - p_s.log())
    return total


def write(after, ring, count, number, **columns):
    for name, rows in columns.items():
        for i, row in enumerate(rows):
            after[f"{ring}.{name}"][(number * B + i) % count] = row.detach()
    after[f"{ring}.head"] = torch.tensor((number + 1) * B % count)


def test_seed():
    count, tau_t, tau_s = 9, 0.2, 0.5

    def reference(number, x_s, x_t, p, after):
        hidden = [linear(p, "embed_s.0", x).clamp(min=0) for x in x_s]
        z_s, z_t = [unit(linear(p, "embed_s.2", h)) for h in hidden], [unit(x) for x in x_t]
        loss = 0.0
        for s, t in zip(z_s, z_t):
            keys = [t, *p["queue.teacher"]]
            loss = loss + cross_entropy([t @ k for k in keys], [s @ k for k in keys], tau_t, tau_s) / B
        write(after, "queue", count, number, teacher=z_t)
        return loss

    check("seed", {"count": count, "temperature_t": tau_t, "temperature_s": tau_s}, reference)


@pytest.mark.parametrize("queues", [1, 2])
def test_compress(queues):
    count, tau = 9, 0.3

    def reference(number, x_s, x_t, p, after):
        z_s = [unit(linear(p, "embed_s", x) if queues == 1 else x) for x in x_s]
        z_t = [unit(x) for x in x_t]
        Q_t = p["queue.teacher"]
        Q_s = Q_t if queues == 1 else p["queue.student"]
        loss = 0.0
        for s, t in zip(z_s, z_t):
            loss = loss + cross_entropy([t @ k for k in Q_t], [s @ k for k in Q_s], tau, tau, entropy=True) / B
        write(after, "queue", count, number, **({"teacher": z_t} | ({"student": z_s} if queues == 2 else {})))
        return loss

    check("compress", {"queues": queues, "count": count, "temperature": tau}, reference)


@pytest.mark.parametrize("teacher_head", ["random", "none"])
def test_rrd(teacher_head):
    count, tau_t, tau_s = 9, 0.2, 0.5

    def reference(number, x_s, x_t, p, after):
        z_s = [unit(linear(p, "embed_s", x)) for x in x_s]
        z_t = [unit(linear(p, "embed_t", x) if teacher_head == "random" else x) for x in x_t]
        write(after, "memory", count, number, teacher=z_t)  # before the scores
        Q, loss = after["memory.teacher"], 0.0
        for s, t in zip(z_s, z_t):
            loss = loss + cross_entropy([t @ k for k in Q], [s @ k for k in Q], tau_t, tau_s) / B
        return loss

    options = {"dim": DIM, "count": count, "temperature_t": tau_t, "temperature_s": tau_s, "teacher_head": teacher_head}
    check("rrd", options, reference)
    assert initial("rrd", options)[0].embed_s.out_features == (DIM if teacher_head == "random" else WIDE_T)


# In the batch, without a memory


@pytest.mark.parametrize("scale", [2.0, 50.0])  # within and beyond max_scale
def test_dcd(scale):
    alpha = 0.7

    def reference(number, x_s, x_t, p, after):
        g_s = [unit(linear(p, "embed_s", x)) for x in x_s]
        g_t = [unit(linear(p, "embed_t", x)) for x in x_t]
        factor = p["theta"].exp().clamp(max=10)
        e = [[(factor * (s @ t)).exp() for t in g_t] for s in g_s]
        loss = 0.0
        for i in range(B):
            loss = loss - (e[i][i] / sum(e[i])).log() / B
            for j in range(B):
                p_ij = e[i][j] / sum(e[i])  # of student i over the teachers
                q_ij = e[j][i] / sum(e[k][i] for k in range(B))  # of teacher i over the students
                loss = loss + alpha * q_ij * (q_ij / p_ij).log() / B
        return loss

    check("dcd", {"dim": DIM, "alpha": alpha, "scale": scale}, reference)


def test_dcd_names_its_terms():
    one, two = (run("dcd", {"dim": DIM, "alpha": alpha}).terms for alpha in (0.5, 1.0))
    assert set(one) == {"contrast", "consistency"}
    torch.testing.assert_close(two["consistency"], 2 * one["consistency"])
    assert two["contrast"] == one["contrast"]


def test_ckd():
    def reference(number, x_s, x_t, p, after):
        loss = 0.0
        for i in range(B):
            e = [(unit(x_t[i]) @ unit(s) / 0.5).exp() for s in x_s]
            loss = loss - (e[i] / sum(e)).log() / B
        return loss

    check("ckd", {"temperature": 0.5}, reference)


# What all of them share

EVERY = {
    f"crd-{kind}-{positives}": ("crd", {"dim": DIM, "negatives": POOLS[kind], "positives": positives})
    for kind in POOLS
    for positives in ("own", "class")
} | {
    "crd-slow": ("crd", {"dim": DIM, "negatives": POOLS["queue"], "slow": 0.9, "objective": "infonce"}),
    "crd-sample": ("crd", {"dim": DIM, "negatives": {"kind": "batch", "other": "sample"}, "objective": "infonce"}),
    "seed": ("seed", {"count": 9}),
    "compress-1": ("compress", {"count": 9, "queues": 1}),
    "compress-2": ("compress", {"count": 9}),
    "rrd": ("rrd", {"dim": DIM, "count": 9}),
    "dcd": ("dcd", {"dim": DIM}),
    "ckd": ("ckd", {}),
}


def both(work):
    """work(rank, gather) on two threads that exchange their rows; graphs go across."""
    slots, barrier, failures = {}, threading.Barrier(2), []

    def worker(rank):
        calls = iter(range(100))

        def gather(tensor, differentiable):
            call = next(calls)
            slots[call, rank] = tensor
            barrier.wait(20)
            whole = torch.cat([slots[call, 0], slots[call, 1]])
            return whole if differentiable else whole.detach()

        try:
            work(rank, gather)
        except Exception as error:
            failures.append(error)
            barrier.abort()

    threads = [threading.Thread(target=worker, args=(rank,)) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures


def two_workers(name, options, cut):
    """The first step with rows before and after `cut` on two workers, each with a distiller of its own: loss,
    gradients summed over both, both states."""
    first, _ = initial(name, options)
    distillers, losses = [first, deepcopy(first)], [None, None]
    x = STUDENT[0].clone().requires_grad_(), LOGITS[0, 0].clone().requires_grad_()
    rows = [slice(0, cut), slice(cut, B)]

    def at(rank, gather):
        index = INDICES[0][rows[rank]]
        step = Step(0, 0, torch.Generator().manual_seed(0), rank, 2, gather)
        return Batch(index, LABELS[index], 0, rows[rank].start, B), step

    def forward(rank, gather):
        mine = rows[rank]
        student = Outputs(embedding=x[0][mine], logits=x[1][mine])
        teacher = Outputs(embedding=TEACHER[0][mine], logits=LOGITS[1, 0][mine])
        loss = distillers[rank](student, teacher, *at(rank, gather))
        loss = sum(loss.values()) if isinstance(loss, dict) else loss
        losses[rank] = loss * len(x[0][mine]) / B

    both(forward)
    total = losses[0] + losses[1]
    total.backward()
    both(lambda rank, gather: distillers[rank].after_backward(*at(rank, gather)))
    gradients = {k: v.grad for k, v in zip(("embedding", "logits"), x) if v.grad is not None}
    for (k, a), b in zip(first.named_parameters(), distillers[1].parameters()):
        if a.requires_grad:
            gradients[k] = a.grad + b.grad
    return total.detach(), gradients, [d.state_dict() for d in distillers]


@pytest.mark.parametrize("label", EVERY)
def test_the_number_of_workers_changes_nothing(label):
    name, options = EVERY[label]
    alone = run(name, options)
    loss, gradients, states = two_workers(name, options, cut=4)
    torch.testing.assert_close(loss, alone.loss, rtol=1e-9, atol=1e-12)
    assert gradients.keys() == alone.gradients.keys()
    for k, gradient in gradients.items():
        torch.testing.assert_close(gradient, alone.gradients[k], rtol=1e-8, atol=1e-12, msg=lambda m, k=k: k + m)
    for state in states:
        for k, value in alone.state.items():
            torch.testing.assert_close(state[k].to(value.dtype), value, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("label", EVERY)
def test_awkward_batches_are_finite(label):
    """One sample; one class; zero vectors; large inputs in float32."""
    name, options = EVERY[label]
    large = {"embedding": 1e4 * STUDENT[0].float(), "logits": 1e4 * LOGITS[0, 0].float()}
    zeros = {"embedding": torch.zeros(B, WIDE_S), "logits": torch.zeros(B, C)}
    for given in (
        {"rows": slice(0, 1)},
        {"rows": slice(0, 2), "targets": torch.zeros(2, dtype=torch.long)},
        {"student": large, "teacher": {"embedding": 1e4 * TEACHER[0].float(), "logits": 1e4 * LOGITS[1, 0].float()}},
        {"student": zeros, "teacher": {"embedding": torch.zeros(B, WIDE_T), "logits": torch.zeros(B, C)}},
    ):
        found = run(name, options, **given)
        assert found.loss.isfinite()
        assert found.gradients and all(g.isfinite().all() for g in found.gradients.values())
        assert all(v.isfinite().all() for v in found.state.values())


@pytest.mark.parametrize("label", [k for k in EVERY if "queue" in k or "compress" in k or k in ("seed", "rrd")])
def test_a_batch_longer_than_the_memory_leaves_its_last_rows(label):
    name, options = EVERY[label]
    options = options | ({"negatives": {"kind": "queue", "count": 4}} if name == "crd" else {"count": 4})
    found, (memory,) = run(name, options), {k for k in run(name, options).state if k.endswith(("teacher", "queue_t"))}
    longer = options | ({"negatives": {"kind": "queue", "count": B}} if name == "crd" else {"count": B})
    torch.testing.assert_close(found.state[memory], run(name, longer).state[memory][2:])


def test_memories_lie_on_no_graph_and_teachers_get_no_gradient():
    for name, options in EVERY.values():
        assert not any(v.requires_grad for v in run(name, options).state.values())


@pytest.mark.parametrize("kind", ["bank", "shared", "all"])
def test_a_memory_in_half_the_room_scores_nearly_the_same(kind):
    count = {} if kind == "all" else {"count": 8}
    found = {}
    for dtype in ("fp32", "bf16"):
        cls = Registry.default().get("distillers", "crd").cls
        options = cls.Options.model_validate({"dim": DIM, "negatives": {"kind": kind, "dtype": dtype, **count}})
        crd = cls(options, initial("crd", {"dim": DIM})[1])
        torch.manual_seed(0)
        for parameter in crd.parameters():
            torch.nn.init.normal_(parameter)
        step = Step(number=0, epoch=0, generator=torch.Generator().manual_seed(1))
        batch = Batch(index=INDICES[0], target=LABELS[INDICES[0]], size=B)
        x = STUDENT[0].float().requires_grad_()
        loss = crd(Outputs(embedding=x), Outputs(embedding=TEACHER[0].float()), batch, step)
        loss.backward()
        crd.after_backward(batch, step)
        memory = {name: value for name, value in crd.named_buffers() if "memory" in name}
        found[dtype] = loss.detach(), x.grad, memory
    (exact, gradient, memory), (loss, d_x, halved) = found.values()
    assert {x.dtype for x in memory.values()} == {torch.float32} and len(memory) == 2
    assert {x.dtype for x in halved.values()} == {torch.bfloat16}
    assert loss != exact and loss == pytest.approx(exact.item(), rel=0.02)
    torch.testing.assert_close(d_x, gradient, atol=0.03 * gradient.abs().max().item(), rtol=0)
    for name, rows in memory.items():
        torch.testing.assert_close(halved[name].float(), rows, atol=0.01, rtol=0)
        assert not torch.equal(rows[INDICES[0]], initial("crd", {"dim": DIM})[0].state_dict()[name][INDICES[0]].float())
