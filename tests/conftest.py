from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import hooke

sys.path.insert(0, str(Path(__file__).parent))
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Random numbers that a test does not seed itself are the same ones in every run."""
    torch.manual_seed(0)


@pytest.fixture
def center() -> Iterator[hooke.LocalCenter]:
    """A private center; more handles come from `hooke.LocalCenter(center.path)`."""
    made = hooke.LocalCenter()
    yield made
    made.close()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="no accelerator"))
