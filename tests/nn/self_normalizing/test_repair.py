"""A repaired net passes the audit, or the repair says why not; what it can't do whole it doesn't begin."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from audit_cases import HEALTHY, LSTMClassifier, M, ResNet, lecun, mlp, transformer, words
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations

from hooke.nn import AlphaDropout, FeatureAlphaDropout, Repairs, audit, self_normalize_


def baseline(
    depth: int = 6, width: int = 128, p: float = 0.5, norm: Callable[[int], nn.Module] = nn.BatchNorm1d
) -> nn.Sequential:
    """The usual: linear, norm, ReLU, dropout; a softmax at the end."""
    parts: list[nn.Module] = []
    for before in (20, *[width] * (depth - 1)):
        parts += [nn.Linear(before, width), norm(width), nn.ReLU(), nn.Dropout(p)]
    return nn.Sequential(*parts, nn.Linear(width, 4), nn.Softmax(-1))


def convolutional() -> nn.Sequential:
    parts: list[nn.Module] = []
    for before in (3, 64, 64):
        parts += [nn.Conv2d(before, 64, 3, bias=False), nn.BatchNorm2d(64), nn.GELU(), nn.Dropout2d(0.2)]
    return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def values(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def is_unchanged(model: nn.Module, before: dict[str, Tensor]) -> bool:
    after = model.state_dict()
    return after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)


@pytest.mark.parametrize("by_running", [False, True], ids=["by torch.fx", "by one run"])
@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (baseline, (256, 20)),
        (lambda: baseline(norm=nn.LayerNorm), (256, 20)),
        (lambda: baseline(norm=nn.RMSNorm, p=0.0), (256, 20)),
        (lambda: nn.Sequential(nn.BatchNorm1d(20), baseline()), (256, 20)),
        (convolutional, (32, 3, 16, 16)),
        (lambda: mlp(128, 8, nn.Tanh), (256, 128)),
        (lambda: mlp(128, 8, lambda: nn.PReLU(), (nn.AlphaDropout(0.4),)), (256, 128)),
    ],
    ids=["batch norm", "layer norm", "RMS norm", "norm of inputs", "convolutions", "tanh", "PReLU"],
)
def test_a_repaired_net_passes_the_audit(
    make: Callable[[], nn.Module], shape: tuple[int, ...], by_running: bool
) -> None:
    torch.manual_seed(0)
    model, x = make(), torch.randn(shape)
    made = self_normalize_(model, x if by_running else None)
    assert made.changes and made.refused == ()
    report = audit(model, x)
    assert report.findings == ()
    assert {layer.activation for layer in report.layers[:-1]} == {"selu"}
    before = values(model)
    assert self_normalize_(model, x if by_running else None) == Repairs((), ())
    assert is_unchanged(model, before)


def test_what_was_done_is_said_module_by_module() -> None:
    model = nn.Sequential(
        nn.Linear(8, 64, bias=False), nn.BatchNorm1d(64), nn.ELU(), nn.Dropout(0.05), nn.Linear(64, 2)
    )
    made = self_normalize_(model)
    assert made.changes == (
        "2: ELU -> SELU",
        "3: Dropout(p=0.05) -> AlphaDropout(p=0.05)",
        "1: BatchNorm1d -> Identity",
        "0: weights LeCun-normal",
        "4: weights LeCun-normal, bias 0",
    )
    assert str(made) == "Changed:\n  " + "\n  ".join(made.changes)
    assert str(Repairs((), ("x: no.",))) == "Changed nothing.\nLeft alone:\n  x: no."
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.changes = ()  # type: ignore[misc]


def test_modules_take_their_place_and_mode() -> None:
    model = convolutional().eval()
    self_normalize_(model)
    assert [type(part).__name__ for part in model[:4]] == ["Conv2d", "Identity", "SELU", "FeatureAlphaDropout"]
    assert isinstance(model[3], FeatureAlphaDropout) and (model[3].p, model[3].spatial_dims) == (0.1, 2)
    assert not any(module.training for module in model.modules())


@pytest.mark.parametrize(
    ("given", "asked", "wanted"), [(0.5, None, 0.1), (0.07, None, 0.07), (0.5, 0.2, 0.2), (0.05, 0.0, 0.0)]
)
def test_rates_of_dropout(given: float, asked: float | None, wanted: float) -> None:
    model = baseline(2, p=given)
    made = self_normalize_(model, dropout=asked)
    assert isinstance(model[3], AlphaDropout) and model[3].p == wanted
    assert any("the paper recommends" in one for one in made.changes) == (asked is None and given > 0.1)
    model = mlp(64, 2, after=(nn.AlphaDropout(given),))
    self_normalize_(model, dropout=asked)
    assert model[2].p == wanted


@pytest.mark.parametrize(
    "name", ["SNN, depth 8", "SNN, conic, alpha dropout", "SNN, fixed point (0, 2)", "SNN of torch's modules"]
)
def test_a_healthy_net_stays_as_it_is(name: str) -> None:
    torch.manual_seed(0)
    model, x = HEALTHY[name]()
    before, state = values(model), torch.get_rng_state()
    for inputs in (None, x):
        assert self_normalize_(model, inputs) == Repairs((), ())
        assert is_unchanged(model, before) and torch.equal(state, torch.get_rng_state())


def test_only_weights_that_are_off_are_drawn_anew() -> None:
    torch.manual_seed(0)
    model = lecun(mlp(64, 3))
    model[2].weight.data.mul_(2)
    model[4].bias.data.fill_(0.1)
    first = model[0].weight.clone()
    assert self_normalize_(model).changes == ("2: weights LeCun-normal, bias 0", "4: bias 0")
    assert torch.equal(first, model[0].weight)
    assert model[2].weight.square().sum(1).mean().item() == pytest.approx(1.0, abs=0.1)


def test_a_shared_activation_is_exchanged_once_in_every_place() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.act = nn.ReLU()
            self.net = nn.Sequential(nn.Linear(8, 64), self.act, nn.Linear(64, 64), self.act, nn.Linear(64, 2))

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x)

    model = Shared()
    made = self_normalize_(model)
    assert isinstance(model.act, nn.SELU) and model.net[1] is model.net[3] is model.act
    assert len([one for one in made.changes if "SELU" in one]) == 1


def test_outputs_and_inputs_are_left_alone() -> None:
    model = nn.Sequential(
        nn.LayerNorm(8), nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 2), nn.LayerNorm(2), nn.Tanh(), nn.Dropout(0.5)
    )
    self_normalize_(model)
    names = [type(part).__name__ for part in model]
    assert names == ["LayerNorm", "Linear", "SELU", "Linear", "LayerNorm", "Tanh", "Dropout"]


# Folding ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layer", "norm", "shape"),
    [
        (nn.Linear(6, 5), nn.BatchNorm1d(5), (32, 6)),
        (nn.Linear(6, 5, bias=False), nn.BatchNorm1d(5, affine=False), (32, 6)),
        (nn.Conv2d(6, 5, 3, bias=False), nn.BatchNorm2d(5), (32, 6, 4, 4)),
    ],
)
def test_folding_keeps_what_the_trained_net_computes(layer: nn.Module, norm: nn.Module, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(layer, norm, nn.SELU(), nn.Flatten(), nn.LazyLinear(2)), torch.randn(shape)
    for _ in range(5):
        model(3 + 2 * torch.randn(shape))
    if norm.weight is not None:
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    model.eval()
    wanted = model(x)
    made = self_normalize_(model, x, fold=True)
    assert made.changes == (f"1: {type(norm).__name__} -> Identity", "0: took in 1")
    assert made.refused[0] == "0 and 1 more: its weights were kept (fold) and are not as theorem 1 asks."
    assert isinstance(model[1], nn.Identity)
    torch.testing.assert_close(model(x), wanted)


@pytest.mark.parametrize(
    "norm", [nn.LayerNorm(64), nn.BatchNorm1d(64, track_running_stats=False)], ids=["layer norm", "no statistics"]
)
def test_what_can_not_be_folded_is_refused_whole(norm: nn.Module) -> None:
    model = nn.Sequential(nn.Linear(8, 64), norm, nn.ReLU(), nn.Linear(64, 2))
    made = self_normalize_(model, fold=True)
    assert made.changes == () and "can't be folded: only a batch norm with running statistics" in made.refused[0]
    assert model[1] is norm and isinstance(model[2], nn.ReLU)


# Refusals --------------------------------------------------------------------------------------------------------


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Linear(8, 64), nn.BatchNorm1d(64), nn.Linear(64, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(functional.dropout(functional.relu(self.norm(self.a(x))), 0.2))


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.gate, self.b = nn.Linear(8, 64), nn.Linear(8, 64), nn.Linear(64, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x) * torch.sigmoid(self.gate(x)))


class AlsoAtTheEnd(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.act, self.a, self.b = nn.ReLU(), nn.Linear(8, 64), nn.Linear(64, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.b(self.act(self.a(x))))


def hooked() -> nn.Module:
    model = mlp(8, 2, nn.ReLU)
    model[1].register_forward_hook(lambda module, args, output: None)
    return model


x8 = torch.randn(32, 8, generator=torch.Generator().manual_seed(0))
REFUSED: dict[str, tuple[Callable[[], nn.Module], Tensor, str]] = {
    "functions": (Functional, x8, "forward: relu is a function called in forward, which can't be edited"),
    "dropout": (Functional, x8, "forward: dropout is a function called in forward, which can't be edited"),
    "gate": (Gated, x8, "forward: mul stands between layers and does unknown things to mean and variance."),
    "output": (AlsoAtTheEnd, x8, "act: this activation is also used where it is not between layers"),
    "hooks": (hooked, x8, "1: this activation has forward hooks, which would be lost"),
    "residual": (ResNet, torch.randn(4, 3, 8, 8), "forward: a residual sum adds up variances"),
    "attention": (transformer, words(4, 8), "1.attention and 3 more: attention is not feed-forward"),
    "recurrent": (LSTMClassifier, words(4, 8), "lstm: a recurrent layer is not feed-forward"),
}


@pytest.mark.parametrize("by_running", [False, True], ids=["by torch.fx", "by one run"])
@pytest.mark.parametrize(("make", "x", "says"), REFUSED.values(), ids=REFUSED)
def test_what_stands_in_the_way_is_named_and_nothing_changes(
    make: Callable[[], nn.Module], x: Tensor, says: str, by_running: bool
) -> None:
    model = make()
    before, text = values(model), str(model)
    made = self_normalize_(model, x if by_running else None)
    assert made.changes == () and any(one.startswith(says) for one in made.refused), made
    assert is_unchanged(model, before) and str(model) == text


def test_weights_that_are_not_free_keep_their_values_and_are_named() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    model[2].weight = model[0].weight
    parametrizations.weight_norm(model[4])
    before = model[0].weight.clone()
    made = self_normalize_(model)
    assert made.refused == (
        "0 and 1 more: its weight is tied (0.weight, 2.weight) and was not drawn anew.",
        "4: its weight is parametrized and was not drawn anew.",
    )
    assert torch.equal(before, model[0].weight) and isinstance(model[1], nn.SELU)


class Stubborn(nn.Module):
    """Calls its activation from where no attribute leads."""

    def __init__(self) -> None:
        super().__init__()
        act = nn.ReLU()
        self.a, self.act, self.b = nn.Linear(8, 64), act, nn.Linear(64, 2)
        self.call = lambda x: act(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.call(self.a(x)))


@pytest.mark.parametrize(
    ("by_running", "says"),
    [
        (True, "forward: relu is called from a place that no module's attribute leads to: make it"),
        (False, "act: forward fails with another module in its place (ValueError: self_normalize_: torch.fx"),
    ],
)
def test_a_module_that_forward_keeps_elsewhere_is_put_back(by_running: bool, says: str) -> None:
    model = Stubborn()
    before, old = values(model), model.act
    made = self_normalize_(model, x8 if by_running else None)
    assert made.changes == () and made.refused[0].startswith(says)
    assert model.act is old and is_unchanged(model, before)


class AsksItsNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.act, self.b = nn.Linear(8, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 2)

    def forward(self, x: Tensor) -> Tensor:
        assert self.norm.eps > 0
        return self.b(self.act(self.norm(self.a(x))))


def test_where_forward_asks_for_the_old_module_all_is_put_back() -> None:
    model = AsksItsNorm()
    before, text = values(model), str(model)
    made = self_normalize_(model, x8)
    assert made.refused == (
        "act and 1 more: forward fails with another module in its place "
        "(AttributeError: 'Identity' object has no attribute 'eps').",
    )
    assert is_unchanged(model, before) and str(model) == text


def test_zero_padding_and_pooling_are_left_and_named() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(32, 32, 3, padding="same"), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 2),
    )  # fmt: skip
    made = self_normalize_(model)
    assert made.refused == (
        "0 and 1 more: zero padding starves the border: set padding_mode='reflect' or 'circular'.",
        "2: max_pool2d moves mean and variance: use a convolution with stride.",
    )
    assert made.changes
    for i in (0, 3):
        model[i] = nn.Conv2d(model[i].in_channels, 32, 3, padding=1, padding_mode="reflect")
    assert not any("padding" in one for one in self_normalize_(model).refused)


def test_given_a_batch_it_says_what_the_audit_still_finds() -> None:
    noise = torch.randn(256, 20)
    made = self_normalize_(baseline(2), 5 + noise - noise.mean())
    assert len(made.refused) == 1
    assert made.refused[0].startswith("audit still says: inputs: Inputs have mean 5")


def test_what_can_not_be_done_is_one_sentence() -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = baseline(2)

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x) if x.sum() > 0 else self.net(-x)

    cases: list[tuple[Any, dict[str, Any], type[Exception], str]] = [
        (baseline, {}, TypeError, "model must be an nn.Module. Got function. Give the module itself."),
        (
            nn.ReLU(),
            {},
            ValueError,
            "must have a linear or convolutional layer. Got ReLU without one. Give a feed-forward net.",
        ),
        (nn.Sequential(nn.LazyLinear(2)), {}, ValueError, "Got lazy 0.weight. Run one batch through the model first."),
        (baseline(), {"dropout": 1.0}, ValueError, "dropout must be in [0, 1). Got 1.0. Use 0.05 or 0.1."),
        (
            Branching(),
            {},
            ValueError,
            "torch.fx must be able to follow forward. Got TraceError: symbolically traced variables",
        ),
    ]
    for model, settings, kind, sentence in cases:
        with pytest.raises(kind) as caught:
            self_normalize_(model, **settings)
        assert str(caught.value).startswith("self_normalize_: ") and sentence in str(caught.value)
    assert self_normalize_(Branching(), torch.randn(64, 20)).changes


# Models of others ------------------------------------------------------------------------------------------------


def maskformer_head() -> tuple[nn.Module, Tensor]:
    from transformers.models.maskformer.modeling_maskformer import MaskformerMLPPredictionHead

    return MaskformerMLPPredictionHead(64, 128, 16, num_layers=6), torch.randn(256, 64)


def groupvit_projection() -> tuple[nn.Module, Tensor]:
    from transformers import GroupViTConfig, GroupViTModel

    small = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    vision = small | {"depths": [1, 1, 1], "image_size": 32, "patch_size": 16, "num_group_tokens": [4, 2, 0]}
    config = GroupViTConfig(
        text_config=small | {"vocab_size": 50}, vision_config=vision, projection_dim=32, projection_intermediate_dim=256
    )
    return GroupViTModel(config).visual_projection, torch.randn(256, 32)


def clap_projection() -> tuple[nn.Module, Tensor]:
    from transformers import ClapTextConfig
    from transformers.models.clap.modeling_clap import ClapProjectionLayer

    return ClapProjectionLayer(ClapTextConfig(hidden_size=64, projection_dim=128)), torch.randn(256, 64)


@pytest.mark.parametrize("make", [maskformer_head, groupvit_projection, clap_projection])
def test_models_of_others_pass_the_audit_afterwards(make: Callable[[], tuple[nn.Module, Tensor]]) -> None:
    torch.manual_seed(0)
    model, x = make()
    made = self_normalize_(model, x)
    assert made.changes and made.refused == ()
    report = audit(model, x)
    assert report.findings == () and report.layers[0].activation == "selu"
    assert self_normalize_(model).changes == ()


def test_models_of_others_that_stay_as_they_are_say_why() -> None:
    from pytorch_lightning.demos.boring_classes import Net
    from transformers import ResNetConfig, ResNetModel

    net = Net()
    assert self_normalize_(net).refused[0].startswith("forward: relu is a function called in forward")
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    made = self_normalize_(ResNetModel(config), torch.randn(4, 3, 32, 32))
    assert made.changes == ()
    assert made.refused[0].startswith("encoder.stages.0.layers.0: a residual sum adds up variances")


def test_a_model_of_others_is_changed_and_says_what_is_left() -> None:
    from transformers import MobileNetV1Config, MobileNetV1Model

    torch.manual_seed(0)
    model = MobileNetV1Model(MobileNetV1Config(depth_multiplier=0.25))
    made = self_normalize_(model, torch.randn(8, 3, 64, 64))
    assert "conv_stem.activation: ReLU6 -> SELU" in made.changes
    assert "layer.0.normalization: BatchNorm2d -> Identity" in made.changes
    told = " ".join(made.refused)
    assert "audit still says: zero-padding" in told and "audit still says: narrow" in told


# Whole or not at all ---------------------------------------------------------------------------------------------


def fails_with(error: BaseException) -> nn.Module:
    """A net that says nothing of why it wants its ReLU."""

    def forward(s: Any, x: Tensor) -> Tensor:
        if not isinstance(s.act, nn.ReLU):
            raise error
        return s.b(s.act(s.a(x)))

    return M(forward, a=nn.Linear(8, 64), act=nn.ReLU(), b=nn.Linear(64, 2))


def test_an_error_without_words_is_named_and_all_is_put_back() -> None:
    model = fails_with(AssertionError())
    made = self_normalize_(model, x8)
    assert made == Repairs((), ("act: forward fails with another module in its place (AssertionError).",))
    assert isinstance(model.act, nn.ReLU)


def test_after_control_c_all_is_put_back() -> None:
    model = fails_with(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        self_normalize_(model, x8)
    assert isinstance(model.act, nn.ReLU)


@pytest.mark.parametrize(
    ("channels", "length", "shape", "why"),
    [
        (5, 5, (16, 5, 6), "its channels are not the layer's units."),
        (5, 7, (16, 5, 6), "its channels are not the layer's units."),
        (5, 5, None, "which dimension holds its channels is unknown: give inputs=, one batch."),
    ],
    ids=["equal", "unequal", "not run"],
)
def test_a_norm_over_another_dimension_is_not_folded(channels: int, length: int, shape: Any, why: str) -> None:
    model = nn.Sequential(
        nn.Linear(6, length), nn.BatchNorm1d(channels), nn.SELU(), nn.Flatten(), nn.Linear(channels * length, 2)
    )
    before, text = values(model), str(model)
    made = self_normalize_(model, torch.randn(shape) if shape else None, fold=True)
    assert made.changes == () and made.refused[0] == f"1: batch_norm can't be folded: {why}"
    assert is_unchanged(model, before) and str(model) == text


def dropping(front: nn.Module, *behind: nn.Module) -> nn.Module:
    return nn.Sequential(front, nn.ReLU(), nn.Dropout2d(0.2), *behind)


@pytest.mark.filterwarnings("ignore:dropout2d. Received:UserWarning")
@pytest.mark.parametrize(
    ("make", "shape", "wanted"),
    [
        (lambda: dropping(nn.Linear(8, 64), nn.Linear(64, 2)), (16, 8), "AlphaDropout(p=0.1)"),
        (lambda: dropping(nn.Conv1d(4, 64, 3), nn.Conv1d(64, 2, 3)), (16, 4, 9), "spatial_dims=1)"),
        (lambda: dropping(nn.Conv2d(4, 64, 3), nn.Conv2d(64, 2, 3)), (16, 4, 9, 9), "spatial_dims=2)"),
        (lambda: dropping(nn.Conv3d(4, 16, 3), nn.Conv3d(16, 2, 3)), (4, 4, 5, 5, 5), "spatial_dims=3)"),
    ],
    ids=["units", "sequences", "images", "volumes"],
)
def test_channels_are_dropped_as_before(make: Callable[[], nn.Module], shape: tuple[int, ...], wanted: str) -> None:
    model, x = make(), torch.randn(shape)
    self_normalize_(model, x)
    assert wanted in repr(model) and model(x).isfinite().all()


def test_dropout_of_unknown_shape_is_not_guessed() -> None:
    made = self_normalize_(dropping(nn.Linear(8, 64), nn.Linear(64, 2)))
    assert made.refused == ("2: which values dropout2d drops together is unknown: give inputs=, one batch.",)


def test_a_compiled_model_is_repaired_inside() -> None:
    model = baseline(2)
    made = self_normalize_(torch.compile(model, backend="eager"), torch.randn(64, 20))  # pyright: ignore
    assert made.changes and isinstance(model[2], nn.SELU)


def test_modules_in_places_that_hold_themselves_are_exchanged() -> None:
    model = baseline(2)
    model.registry = {"act": model[2], "all": (1, [model[2]])}  # pyright: ignore
    model.registry["me"] = model.registry  # pyright: ignore
    assert self_normalize_(model).changes
    registry: Any = model.registry
    assert registry["act"] is registry["all"][1][0] is model[2] and isinstance(model[2], nn.SELU)
    assert registry["me"] is registry


def test_frozen_weights_keep_their_values() -> None:
    model = mlp(64, 2)
    model[0].requires_grad_(False)
    before = model[0].weight.clone()
    made = self_normalize_(model)
    assert made.refused == ("0: its weights were kept (frozen) and are not as theorem 1 asks.",)
    assert torch.equal(before, model[0].weight) and made.changes[0].startswith("2: weights")
    assert self_normalize_(lecun(mlp(64, 2)).requires_grad_(False)) == Repairs((), ())


def test_an_option_that_does_nothing_says_so() -> None:
    net = [nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 2)]
    made = self_normalize_(nn.Sequential(*net), dropout=0.05)
    assert made.refused == ("dropout: no dropout stands between layers that could have this rate.",)
    made = self_normalize_(nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 2)), fold=True)
    assert made.refused == (
        "0 and 1 more: its weights were kept (fold) and are not as theorem 1 asks.",
        "fold: no norm stands between layers that could be folded.",
    )


def test_torchs_own_init_is_seen_in_few_weights() -> None:
    model = lecun(nn.Sequential(nn.Linear(64, 64), nn.SELU(), nn.Linear(64, 1)))
    model[2].reset_parameters()  # pyright: ignore
    assert self_normalize_(model).changes == ("2: weights LeCun-normal, bias 0",)


@pytest.mark.parametrize("by_running", [False, True], ids=["by torch.fx", "by one run"])
@pytest.mark.parametrize(
    ("pad", "starves"),
    [(nn.ZeroPad2d(1), True), (nn.ConstantPad2d(1, 2.0), False), (nn.ReflectionPad2d(1), False)],
    ids=["zeros", "twos", "reflection"],
)
def test_padding_by_a_module_is_seen_in_both_graphs(pad: nn.Module, starves: bool, by_running: bool) -> None:
    model = nn.Sequential(nn.Conv2d(3, 64, 3), nn.ReLU(), pad, nn.Conv2d(64, 64, 3), nn.SELU(), nn.Conv2d(64, 2, 3))
    made = self_normalize_(model, torch.randn(8, 3, 9, 9) if by_running else None)
    assert made.changes and ("3: zero padding starves the border" in str(made)) == starves


def test_what_the_audit_says_afterwards_names_no_second_repair() -> None:
    model = nn.Sequential(parametrizations.weight_norm(nn.Linear(64, 64)), nn.ReLU(), nn.Linear(64, 2))
    told = " ".join(self_normalize_(model, torch.randn(256, 64)).refused)
    assert "audit still says" in told and "does this" not in told
