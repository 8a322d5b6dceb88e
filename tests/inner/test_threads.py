"""One InnerMaximizer that several threads call at once gives each of them the images of a call by itself."""

import threading
from collections.abc import Callable

import pytest
import torch
from networks import images_and_labels, student_and_teacher
from torch import Tensor, nn

from fastadaad import InnerConfig, InnerMaximizer, ThreatModel

INNER = InnerConfig(threat_model=ThreatModel(epsilon=0.1), step_size=0.03, num_steps=3)
NUM_THREADS, NUM_SEARCHES = 4, 3


class Unfoldable(nn.Module):
    """A network that torch.fx cannot trace, so that a search freezes the network itself, and hands over to others."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        threading.Event().wait(0.001)
        return self.network(x) if x.sum() > 0 else self.network(-x)


def search_all(maximizer: InnerMaximizer, number: int) -> list[Tensor]:
    x_natural, labels = images_and_labels(4)
    generator = torch.Generator().manual_seed(number)
    return [maximizer(x_natural, labels, generator=generator) for _ in range(NUM_SEARCHES)]


@pytest.mark.filterwarnings("ignore:.*cannot be folded", "ignore:.*unfolded", "ignore::UserWarning")
@pytest.mark.parametrize("wrap", [lambda network: network, Unfoldable], ids=["folded", "unfolded"])
def test_threads_that_share_an_inner_maximizer_get_the_images_of_a_call_alone(wrap: Callable[[nn.Module], nn.Module]):
    student, teacher = map(wrap, student_and_teacher())
    student.train()
    maximizer = InnerMaximizer(student, teacher, inner=INNER)
    expected = [search_all(maximizer, number) for number in range(NUM_THREADS)]
    found: dict[int, list[Tensor]] = {}
    threads = [
        threading.Thread(target=lambda number=number: found.update({number: search_all(maximizer, number)}))
        for number in range(NUM_THREADS)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(found) == NUM_THREADS
    for number, images in enumerate(expected):
        assert all(map(torch.equal, found[number], images))
    assert student.training
    assert all(parameter.requires_grad for parameter in student.parameters())
