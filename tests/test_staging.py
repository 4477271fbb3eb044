"""Between the parameters' device and the host: snapshots, and no second vector where none is needed."""

from __future__ import annotations

import pytest
import torch

from hooke.staging import Staging


def test_on_the_host_nothing_is_made_before_it_is_asked_for() -> None:
    staging = Staging(torch.ones(4))
    assert staging.is_direct
    assert staging._scratch is None
    scratch = staging.scratch
    assert (scratch.shape, scratch.dtype) == ((4,), torch.float32)
    assert staging.scratch is scratch


def test_a_copy_is_a_snapshot() -> None:
    vector = torch.ones(4)
    staging = Staging(vector)
    copy = staging.begin_copy(vector)
    vector.fill_(2)
    staging.wait_copied()
    assert copy.tolist() == [1] * 4


def test_a_point_that_lies_in_the_scratch_vector_is_not_copied_again() -> None:
    vector = torch.ones(4)
    staging = Staging(vector)
    point = staging.scratch.copy_(vector)
    assert staging.begin_copy(point) is point


def test_on_the_host_a_correction_is_returned_as_it_is() -> None:
    staging = Staging(torch.ones(4))
    correction = torch.zeros(4)
    assert staging.begin_return(correction) is correction
    staging.wait_returned()
    assert staging.to_device(correction) is correction
    assert staging.to_host(torch.full((4,), 3.0)).tolist() == [3] * 4


@pytest.mark.gpu
def test_from_the_accelerator_and_back_through_pinned_memory() -> None:
    vector = torch.randn(1000, device="cuda")
    staging = Staging(vector)
    assert not staging.is_direct
    expected = vector.cpu()
    host = staging.begin_copy(vector)
    vector.zero_()  # the device goes on at once
    staging.wait_copied()
    assert host.is_pinned()
    assert torch.equal(host, expected)
    host.mul_(2)
    back = staging.begin_return(host)
    staging.wait_returned()
    assert back.device == vector.device
    assert torch.equal(back.cpu(), 2 * expected)
    assert staging.begin_copy(vector).data_ptr() == host.data_ptr()


def test_a_part_keeps_its_place_on_the_way() -> None:
    vector = torch.arange(8.0)
    staging = Staging(vector)
    staging.is_direct = False
    part = slice(2, 5)
    host = staging.to_host(vector, part)
    vector.zero_()
    assert host.shape == vector.shape and host[part].tolist() == [2, 3, 4]
    assert staging.to_device(host[part] * 2, part).tolist() == [4, 6, 8]
    assert staging.scratch[part].tolist() == [4, 6, 8]
