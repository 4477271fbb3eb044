"""Writes docs/performance.md and docs/growth.md, with their pictures, from the records in benchmarks/results/.

python benchmarks/page.py
"""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import growth_page
import learning
import machine

DOCS = Path(__file__).parent.parent / "docs"
Row = dict[str, Any]

INTRODUCTION = """# Performance

Made by `python benchmarks/page.py` from the records in `benchmarks/results/`; no number here is typed by hand. The
machines are shared and noisy, so every figure is a ratio within one run, and medians are what to compare.
"""


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def source(row: Row, command: str) -> str:
    """Where a table's numbers come from."""
    return (
        f"\n`{command}` on {row['cores']} cores ({row['cpu']}), torch {row['torch']}, Python {row['python']}, "
        f"hooke {row['commit'][:10]}{' with changes' * row['commit'].endswith('+changes')}, {row['at'][:10]}.\n"
    )


def exchange(row: Row) -> str:
    rows = [
        [each["what"], f"{each['milliseconds']:.1f}", f"{each['times_a_copy']:.2f}",
         f"{each['quartiles'][0]:.2f} to {each['quartiles'][1]:.2f}"]
        for each in row["rows"]
    ]  # fmt: skip
    text = (
        f"\n## One exchange\n\n{row['numel']:,} parameters, one thread, median of {row['repeats']} rounds. An elastic "
        "exchange reads x and the center and writes both; the yardstick is a plain copy that reads and writes as many "
        "bytes. The exchange also checks every value of x before it changes anything, and takes a lock for each "
        "block.\n\n"
    )
    head = ["what", "milliseconds", "times a copy", "middle half of the rounds"]
    return text + table(head, rows) + source(row, "python benchmarks/exchange.py")


def scaling(row: Row) -> str:
    rows = [
        [each["what"], f"{each['examples_per_second']:,.0f}", f"{each['share_of_twice_one_process']:.3f}",
         f"{each['range'][0]:.3f} to {each['range'][1]:.3f}"]
        for each in row["rows"]
    ]  # fmt: skip
    text = (
        f"\n## Two workers on two cores\n\nA convolutional network of {row['parameters']:,} parameters, batch "
        f"{row['batch']}, one thread a process, period {row['period']}, {row['repeats']} rounds of "
        f"{row['seconds']:g} s. The limit is two processes that never talk.\n\n"
    )
    head = ["what", "examples/s", "share of twice one process", "range"]
    return text + table(head, rows) + source(row, "python benchmarks/scaling.py")


def learned(rows: list[Row]) -> str:
    base = learning.best_rates(rows, "msgd")[0]
    targets = learning.targets(rows, base)
    lines = []
    for method, lr in sorted(
        {(r["method"], r["lr"]) for r in rows}, key=lambda k: (list(learning.METHODS).index(k[0]), k[1])
    ):
        mine = sorted((r for r in rows if (r["method"], r["lr"]) == (method, lr)), key=lambda r: r["seed"])
        shares = [learning.reaches(r["curve"], targets[r["seed"]]) / r["seconds"] for r in mine if r["seed"] in targets]
        ends = [learning.last(r["curve"]) for r in mine]
        lines.append(
            [learning.TITLES[method], f"{lr:g}", str(len(mine)), f"{statistics.mean(ends):.4f}",
             ", ".join(f"{share:.2f}" if share <= 1 else "never" for share in shares)]
        )  # fmt: skip
    first = rows[0]
    text = (
        f"\n## How fast the center learns\n\nFashion-MNIST, a small convolutional network, batch {first['batch']}, "
        f"{first['seconds']:g} seconds of processor time a worker, which is the paper's axis: every worker on a "
        "processor of its own. The target is the test accuracy that one process with Nesterov momentum has at the end "
        f"of its run at its best rate ({base:g}); the last column is the share of those seconds after which each seed "
        "has reached it (running median of three evaluations), seeds in order.\n\n"
        "![Test accuracy against seconds](learning.svg)\n\n"
    )
    head = ["method", "learning rate", "seeds", "accuracy at the end (mean)", "share of the seconds to the target"]
    return text + table(head, lines) + source(rows[-1], "python benchmarks/learning.py --root FOLDER")


def selu(row: Row) -> str:
    rows = [
        [str(each["threads"]), " x ".join(map(str, each["size"])), each["what"], f"{each['milliseconds']:.2f}",
         f"{each['times_as_fast']:.2f}", f"{each['quartiles'][0]:.2f} to {each['quartiles'][1]:.2f}"]
        for each in row["rows"]
    ]  # fmt: skip
    text = (
        f"\n## SELU and alpha dropout\n\nForward and backward, rate {row['p']:g}, float32, median of the ratios to "
        "torch's eager pair (`nn.SELU`, `nn.AlphaDropout`) within a round. The yardstick is a plain copy of as many "
        "bytes as the pair must move. Where there are few values, most of the time of compiled code is the call "
        f"itself. {busy(row)}\n\n"
    )
    text += "" if row["compiler"] else "No C++ compiler was found, so nothing was compiled.\n\n"
    head = ["threads", "size", "what", "milliseconds", "times as fast", "middle half of the rounds"]
    return text + table(head, rows) + source(row, "python benchmarks/selu.py")


def audit(row: Row) -> str:
    rows = [
        [str(each["threads"]), " x ".join(map(str, each["size"])), str(each["depth"]), f"{each['milliseconds']:.1f}",
         f"{each['passes']:.2f}", f"{each['quartiles'][0]:.2f} to {each['quartiles'][1]:.2f}"]
        for each in row["rows"]
    ]  # fmt: skip
    text = (
        "\n## An audit\n\n`hooke.nn.audit` of a self-normalizing net, in plain forward and backward passes of the same "
        f"net on the same batch. {busy(row)}\n\n"
    )
    head = ["threads", "batch x width", "layers", "milliseconds", "passes", "middle half of the rounds"]
    return text + table(head, rows) + source(row, "python benchmarks/selu.py --audit")


def served(rows: list[Row]) -> str:
    """What an exchange with a served center costs."""
    text = "\n## A served center\n"
    for section, write in (("speed", served_speed), ("wire", served_wire), ("many", served_many)):
        row = newest(rows, section)
        text += write(row) + source(row, f"python benchmarks/served.py --{section}") if row else ""
    return text


def served_speed(row: Row) -> str:
    lines = [
        [each["what"], f"{each['milliseconds']:.0f}", f"{each['share_of_bare_socket']:.2f}",
         f"{each['quartiles'][0]:.2f} to {each['quartiles'][1]:.2f}"]
        for each in row["rows"]
    ]  # fmt: skip
    text = (
        f"\n**Seconds.** One exchange of {row['numel']:,} parameters over loopback, center and worker in processes of "
        "their own, in alternation with a bare socket that carries the float32 values there and back without doing "
        "anything with them, and with a bare stream of Flight that does no more, but in blocks: the limit of what is "
        f"built on it. {busy(row)}\n\n"
    )
    return text + table(["what", "milliseconds", "share of the bare socket's speed", "middle half"], lines)


def served_wire(row: Row) -> str:
    lines = [
        [each["codec"], f"{each['bytes_out'] / row['numel']:.3f}", f"{each['bytes_in'] / row['numel']:.3f}",
         *(f"{share:.3f}" for share in each["shares_of_float32"])]
        for each in row["rows"]
    ]  # fmt: skip
    text = (
        f"\n**Bytes.** One exchange of {row['numel']:,} parameters puts on a cable between two network namespaces, "
        "as the interface counts it: headers and acknowledgments included. Out is from the worker to the center.\n\n"
    )
    return text + table(["codec", "bytes a value out", "in", "share of float32's out", "in"], lines)


def served_many(row: Row) -> str:
    lines = [
        [str(each["workers"]), f"{each['exchanges_per_second']:.0f}", f"{each['share_of_one_worker']:.2f}",
         f"{each['range'][0]:.2f} to {each['range'][1]:.2f}"]
        for each in row["rows"]
    ]  # fmt: skip
    text = (
        f"\n**Many workers.** Exchanges a second of {row['numel']:,} float32 parameters, all workers together, each a "
        f"process that does nothing else, on the same machine as the center's one process. {busy(row)}\n\n"
    )
    return text + table(["workers", "exchanges a second", "of one worker's", f"range of {row['rounds']} rounds"], lines)


PLANS = {
    "here": "**On this machine.** `benchmarks/planned.py` (a convolutional network of 0.86 million parameters, EASGD) "
    "by `hooke run` against `hooke plan` with the same script, in alternation. Examples a second of all workers.",
    "links": "**Over slow links.** The same script by ranks with a `ReplicatedCenter`, each in a network namespace of "
    "its own, both directions of its cable shaped by the kernel. The step's time is what the plan measures for two at "
    "once here. Examples a second of all ranks.",
    "star": "**Around a center.** Workers that sleep for ten steps of 20 ms, send 1 MB to a center and get 1 MB back, "
    "by plain sockets over cables of 100 Mbit/s. The formula serves exchanges one after the other; where all share the "
    "link at once, they stay in step with each other, and less gets through. Steps a second of all workers.",
}


def plan(rows: list[Row]) -> str:
    """What `hooke plan` predicted against what was measured."""
    text = "\n## What `hooke plan` predicts\n\nMedians of the rounds, and the ratio of predicted to measured.\n"
    for section, words in PLANS.items():
        row = newest(rows, section)
        if row is None:
            continue
        lines = [
            [each["what"], f"{each['predicted']:,.4g}", f"{each['measured']:,.4g}", f"{each['ratio']:.3f}",
             f"{each['range'][0]:.3f} to {each['range'][1]:.3f}"]
            for each in row["rows"]
        ]  # fmt: skip
        head = ["what", "predicted", "measured", "ratio", f"range of {row['rounds']} rounds"]
        text += f"\n{words} {busy(row)}\n\n" + table(head, lines)
        text += source(row, f"python benchmarks/plan.py --{section}")
    return text


def busy(row: Row) -> str:
    """What else ran, which two threads on two cores feel most."""
    return f"The machine's load was {row['load']:.1f} before it began (0: nothing else ran)."


def newest(rows: list[Row], section: str) -> Row | None:
    """The last row of a section."""
    return next((row for row in reversed(rows) if row["section"] == section), None)


def picture(rows: list[Row], path: Path) -> None:
    """Mean test accuracy against seconds, each method at its best rate."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    matplotlib.rcParams.update({"svg.hashsalt": "hooke", "svg.fonttype": "path", "font.size": 10})
    figure, axes = plt.subplots(figsize=(8, 4.2), layout="constrained")
    colors = {"msgd": "#6b7280", "eamsgd": "#c2410c", "easgd": "#2563eb", "downpour": "#15803d"}
    lowest = []
    for method in learning.METHODS:
        rate = learning.best_rates(rows, method)[0]
        mine = [r["curve"] for r in rows if (r["method"], r["lr"]) == (method, rate)]
        points = list(zip(*mine, strict=False))
        seconds = [statistics.mean(p["seconds"] for p in point) for point in points]
        accuracy = [100 * statistics.mean(p["accuracy"] for p in point) for point in points]
        lowest.append(accuracy[len(accuracy) // 6])
        axes.plot(seconds, accuracy, color=colors[method], label=f"{learning.TITLES[method]}, rate {rate:g}", lw=2)
    axes.set(xlabel="seconds of processor time a worker", ylabel="test accuracy (%)", ylim=(min(lowest[:2]) - 2, None))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower right")
    figure.savefig(path, metadata={"Date": None})


def page() -> str:
    """The whole text of docs/performance.md."""
    names = ("exchange", "served", "scaling", "plan", "selu", "learning")
    records = {name: machine.read(machine.RESULTS / f"{name}.jsonl") for name in names}
    text = INTRODUCTION
    text += exchange(records["exchange"][-1]) if records["exchange"] else ""
    text += served(records["served"]) if records["served"] else ""
    text += scaling(records["scaling"][-1]) if records["scaling"] else ""
    text += plan(records["plan"]) if records["plan"] else ""
    for section, write in (("pair", selu), ("audit", audit)):
        row = newest(records["selu"], section)
        text += write(row) if row else ""
    return text + (learned(records["learning"]) if records["learning"] else "")


def main() -> None:
    (DOCS / "performance.md").write_text(page())
    picture(machine.read(machine.RESULTS / "learning.jsonl"), DOCS / "learning.svg")
    rows = machine.read(machine.RESULTS / "growth.jsonl")
    (DOCS / "growth.md").write_text(growth_page.growth_page(rows))
    growth_page.growth_picture(rows, DOCS / "growth.svg")


if __name__ == "__main__":
    main()
