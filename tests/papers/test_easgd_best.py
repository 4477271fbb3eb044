"""What `papers.zhang2015easgd` takes from its record: best rates, curves, crossings; its plan, pictures and tables."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
from easgd_record import FULL, Plan, Row, changed, chosen, full, result_of, shifted, without

from hooke.claim import Missing, Table
from papers.easgd.best import best, best_rate, crossing, is_at_edge, numbers_of_workers, seconds_to, tried
from papers.easgd.pictures import PICTURES
from papers.easgd.tables import TABLES
from papers.zhang2015easgd import run

RATES = FULL["rates"]


def test_the_rate_of_the_lowest_error_of_the_first_seed_is_taken() -> None:
    """Also where it is lowest in the middle, and whatever the other seeds say."""
    rows = full()
    (other,) = chosen(rows, "periods", method="EASGD", period=16, lr=0.05)
    other["result"]["error"][5] = 0.001
    lucky = changed(rows, "periods, repeated", {"error": [0.0005] * 12}, method="EASGD", period=16)
    table = Table(lucky)
    assert best_rate(table.where(study="periods", method="EASGD", period=16)) == 0.05
    one = best(table, "EASGD", 4, 16)
    assert (one.lr, one.seeds, one.curves) == (0.05, [0], [other["result"]["error"]])


def test_curves_come_in_the_order_of_the_seeds_and_averages_from_their_column() -> None:
    rows = full()
    for row in rows:
        if row["result"].get("average_error"):
            row["result"]["average_error"] = [
                0.01 * row["settings"]["seed"] + 0.001 * (row["study"] == "averages")
            ] * 12
    table = Table(rows[::-1])
    for name, workers in (("SGD", 1), ("MSGD", 1), ("DOWNPOUR", 4), ("EASGD", 4)):
        (first,) = chosen(rows, "periods", method=name, workers=workers, period=1, lr=RATES[name][1])
        one = best(table, name, workers, 1)
        assert (one.method, one.seeds, one.curves[0]) == (name, [0, 1, 2], first["result"]["error"])
    for name, workers, own in (("ASGD", 1, 0), ("ADOWNPOUR", 4, 0), ("MVASGD", 1, 0.001), ("MVADOWNPOUR", 4, 0.001)):
        one = best(table, name, workers, 1)
        assert (one.method, one.seeds) == (name, [0, 1, 2])
        assert one.errors == pytest.approx([own, 0.01 + own, 0.02 + own])
        assert one.error == pytest.approx(0.01 + own)


def test_rows_of_a_rate_that_is_best_no_longer_are_left_out() -> None:
    """A grid that grew leaves them in the record: of repetitions, averages, and still more workers."""
    rows = full()
    older = copy.deepcopy([row for row in rows if row["study"] in ("averages", "more workers", "periods, repeated")])
    for row in older:
        row["settings"]["lr"] = 7.0
        row["result"]["error"] = row["result"]["average_error"] = [0.0] * 12
    table = Table(older + rows)
    for name, workers, period in (("MVADOWNPOUR", 4, 16), ("MVASGD", 1, 1), ("EASGD", 16, 10), ("EAMSGD", 4, 1)):
        one = best(table, name, workers, period)
        assert (one.seeds, one.lr) == ([0, 1, 2], best(Table(rows), name, workers, period).lr)
        assert min(one.errors) > 0


def test_more_workers_have_the_rate_of_the_most_that_were_searched() -> None:
    rows = full()
    assert best(Table(rows), "EAMSGD", 16, 10).lr == RATES["EAMSGD"][1]
    rows = shifted(rows, -0.2, "growth", method="EAMSGD", workers=4, lr=RATES["EAMSGD"][0])  # not that of 4
    assert best(Table(rows), "EAMSGD", 16, 10).lr == RATES["EAMSGD"][1]
    rows = shifted(rows, -0.2, "growth", method="EAMSGD", workers=8, lr=RATES["EAMSGD"][0])
    with pytest.raises(Missing, match="No run of EAMSGD with 16 workers and period 10"):
        best(Table(rows), "EAMSGD", 16, 10)
    with pytest.raises(Missing):
        best(Table(chosen(rows, "more workers")), "EASGD", 16, 10)


def test_several_runs_of_one_seed_are_refused() -> None:
    rows = full()
    again = copy.deepcopy(chosen(rows, "periods, repeated", method="MSGD", seed=1))
    again[0]["settings"]["steps"] = 1000
    with pytest.raises(Missing, match="MSGD with 1 workers and period 1 has several runs of one seed"):
        best(Table(rows + again), "MSGD", 1, 1)


def test_runs_in_real_seconds_are_not_those_of_the_virtual_clock() -> None:
    table = Table(full())
    assert len(table.where(study="real", workers=2)) == 3
    assert numbers_of_workers(table, "EAMSGD", 10) == [4, 8, 16]
    assert numbers_of_workers(Table(), "EAMSGD", 10) == []
    with pytest.raises(Missing):
        best(table, "EAMSGD", 2, 10)


def test_every_run_counts_among_those_tried() -> None:
    rows = [row["settings"] for row in tried(Table(full()), "EASGD", 4, 16)]
    assert [(row["lr"], row["seed"]) for row in rows] == [(0.01, 0), (0.05, 0), (0.1, 0), (0.1, 1), (0.1, 2), (0.2, 0)]


def test_a_rate_at_the_edge_of_its_grid() -> None:
    rows = full()
    assert not is_at_edge(Table(rows), best(Table(rows), "EAMSGD", 4, 16))
    assert is_at_edge(Table(rows), best(Table(rows), "DOWNPOUR", 4, 16))
    assert is_at_edge(Table(rows), best(Table(rows), "ADOWNPOUR", 4, 16))
    rows = shifted(rows, -0.2, "periods", method="EAMSGD", period=16, lr=max(RATES["EAMSGD"]))
    assert is_at_edge(Table(rows), best(Table(rows), "EAMSGD", 4, 16))


def test_crossing_by_hand() -> None:
    seconds, errors = [0.0, 2.0, 4.0, 6.0, 8.0], [1.0, 0.6, 0.8, 0.2, 0.1]
    assert crossing(seconds, errors, 0.8) == pytest.approx(1.0)  # half of the way from 1.0 to 0.6
    assert crossing(seconds, errors, 0.6) == 2.0
    assert crossing(seconds, errors, 0.5) == pytest.approx(5.0)  # up to 0.8, then half of the way to 0.2
    assert crossing(seconds, errors, 0.1) == 8.0
    assert crossing(seconds, errors, 0.09) == math.inf
    assert crossing([0.0], [1.0], 0.5) == math.inf
    assert crossing([0.0, 1.0, 2.0], [1.0, math.nan, 0.4], 0.5) == 2.0
    assert crossing([0.0, 1.0], [1.0, math.nan], 0.5) == math.inf
    assert seconds_to([2.0, 4.0], [0.6, 0.4], 0.8) == pytest.approx(1.0)


# The plan


def planned(settings: Row, rows: list[Row] | None = None) -> list[Row]:
    plan = Plan(result_of)
    plan.rows = rows or []
    run(settings, plan)
    return plan.rows


def test_the_other_seeds_run_at_the_best_rate() -> None:
    rows = full()
    for study in ("periods", "growth"):
        found = chosen(rows, f"{study}, repeated")
        setups = {(row["settings"]["method"], row["settings"]["workers"], row["settings"]["period"]) for row in found}
        assert len(found) == 2 * len(setups)
        assert {row["settings"]["seed"] for row in found} == {1, 2}
        for method, workers, period in setups:
            lr = best_rate(Table(rows).where(study=study, method=method, workers=workers, period=period))
            where = Table(found).where(method=method, workers=workers, period=period)
            assert where.column("lr") == [lr, lr]
    assert {row["settings"]["workers"] for row in chosen(rows, "more workers")} == {16}
    assert {row["settings"]["lr"] for row in chosen(rows, "averages", method="MVASGD")} == {RATES["SGD"][1]}
    real = {
        (row["settings"]["method"], row["settings"]["workers"], row["settings"]["lr"]) for row in chosen(rows, "real")
    }
    assert real == {("MSGD", 1, 0.001), ("EAMSGD", 2, 0.005)}


def test_nothing_is_repeated_before_every_rate_was_tried() -> None:
    class Cut(Plan):
        def study(self, name: str, function: Any, cells: Any) -> Table:
            cells = cells() if callable(cells) else cells
            return super().study(name, function, cells[:-1] if name in ("periods", "growth") else cells)

    plan = Cut(result_of)
    run(FULL, plan)
    assert {row["study"] for row in plan.rows if "error" in row["result"]} == {"periods", "growth"}


# Pictures and tables


def drawn(title: str, rows: list[Row]) -> Any:
    from matplotlib.figure import Figure

    (picture,) = [one for one in PICTURES if one.title.startswith(title)]
    figure = Figure(layout="constrained")
    picture.draw(Table(rows), figure)
    return figure


@pytest.mark.parametrize(
    ("title", "panels"),
    [
        ("The period", {"period 1": 7, "period 4": 6, "period 16": 6, "period 64": 6}),
        ("The number", {"p = 4": 5, "p = 8": 5, "p = 16": 5}),
        ("Seconds to", {"to 57.8 %": 4, "to 49.6 %": 4, "to 47.1 %": 4}),
        ("Every rate", {"EAMSGD": 4, "EASGD": 4, "DOWNPOUR": 4}),
        ("ADMM and", {"ADMM, p = 3": 0, "ADMM, p = 8": 0, "eta = 0.001, rho = 2.5": 2}),
    ],
)
def test_pictures_show_the_record(title: str, panels: dict[str, int]) -> None:
    axes = [one for one in drawn(title, full()).axes if one.get_label() != "<colorbar>"]
    assert {one.get_title(): len(one.lines) for one in axes} == panels
    with pytest.raises(Missing):
        drawn(title, [])


def test_pictures_of_a_part_of_the_record() -> None:
    rows = without(without(full(), method="DOWNPOUR"), study="more workers")
    assert [len(one.lines) for one in drawn("The period", rows).axes] == [4, 3, 3, 3]
    assert [one.get_title() for one in drawn("The number", rows).axes] == ["p = 4", "p = 8"]
    assert drawn("Seconds to", rows).axes
    with pytest.raises(Missing, match="No run of DOWNPOUR at period 1"):
        drawn("Every rate", rows)


def test_a_curve_is_the_mean_of_its_seeds() -> None:
    one = best(Table(full()), "EAMSGD", 4, 16)
    (line,) = [line for line in drawn("The period", full()).axes[2].lines if line.get_label() == "EAMSGD"]
    assert line.get_xdata().tolist() == one.seconds
    assert line.get_ydata().tolist() == pytest.approx([sum(at) / 3 for at in zip(*one.curves, strict=True)])


def test_tables_show_the_record() -> None:
    table = Table(full())
    one = best(table, "DOWNPOUR", 4, 16)
    lines = {line.split(" | ")[0]: line for line in TABLES["periods"](table).splitlines()}
    assert f"{100 * one.error:.1f} ({one.lr:g}*, 3)" in lines["| DOWNPOUR"].split(" | ")[3]
    assert lines["| EAMSGD"].count("*") == 0
    assert lines["| MDOWNPOUR"].count("not run") == 3
    workers = TABLES["workers"](table).splitlines()
    assert workers[0] == "| method | 4 workers | 8 workers | 16 workers |"
    assert workers[2].startswith("| EASGD, period 10 | ")
    assert "not run" not in "".join(workers)
    assert TABLES["verdicts"](table).count("| reproduced |") > 10
    with pytest.raises(Missing):
        TABLES["workers"](Table())
