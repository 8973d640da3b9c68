"""Numbers near zero cost no more than others while a fit computes."""

from collections.abc import Iterator

import pytest
import torch

from probssl.runtime.denormals import flushed

CPU = torch.device("cpu")


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    torch.rand(10**6).exp()  # both of them are there, and keep what they have
    yield
    torch.set_num_threads(before)


def left() -> int:
    """How many of a million tiny numbers, which both threads share, are not zero."""
    return int(torch.full((10**6,), 1e-39).mul(0.5).count_nonzero())


def test_all_threads_take_them_for_zero_and_no_longer_afterwards(two_threads):
    assert left() == 10**6
    with flushed(CPU):
        assert left() == 0
        with flushed(CPU):
            assert left() == 0
        assert left() == 0
    assert left() == 10**6


def test_an_error_leaves_nothing_behind(two_threads):
    with pytest.raises(KeyboardInterrupt), flushed(CPU):
        raise KeyboardInterrupt
    assert left() == 10**6


def test_who_wants_it_for_good_keeps_it(two_threads):
    torch.set_flush_denormal(True)
    with flushed(CPU):
        pass
    assert not torch.tensor(1e-39).mul(0.5).item()
    torch.set_flush_denormal(False)
