"""linf_step_ equals torch bit for bit, and stays inside the ball and the bounds for every input."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from implementations import (
    IMPLEMENTATIONS,
    assert_registered,
    assert_versions_agree,
    every_float_dtype,
    every_implementation,
)
from pixels import assert_layouts_agree, draw, good_step_arguments, wrong_step_arguments
from torch import Tensor

from fastadaad import ops

NUMBERS = (0.02, 0.1, 0.0, 1.0)  # step_size, epsilon, lower, upper
NAN = float("nan")


def in_torch(x_adv: Tensor, x_natural: Tensor, grad_x: Tensor, step_size, epsilon, lower, upper) -> Tensor:
    """Computes the step in the usual way."""
    x_adv = x_adv + step_size * torch.sign(grad_x.float())
    x_adv = torch.min(torch.max(x_adv, x_natural - epsilon), x_natural + epsilon)
    return torch.clamp(x_adv, lower, upper)


def assert_exact(run, x_adv: Tensor, x_natural: Tensor, grad_x: Tensor, *numbers: float) -> None:
    expected = in_torch(x_adv, x_natural, grad_x, *numbers)
    run("linf_step_", x_adv, x_natural, grad_x, *numbers)
    torch.testing.assert_close(x_adv, expected, rtol=0, atol=0, equal_nan=True)


@every_implementation
@every_float_dtype
@pytest.mark.parametrize(
    "shape", [(129, 3, 8, 8), (1, 3, 5, 7), (0, 3, 8, 8), (3, 0), (37,), (2, 3, 4, 5, 6), (2, 3, 150, 150)], ids=str
)
def test_equals_torch_bit_for_bit(run, dtype, shape):
    x_adv, x_natural, grad_x = draw(*shape)
    assert_exact(run, x_adv, x_natural, grad_x.to(dtype), *NUMBERS)


@every_implementation
@pytest.mark.parametrize(
    "numbers", [(0.02, 0.0, 0.0, 1.0), (0.0, 0.1, 0.0, 1.0), (9.0, 0.1, -1.0, 2.0), (0.3, 8 / 255, 0.25, 0.5)]
)
def test_other_radii_and_bounds(run, numbers):
    assert_exact(run, *draw(17, 3, 8, 8), *numbers)


@every_implementation
def test_layouts(run):
    def close(result, expected):
        assert torch.equal(result, expected)

    assert_layouts_agree(run, "linf_step_", *NUMBERS, close=close)


@every_implementation
def test_zero_gradient_only_projects(run):
    x_adv, x_natural, grad_x = draw(5, 3, 8, 8)
    grad_x = torch.zeros_like(grad_x)
    grad_x[:2] = -0.0
    inside = (x_natural + 0.05).clamp(0, 1)
    work = inside.clone()
    run("linf_step_", work, x_natural, grad_x, *NUMBERS)
    assert torch.equal(work, inside)
    assert_exact(run, x_adv, x_natural, grad_x, *NUMBERS)


@every_implementation
@pytest.mark.parametrize("wrong", [NAN, float("inf"), -float("inf")])
@pytest.mark.parametrize("position", [0, 1, 2])
def test_nan_and_inf_stay_in_their_own_pixel(run, wrong, position):
    tensors = draw(3, 3, 7, 7)
    tensors[position][1, 2, 3, 4] = wrong
    assert_exact(run, *tensors, *NUMBERS)
    others = torch.ones(3, 3, 7, 7, dtype=torch.bool)
    others[1, 2, 3, 4] = False
    assert tensors[0][others].isfinite().all()
    assert tensors[0][1, 2, 3, 4].isnan() == (wrong != wrong and position < 2)


@settings(deadline=None, max_examples=60, derandomize=True)
@given(
    seed=st.integers(0, 2**31),
    step_size=st.floats(0, 3, width=32),
    epsilon=st.floats(0, 2, width=32),
    lower=st.floats(-1, 0.25, width=32),
    width=st.floats(0, 2, width=32),
)
def test_stays_in_ball_and_bounds_and_a_second_projection_changes_nothing(seed, step_size, epsilon, lower, width):
    generator = torch.Generator().manual_seed(seed)
    upper = lower + width
    x_natural = lower + width * torch.rand(2, 3, 5, 5, generator=generator)
    start, grad_x = torch.randn(2, 2, 3, 5, 5, generator=generator)
    bound_low = torch.maximum(x_natural - epsilon, torch.tensor(lower))
    bound_high = torch.minimum(x_natural + epsilon, torch.tensor(upper))
    for run in IMPLEMENTATIONS:
        x_adv = start.clone()
        run("linf_step_", x_adv, x_natural, grad_x, step_size, epsilon, lower, upper)
        assert (x_adv >= torch.minimum(bound_low, torch.tensor(upper))).all()
        assert (x_adv <= torch.maximum(bound_high, torch.tensor(lower))).all()
        again = x_adv.clone()
        run("linf_step_", again, x_natural, torch.zeros_like(grad_x), step_size, epsilon, lower, upper)
        assert torch.equal(again, x_adv)


def test_versions_for_all_processors_agree_bit_for_bit():
    assert_versions_agree("linf_step_", *draw(3, 3, 7, 7), *NUMBERS)


def test_registration():
    assert_registered("linf_step_", ops.linf_step_, *draw(2, 3, 4, 4), *NUMBERS)


def test_returns_the_tensor_that_it_changes_even_if_it_requires_a_gradient():
    x_adv, x_natural, grad_x = draw(2, 3, 4, 4)
    expected = in_torch(x_adv, x_natural, grad_x, *NUMBERS)
    assert ops.linf_step_(x_adv, x_natural, grad_x, 0.02, 0.1) is x_adv
    assert torch.equal(x_adv, expected)
    leaf = draw(2, 3, 4, 4)[0].requires_grad_()
    assert torch.equal(ops.linf_step_(leaf, x_natural, grad_x, 0.02, 0.1).detach(), expected)
    assert leaf.is_leaf


@wrong_step_arguments
def test_wrong_arguments(change, message):
    with pytest.raises(ValueError, match=message):
        ops.linf_step_(**(good_step_arguments() | change))
