"""Pruning: budgets, scores against direct computations, known signatures, RigL, cost, errors."""

import copy
import gc
import math
import statistics

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import dctps_ext
from dctps_ext import pruning
from dctps_ext.pruning import scores
from dctps_ext.pruning.selection import exponential_schedule

SCORED = ("snip", "grasp", "force", "iter_snip", "synflow")
RANDOM = ("uniform", "epl", "epf", "erk")


@pytest.fixture(autouse=True)
def one_thread(threads):
    threads(1)  # small work: more threads would only wait for each other


def images(count, size=8, classes=10, batches=1, dtype=torch.float32, channels=3):
    generator = torch.Generator().manual_seed(1)
    return [
        (
            torch.randn(count, channels, size, size, generator=generator, dtype=dtype),
            torch.randint(classes, (count,), generator=generator),
        )
        for _ in range(batches)
    ]


def mlp(widths=(5, 6, 4, 3), activation=nn.Tanh, bias=False):
    """A float64 network small enough for derivatives by hand."""
    torch.manual_seed(0)
    layers = []
    for n, m in zip(widths, widths[1:], strict=False):
        layers += [nn.Linear(n, m, bias=bias), activation()]
    return nn.Sequential(*layers[:-1]).double()


def rows(count=7, widths=(5, 6, 4, 3), batches=1):
    generator = torch.Generator().manual_seed(2)
    return [
        (
            torch.randn(count, widths[0], generator=generator, dtype=torch.float64),
            torch.randint(widths[-1], (count,), generator=generator),
        )
        for _ in range(batches)
    ]


def convnet():
    """Convolutions with and without groups, batch norm, biases, a shortcut with a layer of its own."""

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(8, 12, 3, stride=2, padding=1, groups=4)
            self.norm = nn.BatchNorm2d(12)
            self.shortcut = nn.Conv2d(8, 12, 1, stride=2)

        def forward(self, x):
            return F.relu(self.norm(self.conv(x)) + self.shortcut(x))

    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        Block(),
        nn.Flatten(),
        nn.Linear(108, 10),
    )


def weights_of(model):
    return {n: m.weight.detach() for n, m in model.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d))}


def largest(score, count, candidates=None):
    """Masks of the `count` largest by a plain sort over the whole network."""
    entries = [
        (-value, number, name, index)
        for number, (name, tensor) in enumerate(score.items())
        for index, value in enumerate(tensor.flatten().tolist())
        if candidates is None or candidates[name].flatten()[index]
    ]
    masks = {name: torch.zeros(tensor.numel(), dtype=torch.bool) for name, tensor in score.items()}
    for _, _, name, index in sorted(entries)[:count]:
        masks[name][index] = True
    return {name: mask.view(score[name].shape) for name, mask in masks.items()}


def assert_same(masks, wanted):
    assert list(masks) == list(wanted)
    for name, mask in masks.items():
        assert mask.dtype == torch.bool and torch.equal(mask, wanted[name]), name


def train_a_little(model):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for inputs, targets in images(16, batches=3):
        optimizer.zero_grad()
        F.cross_entropy(model(inputs), targets).backward()
        optimizer.step()


# ---- budgets, what is left alone


@pytest.mark.parametrize("method", pruning.METHODS)
@pytest.mark.parametrize("density", [0.5, 0.1, 0.02])
def test_budget_is_met_exactly_and_the_model_left_alone(method, density):
    model = convnet()
    model[1].eval()  # one module's mode may differ
    before, modes = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
    random_state = torch.get_rng_state()
    sizes = {name: weight.shape for name, weight in weights_of(model).items()}
    train_fn = train_a_little if method == "imp" else None
    try:
        masks = pruning.prune(model, density, method, images(16), train_fn=train_fn)
    except pruning.PruningBreakdown as breakdown:
        assert density < 0.5 and f"{method}: layer collapse: at density" in str(breakdown)
    else:
        assert {name: mask.shape for name, mask in masks.items()} == sizes
        assert all(mask.dtype == torch.bool for mask in masks.values())
        total = sum(map(math.prod, sizes.values()))
        assert sum(int(mask.sum()) for mask in masks.values()) == round(density * total)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert [m.training for m in model.modules()] == modes
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), random_state)


@pytest.mark.parametrize("method", SCORED)
def test_layers_left_out_are_neither_pruned_nor_counted(method):
    model = convnet()
    masks = pruning.prune(model, 0.1, method, images(16), filter_fn=lambda name, layer: name != "0")
    assert list(masks) == ["3.conv", "3.shortcut", "5"]
    assert sum(int(m.sum()) for m in masks.values()) == round(0.1 * sum(m.numel() for m in masks.values()))


@pytest.mark.parametrize("method", RANDOM)
def test_random_methods_draw_the_supports_of_convert(method):
    model = convnet()
    converted = copy.deepcopy(model)
    dctps_ext.convert_(converted, 0.1, method, offset="none", seed=5)
    pruning.sparsify_(model, pruning.prune(model, 0.1, method, images(2), seed=5))
    for mine, theirs in zip(model.modules(), converted.modules(), strict=True):
        if hasattr(theirs, "support"):
            assert mine.support == theirs.support
            assert torch.equal(mine.values, theirs.values)


def test_sparsify_gives_the_pruned_network_and_holds_nothing_dense():
    model = convnet()
    masks = pruning.prune(model, 0.1, "snip", images(16))
    dense = copy.deepcopy(model)
    for name, mask in masks.items():
        dense.get_submodule(name).weight.data *= mask
    report = pruning.sparsify_(model, masks)
    assert report.nnz == sum(int(mask.sum()) for mask in masks.values())
    assert {layer.type for layer in report.layers} == {"DCTpSConv2d", "DCTpSLinear"}
    layers = [m for m in model.modules() if hasattr(m, "support")]
    assert len(layers) == len(masks)
    for layer, mask in zip(layers, masks.values(), strict=True):
        assert layer.offset == "none" and layer.alpha is None and layer.nnz == int(mask.sum())
    assert max(t.numel() for t in [*model.parameters(), *model.buffers()]) < 1000 < 108 * 10
    ((inputs, _),) = images(4)
    torch.testing.assert_close(model(inputs), dense(inputs), rtol=1e-4, atol=1e-5)


# ---- scores against direct computations


def gate_derivatives(model, data, masks=None, step=1e-5):
    """|dL/dc| of gates c on the weights, by central differences; without masks at c = 1, else at the masks
    but with the dense weight behind each gate."""
    model = copy.deepcopy(model).train()
    result = {}
    weights = weights_of(model)
    dense = {name: weight.clone() for name, weight in weights.items()}
    if masks is not None:
        for name, weight in weights.items():
            weight *= masks[name]

    def loss():
        with torch.no_grad():
            return sum(F.cross_entropy(model(x), t).item() for x, t in data) / len(data)

    for name, weight in weights.items():
        flat, score = weight.view(-1), torch.empty(weight.numel(), dtype=torch.float64)
        for i, w in enumerate(dense[name].flatten().tolist()):
            at = flat[i].item()
            values = []
            for sign in (1, -1):
                flat[i] = at + sign * step * w
                values.append(loss())
            flat[i] = at
            score[i] = abs(values[0] - values[1]) / (2 * step)
        result[name] = score.view(weight.shape)
    return result


def test_snip_agrees_with_finite_differences_in_the_gates():
    model, data = mlp(), rows(batches=2)
    wanted = gate_derivatives(model, data)
    network = scores.Network(model, {n: model.get_submodule(n) for n in wanted}, data, 2, F.cross_entropy)
    got = scores.connection_sensitivity(network, None)
    for name, score in got.items():
        torch.testing.assert_close(score, wanted[name], rtol=1e-6, atol=1e-9)
    masks = pruning.prune(model, 0.3, "snip", data, num_batches=2)
    assert_same(masks, largest(wanted, round(0.3 * 66)))


@pytest.mark.parametrize("method", ["force", "iter_snip"])
def test_force_and_iter_snip_agree_with_finite_differences_step_by_step(method):
    model, data = mlp(), rows()
    masks, revived = None, 0
    for count in exponential_schedule(66, 13, 12):
        score = gate_derivatives(model, data, masks)
        before, masks = masks, largest(score, count, None if method == "force" else masks)
        if before is not None:
            revived += sum(int((masks[name] & ~before[name]).sum()) for name in masks)
    assert_same(pruning.prune(model, 13 / 66, method, data, steps=12), masks)
    assert (revived > 0) == (method == "force")


def test_grasp_agrees_with_the_explicit_hessian():
    model, data = mlp(), rows()
    ((x, targets),) = data
    w1, w2, w3 = weights_of(model).values()
    sizes = [w.numel() for w in (w1, w2, w3)]

    def loss(flat):
        a, b, c = (part.view_as(w) for part, w in zip(flat.split(sizes), (w1, w2, w3), strict=True))
        logits = torch.tanh(torch.tanh(x @ a.T) @ b.T) @ c.T
        return F.cross_entropy(logits / 200, targets)

    flat = torch.cat([w.flatten() for w in (w1, w2, w3)])
    hessian = torch.autograd.functional.hessian(loss, flat)
    gradient = torch.autograd.functional.jacobian(loss, flat)
    wanted = dict(zip(weights_of(model), (flat * (hessian @ gradient)).split(sizes), strict=True))
    network = scores.Network(model, {n: model.get_submodule(n) for n in wanted}, data, 1, F.cross_entropy)
    for name, score in scores.gradient_flow(network).items():
        torch.testing.assert_close(score.flatten(), wanted[name], rtol=1e-9, atol=1e-16)
    masks = pruning.prune(model, 0.3, "grasp", data)
    shapes = {name: wanted[name].view(masks[name].shape) for name in masks}
    assert_same(masks, largest(shapes, 20))  # of -w (H g) the largest are removed


def test_synflow_agrees_with_products_of_matrices():
    model = mlp(activation=nn.ReLU, bias=True)
    absolute = {name: w.abs() for name, w in weights_of(model).items()}
    masks = {name: torch.ones_like(w, dtype=torch.bool) for name, w in absolute.items()}
    total = sum(mask.numel() for mask in masks.values())
    for count in exponential_schedule(total, 8, 100):
        a, b, c = (absolute[name] * masks[name] for name in masks)
        up1, up2 = a.sum(1), b @ a.sum(1)  # flow that arrives; below: flow that leaves
        down2, down1 = c.sum(0), c.sum(0) @ b
        score = [down1[:, None] * a, down2[:, None] * b * up1, c * up2]
        masks = largest(dict(zip(masks, score, strict=True)), count, masks)
    assert_same(pruning.prune(model, 8 / total, "synflow", rows()), masks)


def test_imp_agrees_with_masked_dense_training():
    model, data = mlp(), rows()
    lr, steps = 0.5, 20

    def train(network):
        optimizer = torch.optim.SGD(network.parameters(), lr=lr)
        for _ in range(steps):
            optimizer.zero_grad()
            F.cross_entropy(network(data[0][0]), data[0][1]).backward()
            optimizer.step()

    masks, total, budget = None, 66, 7
    rounds = math.ceil(math.log(budget / total) / math.log(0.8))
    for count in exponential_schedule(total, budget, rounds):
        dense = copy.deepcopy(model)  # rewound
        for _ in range(steps):
            if masks is not None:
                for name, weight in weights_of(dense).items():
                    weight *= masks[name]
            dense.zero_grad()
            F.cross_entropy(dense(data[0][0]), data[0][1]).backward()
            for parameter in dense.parameters():
                parameter.data -= lr * parameter.grad
        masks = largest({name: w.abs() for name, w in weights_of(dense).items()}, count, masks)
    assert rounds > 5
    assert_same(pruning.prune(model, budget / total, "imp", data, train_fn=train), masks)


def test_exponential_schedule():
    assert exponential_schedule(10_000, 1, 4) == [1000, 100, 10, 1]
    assert exponential_schedule(61510, 62, 1) == [62]
    counts = exponential_schedule(61510, 615, 60)
    assert len(counts) == 60 and counts[-1] == 615 and counts == sorted(counts, reverse=True)


def test_defaults_are_those_of_table_3(monkeypatch):
    assert pruning.STEPS == {"force": 60, "iter_snip": 60, "synflow": 100}
    seen = []
    original = scores.Network.batches

    def counting(self):
        batches = list(original(self))
        seen.append(len(batches))
        return iter(batches)

    monkeypatch.setattr(scores.Network, "batches", counting)
    for classes, batches in ((10, 1), (100, 10), (200, 20)):
        seen.clear()
        model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16, 8), nn.Tanh(), nn.Linear(8, classes))
        pruning.prune(model, 0.2, "force", images(4, 4, classes, batches + 1))
        assert seen == [batches] * 60


def test_every_step_starts_the_data_anew():
    starts = []

    class Data:
        def __iter__(self):
            starts.append(None)
            return iter(rows())

    pruning.prune(mlp(), 0.3, "force", Data(), steps=7, num_batches=1)
    assert len(starts) == 7


# ---- known signatures


def test_synflow_conserves_the_flow_layer_by_layer():
    torch.manual_seed(0)
    model = dctps_ext.models.lenet5().double()
    layers = {n: m for n, m in model.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d))}
    network = scores.Network(model, layers, images(1, 32), 1, F.cross_entropy)
    for masks in (None, pruning.prune(model, 0.01, "synflow", images(1, 32))):
        flow = [score.sum().item() for score in scores.synaptic_flow(network, masks, torch.float64).values()]
        output, _ = network.positive_output(
            {n: w.abs() for n, w in scores.masked(network.weights, masks).items()}, torch.float64
        )
        assert flow == pytest.approx([output.item()] * 5, rel=1e-12)


def test_synflow_goes_on_in_float64_where_float32_overflows():
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Sequential(nn.Linear(32, 32, bias=False), nn.ReLU()) for _ in range(30)))
    for parameter in model.parameters():
        parameter.data *= 30
    data = [(torch.randn(2, 32), torch.zeros(2, dtype=torch.long))]
    layers = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear)}
    network = scores.Network(model, layers, data, 1, F.cross_entropy)
    assert not all(s.isfinite().all() for s in scores.synaptic_flow(network, None, torch.float32).values())
    masks = pruning.prune(model, 0.1, "synflow", data)
    assert_same(masks, pruning.prune(copy.deepcopy(model).double(), 0.1, "synflow", data))


@pytest.fixture(scope="module")
def fixup():
    torch.manual_seed(0)
    return dctps_ext.models.fixup_resnet110()


@pytest.mark.parametrize("method", ["snip", "force", "iter_snip", "synflow"])
def test_what_multiplies_gradients_by_weights_fails_on_fixup(fixup, method):
    message = rf"{method}: all scores are zero at the dense network \(step 1 of .* no signal"
    with pytest.raises(pruning.PruningBreakdown, match=message):
        pruning.prune(fixup, 0.01, method, images(2))


def test_grasp_fails_on_fixup_but_for_the_stem(fixup):
    with pytest.raises(pruning.PruningBreakdown, match="grasp: only .* budget of 17199 would be filled up"):
        pruning.prune(fixup, 0.01, "grasp", images(2))


def test_force_fails_at_extreme_density():
    torch.manual_seed(0)
    model = dctps_ext.models.lenet5()
    with pytest.raises(
        pruning.PruningBreakdown, match=r"force: .*(all scores are zero at the network pruned)"
    ):
        pruning.prune(model, 1e-4, "force", images(32, 32))


@pytest.fixture(scope="module")
def resnet50():
    torch.manual_seed(0)
    return dctps_ext.models.resnet50()


def test_random_uniform_collapses_layers_and_epl_does_not(resnet50):
    with pytest.raises(pruning.PruningBreakdown, match="uniform: layer collapse: at density 0.0001 .* stem"):
        pruning.prune(resnet50, 1e-4, "uniform", images(1))
    masks = pruning.prune(resnet50, 1e-4, "epl", images(1))
    assert {int(mask.sum()) for mask in masks.values()} <= {43, 44} and len(masks) == 54


def test_synflow_on_resnet50_shares_about_equally_without_the_shortcuts(resnet50):
    # At 16x16 and in 25 steps, not 100, for time alone: the signature is the same.
    masks = pruning.prune(resnet50, 1e-3, "synflow", images(1, 16), steps=25)
    counts = {name: int(mask.sum()) for name, mask in masks.items()}
    shortcuts = [count for name, count in counts.items() if "shortcut" in name]
    others = [count for name, count in counts.items() if "shortcut" not in name]
    assert shortcuts == [0] * 4 and len(others) == 50
    assert sum(others) == round(1e-3 * 23467712)
    middle = statistics.median(others)
    assert all(middle / 2 < count < 1.5 * middle for count in others)


# ---- layer collapse


def test_an_empty_layer_is_a_collapse_only_where_no_path_goes_round_it():
    model = convnet()
    layers = {n: model.get_submodule(n) for n in weights_of(model)}
    network = scores.Network(model, layers, images(1), 1, F.cross_entropy)
    full = {name: torch.ones_like(w, dtype=torch.bool) for name, w in network.weights.items()}
    for empty, connected in [
        ([], True), (["3.shortcut"], True), (["3.conv"], True), (["3.conv", "3.shortcut"], False),
        (["0"], False), (["5"], False),
    ]:  # fmt: skip
        masks = {name: mask & (name not in empty) for name, mask in full.items()}
        assert scores.is_connected(network, masks) == connected, empty


# ---- RigL


def rigl_setup(offset, make, optimizer=torch.optim.SGD, steps=1000, interval=3, **keywords):
    torch.manual_seed(0)
    model = make()
    dctps_ext.convert_(model, 0.2, offset=offset, seed=1)
    layers = [m for m in model.modules() if hasattr(m, "support")]
    if offset == "dct":
        for layer in layers:
            nn.init.normal_(layer.values, std=0.1)
    optimizer = optimizer(model.parameters(), lr=0.05, **keywords)
    return model, layers, optimizer, pruning.RigL(model, optimizer, steps, interval=interval)


def padded():
    """Strides, dilation, groups, paddings of every kind."""
    return nn.Sequential(
        nn.Conv2d(4, 6, 3, stride=2, padding=(1, 2), bias=False),
        nn.Conv2d(6, 6, (2, 3), padding="same", groups=3, padding_mode="circular"),
        nn.Conv2d(6, 8, 2, dilation=2, padding=1, padding_mode="reflect"),
        nn.Flatten(),
        nn.Linear(8 * 4 * 5, 10),
    )


def step(model, optimizer, rigl, data):
    optimizer.zero_grad()
    loss = sum(F.cross_entropy(model(x), t) for x, t in data)
    loss.backward()
    return rigl.step()


def positions(layer):
    m, n = layer.support.shape
    rows = torch.repeat_interleave(torch.arange(m), layer.support.crow.diff())
    return (rows * n + layer.support.col).tolist()


@pytest.mark.parametrize("offset", ["dct", "none"])
def test_rigl_keeps_nnz_drops_the_smallest_and_grows_by_the_dense_gradient(offset):
    model, layers, optimizer, rigl = rigl_setup(offset, padded, momentum=0.9)
    model.double()
    data = images(5, 8, channels=4, batches=2, dtype=torch.float64)
    updates = moved = 0
    for t in range(1, 13):
        before = [dict(zip(positions(m), m.values.tolist(), strict=True)) for m in layers]
        momentum = [
            dict(zip(positions(m), optimizer.state[m.values]["momentum_buffer"].tolist(), strict=True))
            if optimizer.state[m.values]
            else None
            for m in layers
        ]
        twin = dctps_ext.to_dense(model)
        sum(F.cross_entropy(twin(x), target) for x, target in data).backward()
        alphas = [layer.alpha.item() for layer in layers if offset == "dct"]
        update = step(model, optimizer, rigl, data)
        assert update == (t % 3 == 0)
        if not update:
            assert [positions(m) for m in layers] == [list(b) for b in before]
            continue
        updates += 1
        assert [layer.alpha.item() for layer in layers if offset == "dct"] == alphas
        dense = [m for m in twin.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
        for layer, twin_layer, old, moment in zip(layers, dense, before, momentum, strict=True):
            if layer.density == 1:
                continue  # nothing to move, so RigL leaves it alone
            count = int(0.15 * (1 + math.cos(math.pi * t / 750)) * len(old))
            assert count > 0 and layer.nnz == len(old) == len(layer.values)
            kept = sorted(old, key=lambda p: -abs(old[p]))[: len(old) - count]
            gradient = layer._to_matrix(twin_layer.weight.grad).flatten().abs().tolist()
            free = [p for p in range(len(gradient)) if p not in kept]
            grown = sorted(free, key=lambda p: -gradient[p])[:count]
            now = dict(zip(positions(layer), layer.values.tolist(), strict=True))
            assert list(now) == sorted(kept + grown)
            moved += set(now) != set(old)
            assert now == {p: old.get(p, 0.0) for p in now}
            buffer = optimizer.state[layer.values]["momentum_buffer"].tolist()
            assert dict(zip(now, buffer, strict=True)) == {p: moment.get(p, 0.0) for p in now}
            assert layer.values.grad is None
            index = layer.support
            assert index == dctps_ext.Support.from_mask(index.mask())
    assert updates == 4 and moved > 4


def test_rigl_reorders_all_of_adams_state_and_trains_on():
    model, layers, optimizer, rigl = rigl_setup("dct", padded, torch.optim.Adam, interval=2, amsgrad=True)
    data = images(16, 8, channels=4)
    losses = []
    for _ in range(60):
        step(model, optimizer, rigl, data)
        losses.append(F.cross_entropy(model(data[0][0]), data[0][1]).item())
        for layer in layers:
            state = optimizer.state[layer.values]
            if state:
                assert state["exp_avg"].shape == state["max_exp_avg_sq"].shape == layer.values.shape
    assert losses[-1] < 0.5 * losses[0]


def test_rigl_stops_at_three_quarters_and_resumes():
    model, layers, optimizer, rigl = rigl_setup("none", padded, steps=20, interval=2)
    data = images(5, 8, channels=4)
    updates = [step(model, optimizer, rigl, data) for _ in range(6)]
    state = copy.deepcopy((model.state_dict(), optimizer.state_dict(), rigl.state_dict()))
    updates += [step(model, optimizer, rigl, data) for _ in range(14)]
    assert [t for t, update in enumerate(updates, 1) if update] == [2, 4, 6, 8, 10, 12, 14]

    again, _, optimizer2, rigl2 = rigl_setup("none", padded, steps=20, interval=2)
    for mine, saved in zip((again, optimizer2, rigl2), state, strict=True):
        mine.load_state_dict(saved)
    assert [step(again, optimizer2, rigl2, data) for _ in range(14)] == updates[6:]
    for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_rigl_sums_the_gradients_of_a_layer_used_twice():
    shared = nn.Linear(12, 12)
    model, (layer,), optimizer, rigl = rigl_setup(
        "none", lambda: nn.Sequential(shared, nn.Tanh(), shared).double(), interval=1
    )
    x, target = torch.randn(4, 12, dtype=torch.float64), torch.randint(12, (4,))
    twin = dctps_ext.to_dense(model)
    F.cross_entropy(twin(x), target).backward()
    kept_of = layer.values.detach().abs().sort(descending=True).values
    old = dict(zip(positions(layer), layer.values.tolist(), strict=True))
    assert step(model, optimizer, rigl, [(x, target)])
    count = int(0.15 * (1 + math.cos(math.pi / 750)) * layer.nnz)
    gradient = twin[0].weight.grad.flatten().abs()
    kept = [p for p in old if abs(old[p]) >= kept_of[layer.nnz - count - 1]]
    free = torch.ones(144, dtype=torch.bool).index_fill(0, torch.tensor(kept), False)
    grown = (gradient * free).topk(count).indices.tolist()
    assert positions(layer) == sorted(kept + grown)


def test_rigl_holds_one_dense_gradient_at_a_time():
    side, depth = 256, 8
    model, _, optimizer, rigl = rigl_setup(
        "dct", lambda: nn.Sequential(*(nn.Linear(side, side) for _ in range(depth))), interval=2
    )
    data = [(torch.randn(4, side), torch.randint(side, (4,)))]
    step(model, optimizer, rigl, data)
    F.cross_entropy(model(data[0][0]), data[0][1]).backward()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as run:
        assert rigl.step()
    assert 4 * side**2 < pruning.cost.peak_of(run) < 0.75 * depth * 4 * side**2


def test_rigl_errors():
    model, _, optimizer, rigl = rigl_setup("dct", padded, interval=1)
    with pytest.raises(RuntimeError, match="expected a backward pass before it"):
        rigl.step()
    with pytest.raises(ValueError, match="model: expected at least one DCTpS or sparse layer"):
        pruning.RigL(padded(), optimizer, 10)
    with pytest.raises(ValueError, match="optimizer: expected it to have 0.values among its parameters"):
        pruning.RigL(model, torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1), 10)
    with pytest.raises(ValueError, match=r"drop_fraction: expected a number in \(0, 1\), got 1"):
        pruning.RigL(model, optimizer, 10, drop_fraction=1)
    with pytest.raises(TypeError, match=r"drop_fraction: expected a number in \(0, 1\), got str"):
        pruning.RigL(model, optimizer, 10, drop_fraction="0.3")
    with pytest.raises(TypeError, match="optimizer: expected a torch.optim.Optimizer, got NoneType"):
        pruning.RigL(model, None, 10)
    with pytest.raises(TypeError, match="model: expected a torch.nn.Module, got list"):
        pruning.RigL([model], optimizer, 10)
    for name in ("steps", "interval"):
        with pytest.raises(ValueError, match=rf"{name}: expected an integer in \[1, .*, got 0"):
            pruning.RigL(model, optimizer, **{"steps": 10, name: 0})


# ---- cost


def test_measure():
    a, b = torch.randn(300, 200), torch.randn(200, 100)
    calls = []

    def call():
        calls.append(None)
        return (a @ b).sum().item()

    result, cost = pruning.measure(call)
    assert result == (a @ b).sum().item() and len(calls) == 2
    assert cost.flops == 2 * 300 * 200 * 100
    assert 300 * 100 * 4 <= cost.peak_bytes < 310 * 100 * 4
    assert cost.seconds > 0
    _, again = pruning.measure(call, count_flops=False)
    assert again.flops is None and len(calls) == 3


def test_the_profiler_does_not_warn_of_earlier_garbage(capfd):
    garbage = [torch.zeros(1000)]
    garbage.append(garbage)
    del garbage
    pruning.measure(gc.collect, count_flops=False)
    assert "Memory block" not in capfd.readouterr().err


# ---- errors


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"method": "magic"}, ValueError, "method: expected one of 'uniform', .* got 'magic'"),
        ({"density": 1.5}, ValueError, r"density: expected a number in \[0, 1\]"),
        ({"density": "x"}, TypeError, "density: expected a number"),
        ({"density": 0}, pruning.PruningBreakdown, "snip: density 0 leaves no weight at all"),
        ({"steps": 5}, ValueError, "steps: expected None for method 'snip', which has none, got 5"),
        ({"method": "force", "steps": 0}, ValueError, "steps: expected an integer in"),
        ({"num_batches": 0}, ValueError, "num_batches: expected an integer in"),
        ({"num_batches": 3}, ValueError, "data: expected at least num_batches = 3 batches, got 1"),
        ({"seed": -1}, ValueError, "seed: expected an integer in"),
        ({"method": "imp"}, ValueError, "train_fn: expected a function for method 'imp', got None"),
        ({"train_fn": print}, ValueError, "train_fn: expected None for method 'snip', got <built-in"),
        ({"method": "imp", "train_fn": 3}, ValueError, "train_fn: expected a function .* got 3"),
        ({"data": iter([])}, TypeError, "data: expected a re-iterable .* got list_iterator"),
        ({"data": None}, TypeError, "data: expected a re-iterable .* got NoneType"),
        ({"model": "net"}, TypeError, "model: expected a torch.nn.Module, got str"),
        ({"data": [torch.zeros(2, 5)]}, TypeError, r"data: expected pairs \(inputs, targets\), got Tensor"),
        ({"data": []}, ValueError, "data: expected at least one batch, got none"),
        ({"model": nn.Linear(5, 3)}, ValueError, "model: is itself a Linear"),
        ({"model": nn.Sequential(nn.ReLU())}, ValueError, "model: expected at least one Linear or Conv2d"),
    ],
)
def test_errors_of_prune(change, error, message):
    arguments = {"model": mlp(), "density": 0.5, "method": "snip", "data": rows(), **change}
    with pytest.raises(error, match=message):
        pruning.prune(**arguments)


def test_errors_of_sparsify_leave_the_model_as_it_was():
    model = mlp()
    modules = list(model.modules())
    good = torch.ones(6, 5, dtype=torch.bool)
    for masks, error, message in (
        ([good], TypeError, "masks: expected a dict, layer name -> mask, got list"),
        ({"0": good, "9": good}, ValueError, "masks: expected names of Linear or Conv2d layers, got 9"),
        ({"0": good.float()}, TypeError, "masks: expected a torch.bool tensor for 0, got a torch.float32"),
        ({"0": good.T}, ValueError, r"masks: expected the shape \(6, 5\) for 0, got \(5, 6\)"),
    ):
        with pytest.raises(error, match=message):
            pruning.sparsify_(model, masks)
        assert list(model.modules()) == modules


def test_a_diverging_training_is_a_breakdown_of_imp():
    def diverge(model):
        for parameter in model.parameters():
            parameter.data.fill_(math.nan)

    with pytest.raises(pruning.PruningBreakdown, match="imp: weights are infinite or NaN .* round 1"):
        pruning.prune(mlp(), 0.5, "imp", rows(), train_fn=diverge)
