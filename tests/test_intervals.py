"""A figure, and where its resamples lie."""

import numpy as np
import pytest

from probssl.estimates import Interval, intervals, reflected


@pytest.mark.parametrize(("number", "ends"), [(20, (1, 18)), (119, (5, 113))])
def test_the_outer_twentieths_are_left_out(number, ends):
    draws = np.random.default_rng(0).permutation(number).astype(float)
    (found,) = intervals(np.array([7.0]), draws[:, None])
    assert found == (7.0, *ends)


def test_infinite_resamples_leave_an_end_that_is_a_number():
    draws = np.r_[np.arange(15.0), np.full(5, np.inf)]
    (found,) = intervals(np.array([3.0]), draws[:, None])
    assert found == (3.0, 1.0, np.inf)


def test_it_prints_with_any_format():
    found = Interval(0.123456, -1.0, 20_000.0)
    assert str(found) == f"{found}" == "0.1235 (-1 to 2e+04)"
    assert f"{found:.2f}" == "0.12 (-1.00 to 20000.00)"


def test_likely_values_lie_as_far_on_the_other_side_of_the_estimate():
    values, draws = np.array([1.0, np.inf]), np.array([[1.5, 2.0], [0.5, np.inf]])
    assert reflected(values, draws).tolist() == [[0.5, np.inf], [1.5, np.inf]]


def test_an_interval_holds_its_estimate():
    (found,) = intervals(np.array([3.0]), np.arange(4.0, 24.0)[:, None])
    assert found == (3.0, 3.0, 22.0)


def test_the_interval_of_a_biased_estimate_covers_the_truth():
    """The plug-in variance of 8 items, too low by an eighth."""
    random, covered = np.random.default_rng(0), 0
    for _ in range(400):
        x = random.normal(size=8)
        draws = np.log(x[random.integers(8, size=(100, 8))].var(1))
        value = np.log([x.var()])
        (found,) = intervals(value, reflected(value, draws[:, None]))
        covered += found.low <= 0 <= found.high
    # the percentile interval covers 64 %
    assert covered / 400 > 0.8
