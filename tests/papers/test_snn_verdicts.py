"""The judgments of `papers.klambauer2017snn`: each changes its verdict when the record says otherwise."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from hooke.claim import NOT_JUDGED, NOT_REPRODUCED, REPRODUCED, Claim, Table
from papers.klambauer2017snn import claims
from papers.snn.rank import METHODS, ranking, ranks

Row = dict[str, Any]


def row(study: str, settings: Row, result: Row) -> Row:
    return {"study": study, "settings": settings, "result": result, "made": {}}


def claim(words: str) -> Claim:
    (found,) = [one for one in claims if words in one.sentence]
    return found


def uci_rows(best: str, tasks: int = 12, rows: int = 2000) -> list[Row]:
    """`best` wins every task; the others are shuffled."""
    random = np.random.default_rng(0)
    out = []
    for task in range(tasks):
        accuracy = dict(zip(METHODS, 0.5 + 0.01 * random.permutation(len(METHODS)), strict=True)) | {best: 0.9}
        out += [
            row("uci", {"task": f"t{task}", "method": method}, {"rows": rows} | {
                f"{grid}_{what}": value for grid in ("paper", "equal")
                for what, value in (("accuracy", float(accuracy[method])), ("depth", 16 if method == best else 4))})
            for method in METHODS
        ]  # fmt: skip
    return out


def classical(better: bool) -> list[Row]:
    return [
        row("classical", {"task": f"t{task}", "method": method}, {"accuracy": 0.95 if better else 0.1})
        for task in range(12)
        for method in ("RandomForest", "SVM")
    ]


def depth_rows(winner: str, source: str = "mnist") -> list[Row]:
    out = []
    for layers in (8, 16, 32):
        for method in METHODS:
            end = 0.01 if method == winner else 0.2
            jumps = 0.1 if method == "BatchNorm" else 0.001
            curve = [[end + jumps * (i % 2) for i in range(12)] for _ in range(3)]
            rates = {"0.1": {"train_error": curve, "test_error": [end] * 3}}
            settings = {"source": source, "method": method, "depth": layers}
            out.append(row("depth", settings, {"rates_result": rates, "steps_seen": list(range(12))}))
    return out


def moments(variance: float = 1.0, growth: float = 1.0, slope: float = -0.5) -> list[Row]:
    return [
        row("moments", {"width": width, "depth": depth, "seed": seed},
            {"means": [0.0] * depth, "gradient_growth": growth * (1 + 1e-6 * seed),
             "variances": [variance] * (depth - 1) + [variance + (-1) ** seed * width**slope]})
        for width in (16, 64, 256, 1024) for depth in (16, 32) for seed in range(4)
    ]  # fmt: skip


def dropout(alpha: float, plain: float) -> list[Row]:
    found = {"alpha": alpha, "plain": plain}
    return [
        row("dropout", {"kind": kind, "p": 0.1, "seed": 0}, {"variances": [1.0, value]})
        for kind, value in found.items()
    ]


def activations(able: bool) -> list[Row]:
    return [
        row("activation", {"name": name, "scaled": scaled},
            {"gain": 1.5, "normalizes": able and name == "tanh", "mean_there": 0.0, "variance_there": 1.0})
        for name in ("ReLU", "leaky ReLU", "tanh", "sigmoid", "SELU") for scaled in (False, True)
    ]  # fmt: skip


def tox21(best: str) -> list[Row]:
    def area(method: str, depth: int) -> float:
        return 0.8 if method == best and depth == 8 else 0.8 - 0.002 * depth

    return [
        row("tox21", {"method": method, "depth": depth}, {"auc": [area(method, depth)] * 3})
        for method in METHODS
        for depth in (2, 8, 32)
    ]  # fmt: skip


def tox21_falls(least: str) -> list[Row]:
    return [
        row(
            "tox21",
            {"method": method, "depth": depth},
            {"auc": [0.8 - (0.0001 if method == least else 0.002) * depth] * 2},
        )
        for method in METHODS
        for depth in (2, 32)
    ]


def pulsars(best: str) -> list[Row]:
    return [
        row("htru2", {"method": method}, {"auc": [0.97 + 0.005 * (method == best) + 1e-4 * fold for fold in range(5)]})
        for method in METHODS
    ]


def pairs(relu: float, selu: float, mended: float) -> list[Row]:
    accuracy = {("ReLU", "SNN"): 0.4, ("SELU", "SNN"): mended}
    return [
        row("dissent", {"activation": activation, "variant": variant, "seed": seed},
            {"accuracy": accuracy.get((activation, variant), relu if activation == "ReLU" else selu) + 0.001 * seed,
             "findings": [["sum", "sum", "Sums of 42."]]})
        for variant in ("blog", "blog+BN", "SNN") for activation in ("ReLU", "SELU") for seed in range(3)
    ]  # fmt: skip


def constant(mean: float, variance: float, alpha: float, scale: float) -> Row:
    return row("constants", {"mean": mean, "variance": variance}, {"alpha": alpha, "scale": scale, "residual": 0.0})


def theorem(name: str, proved: bool) -> list[Row]:
    return [
        row("theorem", {"name": name}, {"proved": True, "says": "so", "boxes": 10, "took": 0.1}),
        row("theorem", {"name": f"{name}, appendix"}, {"proved": proved, "says": "so", "boxes": 10, "took": 0.1}),
    ]


J = [row("jacobian", {}, {"norm": 0.7877, "backward_factor": 1.07157})]
CASES: dict[str, tuple[str, list[Row], list[Row]]] = {
    "constants": ("follow from the fixed point", [constant(0.0, 1.0, 1.6732632423543772, 1.0507009873554805)],
                  [constant(0.0, 1.0, 1.6732632423563772, 1.0507009873554805)]),
    "other": ("Another fixed point", [constant(0.0, 2.0, 1.97126, 1.06071)], [constant(0.0, 2.0, 1.97126, 1.0608)]),
    "norm": ("has norm 0.7877", J, [row("jacobian", {}, {"norm": 0.7879})]),
    "theorem 1": ("Theorem 1", theorem("theorem 1", True), theorem("theorem 1", False)),
    "theorem 2": ("Theorem 2", theorem("theorem 2", True), theorem("theorem 2", False)),
    "theorem 3": ("Theorem 3", theorem("theorem 3", True), theorem("theorem 3", False)),
    "only SELU": ("cannot make a net", activations(False), activations(True)),
    "moments": ("stay near mean 0", moments(), moments(variance=1.4)),
    "central limit": ("Wider layers", moments(), moments(slope=-1.2)),
    "gradients": ("exploding gradients", J + moments(growth=1.0), J + moments(growth=9.0)),
    "alpha dropout": ("Alpha dropout keeps", dropout(1.01, 1.6), dropout(1.3, 1.6)),
    "figure 1 mnist": ("On MNIST", depth_rows("SNN"), depth_rows("BatchNorm")),
    "figure 1 cifar10": ("Likewise on CIFAR-10", depth_rows("SNN", "cifar10"), depth_rows("BatchNorm", "cifar10")),
    "steadier": ("varies more", depth_rows("BatchNorm"), [
        {**one, "result": {"rates_result": {"0.1": {"train_error": [[0.1] * 12], "test_error": [0.1]}}}}
        for one in depth_rows("SNN")]),
    "deepest": ("At 32 layers", depth_rows("SNN"), depth_rows("LayerNorm")),
    "uci, own": ("with the paper's own grids", uci_rows("SNN"), uci_rows("Highway")),
    "uci, equal": ("one grid for every method", uci_rows("SNN"), uci_rows("Highway")),
    "uci, large": ("more than 1,000 rows", uci_rows("SNN"), uci_rows("Highway")),
    "chosen depth": ("chooses deeper nets", uci_rows("SNN"), uci_rows("ResNet")),
    "small": ("random forests", uci_rows("SNN") + classical(True), uci_rows("SNN") + classical(False)),
    "htru2": ("best on HTRU2", pulsars("SNN"), pulsars("MSRAinit")),
    "tox21": ("best on Tox21", tox21("SNN"), tox21("WeightNorm")),
    "tox21 deep": ("lose least", tox21_falls("SNN"), tox21_falls("BatchNorm")),
    "dissent": ("initialization SELU loses", pairs(0.6, 0.5, 0.6), pairs(0.5, 0.6, 0.6)),
    "dissent BN": ("likewise with batch", pairs(0.6, 0.5, 0.6), pairs(0.5, 0.6, 0.6)),
    "mended": ("does not lose there", pairs(0.5, 0.4, 0.6), pairs(0.5, 0.4, 0.45)),
}  # fmt: skip
"""Words of the claim, a record that shows it, and one that refutes it."""


def test_every_claim_has_its_case() -> None:
    assert sorted(claim(words).sentence for words, *_ in CASES.values()) == sorted(one.sentence for one in claims)


@pytest.mark.parametrize(("words", "shown", "refuted"), CASES.values(), ids=CASES.keys())
def test_the_record_decides(words: str, shown: list[Row], refuted: list[Row]) -> None:
    for rows, word in ((shown, REPRODUCED), (refuted, NOT_REPRODUCED)):
        verdict = claim(words).judge(Table(rows))
        assert verdict.word == word, verdict
        assert verdict.ours


@pytest.mark.parametrize("words", [words for words, *_ in CASES.values()])
def test_an_empty_record_is_not_judged(words: str) -> None:
    verdict = claim(words).judge(Table())
    assert verdict.word == NOT_JUDGED
    assert verdict.note


def test_one_number_edited_changes_a_verdict() -> None:
    rows = pulsars("SNN")
    edited = copy.deepcopy(rows)
    edited[1]["result"]["auc"][0] = 0.999
    judge: Callable[[list[Row]], str] = lambda rows: claim("best on HTRU2").judge(Table(rows)).word  # noqa: E731
    assert (judge(rows), judge(edited)) == (REPRODUCED, NOT_REPRODUCED)


def test_small_tasks_alone_do_not_judge_the_large() -> None:
    assert claim("more than 1,000 rows").judge(Table(uci_rows("SNN", rows=900))).word == NOT_JUDGED


def test_unfinished_tasks_do_not_count() -> None:
    rows = [one for one in uci_rows("SNN") if one["settings"] != {"task": "t3", "method": "ResNet"}]
    assert claim("with the paper's own grids").judge(Table(rows)).note.startswith("11 tasks")


def test_ranks_share_the_mean_where_accuracies_are_equal() -> None:
    tasks = {"a": {"x": 0.9, "y": 0.8, "z": 0.8}, "b": {"x": 0.1, "y": 0.3, "z": 0.2}}
    assert ranks(tasks, ("x", "y", "z")).tolist() == [[1.0, 2.5, 2.5], [3.0, 1.0, 2.0]]


def test_rankings_and_their_test_against_the_reference() -> None:
    """Ten tasks that SNN wins: six or more of one sign are p = 2 / 2^n by the exact signed-rank test."""
    tasks = {str(i): {"SNN": 0.9, "MSRAinit": 0.8} for i in range(10)}
    first, second = ranking(tasks, ("MSRAinit", "SNN"))
    assert (first.method, first.difference, first.p) == ("SNN", -0.5, 1.0)
    assert second.interval == (0.5, 0.5)
    assert second.p == pytest.approx(2 / 2**10, rel=0.6)
