"""Writes docs/slow_link.md and its picture from `results/slow_link.jsonl`.

python benchmarks/slow_link_page.py
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import linked
import machine
from page import source, table

DOCS = Path(__file__).parent.parent / "docs"
RECORD = machine.RESULTS / "slow_link.jsonl"
Row = dict[str, Any]

TITLES = {
    "alone": "one worker alone",
    "ddp": "DDP",
    "fp16": "DDP, fp16 hook",
    "powersgd": "DDP, PowerSGD hook, rank 1",
    "averager": "`PeriodicModelAverager`",
    "accelerate": "Accelerate `LocalSGD`",
    "torchft-local": "torchft `LocalSGD`",
    "torchft-diloco": "torchft `DiLoCo`",
    "torchft-streaming": "torchft `DiLoCo`, two fragments, delay 4",
    "hivemind": "hivemind, local updates, fp16",
    "hooke": "hooke",
}
COLORS = {1000.0: "#93c5fd", 100.0: "#2563eb", 10.0: "#1e3a8a"}

INTRODUCTION = """# Over slow links

Made by `python benchmarks/slow_link_page.py` from `benchmarks/results/slow_link.jsonl`; no number here is typed by
hand.

Each worker sits in a network namespace of its own. The kernel lets each direction of its cable carry so many bits a
second and no more. Every way runs as its own documentation has it, with an exchange every 10 steps unless the table
says otherwise; DDP and its hooks communicate at every step. All workers share the cores of one machine.

- **Share**: examples/s of all workers, as a share of what the same processes reach when each trains without any
  communication, seconds before and after. 1 is the limit; where the machine is noisy, a share may lie a little above.
- **Bytes**: sent and received by a worker for each of its examples, counted at its cable, all headers included.
- **Every**: steps of a worker from one exchange to the next, counted. With hooke's `overlap=True`, an exchange that
  comes due while the one before is still under way is left out, and nobody waits; this column shows where that was so.

hooke's center is a process of its own at a node of its own, by `hooke.serve`, with a token and without TLS, as the
peers have none. Its cable carries as little as any other, though the links of all workers meet there. Its arithmetic
runs on the workers' cores here, which it would not across machines. DDP and the averagers need no such node. torchft
has its lighthouse beside worker 0. hivemind averages every 100 steps, for its peers take seconds to find each other.
"""


def name(row: Row) -> str:
    """The way, in words."""
    if row["how"] != "hooke":
        return TITLES[row["how"]]
    return f"**hooke**, {row['codec']}, period {row['period'] or 'of its own choice'}"


def newest(rows: Sequence[Row], section: str) -> list[Row]:
    """The last row of each cell."""
    keys = ("how", "mbits", "model", "workers", "period", "codec", "seed")
    return list({tuple(row.get(key) for key in keys): row for row in rows if row["section"] == section}.values())


def cell(row: Row | None) -> str:
    if row is None:
        return ""
    if "failed" in row:
        return "failed"
    each = row["sent_per_example"] + row["received_per_example"]
    return f"**{row['share']:.2f}**, {each / 1000:,.2f} kB, {row['steps_between_exchanges']:.0f}"


def link(mbits: float) -> str:
    return f"{mbits / 1000:g} Gbit/s" if mbits >= 1000 else f"{mbits:g} Mbit/s"


def ordered(rows: Sequence[Row]) -> list[Row]:
    """Peers first, hooke last, finer codecs before coarser ones."""
    ways, codecs = list(TITLES), ["float32", "bfloat16", "int8", "int4"]
    return sorted(rows, key=lambda row: (ways.index(row["how"]), -row["period"], codecs.index(row["codec"])))


def speeds(rows: Sequence[Row], model: str, workers: int) -> str:
    """One table: ways down, links across."""
    mine = ordered([row for row in rows if (row["model"], row["workers"]) == (model, workers)])
    if not mine:
        return ""
    links = sorted({row["mbits"] for row in mine}, reverse=True)
    lines = []
    for title in dict.fromkeys(map(name, mine)):
        own = {row["mbits"]: row for row in mine if name(row) == title}
        lines.append([title, *(cell(own.get(mbits)) for mbits in links)])
    parameters = next(row["parameters"] for row in mine if "failed" not in row)
    batch = next(row["batch"] for row in mine if "failed" not in row)
    text = f"\n## {workers} workers, {parameters:,} parameters\n\n{MODELS[model]} Batch {batch} a worker.\n\n"
    return text + table([f"share, bytes, every ({model})", *map(link, links)], lines) + failures(mine)


MODELS = {
    "convnet": "Two convolutions and two linear layers, images of 28 x 28.",
    "transformer": f"Six layers of width {linked.WIDTH}, sequences of {linked.CONTEXT} bytes: the examples.",
}


def failures(rows: Sequence[Row]) -> str:
    said = [f"- {name(row)}, {link(row['mbits'])}: `{row['failed']}`" for row in rows if "failed" in row]
    return "\nWhat failed, and what it said:\n\n" + "\n".join(said) + "\n" if said else ""


def center(rows: Sequence[Row]) -> str:
    """What the center's own cable carries."""
    mine = [row for row in ordered(rows) if row["how"] == "hooke" and "failed" not in row]
    if not mine:
        return ""
    lines = []
    for row in sorted(mine, key=lambda row: (row["model"], row["workers"], -row["mbits"])):
        carried = row["center_bytes_per_example"] * row["examples_per_second"] * 8e-6
        lines.append(
            [f"{row['model']}, {row['workers']} workers, {link(row['mbits'])}, {name(row)[11:]}",
             f"{row['center_bytes_per_example'] / 1000:,.2f} kB", f"{carried / 2 / row['mbits']:.0%}"]
        )  # fmt: skip
    text = "\n## The center's cable\n\nBytes in and out for each example of any worker, and how busy each way was.\n\n"
    return text + table(["", "bytes an example", "busy"], lines)


def accuracies(rows: Sequence[Row]) -> str:
    """Accuracy after the same examples."""
    found = [row for row in rows if "failed" not in row]
    if not found:
        return ""
    lines = []
    for title, mbits in dict.fromkeys((name(row), row["mbits"]) for row in ordered(found)):
        mine = [row for row in found if (name(row), row["mbits"]) == (title, mbits)]
        right = [100 * row["accuracy"] for row in sorted(mine, key=lambda row: row["seed"])]
        apart = [row["steps_between_exchanges"] for row in mine if row["steps_between_exchanges"]]
        every = f"{statistics.median(apart):.0f}" if apart else ""
        where = link(mbits) if mine[0]["how"] == "hooke" else "any"
        lines.append([title, where, every, f"{statistics.mean(right):.2f}", ", ".join(f"{one:.2f}" for one in right)])
    first = found[0]
    text = (
        f"\n## What they have learned\n\nFashion-MNIST, the convolutional network, {first['examples']:,} examples of "
        f"all workers together, Nesterov SGD with rate {first['lr']:g} and momentum 0.9 for all, nothing tuned for "
        "any. Test accuracy (%) of what a user would keep: the center of hooke, the model of worker 0 elsewhere. What "
        "synchronous ways learn does not depend on the link. The local SGD of Accelerate and of torchft takes the same "
        "averages at the same steps as `PeriodicModelAverager`, so they are not run. PowerSGD begins after a tenth of "
        "the steps, and DiLoCo's outer rate is 0.7 with momentum 0.9, as their documentation says.\n\n"
    )
    head = ["way", "link", "steps between exchanges", "mean", "seeds"]
    return text + table(head, lines) + sources(found, "python benchmarks/slow_link.py --accuracy --data FOLDER")


def sources(rows: Sequence[Row], command: str) -> str:
    """Where the numbers come from, one line for each commit and machine."""
    return "".join(source(row, command) for row in {(row["commit"], row["cpu"]): row for row in rows}.values())


def goals(speed: Sequence[Row], learned: Sequence[Row]) -> str:
    """What hooke was meant to reach, and whether it does."""

    def best(**wanted: Any) -> float | None:
        found = [r["share"] for r in speed if "failed" not in r and all(r[key] == v for key, v in wanted.items())]
        return max(found, default=None)

    lines = []
    for model in linked.MODELS:
        common = {"how": "hooke", "model": model, "workers": 2}
        exact = [r for r in speed if "failed" not in r and r["steps_between_exchanges"] < 10.5]
        at_100 = [
            r["share"] for r in exact if all(r[k] == v for k, v in {**common, "mbits": 100, "period": 10}.items())
        ]
        lines.append([f"{model}: share at 100 Mbit/s, period 10 kept", "0.95", shown(max(at_100, default=None), 0.95)])
        at_10 = best(**common, mbits=10, codec="int4", period=0)
        lines.append([f"{model}: share at 10 Mbit/s, int4, own period", "0.90", shown(at_10, 0.90)])
    text = "\n## What was to be shown\n\n" + table(["", "at least", "is"], lines)
    return text + spread(learned)


def shown(share: float | None, goal: float) -> str:
    if share is None:
        return "not measured"
    return f"{share:.2f}" + ("" if round(share, 2) >= goal else ", **missed**")


def spread(rows: Sequence[Row]) -> str:
    """Whether coded exchanges over slow links learn as much as exact ones over a fast link."""
    right: dict[tuple[float, str], list[float]] = {}
    for row in rows:
        if row["how"] == "hooke" and "failed" not in row:
            right.setdefault((row["mbits"], row["codec"]), []).append(100 * row["accuracy"])
    base = right.pop((1000, "float32"), None)
    if not base or not right:
        return ""
    said = [f"{codec} at {link(mbits)} {statistics.mean(own):.2f} %" for (mbits, codec), own in right.items()]
    inside = all(min(base) <= statistics.mean(own) <= max(base) for own in right.values())
    above = all(statistics.mean(own) >= min(base) for own in right.values())
    verdict = "all inside that" if inside else "none below that" if above else "**not all inside that**"
    return (
        f"\nAccuracy with float32 exchanges at 1 Gbit/s is {min(base):.2f} to {max(base):.2f} %, {len(base)} seeds; "
        f"the means of the others are {', '.join(said)}: {verdict}.\n"
    )


def page(rows: Sequence[Row]) -> str:
    """The whole text of docs/slow_link.md."""
    speed, learned = newest(rows, "speed"), newest(rows, "accuracy")
    text = INTRODUCTION + goals(speed, learned)
    text += "\n![Share of the speed without communication, by way and link](slow_link.svg)\n"
    for workers in (2, 4):
        for model in linked.MODELS:
            text += speeds(speed, model, workers)
    text += sources(speed, "python benchmarks/slow_link.py --speed --limit 30")
    text += f"The machine's load was {min(r['load'] for r in speed):.1f} to {max(r['load'] for r in speed):.1f} before "
    text += "the cells, each of which leaves some for the next (0: nothing runs).\n"
    return text + center(speed) + accuracies(learned)


def picture(rows: Sequence[Row], path: Path) -> None:
    """Bars: ways down, one bar for each link; the convolutional network, two workers."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    matplotlib.rcParams.update({"svg.hashsalt": "hooke", "svg.fonttype": "path", "font.size": 9})
    mine = [r for r in newest(rows, "speed") if (r["model"], r["workers"]) == ("convnet", 2) and "failed" not in r]
    titles = list(dict.fromkeys(map(name, ordered(mine))))
    links = sorted({row["mbits"] for row in mine}, reverse=True)
    figure, axes = plt.subplots(figsize=(8, 0.42 * len(titles) + 1.2), layout="constrained")
    for index, mbits in enumerate(links):
        own = {name(row): row["share"] for row in mine if row["mbits"] == mbits}
        places = [titles.index(title) + 0.26 * (index - (len(links) - 1) / 2) for title in own]
        axes.barh(places, list(own.values()), 0.24, color=COLORS[mbits], label=link(mbits))
    plain = [title.replace("*", "").replace("`", "") for title in titles]
    axes.set(yticks=range(len(titles)), yticklabels=plain, xlabel="share of the speed without communication")
    axes.invert_yaxis()
    axes.axvline(1, color="#6b7280", lw=0.8)
    axes.grid(axis="x", alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.4, 1.08), ncols=3)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def main() -> None:
    rows = machine.read(RECORD)
    (DOCS / "slow_link.md").write_text(page(rows))
    picture(rows, DOCS / "slow_link.svg")


if __name__ == "__main__":
    main()
