"""random_start_ equals torch bit for bit."""

import pytest
import torch
from implementations import assert_registered, assert_versions_agree, every_float_dtype, every_implementation
from pixels import assert_layouts_agree, draw

from fastadaad import ops

INF = float("inf")


@every_implementation
@every_float_dtype
@pytest.mark.parametrize("shape", [(129, 3, 8, 8), (1, 3, 5, 7), (0, 3, 8, 8), (37,)], ids=str)
@pytest.mark.parametrize("numbers", [(0.001, -INF, INF), (0.5, 0.0, 1.0), (0.0, 0.25, 0.5), (-0.5, 0.0, INF)])
def test_equals_torch_bit_for_bit(run, dtype, shape, numbers):
    x_adv, x_natural, noise = draw(*shape)
    noise = noise.to(dtype)
    scale, lower, upper = numbers
    run("random_start_", x_adv, x_natural, noise, *numbers)
    scaled = scale * noise.float()
    assert torch.equal(x_adv, torch.clamp(x_natural + scaled, lower, upper))


@every_implementation
def test_layouts(run):
    def close(result, expected):
        assert torch.equal(result, expected)

    assert_layouts_agree(run, "random_start_", 0.5, 0.0, 1.0, close=close)


@every_implementation
def test_old_values_of_x_adv_do_not_matter_and_a_nan_stays_in_its_pixel(run):
    x_adv, x_natural, noise = draw(3, 3, 7, 7)
    x_adv.fill_(float("nan"))
    noise[1, 2, 3, 4] = float("nan")
    run("random_start_", x_adv, x_natural, noise, 0.1, 0.0, 1.0)
    assert x_adv.isnan().sum() == 1
    assert x_adv[1, 2, 3, 4].isnan()


def test_versions_for_all_processors_agree_bit_for_bit():
    assert_versions_agree("random_start_", *draw(3, 3, 7, 7), 0.1, 0.0, 1.0)


def test_registration():
    assert_registered("random_start_", ops.random_start_, *draw(2, 3, 4, 4), 0.1, 0.0, 1.0)


def test_without_bounds_nothing_is_clamped():
    x_adv, x_natural, noise = draw(2, 3, 4, 4)
    assert ops.random_start_(x_adv, x_natural, noise, 5.0) is x_adv
    assert torch.equal(x_adv, x_natural + 5.0 * noise)
    assert x_adv.min() < 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"noise": torch.zeros(3, 2)}, r"noise has shape \(3, 2\): it must be \(2, 3\), that of x_adv"),
        ({"noise": torch.zeros(2, 3).double()}, r"noise is torch.float64: convert it to"),
        ({"x_adv": torch.zeros(2, 3).half()}, r"x_adv is torch.float16: pixels must be torch.float32"),
        ({"scale": float("nan")}, r"scale is nan: it must be a finite number"),
        ({"lower": 1.0, "upper": 0.5}, r"lower is 1.0 and upper 0.5: lower must be at most upper"),
    ],
)
def test_wrong_arguments(change, message):
    good = {name: torch.zeros(2, 3) for name in ("x_adv", "x_natural", "noise")} | {"scale": 0.1}
    with pytest.raises(ValueError, match=message):
        ops.random_start_(**(good | change))
