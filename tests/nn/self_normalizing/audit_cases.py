"""Healthy models, and planted defects with the one kind of finding that each must give."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from hooke.nn import AlphaDropout, SelfNormalizingMLP, lecun_normal_

Case = tuple[nn.Module, Any]


class M(nn.Module):
    """A module whose forward is a function of itself."""

    def __init__(self, forward: Callable[..., Any], **parts: Any) -> None:
        super().__init__()
        self.function = forward
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, *args: Any) -> Any:
        return self.function(self, *args)


def snn(depth: int = 4) -> SelfNormalizingMLP:
    return SelfNormalizingMLP(64, 10, 128, depth)


def lecun(model: nn.Module) -> nn.Module:
    """LeCun-normal weights, bias 0."""
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d)):
            lecun_normal_(module.weight)
            nn.init.zeros_(module.bias)
    return model


def he(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.kaiming_normal_(module.weight)
            nn.init.zeros_(module.bias)
    return model


def mlp(
    width: int, depth: int, activation: Callable[[], nn.Module] = nn.SELU, after: tuple[nn.Module, ...] = ()
) -> nn.Sequential:
    """`depth` times linear, activation and what comes after it, then an output; torch's default init."""
    parts: list[nn.Module] = []
    for _ in range(depth):
        parts += [nn.Linear(width, width), activation(), *after]
    return nn.Sequential(*parts, nn.Linear(width, 10))


def conv_net(depth: int, **settings: Any) -> nn.Module:
    """SELU convolutions, averaged at the end."""
    parts: list[nn.Module] = []
    for before in (3, *[32] * (depth - 1)):
        parts += [nn.Conv2d(before, 32, 3, **settings), nn.SELU()]
    return lecun(nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10)))


class ResNet(nn.Module):
    """Batch norm, zero padding, in-place ReLU, one activation module for all places."""

    def __init__(self, channels: int = 16, blocks: int = 3) -> None:
        super().__init__()
        sizes = [(3, channels), *[(channels, channels)] * (2 * blocks)]
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1, bias=False) for a, b in sizes)
        self.norms = nn.ModuleList(nn.BatchNorm2d(b) for _, b in sizes)
        self.relu, self.head = nn.ReLU(inplace=True), nn.Linear(channels, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.norms[0](self.convs[0](x)))
        for i in range(1, len(self.convs), 2):
            y = self.relu(self.norms[i](self.convs[i](x)))
            x = self.relu(self.norms[i + 1](self.convs[i + 1](y)) + x)
        return self.head(x.mean((2, 3)))


class Block(nn.Module):
    """A pre-LN transformer block."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, 4, batch_first=True)
        self.ffn = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width), nn.Dropout(0.1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.before(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        return x + self.ffn(self.between(x))


def transformer() -> nn.Module:
    return nn.Sequential(nn.Embedding(50, 32), *(Block(32) for _ in range(4)), nn.LayerNorm(32), nn.Linear(32, 50))


class LSTMClassifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.lstm = nn.Embedding(50, 32), nn.LSTM(32, 32, num_layers=2, batch_first=True)
        self.head = nn.Linear(32, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(self.embedding(x))[0][:, -1])


class BagOfWords(nn.Module):
    """The sum over 42 positions of the blog in which SELU loses."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.word, self.rest = nn.Embedding(50, 64), lecun(nn.Linear(64, 64)), lecun(mlp(64, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.rest(functional.selu(self.word(self.embedding(x))).sum(1))


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks, self.head = nn.ModuleList(lecun(nn.Linear(128, 128)) for _ in range(8)), nn.Linear(128, 2)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + functional.selu(block(x))
        return self.head(x)


def with_module(model: nn.Module, place: int, module: nn.Module) -> nn.Module:
    """A sequence with one more module in it."""
    parts = list(model.children())
    return nn.Sequential(*parts[:place], module, *parts[place:])


def replaced(model: nn.Module, place: int, module: nn.Module) -> nn.Module:
    parts = list(model.children())
    return nn.Sequential(*parts[:place], module, *parts[place + 1 :])


def pooled(pool: nn.Module) -> nn.Module:
    first, second = nn.Conv2d(3, 32, 3), nn.Conv2d(32, 32, 3)
    return lecun(nn.Sequential(first, nn.SELU(), pool, second, nn.SELU(), nn.Flatten(), nn.Linear(800, 2)))


def drawn(model: nn.Module, draw: Callable[[Tensor], object]) -> nn.Module:
    """Weights by another init, bias 0."""
    for module in lecun(model).modules():
        if isinstance(module, nn.Linear):
            with torch.no_grad():
                draw(module.weight)
    return model


def truncated(weight: Tensor) -> None:
    deviation = weight.shape[1] ** -0.5
    nn.init.trunc_normal_(weight, 0.0, deviation, -2 * deviation, 2 * deviation)


def off_center(weight: Tensor) -> None:
    lecun_normal_(weight).add_(0.01)


def zero_padded(depth: int) -> nn.Module:
    """Zeros around by a module of their own."""
    parts: list[nn.Module] = []
    for before in (3, *[32] * (depth - 1)):
        parts += [nn.ZeroPad2d(1), nn.Conv2d(before, 32, 3), nn.SELU()]
    return lecun(nn.Sequential(*parts))


def biased(model: nn.Module, value: float) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.constant_(module.bias, value)
    return model


def n(*shape: int) -> Tensor:
    return torch.randn(*shape)


def words(*shape: int) -> Tensor:
    return torch.randint(50, shape)


HEALTHY: dict[str, Callable[[], Case]] = {
    "SNN, depth 8": lambda: (SelfNormalizingMLP(32, 10, hidden=256, depth=8), n(256, 32)),
    "SNN, depth 64": lambda: (SelfNormalizingMLP(64, 10, hidden=256, depth=64), n(128, 64)),
    "SNN, narrow": lambda: (SelfNormalizingMLP(8, 2, hidden=32, depth=16), n(64, 8)),
    "SNN, conic, alpha dropout": lambda: (
        SelfNormalizingMLP(32, 10, hidden=256, depth=8, shape="conic", dropout=0.1), n(256, 32),
    ),
    "SNN, conic to one output": lambda: (
        SelfNormalizingMLP(13, 1, hidden=256, depth=8, shape="conic", dropout=0.05), n(64, 13),
    ),
    "SNN, fixed point (0, 2)": lambda: (
        SelfNormalizingMLP(32, 10, 256, 8, alpha=1.9712557, scale=1.0607091, variance=2.0, dropout=0.1),
        n(256, 32) * 2**0.5,
    ),
    "SNN of torch's modules": lambda: (lecun(mlp(128, 8, after=(nn.AlphaDropout(0.1),))), n(64, 128)),
    "SELU convolutions, no padding": lambda: (conv_net(6), n(16, 3, 20, 20)),
    "SELU convolutions, circular padding": lambda: (conv_net(8, padding=1, padding_mode="circular"), n(16, 3, 12, 12)),
    "ReLU, He init, depth 16": lambda: (he(mlp(128, 16, nn.ReLU)), n(64, 128)),
    "ReLU, default init, depth 3, raw inputs": lambda: (mlp(64, 3, nn.ReLU, (nn.Dropout(0.5),)), 3 + 5 * n(64, 64)),
    "ResNet with batch norm": lambda: (ResNet(), n(8, 3, 16, 16)),
    "pre-LN transformer": lambda: (transformer(), words(8, 12)),
    "LSTM classifier": lambda: (LSTMClassifier(), words(8, 12)),
}  # fmt: skip

DEFECTS: dict[str, tuple[str, Callable[[], Case]]] = {
    "plain dropout": ("plain-dropout", lambda: (lecun(mlp(128, 8, after=(nn.Dropout(0.1),))), n(64, 128))),
    "inputs with variance 14": ("inputs", lambda: (lecun(mlp(128, 8)), n(64, 128) * 14**0.5)),
    "inputs with mean 2": ("inputs", lambda: (lecun(mlp(128, 8)), n(64, 128) + 2)),
    "inputs in [0, 1]": ("inputs", lambda: (lecun(mlp(128, 8)), torch.rand(256, 128))),
    "He init": ("he-init", lambda: (he(mlp(128, 32)), n(64, 128))),
    "default init": ("default-init", lambda: (mlp(128, 32), n(64, 128))),
    "gain 3/4": (
        "gain-init",
        lambda: (drawn(mlp(128, 8), lambda w: nn.init.kaiming_normal_(w, nonlinearity="selu")), n(64, 128)),
    ),
    "truncated normal": ("truncated-init", lambda: (drawn(mlp(128, 8), truncated), n(64, 128))),
    "Glorot init": (
        "glorot-init",
        lambda: (nn.Sequential(drawn(nn.Linear(64, 256), nn.init.xavier_normal_), nn.SELU()), n(64, 64)),
    ),
    "weights far too large": ("weight-scale", lambda: (drawn(mlp(128, 4), nn.init.normal_), n(64, 128))),
    "weights with a mean": ("weight-mean", lambda: (drawn(mlp(128, 4), off_center), n(64, 128))),
    "zero padding": ("zero-padding", lambda: (conv_net(20, padding=1), n(16, 3, 12, 12))),
    "zero padding as a module": (
        "zero-padding",
        lambda: (zero_padded(8), n(16, 3, 12, 12)),
    ),
    "depth 128": ("depth", lambda: (lecun(mlp(128, 128)), n(64, 128))),
    "batch norm": ("norm", lambda: (with_module(lecun(mlp(128, 4)), 1, nn.BatchNorm1d(128)), n(64, 128))),
    "layer norm after SELU": ("norm", lambda: (with_module(lecun(mlp(128, 4)), 2, nn.LayerNorm(128)), n(64, 128))),
    "one ReLU": ("activation", lambda: (replaced(lecun(mlp(128, 6)), 5, nn.ReLU()), n(64, 128))),
    "alpha dropout beside ReLU": (
        "alpha-dropout", lambda: (he(mlp(128, 6, nn.ReLU, (nn.AlphaDropout(0.1),))), n(64, 128)),
    ),
    "sum pooling": ("sum-pool", lambda: (BagOfWords(), words(64, 42))),
    "max pooling": ("max-pool", lambda: (pooled(nn.MaxPool2d(2)), n(16, 3, 16, 16))),
    "mean pooling": ("mean-pool", lambda: (pooled(nn.AvgPool2d(2)), n(16, 3, 16, 16))),
    "residual sums": ("residual", lambda: (Residual(), n(64, 128))),
    "bias 0.1": ("bias", lambda: (biased(lecun(mlp(128, 6)), 0.1), n(64, 128))),
    "too much alpha dropout": (
        "dropout-rate", lambda: (lecun(mlp(128, 6, after=(nn.AlphaDropout(0.5),))), n(64, 128)),
    ),
    "alpha dropout for another SELU": (
        "alpha-mismatch", lambda: (lecun(mlp(128, 4, after=(AlphaDropout(0.1, alpha=2.0),))), n(64, 128)),
    ),
    "width 8": ("narrow", lambda: (lecun(mlp(8, 10)), n(64, 8))),
    "NaN among the inputs": ("not-finite", lambda: (lecun(mlp(128, 3)), torch.full((64, 128), torch.nan))),
    "constant inputs": ("constant", lambda: (lecun(mlp(128, 3)), torch.ones(64, 128))),
    "dead layer": ("constant", lambda: (biased(mlp(128, 3, nn.ReLU), -100.0), n(64, 128))),
    "default init under 12 ReLUs": ("vanishing-gradients", lambda: (mlp(128, 12, nn.ReLU), n(64, 128))),
    "growing activations": (
        "exploding-activations exploding-gradients",
        lambda: (drawn(mlp(64, 12, nn.ReLU), lambda weight: weight.normal_(0, 0.5)), n(64, 64)),
    ),
}  # fmt: skip
