"""Shared fixtures: the backends that every op's tests run on, and torch's number of threads."""

import pytest
import torch
from hypothesis import settings

import dctps_ext

settings.register_profile("dctps", deadline=None, max_examples=40, derandomize=True)
settings.load_profile("dctps")


@pytest.fixture(params=dctps_ext._C.isas())
def backend(request):
    """The device to test on, with each of its instruction sets in use in turn."""
    before = dctps_ext._C.isa()
    dctps_ext._C.set_isa(request.param)
    yield "cpu"
    dctps_ext._C.set_isa(before)


@pytest.fixture
def threads():
    """A function that sets torch's number of threads; put back afterwards."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)
