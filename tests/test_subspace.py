"""Hyperplane Projection: the geometry of U, the gradient of theta, state, memory, errors."""

import math

import pytest
import torch
from torch import nn

import dctps_ext
from dctps_ext.subspace import HyperplaneProjection


@pytest.fixture(autouse=True)
def one_thread(threads):
    threads(1)  # the networks are small: more threads mostly wait for each other


KINDS = pytest.mark.parametrize("kind", ["gaussian", "fastfood", "sparse"])


def network(seed=0, dtype=torch.float64):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 7)
    ).to(dtype)


def matrix(net):
    """U [N, k], column by column."""
    with torch.no_grad():
        return torch.stack(
            [net.projection(e) for e in torch.eye(net.theta.numel(), dtype=net.theta.dtype)], 1
        )


INPUT = torch.randn(4, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
SIZE = 8 * 27 + 2 * 8 + 8 * 36 * 7 + 7


@KINDS
@pytest.mark.parametrize("k", [1, 2, 7, 64, 100, 600])
def test_us_columns_have_norm_1_and_are_nearly_orthogonal(kind, k):
    net = HyperplaneProjection(network(), k, kind, seed=3)
    u = matrix(net)
    assert u.shape == (SIZE, k)
    gram = u.T @ u
    norms = gram.diag().sqrt()
    if kind == "fastfood":  # the last block is cut
        length = 1 << (k - 1).bit_length()
        assert (norms - 1).abs().max() < 5 * math.sqrt(2 * length) / SIZE
    else:
        assert (norms - 1).abs().max() < 1e-12
    cosines = (gram - gram.diag().diag())[~torch.eye(k, dtype=torch.bool)] if k > 1 else torch.zeros(1)
    spread = math.sqrt((2 if kind == "fastfood" else 1) / SIZE)
    assert cosines.abs().max() < 8 * spread
    if k >= 64:  # of thousands of inner products the mean square is sharp
        assert 0.7 * spread < cosines.square().mean().sqrt() < 1.3 * spread
    if kind == "sparse":
        count = round(math.sqrt(SIZE))
        assert u.count_nonzero(0).tolist() == [count] * k
        torch.testing.assert_close(u[u != 0].abs(), torch.full((count * k,), count**-0.5).double())
    else:
        assert u.count_nonzero() > 0.99 * u.numel()


@KINDS
def test_distances_are_kept_in_all_directions(kind):
    net = HyperplaneProjection(network(), 50, kind)
    values = torch.linalg.svdvals(matrix(net))
    # A random N x k matrix of unit columns has its singular values near 1 -+ sqrt(k/N).
    margin = 1.6 * math.sqrt(50 / SIZE) * (math.sqrt(2) if kind == "fastfood" else 1)
    assert 1 - margin < values.min() and values.max() < 1 + margin


def test_fastfood_is_the_product_of_its_matrices():
    net = HyperplaneProjection(network(), 100, "fastfood", seed=1)
    p = net.projection
    hadamard = torch.ones(1, 1, dtype=torch.float64)
    while len(hadamard) < 128:
        hadamard = torch.kron(torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64), hadamard)
    hadamard /= math.sqrt(128)
    blocks = []
    for i, order in enumerate(p.order.view(-1, 128).long() - 128 * torch.arange(18)[:, None]):
        assert order.sort().values.equal(torch.arange(128)) and p.signs[i].abs().eq(1).all()
        permuted = torch.eye(128, dtype=torch.float64)[order]
        blocks.append(hadamard @ p.gaussian[i].diag() @ permuted @ hadamard @ p.signs[i].double().diag())
        torch.testing.assert_close(p.gaussian[i].norm(), torch.tensor(128 / math.sqrt(SIZE)).double())
    torch.testing.assert_close(matrix(net), torch.cat(blocks)[:SIZE, :100])


@KINDS
def test_forward_is_the_network_at_d_plus_u_theta_and_the_gradient_is_ut_times_its_gradient(kind):
    net, plain = HyperplaneProjection(network(), 30, kind), network()
    assert torch.equal(net(INPUT), plain(INPUT))  # theta = 0: w = d
    with torch.no_grad():
        net.theta.normal_(std=0.1, generator=torch.Generator().manual_seed(2))
        vector = nn.utils.parameters_to_vector(plain.parameters()) + matrix(net) @ net.theta
        nn.utils.vector_to_parameters(vector, plain.parameters())
    y, expected = net(INPUT), plain(INPUT)
    torch.testing.assert_close(y, expected, atol=1e-12, rtol=1e-12)
    target = torch.tensor([0, 1, 2, 3])
    nn.functional.cross_entropy(y, target).backward()
    nn.functional.cross_entropy(expected, target).backward()
    gradient = nn.utils.parameters_to_vector([p.grad for p in plain.parameters()])
    torch.testing.assert_close(net.theta.grad, matrix(net).T @ gradient, atol=1e-12, rtol=1e-10)
    # Batch norm's statistics are the wrapped network's own, and were updated.
    torch.testing.assert_close(net.module[1].running_mean, plain[1].running_mean)


@KINDS
def test_only_theta_trains_and_the_loss_falls(kind):
    net = HyperplaneProjection(network(dtype=torch.float32), 40, kind)
    assert [name for name, p in net.named_parameters() if p.requires_grad] == ["theta"]
    d = [p.clone() for p in net.module.parameters()]
    optimizer = torch.optim.Adam(net.parameters(), lr=0.05)
    losses = []
    for _ in range(15):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(INPUT.float()), torch.tensor([0, 1, 2, 3]))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    assert all(torch.equal(old, p) for old, p in zip(d, net.module.parameters(), strict=True))


@KINDS
def test_state_holds_the_seed_and_loads_into_another_seed(kind, tmp_path):
    net, other = HyperplaneProjection(network(), 20, kind, 5), HyperplaneProjection(network(9), 20, kind, 6)
    with torch.no_grad():
        net.theta.normal_()
    torch.save(net.state_dict(), tmp_path / "net.pt")
    keys = {"theta", f"projection.{kind}_seed"} | {f"module.{name}" for name in network().state_dict()}
    assert net.state_dict().keys() == keys
    other.load_state_dict(torch.load(tmp_path / "net.pt", weights_only=True))
    assert torch.equal(matrix(net), matrix(other)) and torch.equal(net.eval()(INPUT), other.eval()(INPUT))
    wrong = HyperplaneProjection(network(), 20, "sparse" if kind == "gaussian" else "gaussian")
    with pytest.raises(RuntimeError, match=f"projection.{kind}_seed"):
        wrong.load_state_dict(net.state_dict())


@KINDS
def test_the_seed_fixes_u_and_other_random_states_do_not(kind):
    state = torch.get_rng_state()
    a = matrix(HyperplaneProjection(network(), 5, kind, seed=7))
    torch.manual_seed(123)
    b = matrix(HyperplaneProjection(network(), 5, kind, seed=7))
    c = matrix(HyperplaneProjection(network(), 5, kind, seed=8))
    assert torch.equal(a, b) and not torch.equal(a, c)
    torch.set_rng_state(state)
    net = network()
    state = torch.get_rng_state()
    HyperplaneProjection(net, 5, kind)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_bytes_held(dtype):
    size = dtype.itemsize
    seed = 8
    held = {
        kind: HyperplaneProjection(network(dtype=dtype), 100, kind).bytes_held() for kind in KINDS.args[1]
    }
    for figures in held.values():
        assert figures["theta"] == 100 * size and figures["d"] == SIZE * size
    assert held["gaussian"]["U"] == SIZE * 100 * size + seed
    assert held["fastfood"]["U"] == 18 * 128 * (1 + 4 + size) + seed  # 18 blocks of 128 cover 2,255 weights
    nnz = 100 * round(math.sqrt(SIZE))
    assert held["sparse"]["U"] == nnz * (3 * 4 + size) + 4 * (SIZE + 1 + 101) + seed


def test_frozen_and_tied_parameters_and_a_dctps_network():
    model = nn.ModuleDict({"a": nn.Linear(4, 4), "b": nn.Linear(4, 4, bias=False)})
    model["b"].weight = model["a"].weight
    model["a"].bias.requires_grad_(False)
    tied = nn.Sequential(model["a"], nn.ReLU(), model["b"])
    net = HyperplaneProjection(tied, 3)
    assert net.projection.size == 16
    with torch.no_grad():
        net.theta.fill_(0.5)
    w, b, x = net.weights()["0.weight"], model["a"].bias, torch.randn(2, 4)
    torch.testing.assert_close(net(x), ((x @ w.T + b).relu()) @ w.T)

    inner = network()
    dctps_ext.convert_(inner, 0.05)
    net = HyperplaneProjection(inner, 10, "fastfood")
    net(INPUT).square().mean().backward()
    assert net.theta.grad.count_nonzero() == 10


def test_a_large_network_in_the_fast_form():
    net = HyperplaneProjection(dctps_ext.models.lenet5(), 615, "fastfood")
    net(torch.randn(2, 3, 32, 32)).sum().backward()
    assert net.theta.grad.count_nonzero() == 615
    assert "k=615, size=61510, projection='fastfood', seed=0" in repr(net)


@pytest.mark.parametrize(
    "module, arguments, error, message",
    [
        (network, (0,), ValueError, rf"k: expected an integer in \[1, {SIZE}\], got 0"),
        (network, (SIZE + 1,), ValueError, "k: expected an integer"),
        (network, (2.5,), TypeError, "k: expected an integer, got float"),
        (network, (3, "x"), ValueError, "projection: expected one of 'gaussian', .* got 'x'"),
        (network, (3, "sparse", -1), ValueError, "seed: expected an integer"),
        (nn.ReLU, (3,), ValueError, "module: expected at least one trainable parameter"),
        (lambda: "net", (3,), TypeError, "module: expected a torch.nn.Module, got str"),
        (
            lambda: nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).double()),
            (3,),
            ValueError,
            "module: expected .* of one dtype .* got torch.float32 on cpu, torch.float64 on cpu",
        ),
        (
            lambda: nn.Linear(2, 2, dtype=torch.complex64),
            (3,),
            TypeError,
            "module: expected parameters of a floating point dtype, got torch.complex64",
        ),
    ],
)
def test_bad_input_is_named_and_leaves_the_module_as_it_was(module, arguments, error, message):
    module = module()
    with pytest.raises(error, match=message):
        HyperplaneProjection(module, *arguments)
    if isinstance(module, nn.Module):
        assert all(p.requires_grad for p in module.parameters())
