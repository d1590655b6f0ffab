"""Shared fixtures: what every op's tests run on (instruction sets, GPU), and torch's number of threads."""

import pytest
import torch
from hypothesis import HealthCheck, settings

import dctps_ext
from tests.checks import why_no_cuda

settings.register_profile(
    "dctps",
    deadline=None,
    max_examples=40,
    derandomize=True,
    # A device and its instruction set stay the same for all examples of a test.
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
settings.load_profile("dctps")

# A build for the emulator lists that among its instruction sets: with it, CPU tensors take the CUDA kernels.
ISAS = dctps_ext._C.isas()
GPU = [] if why_no_cuda() else ["cuda"]


def use(name):
    """Yield the device of tensors that take the kernels `name`, which are in use until the generator ends."""
    if name in ("cpu", "cuda"):
        yield name
        return
    before = dctps_ext._C.isa()
    dctps_ext._C.set_isa(name)
    yield "cpu"
    dctps_ext._C.set_isa(before)


@pytest.fixture(params=[*ISAS, *GPU])
def backend(request):
    """The device to test on: the CPU with each instruction set in use in turn, and any GPU."""
    yield from use(request.param)


@pytest.fixture(params=["cpu", *(isa for isa in ISAS if isa == "emulated"), *GPU])
def device(request):
    """The device to test on: the CPU as users get it, the emulated GPU, and any real one."""
    yield from use(request.param)


@pytest.fixture
def threads():
    """A function that sets torch's number of threads; put back afterwards."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)
