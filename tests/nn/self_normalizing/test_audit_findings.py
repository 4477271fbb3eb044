"""Findings of models that are easily misread: defects that hide, and healthy nets that look like one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from audit_cases import Case, M, biased, he, lecun, mlp, n, snn
from torch import Tensor, nn
from torch.nn import functional

from hooke.nn import SelfNormalizingMLP, audit


def zero(layer: nn.Linear) -> nn.Linear:
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def chain(depth: int, act: Callable[[Tensor], Tensor]) -> nn.Module:
    """Linear layers of torch's init, and a function between them."""
    layers = nn.ModuleList(nn.Linear(64, 64) for _ in range(depth))

    def forward(s: Any, x: Tensor) -> Tensor:
        for layer in s.layers[:-1]:
            x = act(layer(x))
        return s.layers[-1](x)

    return M(forward, layers=layers)


def own_selu(x: Tensor) -> Tensor:
    return 1.0507 * torch.where(x > 0, x, 1.6733 * (torch.exp(x) - 1))


def relus(depth: int) -> nn.Module:
    parts = [part for _ in range(depth) for part in (nn.Linear(64, 64, bias=False), nn.ReLU())]
    return nn.Sequential(*parts, nn.Linear(64, 2))


def halves(piece: int, split: Callable[[Tensor], Any]) -> Case:
    """The second half of the inputs is far off; a net reads one of them."""
    x = torch.cat([n(256, 64), 5 + n(256, 64)], 1)

    def forward(s: Any, x: Tensor) -> Tensor:
        parts = split(x)
        return s.other(parts[1 - piece]) + s.net(parts[piece])

    return M(forward, net=snn(), other=nn.Linear(64, 10)), x


def einsum_net() -> nn.Module:
    weights = nn.ParameterList(lecun(nn.Linear(64, 64)).weight for _ in range(3))

    def forward(s: Any, x: Tensor) -> Tensor:
        x = functional.selu(x @ s.w[0].t())
        x = functional.selu(torch.einsum("bi,oi->bo", x, s.w[1]))
        return torch.einsum("io,bi->bo", s.w[2], x)

    return M(forward, w=weights)


def spread_biases() -> nn.Module:
    """As training may leave them: above the limit, but activations stay in theorem 1's domain."""
    model = snn(2)
    nn.init.normal_(model.linear1.bias, 0, 0.3)  # pyright: ignore
    return model


def taught(s: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        x = s.a(x)
    return s.b(x)


def unused(s: Any, x: Tensor) -> Tensor:
    s.a(x)
    return s.b(x)


def masked(s: Any, x: Tensor) -> Tensor:
    x = s.a(x)
    x[:, :2] = 1
    return s.b(x)


VANISH = "vanishing-gradients"
CASES: dict[str, tuple[str, Callable[[], Case]]] = {
    "a gate that starts at 1/2": (
        "",
        lambda: (
            M(lambda s, x: s.out(x * torch.sigmoid(s.gate(x))), gate=zero(nn.Linear(64, 64)), out=nn.Linear(64, 2)),
            n(64, 64),
        ),
    ),
    "a head that starts at 0": (
        "",
        lambda: (nn.Sequential(nn.Linear(64, 64), zero(nn.Linear(64, 2)), nn.Tanh()), n(64, 64)),
    ),
    "causes beside a dead layer": (
        "constant activation default-init",
        lambda: (
            nn.Sequential(*mlp(64, 3), nn.ReLU(), biased(nn.Linear(10, 64), -100.0), nn.ReLU(), nn.Linear(64, 2)),
            n(64, 64),
        ),
    ),
    "60 ReLU layers vanish": ("vanishing-activations vanishing-gradients", lambda: (relus(60), n(64, 64))),
    "faint float64": ("inputs", lambda: (snn().double(), n(256, 64).double() * 1e-25)),
    "huge inputs": ("inputs", lambda: (snn(), n(256, 64) * 1e22)),
    "130 layers of tanh": (VANISH, lambda: (mlp(64, 130, nn.Tanh), n(64, 64))),
    "300 layers of tanh": (VANISH, lambda: (mlp(64, 300, nn.Tanh), n(64, 64))),
    "24 layers of sine": (VANISH, lambda: (chain(24, torch.sin), n(64, 64))),
    "64 layers of a handwritten SELU": (VANISH, lambda: (chain(64, own_selu), n(64, 64))),
    "4 layers of sine": ("", lambda: (chain(4, torch.sin), n(64, 64))),
    "detached in the middle": (
        "no-gradient",
        lambda: (
            M(lambda s, x: s.b(torch.relu(s.a(x)).detach()), a=he(mlp(64, 2, nn.ReLU)), b=nn.Linear(10, 2)),
            n(64, 64),
        ),
    ),
    "frozen in the middle": (
        "",
        lambda: (
            M(lambda s, x: s.b(s.a(x).detach()), a=nn.Linear(64, 64).requires_grad_(False), b=nn.Linear(64, 2)),
            n(64, 64),
        ),
    ),
    "a teacher without gradients": (
        "no-gradient",
        lambda: (M(taught, a=nn.Linear(64, 64), b=nn.Linear(64, 2)), n(64, 64)),
    ),
    "a branch that is not used": ("", lambda: (M(unused, a=nn.Linear(64, 64), b=nn.Linear(64, 2)), n(64, 64))),
    "masked in place": ("", lambda: (M(masked, a=nn.Linear(64, 64), b=nn.Linear(64, 2)), n(8, 5, 64))),
    "a constant that repairs the mean": (
        "",
        lambda: (
            M(lambda s, x: s.net(x + s.minus), net=snn(), minus=nn.Buffer(torch.full((64,), -3.0))),
            3 + n(256, 64),
        ),
    ),
    "a constant that spoils the mean": ("inputs", lambda: (M(lambda s, x: s.net(x + 3), net=snn()), n(256, 64))),
    "a sum with itself": ("inputs", lambda: (M(lambda s, x: s.net(x + x), net=snn()), n(256, 64))),
    "the good chunk": ("", lambda: halves(0, lambda x: x.chunk(2, 1))),
    "the bad chunk": ("inputs", lambda: halves(1, lambda x: x.chunk(2, 1))),
    "the bad piece of a split": ("inputs", lambda: halves(1, lambda x: x.split(64, 1))),
    "the bad piece of an unbind": ("inputs", lambda: halves(1, lambda x: x.view(-1, 2, 64).unbind(1))),
    "dropout on bad inputs": (
        "inputs plain-dropout",
        lambda: (nn.Sequential(nn.Dropout(0.2), *snn()), n(256, 64) * 14**0.5),
    ),
    "dropout on good inputs": ("plain-dropout", lambda: (nn.Sequential(nn.Dropout(0.5), *snn()), n(256, 64))),
    "products of derived weights": ("", lambda: (einsum_net(), n(256, 64))),
    "one number before the batch": (
        "inputs",
        lambda: (M(lambda s, t, x: s.net(x), net=snn()), (torch.ones(1), n(256, 64) * 6**0.5)),
    ),
    "biases that do not show": ("", lambda: (spread_biases(), n(256, 64))),
}


@pytest.mark.parametrize(("kinds", "make"), CASES.values(), ids=CASES)
def test_what_is_found_is_what_is_there(kinds: str, make: Callable[[], Case]) -> None:
    for seed in range(2):
        torch.manual_seed(seed)
        assert " ".join(one.kind for one in audit(*make(), seed=seed).findings) == kinds


def test_a_conic_net_to_one_output_is_healthy() -> None:
    for seed in range(20):
        torch.manual_seed(seed)
        hidden, depth = (int(2 ** (5 + 4 * torch.rand(()))), int(2 + 31 * torch.rand(())))
        model = SelfNormalizingMLP(32, 1, hidden, depth, shape="conic")
        assert audit(model, n(256, 32)).findings == (), (hidden, depth)


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: mlp(64, 3), True),
        (lambda: M(lambda s, x: s.b(functional.selu(s.a(x))), a=nn.Linear(64, 64), b=nn.Linear(64, 2)), False),
        (lambda: nn.Sequential(nn.Unflatten(1, (1, 64)), nn.ConvTranspose1d(1, 64, 3), nn.SELU()), False),
        (lambda: nn.Sequential(nn.Linear(64, 64), nn.SELU(), nn.Flatten(), nn.Linear(64, 2), nn.Softplus()), True),
    ],
    ids=["a chain", "a function", "transposed", "with a head"],
)
def test_self_normalize_is_named_where_it_helps(make: Callable[[], nn.Module], named: bool) -> None:
    torch.manual_seed(0)
    found = audit(make(), n(256, 64)).findings
    assert found and all(("self_normalize_(model) does this." in one.repair) == named for one in found)
    assert "At initialization" in found[0].repair
