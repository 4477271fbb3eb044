"""The judgments of `papers.klambauer2017snn`: each changes its verdict when the record says otherwise."""

from __future__ import annotations

import copy
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


def uci_rows(best: str, tasks: int = 60, rows: int = 2000) -> list[Row]:
    """`best` wins every task; the others are shuffled."""
    random = np.random.default_rng(0)
    out = []
    for task in range(tasks):
        accuracy = dict(zip(METHODS, 0.5 + 0.01 * random.permutation(len(METHODS)), strict=True)) | {best: 0.9}
        out += [
            row("uci", {"task": f"t{task}", "method": method}, {"rows": rows} | {
                f"{grid}_{what}": value for grid in ("paper", "equal")
                for what, value in (("accuracy", float(accuracy[method])), ("lr", 0.3 if task % 2 else 0.1),
                                    ("depth", 16 if method == best else 4 - task % 2))})
            for method in METHODS
        ]  # fmt: skip
    return out


def classical(better: bool) -> list[Row]:
    return [
        row("classical", {"task": f"t{task}", "method": method}, {"accuracy": 0.95 if better else 0.1})
        for task in range(60)
        for method in ("RandomForest", "SVM")
    ]


def depth_rows(winner: str, source: str = "mnist", jumpy: str = "BatchNorm") -> list[Row]:
    out = []
    for layers in (8, 16, 32):
        for method in METHODS:
            end = 0.01 if method == winner else 0.2
            jumps = 0.1 if method == jumpy else 0.001
            curve = [[end + jumps * (i % 2) * (1 + 0.01 * seed) for i in range(12)] for seed in range(3)]
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


def dropout(kind: str, variance: float, mean: float = 0.0) -> list[Row]:
    return [row("dropout", {"kind": kind, "p": 0.1, "seed": 0}, {"variances": [1.0, variance], "means": [0.0, mean]})]


def activations(able: str = "", scaled_too: bool = True) -> list[Row]:
    return [
        row("activation", {"name": name, "scaled": scaled},
            {"normalizes": name == able and scaled == scaled_too, "gain": 1.5, "mean_there": 0.0,
             "variance_there": 1.0})
        for name in ("ReLU", "leaky ReLU", "tanh", "sigmoid", "SELU") for scaled in (False, True)
    ]  # fmt: skip


def tox21(best: str, at: int = 8) -> list[Row]:
    def area(method: str, depth: int, seed: int) -> float:
        return (0.8 if method == best and depth == at else 0.79 - 0.002 * depth) + 1e-4 * seed

    return [
        row("tox21", {"method": method, "depth": depth}, {"auc": [area(method, depth, seed) for seed in range(3)]})
        for method in METHODS
        for depth in (2, 8, 32)
    ]


def tox21_falls(least: str, deepest: int = 32) -> list[Row]:
    slope = dict.fromkeys(METHODS, 0.002) | {least: 0.0001}
    return [
        row(
            "tox21",
            {"method": method, "depth": depth},
            {"auc": [0.8 - slope[method] * depth, 0.81 - slope[method] * depth]},
        )
        for method in METHODS
        for depth in (2, deepest)
    ]


def pulsars(best: str) -> list[Row]:
    areas = {method: [0.97 + 0.005 * (method == best) + 1e-4 * fold for fold in range(5)] for method in METHODS}
    return [row("htru2", {"method": method}, {"auc": areas[method]}) for method in METHODS]


def pairs(relu: float, selu: float, mended: float, findings: tuple[str, ...] = (), reverse: bool = False) -> list[Row]:
    accuracy = {("ReLU", "theory"): 0.4, ("SELU", "theory"): mended}
    rows = [
        row("dissent", {"activation": activation, "variant": variant, "seed": seed},
            {"accuracy": accuracy.get((activation, variant), relu if activation == "ReLU" else selu) + 0.03 * seed,
             "findings": [[kind, "", ""] for kind in (findings if variant == "theory" else ("sum-pool",))]})
        for variant in ("plain", "batch norm", "theory") for activation in ("ReLU", "SELU") for seed in range(3)
    ]  # fmt: skip
    return rows[::-1] if reverse else rows


def constant(mean: float, variance: float, alpha: float, scale: float) -> Row:
    return row("constants", {"mean": mean, "variance": variance}, {"alpha": alpha, "scale": scale, "residual": 0.0})


def theorem(name: str, proved: bool, parts: int = 4) -> list[Row]:
    return [
        row("theorem", {"name": f"{name}{', part' * part}"}, {"proved": proved or part == 0, "says": "so", "boxes": 10,
                                                             "took": 0.1})
        for part in range(parts)
    ]  # fmt: skip


J = [row("jacobian", {}, {"norm": 0.7877, "backward_factor": 1.07157})]
CASES: dict[str, tuple[str, list[Row], list[Row]]] = {
    "constants": ("follow from the fixed point", [constant(0.0, 1.0, 1.6732632423543772, 1.0507009873554805)],
                  [constant(0.0, 1.0, 1.6732632423563772, 1.0507009873554805)]),
    "other": ("Another fixed point", [constant(0.0, 2.0, 1.97126, 1.06071)], [constant(0.0, 2.0, 1.97126, 1.0608)]),
    "norm": ("has norm 0.7877", J, [row("jacobian", {}, {"norm": 0.7879})]),
    "theorem 1": ("Theorem 1", theorem("theorem 1", True), theorem("theorem 1", False)),
    "theorem 2": ("Theorem 2", theorem("theorem 2", True), theorem("theorem 2", False)),
    "theorem 3": ("Theorem 3", theorem("theorem 3", True), theorem("theorem 3", False)),
    "unable": ("cannot make a net", activations("tanh"), activations("tanh", scaled_too=False)),
    "unable, scaled": ("Nor can they", activations("tanh", scaled_too=False), activations("ReLU")),
    "moments": ("stay near mean 0", moments(), moments(variance=1.4)),
    "central limit": ("Wider layers", moments(), moments(slope=-0.3)),
    "gradients": ("exploding gradients", J + moments(growth=1.0), J + moments(growth=9.0)),
    "vanishing gradients": ("exploding gradients", J + moments(growth=1.0), J + moments(growth=1e-30)),
    "alpha dropout": ("Alpha dropout keeps", dropout("alpha", 1.01), dropout("alpha", 1.3)),
    "alpha dropout's mean": ("Alpha dropout keeps", dropout("alpha", 1.01), dropout("alpha", 1.0, mean=5.0)),
    "plain dropout": ("Plain dropout does not", dropout("plain", 1.6), dropout("plain", 1.1)),
    "figure 1 mnist": ("On MNIST", depth_rows("SNN"), depth_rows("BatchNorm")),
    "figure 1 cifar10": ("Likewise on CIFAR-10", depth_rows("SNN", "cifar10"), depth_rows("BatchNorm", "cifar10")),
    "steadier": ("varies more", depth_rows("BatchNorm"), depth_rows("BatchNorm", jumpy="SNN")),
    "deepest": ("At 32 layers", depth_rows("SNN"), depth_rows("LayerNorm")),
    "deepest, all equal": ("At 32 layers", depth_rows("SNN"), depth_rows("nobody", jumpy="nobody")),
    "uci, own": ("with the paper's own grids", uci_rows("SNN"), uci_rows("Highway")),
    "uci, equal": ("one grid for every method", uci_rows("SNN"), uci_rows("Highway")),
    "uci, large": ("more than 1,000 rows", uci_rows("SNN"), uci_rows("Highway")),
    "chosen depth": ("chooses deeper nets", uci_rows("SNN"), uci_rows("Highway")),
    "small": ("random forests", uci_rows("SNN") + classical(True), uci_rows("SNN") + classical(False)),
    "htru2": ("best on HTRU2", pulsars("SNN"), pulsars("MSRAinit")),
    "tox21": ("best on Tox21", tox21("SNN"), tox21("WeightNorm")),
    "tox21, best when shallow": ("best on Tox21", tox21("SNN"), tox21("SNN", at=2)),
    "tox21 deep": ("lose least", tox21_falls("SNN"), tox21_falls("BatchNorm")),
    "dissent": ("initialization SELU loses", pairs(0.6, 0.5, 0.6), pairs(0.5, 0.6, 0.6)),
    "dissent BN": ("likewise with batch", pairs(0.6, 0.5, 0.6), pairs(0.5, 0.6, 0.6)),
    "dissent in another order": ("initialization SELU loses", pairs(0.6, 0.5, 0.6, reverse=True), pairs(0.5, 0.6, 0.6)),
    "mended": ("beats ReLU there", pairs(0.5, 0.4, 0.6), pairs(0.5, 0.4, 0.45)),
    "mended, with findings": ("beats ReLU there", pairs(0.5, 0.4, 0.6), pairs(0.5, 0.4, 0.6, ("sum-pool",))),
}  # fmt: skip
"""Words of the claim, a record that shows it, and one that refutes it."""


def test_every_claim_has_its_case() -> None:
    assert {claim(words).sentence for words, *_ in CASES.values()} == {one.sentence for one in claims}


@pytest.mark.parametrize(("words", "shown", "refuted"), CASES.values(), ids=CASES.keys())
def test_the_record_decides(words: str, shown: list[Row], refuted: list[Row]) -> None:
    for rows, word in ((shown, REPRODUCED), (refuted, NOT_REPRODUCED)):
        verdict = claim(words).judge(Table(rows))
        assert verdict.word == word, verdict
        assert verdict.ours


@pytest.mark.parametrize("words", dict.fromkeys(words for words, *_ in CASES.values()))
def test_an_empty_record_is_not_judged(words: str) -> None:
    verdict = claim(words).judge(Table())
    assert verdict.word == NOT_JUDGED
    assert verdict.note


def without(rows: list[Row], **settings: Any) -> list[Row]:
    return [one for one in rows if not settings.items() <= one["settings"].items()]


PARTS: dict[str, tuple[str, list[Row]]] = {
    "a depth of figure 1": ("On MNIST", without(depth_rows("SNN"), depth=16)),
    "32 layers": ("At 32 layers", without(depth_rows("SNN"), depth=32)),
    "a part of theorem 3": ("Theorem 3", theorem("theorem 3", True, parts=3)),
    "tasks": ("with the paper's own grids", uci_rows("SNN", tasks=59)),
    "large tasks": ("more than 1,000 rows", uci_rows("SNN", rows=900)),
    "a method of Tox21": ("best on Tox21", without(tox21("SNN"), method="Highway")),
    "SNN in Tox21": ("lose least", without(tox21_falls("SNN"), method="SNN")),
    "a depth of Tox21": ("best on Tox21", without(tox21("SNN"), method="Highway", depth=8)),
    "32 layers of Tox21": ("lose least", tox21_falls("SNN", deepest=16)),
    "a fold's method": ("best on HTRU2", without(pulsars("SNN"), method="ResNet")),
    "seeds": ("initialization SELU loses", without(without(pairs(0.6, 0.5, 0.6), seed=1), activation="SELU", seed=2)),
    "small tasks": ("random forests", uci_rows("SNN", tasks=20) + classical(True)),
    "a second setting": ("with the paper's own grids", uci_rows("SNN") + uci_rows("SNN")[:1]),
}


@pytest.mark.parametrize(("words", "rows"), PARTS.values(), ids=PARTS.keys())
def test_a_record_that_lacks_a_part_is_not_judged(words: str, rows: list[Row]) -> None:
    assert claim(words).judge(Table(rows)).word == NOT_JUDGED


def test_a_seed_that_is_missing_leaves_the_others() -> None:
    rows = without(pairs(0.6, 0.5, 0.6), activation="SELU", variant="plain", seed=2)
    verdict = claim("initialization SELU loses").judge(Table(rows))
    assert (verdict.word, verdict.seeds) == (REPRODUCED, 2)


def test_within_noise_is_not_judged() -> None:
    rows = pulsars("SNN")
    rows[1]["result"]["auc"] = [0.99, 0.96, 0.98, 0.97, 0.97]
    assert claim("best on HTRU2").judge(Table(rows)).word == NOT_JUDGED


def test_one_number_edited_changes_a_verdict() -> None:
    rows = tox21("SNN")
    edited = copy.deepcopy(rows)
    edited[0]["result"]["auc"][0] = 0.9
    assert claim("best on Tox21").judge(Table(rows)).word == REPRODUCED
    assert claim("best on Tox21").judge(Table(edited)).word != REPRODUCED


def test_unfinished_tasks_do_not_count() -> None:
    rows = without(uci_rows("SNN", tasks=61), task="t3", method="ResNet")
    assert claim("with the paper's own grids").judge(Table(rows)).note.startswith("60 tasks")


def test_claims_say_when_they_are_reproduced_and_keep_the_papers_number() -> None:
    assert all(one.condition or one.sentence.startswith("The Jacobian") for one in claims)
    assert claim("best on HTRU2").judge(Table()).paper.startswith("SNN .9803")


def test_ranks_share_the_mean_where_accuracies_are_equal() -> None:
    tasks = {"a": {"x": 0.9, "y": 0.8, "z": 0.8}, "b": {"x": 0.1, "y": 0.3, "z": 0.2}}
    assert ranks(tasks, ("x", "y", "z")).tolist() == [[1.0, 2.5, 2.5], [3.0, 1.0, 2.0]]


def test_rankings_and_their_test_against_the_reference() -> None:
    """Ten tasks that SNN wins: p = 2 / 2^n by the exact signed-rank test."""
    tasks = {str(i): {"SNN": 0.9, "MSRAinit": 0.8} for i in range(10)}
    first, second = ranking(tasks, ("MSRAinit", "SNN"))
    assert (first.method, first.difference, first.p) == ("SNN", -0.5, 1.0)
    assert second.interval == (0.5, 0.5)
    assert second.p == pytest.approx(2 / 2**10, rel=0.6)
