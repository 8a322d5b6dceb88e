"""Emulated TF32 of the first convolution: its rounding, its gradient, and the place where it is used."""

import numpy as np
import torch
from networks import images_and_labels, tiny_network

from bench.stems import StemsInTF32, rounded_to_tf32
from fastadaad.inner.folded_cache import Form, folded_copy


def test_numbers_are_rounded_to_ten_bits_to_nearest_even():
    x = torch.tensor([1.0, 1 + 2**-11, 1 + 3 * 2**-11, 1 + 2**-11 + 2**-20, -(1 + 2**-11 + 2**-20), 0.0])
    expected = [1.0, 1.0, 1 + 2**-9, 1 + 2**-10, -(1 + 2**-10), 0.0]
    assert rounded_to_tf32(x).tolist() == expected
    drawn = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    mantissa, exponent = np.frexp(drawn.double().numpy())  # 0.5 <= |mantissa| < 1: 11 bits with the leading one
    plain = np.ldexp(np.round(mantissa * 2**11) / 2**11, exponent)
    assert rounded_to_tf32(drawn).double().numpy().tolist() == plain.tolist()


def test_only_the_first_convolution_is_rounded_forward_and_backward():
    network, (x, _) = tiny_network(1).eval(), images_and_labels(4)
    folded = folded_copy(network, x, Form(precision="bf16", layout="contiguous"))
    grid = rounded_to_tf32(x)  # rounding changes nothing of these pixels, and of these weights
    for buffer in folded.buffers():
        if buffer.dtype == torch.float32:
            buffer.copy_(rounded_to_tf32(buffer))
    with StemsInTF32() as stems:
        rounded = folded(grid)
    assert stems.num_products == 1
    assert torch.equal(rounded, folded(grid))
    folded.refresh()  # its weights are not rounded any more
    leaf = x.clone().requires_grad_()
    with StemsInTF32():
        gradient = torch.autograd.grad(folded(leaf).sum(), leaf)[0]
    plain = torch.autograd.grad(folded(leaf).sum(), leaf)[0]
    error = (gradient - plain).norm() / plain.norm()
    assert 0 < error < 0.02
