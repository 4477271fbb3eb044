import os

import pytest

from hooke.launch import display
from hooke.launch.display import PlainDisplay, put
from hooke.launch.progress import Line, Meter


def test_plain_lines_come_every_ten_seconds_and_once_at_the_end(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr(display.time, "monotonic", lambda: now)
    plain = PlainDisplay()
    for step in range(1, 26):  # a step a second
        now += 1.0
        plain.show([Line("worker 0", "training", Meter(steps=step, loss=0.5))])
    shown = capfd.readouterr()
    assert shown.out == ""
    assert shown.err == "".join(f"hooke: worker 0 training, step {step}, loss 0.5, waited 0.0 s\n" for step in (10, 20))
    plain.close()
    plain.close()
    assert capfd.readouterr().err == "hooke: worker 0 training, step 25, loss 0.5, waited 0.0 s\n"


def test_workers_lines_go_where_they_were_sent(capfd: pytest.CaptureFixture[str]) -> None:
    plain = PlainDisplay()
    plain.worker_said(3, ["[a] b", ""], error=False)
    plain.worker_said(3, ["ö"], error=True)
    plain.say("done")
    assert capfd.readouterr() == ("[3] [a] b\n[3] \n", "[3] ö\nhooke: done\n")


def test_nobody_listening_is_no_error() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    put(writing, "lost")
    os.close(writing)
    put(writing, "lost")


def test_a_table_has_a_row_for_each_line() -> None:
    made = display.table([Line("worker 0", "failed", Meter()), Line("all", "0:00:01", Meter())])
    assert made.row_count == 2 and len(made.columns) == len(Line("", "", Meter()).cells())
