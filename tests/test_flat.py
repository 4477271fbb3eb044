"""Parameters as one vector: without a copy where it can be, and the user's objects as they were in every case."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import safetensors.torch
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from hooke.flat import LINE, Entry, FlatParameters


def filled(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


class Holder(nn.Module):
    """A module with the given parameters."""

    def __init__(self, **parameters: Tensor) -> None:
        super().__init__()
        for name, value in parameters.items():
            setattr(self, name, value if isinstance(value, nn.Parameter) else nn.Parameter(value))


def lies_in(parameter: Tensor, vector: Tensor) -> bool:
    start, stop = vector.data_ptr(), vector.data_ptr() + 4 * vector.numel()
    return start <= parameter.data_ptr() < stop and parameter.untyped_storage().data_ptr() == start


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.LazyLinear(5)).train()


@pytest.fixture
def model() -> nn.Module:
    made = network()
    made(filled(2, 3, 5, 5))
    return made


# Parameters that are part of the vector -------------------------------------------------------------------------


def test_float32_parameters_are_the_vector_and_stay_the_same_objects(model: nn.Module) -> None:
    before = {name: (id(p), p.detach().clone()) for name, p in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    flat = FlatParameters(model)
    assert flat.is_view
    assert not flat.has_mirrors
    for entry, (name, parameter) in zip(flat.entries, model.named_parameters(), strict=True):
        assert entry.name == name
        assert (id(parameter), True) == (before[name][0], torch.equal(parameter, before[name][1]))
        assert lies_in(parameter, flat.vector)
        assert torch.equal(entry.view(flat.vector), parameter)
    before_step = flat.vector.clone()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert (before_step - flat.vector).sum() == flat.numel


def test_entries_start_on_cache_lines_and_the_space_between_is_0(model: nn.Module) -> None:
    flat = FlatParameters(model, buffers=True)
    assert all(entry.offset % LINE == 0 for entry in flat.entries)
    assert flat.vector.numel() == flat.entries[-1].end
    used = torch.zeros_like(flat.vector, dtype=torch.bool)
    for entry in flat.entries:
        assert not entry.view(used).any()
        entry.view(used).fill_(True)
    assert used.sum() == flat.numel
    assert not flat.vector[~used].any()


def test_a_parameter_used_twice_is_counted_once() -> None:
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    model[1].weight = model[0].weight
    flat = FlatParameters(model)
    assert [entry.name for entry in flat.entries] == ["0.weight"]
    flat.vector.fill_(2.0)
    assert model[1].weight is model[0].weight
    flat.release()
    assert model[1].weight is model[0].weight


@pytest.mark.parametrize("frozen", [False, True])
def test_parameters_that_share_memory_stay_tied(frozen: bool) -> None:
    """Two Parameter objects over one memory, as `tied.data = other.data` makes them; the second may be frozen."""
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    model[1].weight.data = model[0].weight.data
    model[1].weight.requires_grad_(not frozen)
    flat = FlatParameters(model)
    assert [entry.name for entry in flat.entries] == ["0.weight"]
    assert model[1].weight.data_ptr() == model[0].weight.data_ptr() == flat.vector.data_ptr()
    flat.set_(torch.full_like(flat.vector, 3.0))
    model[0].weight.data = torch.full((3, 3), 4.0)
    flat.gather_()
    flat.subtract_(torch.ones_like(flat.vector))
    flat.release()
    assert model[1].weight.data_ptr() == model[0].weight.data_ptr()
    assert torch.equal(model[1].weight, torch.full((3, 3), 3.0))
    assert [index for index, _ in flat.parameters()] == [0, 0]


def test_parameters_of_one_memory_side_by_side_are_not_taken_for_tied() -> None:
    base = filled(4, 6)
    model = Holder(left=base[:, :3], right=base[:, 3:], top=filled(8)[:4])
    values = {name: p.detach().clone() for name, p in model.named_parameters()}
    flat = FlatParameters(model)
    assert len(flat.entries) == 3
    flat.subtract_(torch.ones_like(flat.vector))
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.detach(), values[name] - 1)


def test_frozen_parameters_are_left_out_and_untouched(model: nn.Module) -> None:
    model[0].requires_grad_(False)
    pointer = model[0].weight.data_ptr()
    flat = FlatParameters(model)
    assert [entry.name for entry in flat.entries] == ["1.weight", "1.bias", "3.weight", "3.bias"]
    before = model[0].weight.clone()
    flat.set_(torch.zeros_like(flat.vector))
    flat.release()
    assert model[0].weight.data_ptr() == pointer
    assert torch.equal(model[0].weight, before)


LAYOUTS: dict[str, Callable[[], Tensor]] = {
    "contiguous": lambda: filled(4, 3, 2, 5),
    "channels_last": lambda: filled(4, 3, 2, 5).to(memory_format=torch.channels_last),
    "channels_last 1x1": lambda: filled(4, 3, 1, 1).to(memory_format=torch.channels_last),
    "channels_last_3d": lambda: filled(2, 3, 2, 2, 2).to(memory_format=torch.channels_last_3d),
    "transposed": lambda: filled(4, 3).t(),
    "permuted": lambda: filled(4, 3, 2).permute(2, 0, 1),
    "scalar": lambda: filled(),
    "one element": lambda: filled(1, 1, 1),
    "row of a column": lambda: filled(5, 1).t(),
    "empty": lambda: filled(0, 3),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_dense_parameter_keeps_its_strides_without_a_copy(layout: str) -> None:
    model = Holder(first=filled(3), odd=LAYOUTS[layout](), last=filled(2))
    stride, value = model.odd.stride(), model.odd.detach().clone()
    flat = FlatParameters(model)
    assert flat.is_view
    assert model.odd.stride() == stride
    assert model.odd.numel() == 0 or lies_in(model.odd, flat.vector)
    flat.subtract_(torch.ones_like(flat.vector))
    assert torch.equal(model.odd, value - 1)
    assert torch.equal(flat.entries[1].view(flat.vector), model.odd)
    flat.release()
    assert model.odd.stride() == stride
    assert torch.equal(model.odd, value - 1)


@pytest.mark.parametrize("make", [lambda: filled(4, 6)[:, :3], lambda: filled(9)[::2], lambda: filled(4, 4).diagonal()])
def test_a_parameter_with_gaps_is_mirrored_and_keeps_its_memory(make: Callable[[], Tensor]) -> None:
    model = Holder(odd=make(), even=filled(3))
    pointer, stride, value = model.odd.data_ptr(), model.odd.stride(), model.odd.detach().clone()
    flat = FlatParameters(model)
    assert flat.has_mirrors
    assert lies_in(model.even, flat.vector)
    assert torch.equal(flat.entries[0].view(flat.vector), value)
    flat.subtract_(torch.ones_like(flat.vector))
    model.odd.data.mul_(2)
    flat.gather_()
    assert torch.equal(flat.entries[0].view(flat.vector), 2 * (value - 1))
    assert (model.odd.data_ptr(), model.odd.stride()) == (pointer, stride)


def test_an_entry_says_where_it_lies_and_survives_json() -> None:
    (entry,) = FlatParameters(Holder(w=filled(4, 3, 1, 2).to(memory_format=torch.channels_last))).entries
    assert entry == Entry("w", (4, 3, 1, 2), "float32", 0, (0, 3, 1))
    assert (entry.numel, entry.end, entry.stride) == (24, 32, (6, 1, 1, 3))
    assert Entry.from_plain(entry.plain()) == entry


# Other dtypes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_master_keeps_what_rounding_drops(dtype: torch.dtype) -> None:
    model = Holder(w=torch.ones(3, dtype=dtype), v=filled(2))
    flat = FlatParameters(model)
    assert (model.w.dtype, flat.entries[0].dtype) == (dtype, str(dtype).removeprefix("torch."))
    correction = torch.zeros_like(flat.vector)
    correction[:3] = 1e-4  # less than half of what either dtype can tell from 1
    for _ in range(1000):
        flat.subtract_(correction)
        assert torch.equal(flat.entries[0].view(flat.vector).to(dtype), model.w)
    torch.testing.assert_close(model.w.float(), torch.full((3,), 0.9), rtol=0, atol=4e-3)
    torch.testing.assert_close(flat.gather_()[:3], torch.full((3,), 0.9), rtol=0, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gathering_twice_changes_nothing_and_scattering_gives_the_parameter_back(dtype: torch.dtype) -> None:
    """Also where an optimizer has moved the parameter so far that the dropped part would no longer round away."""
    model = Holder(w=torch.full((64,), 256.0, dtype=dtype))
    flat = FlatParameters(model)
    flat.subtract_(torch.linspace(-1, 1, 64))
    model.w.data.copy_(filled(64, seed=1))
    moved = model.w.detach().clone()
    once = flat.gather_().clone()
    assert torch.equal(flat.gather_(), once)
    flat.scatter_()
    assert torch.equal(model.w, moved)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_master_that_was_not_finite_recovers_with_its_parameter(bad: float) -> None:
    model = Holder(w=torch.ones(4, dtype=torch.bfloat16))
    flat = FlatParameters(model)
    model.w.data[1] = bad
    assert not flat.gather_().isfinite().all()
    model.w.data[1] = 2.0
    assert flat.gather_()[:4].tolist() == [1, 2, 1, 1]


def test_float64_parameters_do_not_lose_digits_on_the_way() -> None:
    value = torch.tensor([1 / 3, 2 / 3], dtype=torch.float64)
    model = Holder(w=value.clone(), v=torch.ones(2, dtype=torch.bfloat16))
    flat = FlatParameters(model)
    correction = torch.zeros_like(flat.vector)
    correction[:2] = 0.25
    flat.subtract_(correction)
    assert torch.equal(model.w, value - 0.25)
    assert torch.equal(flat.gather_()[:2], (value - 0.25).float())


MIXED: dict[str, torch.dtype] = {
    "a": torch.float32,
    "b": torch.bfloat16,
    "c": torch.float16,
    "d": torch.float64,
}


def mixed() -> nn.Module:
    model = Holder(**{name: filled(5, dtype=dtype, seed=i) for i, (name, dtype) in enumerate(MIXED.items())})
    model.register_buffer("mean", filled(3, dtype=torch.float64))
    model.register_buffer("halved", filled(3, dtype=torch.bfloat16))
    return model


def test_other_values_are_held_for_a_block_only_and_its_own_come_back_to_the_bit() -> None:
    model = mixed()
    flat = FlatParameters(model, buffers=True)
    flat.subtract_(filled(flat.vector.numel(), seed=9) / 7)
    model.d.data.div_(3)
    own = {name: value.clone() for name, value in model.state_dict().items()}
    vector = flat.gather_().clone()
    other = torch.arange(flat.vector.numel()).float()
    with pytest.raises(KeyError), flat.holding(other):
        assert all(torch.equal(e.view(other), model.state_dict()[e.name].float()) for e in flat.entries)
        raise KeyError
    assert all(torch.equal(value, own[name]) for name, value in model.state_dict().items())
    assert torch.equal(flat.gather_(), vector)


# Buffers ---------------------------------------------------------------------------------------------------------


def test_buffers_come_after_the_parameters_persistent_floating_ones_only(model: nn.Module) -> None:
    model.register_buffer("scratch", torch.ones(3), persistent=False)
    model.register_buffer("count", torch.ones(3, dtype=torch.int64))
    model.register_buffer("missing", None)
    flat = FlatParameters(model, buffers=True)
    assert [entry.name for entry in flat.entries if entry.kind == "buffer"] == ["1.running_mean", "1.running_var"]
    assert flat.parameters_end == flat.entries[-2].offset
    assert not flat.is_view
    assert [entry.kind for entry in FlatParameters(network_of_one()).entries] == ["parameter"]


def network_of_one() -> nn.Module:
    model = Holder(w=filled(2))
    model.register_buffer("mean", filled(2))
    return model


def test_a_buffer_that_is_replaced_by_assignment_is_found_again() -> None:
    model = network_of_one()
    flat = FlatParameters(model, buffers=True)
    model.mean = torch.tensor([5.0, 6.0])
    assert flat.gather_()[LINE : LINE + 2].tolist() == [5, 6]
    model.mean = torch.tensor([7.0, 8.0])
    flat.subtract_(torch.ones_like(flat.vector))
    assert model.mean.tolist() == [6, 7]


def test_buffers_must_be_finite() -> None:
    model = network_of_one()
    model.mean[0] = torch.inf
    pointer = model.w.data_ptr()
    sentence = (
        "FlatParameters: averaged buffers must be finite. Got other values in mean. "
        'Use buffers="local", or register it with persistent=False.'
    )
    with pytest.raises(ValueError, match=re.escape(sentence)):
        FlatParameters(model, buffers=True)
    assert model.w.data_ptr() == pointer


# The user's objects go on working --------------------------------------------------------------------------------


def test_release_gives_back_memory_of_its_own_with_the_values_of_now(model: nn.Module) -> None:
    flat = FlatParameters(model)
    flat.subtract_(torch.ones_like(flat.vector))
    now = [p.detach().clone() for p in model.parameters()]
    flat.release()
    pointers = [p.data_ptr() for p in model.parameters()]
    flat.release()
    assert [p.data_ptr() for p in model.parameters()] == pointers
    flat.vector.fill_(torch.nan)
    for parameter, value in zip(model.parameters(), now, strict=True):
        assert torch.equal(parameter, value)
        assert parameter.untyped_storage().nbytes() == 4 * parameter.numel()


def test_a_deep_copy_is_independent(model: nn.Module) -> None:
    flat = FlatParameters(model)
    twin = copy.deepcopy(model)
    own = [p.detach().clone() for p in twin.parameters()]
    flat.vector.fill_(9.0)
    assert all(torch.equal(p, value) for p, value in zip(twin.parameters(), own, strict=True))
    assert not any(lies_in(p, flat.vector) for p in twin.parameters())
    assert FlatParameters(twin).entries == flat.entries


def test_state_dict_round_trips_and_loading_writes_into_the_vector(model: nn.Module, tmp_path: Path) -> None:
    flat = FlatParameters(model)
    saved = copy.deepcopy(model.state_dict())
    safetensors.torch.save_file(model.state_dict(), tmp_path / "model.safetensors")
    torch.save(model.state_dict(), tmp_path / "model.pt")
    for loaded in (
        saved,
        safetensors.torch.load_file(tmp_path / "model.safetensors"),
        torch.load(tmp_path / "model.pt", weights_only=True),
    ):
        flat.vector.zero_()
        model.load_state_dict(loaded)
        assert all(torch.equal(value, saved[name]) for name, value in model.state_dict().items())
        assert all(torch.equal(e.view(flat.vector), saved[e.name]) for e in flat.entries)
        assert all(lies_in(p, flat.vector) for p in model.parameters())


def moved_by_half(model: nn.Module) -> None:
    model.half().float()


def moved_by_pointer(model: nn.Module) -> None:
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()


def moved_to_channels_last(model: nn.Module) -> None:
    model.to(memory_format=torch.channels_last)


def not_moved(model: nn.Module) -> None:
    model.float()


@pytest.mark.parametrize("move", [moved_by_half, moved_by_pointer, moved_to_channels_last, not_moved])
@pytest.mark.parametrize("then", ["gather", "subtract"])
def test_a_parameter_that_was_moved_is_taken_back(model: nn.Module, move: Callable, then: str) -> None:
    flat = FlatParameters(model)
    move(model)
    values = [p.detach().clone() for p in model.parameters()]
    flat.subtract_(torch.ones_like(flat.vector)) if then == "subtract" else flat.gather_().sub_(1)
    for parameter, value in zip(model.parameters(), values, strict=True):
        assert lies_in(parameter, flat.vector)
        assert torch.equal(parameter, value - 1)


def test_a_parameter_that_another_dtype_took_away_gets_a_sentence() -> None:
    model = Holder(w=filled(2))
    flat = FlatParameters(model)
    model.double()
    sentence = (
        "FlatParameters: w must stay float32 on cpu. Got torch.float64 on cpu. Move the model before the Worker starts."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        flat.gather_()


def test_another_parameter_in_the_place_of_one_gets_a_sentence() -> None:
    """`assign=True` leaves the optimizer with parameters that the model no longer uses: training would do nothing."""
    model = nn.Sequential(nn.Linear(2, 2))
    flat = FlatParameters(model)
    model.load_state_dict({"0.weight": torch.ones(2, 2), "0.bias": torch.ones(2)}, assign=True)
    sentence = (
        "FlatParameters: Linear.weight must stay the Parameter that optimizer holds. Got another in its place. Load "
        "with assign=False, or do it before the Worker starts."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        flat.gather_()


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_compiled_model_has_the_names_of_the_uncompiled_and_sees_the_vector(backend: str) -> None:
    plain = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    names = [entry.name for entry in FlatParameters(copy.deepcopy(plain)).entries]
    compiled = torch.compile(plain, backend=backend)
    inputs = filled(2, 3)
    compiled(inputs)
    flat = FlatParameters(compiled)
    assert [entry.name for entry in flat.entries] == names
    flat.subtract_(filled(flat.vector.numel()))
    torch.testing.assert_close(compiled(inputs), plain(inputs))
    flat.set_(torch.zeros_like(flat.vector))
    assert not compiled(inputs).any()
    compiled(inputs).sum().backward()
    assert plain[2].bias.grad.item() == 2
    flat.release()
    plain[2].bias.data.fill_(1.5)
    assert compiled(inputs).tolist() == [[1.5], [1.5]]


def test_a_compiled_part_of_a_model_has_the_names_of_the_uncompiled() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    names = [entry.name for entry in FlatParameters(model, buffers=True).entries]
    model[1] = torch.compile(model[1], backend="eager")
    assert [entry.name for entry in FlatParameters(model, buffers=True).entries] == names


# What one vector can't hold --------------------------------------------------------------------------------------


@pytest.fixture
def one_rank() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_a_sharded_parameter_gets_a_sentence(one_rank: None) -> None:
    from torch.distributed.tensor import Shard, distribute_tensor, init_device_mesh

    sharded = distribute_tensor(filled(4, 2), init_device_mesh("cpu", (1,)), [Shard(0)])
    sentence = (
        "FlatParameters: w must be a dense floating-point tensor. Got a sharded one (DTensor). Use hooke between whole "
        "replicas, e.g. one worker per FSDP group, unsharded."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        FlatParameters(Holder(v=filled(2), w=nn.Parameter(sharded)))


def transposed_tie() -> nn.Module:
    model = Holder(w=filled(2, 3))
    model.v = nn.Parameter(model.w.data.t())
    return model


def on_meta() -> nn.Module:
    return nn.Linear(2, 2, device="meta")


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (
            lambda: nn.Linear(2, 2).requires_grad_(False),
            "FlatParameters: model must have a trainable parameter. Got none. Set requires_grad=True.",
        ),
        (nn.Identity, "FlatParameters: model must have a trainable parameter. Got none. Set requires_grad=True."),
        (
            lambda: nn.Sequential(nn.LazyLinear(3)),
            "FlatParameters: 0.weight must be a dense floating-point tensor. Got an uninitialized one. Run the model "
            "on one batch first.",
        ),
        (
            lambda: Holder(w=torch.zeros(2, dtype=torch.complex64)),
            "FlatParameters: w must be a dense floating-point tensor. Got torch.complex64. Store it as real numbers, "
            "or set requires_grad=False.",
        ),
        (
            lambda: Holder(w=torch.eye(2).to_sparse()),
            "FlatParameters: w must be a dense floating-point tensor. Got torch.sparse_coo. Turn it into a dense one "
            "with .to_dense().",
        ),
        (
            on_meta,
            "FlatParameters: weight must be a dense floating-point tensor. Got one without values (meta device). Call "
            "model.to_empty(device=...) and load its weights first.",
        ),
        (
            lambda: nn.Sequential(nn.Linear(1, 1), on_meta()),
            "FlatParameters: parameters must be on one device. Got cpu, meta. Move the model to one.",
        ),
        (
            transposed_tie,
            "FlatParameters: v and w must not overlap in memory. Got parameters tied in different shapes. Tie them by "
            "using one Parameter, e.g. transposed in forward.",
        ),
    ],
)
def test_what_one_vector_cannot_hold_gets_a_sentence(make: Callable[[], nn.Module], sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        FlatParameters(make())


# Any shapes ------------------------------------------------------------------------------------------------------

shapes = st.lists(st.lists(st.integers(0, 5), max_size=4).map(tuple), min_size=1, max_size=6)


@given(shapes=shapes, orders=st.randoms(use_true_random=False), dtype=st.sampled_from([torch.float32, torch.bfloat16]))
@settings(deadline=None, max_examples=100)
def test_any_shapes_and_memory_orders_round_trip(shapes: list, orders: object, dtype: torch.dtype) -> None:
    parameters = {}
    for index, shape in enumerate(shapes):
        dimensions = list(range(len(shape)))
        orders.shuffle(dimensions)  # type: ignore[attr-defined]
        parameters[f"p{index}"] = filled(*shape, dtype=dtype, seed=index).permute(dimensions)
    model = Holder(**parameters)
    strides = [p.stride() for p in model.parameters()]
    flat = FlatParameters(model)
    assert flat.numel == sum(p.numel() for p in model.parameters())
    values = torch.arange(flat.vector.numel()).float()
    flat.set_(values)
    for entry, parameter, stride in zip(flat.entries, model.parameters(), strides, strict=True):
        assert torch.equal(parameter, entry.view(values).to(dtype))
        assert parameter.stride() == stride
    flat.release()
    assert [p.stride() for p in model.parameters()] == strides


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("part", [slice(0, 5), slice(3, 20), slice(16, 48), slice(47, 48)], ids=str)
def test_a_part_is_subtracted_from_and_the_rest_stays(part: slice, dtype: torch.dtype) -> None:
    """Also where it cuts a tensor, whatever dtype that has."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2).to(memory_format=torch.contiguous_format)).to(dtype)
    flat = FlatParameters(model)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    correction = torch.zeros_like(flat.vector)
    correction[part] = torch.arange(1.0, 1 + part.stop - part.start)
    flat.subtract_(correction[part].clone(), part)
    for entry, parameter, was in zip(flat.entries, model.parameters(), before, strict=True):
        torch.testing.assert_close(parameter.detach(), was - entry.view(correction).to(dtype))
    flat.release()
