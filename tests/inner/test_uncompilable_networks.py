"""Networks that torch.compile cannot hold in one graph: mode compiled runs them uncompiled, with one warning."""

import warnings

import pytest
import torch
from torch import Tensor, nn

from fastadaad import Distiller, InnerMaximizer, load_model
from fastadaad.runtime.compile import one_graph

OPTIONS = {"backend": "aot_eager"}
X, LABELS = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(4)
# torch announces the successor of weight_norm; neither network can be folded.
pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated", "ignore:.*was not folded")


class Branching(nn.Module):
    """Network with a branch that depends on the data."""

    def __init__(self, conv: nn.Module) -> None:
        super().__init__()
        self.conv, self.fc = conv, nn.Linear(4, 10)

    def forward(self, x: Tensor) -> Tensor:
        features = self.conv(x)
        if features.mean() > -1e9:
            features = 2 * features
        return self.fc(features.mean((2, 3)))


class Hooked(Branching):
    """Network with the old form of weight normalisation, which is a hook."""

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.conv(x).mean((2, 3)))


def student(kind: str) -> nn.Module:
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 4, 3)
    return Branching(conv) if kind == "Branching" else Hooked(nn.utils.weight_norm(conv))


def messages(caught: list) -> list[str]:
    return [str(warning.message) for warning in caught if "torch.compile cannot hold" in str(warning.message)]


REASONS = {"Branching": "Data-dependent branching", "Hooked": "Cannot access storage of TensorWrapper"}


@pytest.mark.parametrize("kind", REASONS)
def test_the_search_runs_uncompiled_with_one_warning_and_equals_the_eager_one(kind):
    teacher = load_model("cnn-4-s1").eval()
    results = {}
    for mode in ("eager", "compiled"):
        search = InnerMaximizer(student(kind), teacher, mode=mode, compile_options=OPTIONS)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            results[mode] = [search(X, generator=torch.Generator().manual_seed(1)) for _ in range(2)]
        expected = [
            f"torch.compile cannot hold the inner step of {kind} and SmallCNN in one graph ({REASONS[kind]}): it runs "
            "uncompiled; change the network, or set mode=eager"
        ]
        assert messages(caught) == (expected if mode == "compiled" else [])
    for compiled, eager in zip(results["compiled"], results["eager"], strict=True):
        # A sign near zero may differ between the two derivatives, by two steps of 2/255 at most.
        assert (compiled - eager).abs().mean() < 1e-5


def test_the_step_runs_uncompiled_and_equals_the_eager_one():
    teacher = load_model("cnn-4-s1").eval()
    losses = {}
    for mode in ("eager", "compiled"):
        network = student("Branching")
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
        distiller = Distiller(network, teacher, optimizer=optimizer, mode=mode, compile_options=OPTIONS)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            generator = torch.Generator().manual_seed(1)
            losses[mode] = [distiller.step(X, LABELS, generator=generator).loss.item() for _ in range(3)]
        assert len(messages(caught)) == (2 if mode == "compiled" else 0)  # inner step, outer loss
    assert losses["compiled"] == pytest.approx(losses["eager"], rel=1e-4)


def test_a_required_graph_is_an_error_in_one_line():
    network = student("Branching")
    call = one_graph(lambda x: network(x), name="the inner step of Branching", required=True, **OPTIONS)
    with pytest.raises(
        ValueError, match=r"^torch\.compile cannot hold the inner step of Branching in one graph"
    ) as caught:
        call(X)
    assert str(caught.value).endswith("(Data-dependent branching): change the network, or set mode=eager")


def test_another_failure_of_the_backend_is_not_hidden():
    def broken(graph, inputs):
        raise RuntimeError("no compiler")

    with pytest.raises(Exception, match="no compiler"):
        one_graph(torch.sin, backend=broken)(X)


def test_an_error_of_the_function_itself_is_raised():
    with pytest.warns(UserWarning, match="cannot hold"), pytest.raises(RuntimeError, match="must match"):
        one_graph(lambda x: x + torch.ones(5, 7), **OPTIONS)(X)
