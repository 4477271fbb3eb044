"""Which center a worker takes that is given none."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
import torch

import hooke
from hooke import prepared
from hooke.prepared import prepared_center
from hooke.run import Run


def run_in(folder: Path, center: str) -> Run:
    return Run(str(folder), center, worker=1, num_workers=2, started=time.monotonic(), name="first-abc")


@pytest.fixture(autouse=True)
def _nothing_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CENTER", "TOKEN", "AUTHORITY", "CODEC", "RUN"):
        monkeypatch.delenv(f"HOOKE_{name}", raising=False)


def test_a_run_s_own_center_comes_before_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOOKE_CENTER", "grpc://127.0.0.1:1")
    made = prepared_center(run_in(tmp_path, str(tmp_path / "center")))
    assert isinstance(made, hooke.LocalCenter) and made.path == tmp_path / "center"
    made.close()


def test_the_environment_names_a_center_elsewhere(
    center: hooke.LocalCenter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = hooke.CenterSpec((), 2)
    with hooke.serve(center, token="t") as server:
        for name, value in {"CENTER": server.url, "TOKEN": "t\n", "CODEC": "int8"}.items():
            monkeypatch.setenv(f"HOOKE_{name}", value)
        workers = [prepared_center(run_in(tmp_path, "")), prepared_center(None)]
        for worker in workers:
            worker.join(torch.zeros(2), spec)
        seen = {worker["name"]: worker["codec"] for worker in server.status()["workers"]}
        assert seen.pop("first-abc-1") == "int8" and list(seen.values()) == ["int8"]
        again = prepared_center(run_in(tmp_path, ""))  # started again, it takes its predecessor's place
        again.join(torch.zeros(2), spec)
        assert len(server.status()["workers"]) == 2 == server.status()["num_workers"]
        for worker in (*workers, again):
            worker.close()  # type: ignore[attr-defined]


def test_a_worker_takes_it_without_being_told(center: hooke.LocalCenter, monkeypatch: pytest.MonkeyPatch) -> None:
    with hooke.serve(center) as server:
        monkeypatch.setenv("HOOKE_CENTER", server.url)
        model = torch.nn.Linear(2, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with hooke.Worker(model, optimizer, hooke.EASGD(), communication_period=1) as worker:
            assert isinstance(worker.center, hooke.RemoteCenter)
            model(torch.ones(1, 2)).sum().backward()
            optimizer.step()
        assert center.exchanges == 1


def test_it_waits_for_a_center_that_is_not_up_yet_and_says_so(
    center: hooke.LocalCenter, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with hooke.serve(center) as server:
        url = server.url
    monkeypatch.setenv("HOOKE_CENTER", url)
    started: list[hooke.CenterServer] = []
    timer = threading.Timer(0.3, lambda: started.append(hooke.serve(center, url.removeprefix("grpc://"))))
    timer.start()
    made = prepared_center(None)
    timer.join()
    assert "Start the center first" in (said := capsys.readouterr().err) and "Waiting up to 60 seconds for it." in said
    made.close()  # type: ignore[attr-defined]
    started[0].close()


def test_after_a_while_it_waits_no_longer(
    center: hooke.LocalCenter, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(prepared, "WAIT_SECONDS", 0.1)
    with hooke.serve(center) as server:
        monkeypatch.setenv("HOOKE_CENTER", server.url)
    with pytest.raises(OSError, match="nobody listens on port"):
        prepared_center(None)


def test_a_wrong_token_is_not_waited_for(
    center: hooke.LocalCenter, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with hooke.serve(center, token="t") as server:
        monkeypatch.setenv("HOOKE_CENTER", server.url)
        monkeypatch.setenv("HOOKE_TOKEN", "u")
        with pytest.raises(PermissionError, match=r"wants its token\. Got another token\."):
            prepared_center(None)
    assert capsys.readouterr().err == ""


def test_without_any_it_says_how_to_get_one() -> None:
    with pytest.raises(ValueError, match=r"needs a center\. Got none"):
        prepared_center(None)


@pytest.mark.parametrize("shared", [False, True])
def test_only_a_center_of_one_s_own_goes_back_in_time_with_its_worker(
    center: hooke.LocalCenter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shared: bool
) -> None:
    """A worker that is started again must not set everybody's center back to when it saved itself."""
    run = Run(str(tmp_path), str(center.path), 0, 1, time.monotonic(), restarts=1, is_shared=shared)
    monkeypatch.setenv("HOOKE_RUN", run.environment()["HOOKE_RUN"])
    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with hooke.Worker(model, optimizer, hooke.EASGD()) as worker:
        before = center.pull()
        worker.save()
        center.put(before + 1)
        worker.restore()
        assert torch.equal(center.pull(), before + 1 if shared else before)
