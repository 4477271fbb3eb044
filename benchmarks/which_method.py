"""Writes docs/which_method.md and its picture from the records in benchmarks/results/.

python benchmarks/which_method.py
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import cifar10_page
import language_page
import machine
import own_data_page
from cifar10_page import Cifar10
from comparison import ahead, apart, megabytes, minus, number, says
from language_page import Language
from own_data_page import OwnData

from hooke.claim import Table

DOCS = Path(__file__).parent.parent / "docs"

INTRODUCTION = """# Which method when

Made by `python benchmarks/which_method.py` from the records in `benchmarks/results/`: no number here is typed by hand,
and a sentence that the records do not bear out stops the program. One method is called better than another only if it
was with every seed. The tasks are small, so take the order of the methods from here and not the size of a difference.

In the first two comparisons every method searched the same learning rates with one seed; then, where it has a setting
of its own (DiLoCo: outer rate and momentum; EASGD: beta), two more values of that at the best rate, and the rates again
with the best value. All seeds run the best. The third is a paper's own comparison. All are real workers with real
gradients, in one process on a virtual clock (`hooke.simulate`). They are equally fast: Local SGD and DiLoCo exchange
all at once, EASGD's workers one by one, in an order left to chance.

Added after first results had been seen, for all methods alike: the second search of rates, two of the language model's
five seeds, and the smallest rate for workers with their own data.
"""

SECTIONS: dict[str, Callable[[Table], str]] = {
    "language": language_page.section,
    "own_data": own_data_page.section,
    "cifar10": cifar10_page.section,
}
"""Record -> what it says; a record that is not there is left out."""


def in_short(known: Mapping[str, Table]) -> str:
    """The answers, each with what it rests on."""
    if not known.keys() >= SECTIONS.keys():
        return ""
    text, own, images = Language(known["language"]), OwnData(known["own_data"]), Cifar10(known["cifar10"])
    answers = {
        "Which method?": [*images.method(), *_method(text), _method_for_own_data(own)],
        "Which period?": [*_period(text, own), images.period()],
        "How many workers?": [
            *images.workers(),
            "What more of them bring in speed, and whether they stay stable, says "
            "[`hooke plan`](guide.md#planning-a-run); where one center is too slow for them, [growth](growth.md).",
        ],
        "What do I lose?": [*_loss(text), *_loss_with_own_data(own)],
    }
    return "\n## In short\n\n" + "\n".join(f"**{asked}**\n\n{_list(said)}" for asked, said in answers.items())


def _list(sentences: Sequence[str]) -> str:
    return "".join(f"- {sentence}\n" for sentence in sentences)


def _method(text: Language) -> list[str]:
    local, dilo, elastic = (text.runs[name, 10] for name in ("Local SGD", "DiLoCo", "EASGD"))
    later_local, later_dilo, later_elastic = (text.runs[name, 50] for name in ("Local SGD", "DiLoCo", "EASGD"))
    less = 1 - text.share("EASGD", 10) / text.share("Local SGD", 10)
    lost = {setup: f"{text.lost(*setup).mean:.3f}" for setup in text.runs}
    return [
        says(
            "Where all workers draw from the same data and exchange often, Local SGD or DiLoCo. On the language model "
            f"at period 10 they end {lost['Local SGD', 10]} and {lost['DiLoCo', 10]} nats above DDP; "
            f"{len(text.ddp)} seeds do not tell which is better.",
            not apart(minus(local, dilo, "loss")),
        ),
        says(
            f"At period 50 DiLoCo is better, {lost['DiLoCo', 50]} against {lost['Local SGD', 50]}, with less outer "
            "momentum than its paper has (the runs are short).",
            ahead(later_dilo, later_local, "loss", -1) and later_dilo[0]["settings"]["setting"][1] < 0.9,
        ),
        says(
            f"EASGD ends behind both, {lost['EASGD', 10]} and {lost['EASGD', 50]} above DDP at periods 10 and 50. "
            "What it offers instead is in no table here: nobody waits for the slowest. A worker also sends "
            f"{100 * less:.0f} % less than around a ring.",
            all(ahead(better, elastic, "loss", -1) for better in (local, dilo))
            and all(ahead(better, later_elastic, "loss", -1) for better in (later_local, later_dilo)),
        ),
    ]


def _method_for_own_data(own: OwnData) -> str:
    accuracy = {name: 100 * own.at_end(name, "by class", 5).mean for name in ("EASGD", "Local SGD", "DiLoCo")}
    return says(
        f"Where each worker has data of its own, Local SGD or DiLoCo ({accuracy['Local SGD']:.0f} and "
        f"{accuracy['DiLoCo']:.0f} % right at period 5) and not EASGD ({accuracy['EASGD']:.0f} %).",
        all(
            ahead(own.runs[name, "by class", period], own.runs["EASGD", "by class", period], "accuracy", 1)
            for name in ("Local SGD", "DiLoCo")
            for period in (5, 50)
        ),
    )


def _period(text: Language, own: OwnData) -> list[str]:
    names = ("Local SGD", "EASGD", "DiLoCo")
    costs = [minus(text.runs[name, 50], text.runs[name, 10], "loss").mean for name in names]
    often, seldom = (own.runs["Local SGD", "by class", period] for period in (5, 50))
    return [
        says(
            "As short as the link allows. On the language model, 50 in place of 10 costs "
            f"{', '.join(f'{name} {cost:.3f}' for name, cost in zip(names, costs, strict=True))} nats for a fifth of "
            "the bytes.",
            all(ahead(text.runs[name, 10], text.runs[name, 50], "loss", -1) for name in names),
        ),
        says(
            "Where workers have data of their own, 50 in place of 5 costs Local SGD "
            f"{100 * minus(often, seldom, 'accuracy').mean:.0f} points of accuracy.",
            ahead(often, seldom, "accuracy", 1),
        ),
    ]


def _loss(text: Language) -> list[str]:
    lost = {setup: text.lost(*setup).mean for setup in text.runs if setup[0] != "DDP"}
    nearest = [("Local SGD", 10), ("DiLoCo", 10)]
    others = lost.keys() - set(nearest)
    most = max(lost, key=lost.__getitem__)
    share = text.share("Local SGD", 50)
    begun = text.after(text.ddp, 1e6 * share * megabytes(text.ddp))
    return [
        says(
            "At equal examples Local SGD and DiLoCo at period 10 come nearest to DDP on the language model: "
            f"{' and '.join(number(text.lost(*setup), 3, sign='+') for setup in nearest)} nats, with "
            f"{100 * text.share(*nearest[0]):.0f} % of its bytes.",
            max(lost[setup] for setup in nearest) < min(lost[setup] for setup in others),
        ),
        says(
            f"The others end above DDP with every seed, up to {lost[most]:.3f} ({most[0]} at period {most[1]}, "
            f"{100 * text.share(*most):.1f} % of the bytes).",
            all(ahead(text.ddp, text.runs[setup], "loss", -1) for setup in others),
        ),
        says(
            f"At equal bytes all are far ahead: when DDP has sent {100 * share:.0f} % of its bytes, it is at {begun}.",
            float(begun) > 0.5 + max(text.at_end(*setup).mean for setup in lost),
        ),
    ]


def _loss_with_own_data(own: OwnData) -> list[str]:
    lost = {setup: 100 * own.lost(*setup).mean for setup in own.runs if setup[0] != "DDP"}
    mixed = {setup: points for setup, points in lost.items() if setup[1] == "mixed"}
    by_class = {setup: points for setup, points in lost.items() if setup[1] == "by class"}
    least = min(by_class, key=by_class.__getitem__)
    return [
        says(f"With mixed images nobody loses more than {max(mixed.values()):.1f} points.", max(mixed.values()) > 0),
        says(
            f"With two classes each everybody loses: {least[0]} at period {least[2]} {by_class[least]:.1f} points, all "
            "others more.",
            all(ahead(own.ddp["by class"], own.runs[setup], "accuracy", 1) for setup in by_class),
        ),
    ]


def records() -> dict[str, Table]:
    """The records that are there."""
    paths = {name: machine.RESULTS / f"{name}.jsonl" for name in SECTIONS} | {"cifar10": cifar10_page.RECORD}
    return {name: Table.read(path) for name, path in paths.items() if path.exists()}


def page() -> str:
    """The whole text of docs/which_method.md."""
    known = records()
    return (
        INTRODUCTION
        + in_short(known)
        + "".join(write(known[name]) for name, write in SECTIONS.items() if name in known)
    )


def main() -> None:
    (DOCS / "which_method.md").write_text(page())
    language_page.picture(records()["language"], DOCS / "which_method.svg")


if __name__ == "__main__":
    main()
