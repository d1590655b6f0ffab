"""How the CUDA kernels behave as guests of torch: streams, devices, graphs, memory, sizes; needs a GPU.

What the ops compute is tested on the GPU too, by tests/test_ops_linear.py with the device `cuda`.
"""

import threading

import pytest
import torch

import dctps_ext
from dctps_ext import Support
from tests.checks import DTYPES, assert_accurate, random_support, why_no_cuda

if why_no_cuda():
    pytest.skip(f"needs a GPU: {why_no_cuda()}", allow_module_level=True)

LONG = 2_000_000_000  # cycles that torch.cuda._sleep keeps a stream busy: a second or so
OPS = (
    "dct",
    "idct",
    "sparse_linear",
    "sparse_linear_transposed",
    "sddmm",
    "dctps_linear",
    "dctps_linear_backward",
)


def operands(m, n, dtype, rows=5, nnz=None, seed=0, device="cuda"):
    """(x, v, values, support, alpha, bias): x [rows, n], v [rows, m]; the same numbers on every device."""
    generator = torch.Generator().manual_seed(seed)
    support = Support.random(m, n, min(m * n, 3 * max(m, n)) if nnz is None else nnz, seed=seed)
    shapes = (rows, n), (rows, m), (support.nnz,), (m,)
    x, v, values, bias = (
        torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).to(device) for shape in shapes
    )
    return x, v, values, support.to(device), torch.tensor(0.75, dtype=dtype, device=device), bias


def call(op, x, v, values, support, alpha, bias):
    """The results of one op as a tuple."""
    m, n = support.shape
    ops, index = torch.ops.dctps_ext, support.index
    results = {
        "dct": lambda: ops.dct(x, m),
        "idct": lambda: ops.idct(v, n),
        "sparse_linear": lambda: ops.sparse_linear(x, values, index, m, n),
        "sparse_linear_transposed": lambda: ops.sparse_linear_transposed(v, values, index, m, n),
        "sddmm": lambda: ops.sddmm(v, x, index, m, n),
        "dctps_linear": lambda: ops.dctps_linear(x, values, index, alpha, bias, m, n, "fast"),
        "dctps_linear_backward": lambda: ops.dctps_linear_backward(
            v, x, values, index, alpha, m, n, "fast", [True] * 4
        ),
    }[op]()
    return results if isinstance(results, tuple) else (results,)


def assert_same_bits(results, expected):
    assert len(results) == len(expected)
    for result, other in zip(results, expected, strict=True):
        assert torch.equal(result, other)


# ---- results; this is also what compute-sanitizer watches (tools/gpu_check.py), so it is small


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("m,n", [(7, 16), (97, 64), (300, 1021), (1024, 1024), (82, 4608)])
def test_every_op_agrees_with_float64_on_the_cpu(m, n, dtype):
    on_gpu = operands(m, n, dtype, rows=19)
    exact = tuple(t.cpu().double() if isinstance(t, torch.Tensor) else t.to("cpu") for t in on_gpu)
    x, v = exact[:2]
    for op in OPS:
        expected = call(op, *exact)
        for lead in (0, 1):  # rows that start on 16 bytes, and rows that do not
            shifted = tuple(torch.nn.functional.pad(t, (lead, 0))[:, lead:] for t in on_gpu[:2])
            results = call(op, *shifted, *on_gpu[2:])
            assert len(results) == len(expected)
            for result, oracle in zip(results, expected, strict=True):
                if oracle.dim():
                    assert_accurate(result.cpu(), oracle, dtype)
                else:  # dalpha: one sum with cancellation, so its error is relative to what it is summed from
                    scale = (dctps_ext.idct(v, n) * x).abs().sum()
                    bound = {torch.float64: 1e-12, torch.float32: 2e-6}.get(dtype, 2 * torch.finfo(dtype).eps)
                    assert (result.cpu().double() - oracle).abs() <= bound * scale


def test_a_layer_moves_to_the_gpu_and_learns_the_same_there():
    layer = dctps_ext.DCTpSLinear(300, 200, density=0.05)
    twin = dctps_ext.DCTpSLinear(300, 200, density=0.05).cuda()
    twin.load_state_dict(layer.state_dict())
    x = torch.randn(17, 300, generator=torch.Generator().manual_seed(0))
    for module, data in ((layer, x), (twin, x.cuda())):
        optimizer = torch.optim.SGD(module.parameters(), lr=0.01)
        for _ in range(3):
            optimizer.zero_grad()
            module(data).square().mean().backward()
            optimizer.step()
    for ours, theirs in zip(twin.parameters(), layer.parameters(), strict=True):
        assert ours.is_cuda
        torch.testing.assert_close(ours.cpu(), theirs, rtol=1e-4, atol=1e-5)


def test_tensors_on_two_devices_are_an_error():
    x, _, values, support, alpha, bias = operands(6, 10, torch.float32)
    for arguments in (
        (x.cpu(), values, support, alpha, bias),
        (x, values.cpu(), support, alpha, bias),
        (x, values, support.to("cpu"), alpha, bias),
        (x, values, support, alpha.cpu(), bias),
        (x, values, support, alpha, bias.cpu()),
    ):
        with pytest.raises(ValueError, match="expected all tensors on one device, got .*cpu"):
            dctps_ext.dctps_linear(*arguments, algorithm="fast")


# ---- streams


@pytest.mark.parametrize("op", OPS)
def test_work_goes_to_the_current_stream(op):
    """The operands come into being on a busy stream of the caller's: any other stream would read NaN."""
    good = operands(300, 256, torch.float32, rows=33)
    expected = call(op, *good)
    late = tuple(torch.full_like(t, float("nan")) for t in good[:2])
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(LONG // 10)
        for destination, source in zip(late, good, strict=False):
            destination.copy_(source)
        results = call(op, *late, *good[2:])
    stream.synchronize()
    assert_same_bits(results, expected)


@pytest.mark.parametrize("op", OPS)
def test_a_call_returns_while_the_gpu_is_still_busy(op):
    arguments = operands(300, 256, torch.float32, rows=33)
    expected = call(op, *arguments)  # makes the plan, loads the kernels
    torch.cuda.synchronize()
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        torch.cuda._sleep(LONG)
        results = call(op, *arguments)
        still_busy = not torch.cuda.current_stream().query()
    finally:
        torch.cuda.set_sync_debug_mode(before)
    assert still_busy
    assert_same_bits(results, expected)


def conv_call(x, dy, values, support, alpha, bias, algorithm, **keywords):
    """y, dx, dvalues, dalpha, dbias of a 3x3 convolution."""
    leaves = [t.detach().clone().requires_grad_() for t in (x, values, alpha, bias)]
    y = dctps_ext.dctps_conv2d(
        leaves[0], leaves[1], support, *leaves[2:], kernel_size=3, padding=1, algorithm=algorithm, **keywords
    )
    return y.detach(), *torch.autograd.grad(y, leaves, dy)


@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "channels_last"])
@pytest.mark.parametrize("algorithm", ["taps", "dense"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_convolution_does_not_wait_and_is_captured_in_a_graph(dtype, algorithm, channels_last):
    """And repeats its bits, where they are promised. Its results on a GPU are tested by test_ops_conv.py."""
    x, dy = torch.randn(3, 64, 20, 18), torch.randn(3, 48, 20, 18)
    support = random_support(48, 576, 0.02).to("cuda")
    others = torch.randn(support.nnz), torch.tensor(0.75), torch.randn(48)
    values, alpha, bias = (t.to("cuda", dtype) for t in others)
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    x, dy = (t.to("cuda", dtype, memory_format=memory_format) for t in (x, dy))
    arguments = (x, dy, values, support, alpha, bias, algorithm)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        expected = conv_call(*arguments)  # makes the plan, loads the kernels
    torch.cuda.synchronize()
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        results = conv_call(*arguments)
    finally:
        torch.cuda.set_sync_debug_mode(before)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = conv_call(*arguments)
    for _ in range(3):
        graph.replay()
    torch.cuda.synchronize()
    for first, second, third in zip(expected, results, captured, strict=True):
        if algorithm == "taps":
            assert torch.equal(first, second) and torch.equal(first, third)
        else:
            torch.testing.assert_close(first, third, rtol=2e-2, atol=2e-2 * first.abs().max().item())


def test_a_plan_made_on_a_busy_stream_is_whole_on_every_other():
    q = 2520  # of no other test here, so its tables are made now
    x = torch.randn(4, q)
    expected = dctps_ext.dct(x.double())
    on_gpu = x.cuda()
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda._sleep(LONG // 10)
        first = dctps_ext.dct(on_gpu)
    with torch.cuda.stream(torch.cuda.Stream()):
        second = dctps_ext.dct(on_gpu)
    torch.cuda.synchronize()
    assert_accurate(first.cpu(), expected, torch.float32)
    assert torch.equal(first, second)


def test_threads_with_streams_of_their_own_get_the_same_results():
    arguments = operands(1440, 1440, torch.float32, rows=64)
    torch.cuda.synchronize()
    results = [None] * 4

    def work(k):
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            for _ in range(5):
                results[k] = call("dctps_linear_backward", *arguments)
        stream.synchronize()

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result in results[1:]:
        assert_same_bits(result, results[0])


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("op", OPS)
def test_work_goes_to_the_device_of_the_tensors(op):
    expected = call(op, *operands(300, 256, torch.float32, device="cuda:0"))
    with torch.cuda.device(0):
        results = call(op, *operands(300, 256, torch.float32, device="cuda:1"))
        assert torch.cuda.current_device() == 0
    assert all(result.get_device() == 1 for result in results)
    for result, other in zip(results, expected, strict=True):
        torch.testing.assert_close(result.cpu(), other.cpu())  # two kinds of GPU may differ in bits


# ---- CUDA graphs


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_forward_and_backward_are_captured_in_a_graph(dtype):
    first = operands(300, 1024, dtype, rows=129)
    x, v = (torch.randn_like(t) for t in first[:2])
    passes = ("dctps_linear", "dctps_linear_backward", "dct", "sddmm")
    expected = [call(op, x, v, *first[2:]) for op in passes]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for op in passes:
            call(op, *first)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):  # in its strictest mode: synchronising or allocating by cudaMalloc fails
        results = [call(op, *first) for op in passes]
    first[0].copy_(x)
    first[1].copy_(v)
    for _ in range(3):
        graph.replay()
    torch.cuda.synchronize()
    for result, other in zip(results, expected, strict=True):
        assert_same_bits(result, other)


def test_a_training_step_is_captured_in_a_graph():
    layer = dctps_ext.DCTpSLinear(256, 128, density=0.05, algorithm="fast").cuda()
    x = torch.randn(65, 256, device="cuda", requires_grad=True)
    captured = torch.cuda.make_graphed_callables(layer, (x.detach().clone().requires_grad_(),))
    y = captured(x)
    got = torch.autograd.grad(y.square().sum(), (x, *layer.parameters()))
    support = layer.support
    y = dctps_ext.dctps_linear(x, layer.values, support, layer.alpha, layer.bias, algorithm="fast")
    assert_same_bits(got, torch.autograd.grad(y.square().sum(), (x, *layer.parameters())))


# ---- memory


@pytest.mark.parametrize("op", OPS)
def test_all_memory_comes_from_torchs_allocator(op):
    batches = [operands(1024, 1000, torch.float32, rows=rows) for rows in (200, 2000)]
    for arguments in batches:  # loading a kernel takes device memory too, once
        call(op, *arguments)
    torch.cuda.synchronize()

    def outside():  # device memory that is neither free nor held by torch's allocator
        free, total = torch.cuda.mem_get_info()
        return total - free - torch.cuda.memory_reserved()

    before = outside()
    for _ in range(3):
        results = [call(op, *arguments) for arguments in batches]
        torch.cuda.synchronize()
        assert outside() == before, f"{len(results)} calls hold memory of their own"


@pytest.mark.parametrize("op", ["dct", "idct", "sparse_linear", "dctps_linear"])
def test_a_forward_allocates_its_output_alone(op):
    arguments = operands(4096, 4096, torch.float32, rows=512)
    call(op, *arguments)
    torch.cuda.synchronize()
    held = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    (result,) = call(op, *arguments)
    assert torch.cuda.max_memory_allocated() - held <= result.nbytes + 2**20


def test_results_are_written_whole():
    """Fresh memory is full of NaN here: whatever a kernel leaves out shows."""
    arguments = operands(300, 1021, torch.float32, rows=77)
    expected = [call(op, *arguments) for op in OPS]
    torch.use_deterministic_algorithms(True)  # makes torch.empty fill with NaN
    try:
        results = [call(op, *arguments) for op in OPS]
    finally:
        torch.use_deterministic_algorithms(False)
    for result, other in zip(results, expected, strict=True):
        assert_same_bits(result, other)


# ---- sizes


def skip_without(bytes_needed):
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info()
    if free < bytes_needed:
        pytest.skip(f"needs {bytes_needed / 2**30:.0f} GiB of free GPU memory, has {free / 2**30:.0f}")


@pytest.mark.parametrize("op", ["dct", "dctps_linear", "dctps_linear_backward"])
def test_more_than_two_to_the_31_elements(op):
    q, rows = 1024, 2**21 + 3
    elements = q * rows
    assert elements > 2**31
    skip_without({"dctps_linear_backward": 9}.get(op, 5) * elements)  # bfloat16, and what a comparison needs
    _, _, *rest = operands(q, q, torch.bfloat16, rows=1)
    x = torch.empty(rows, q, dtype=torch.bfloat16, device="cuda").normal_()
    v = x.roll(1, 1) if op == "dctps_linear_backward" else x
    result = call(op, x, v, *rest)[0]
    for start in (0, 2**20 - 2, 2**21 - 2, rows - 5):  # 2**20 and 2**21 rows are 2**30 and 2**31 elements
        part = slice(start, start + 5)
        assert torch.equal(result[part], call(op, x[part], v[part], *rest)[0])


def test_rows_that_lie_further_apart_than_two_to_the_31_elements():
    stride = 2**31 + 8
    skip_without(2 * (2 * stride + 2048))
    memory = torch.empty(2 * stride + 1024, dtype=torch.bfloat16, device="cuda")
    x = memory.as_strided((3, 1024), (stride, 1))
    x.normal_()
    assert torch.equal(dctps_ext.dct(x), dctps_ext.dct(x.clone()))


def test_more_rows_than_a_grid_has_blocks_in_y():
    x = torch.randn(70_001, 16, device="cuda")
    y = dctps_ext.dct(x)
    assert torch.equal(y[-5:], dctps_ext.dct(x[-5:]))
    assert_accurate(y.cpu(), dctps_ext.dct(x.cpu().double()), torch.float32)


@pytest.mark.parametrize("q", [16384, 32768, 65536, 65537])
def test_lengths_past_shared_memory(q):
    x = torch.randn(3, q, generator=torch.Generator().manual_seed(q))
    for op in (dctps_ext.dct, dctps_ext.idct):
        assert_accurate(op(x.cuda()).cpu(), op(x.double()), torch.float32)


def test_a_dense_support_in_a_large_layer():
    support = random_support(512, 768, 0.9).to("cuda")
    x, values = torch.randn(9, 768), torch.randn(support.nnz)
    got = dctps_ext.dctps_linear(x.cuda(), values.cuda(), support, 0.5, algorithm="fast").cpu()
    oracle = dctps_ext.dctps_linear(x.double(), values.double(), support.to("cpu"), 0.5, algorithm="fast")
    assert_accurate(got, oracle, torch.float32)
