"""A model's parameters as one flat float32 vector, and back.

Where a parameter is float32 and dense, its memory *is* its part of the vector: nothing is copied on the hot path, and
the Parameter objects stay the same, so optimizers, compiled models and `state_dict` go on working. Other parameters
(bfloat16, float16, float64, or with gaps in memory) are mirrored: the vector is their float32 master copy, and what
rounding to their own dtype drops is kept there.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

LINE = 16
"""Every entry starts on a multiple of 16 elements (64 bytes), as vector instructions and matrix libraries like it."""


@dataclass(frozen=True)
class Entry:
    """One tensor's place in the vector.

    Attributes:
        name: As in `state_dict()`; of tied parameters the first name.
        shape: Its shape.
        dtype: Its dtype's name, e.g. `"float32"`.
        offset: Where it starts in the vector, in elements.
        order: Its dimensions from the slowest to the fastest in memory, those of size 1 left out: `(0, 1, 2, 3)` for a
            contiguous convolution weight, `(0, 2, 3, 1)` for one in channels_last.
        kind: `"parameter"` or `"buffer"`.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    offset: int
    order: tuple[int, ...]
    kind: str = "parameter"

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def end(self) -> int:
        """Where the next entry may start."""
        return self.offset + -(-self.numel // LINE) * LINE

    @property
    def stride(self) -> tuple[int, ...]:
        """The strides that `order` says, in elements."""
        strides, step = [1] * len(self.shape), 1
        for dimension in reversed(self.order):
            strides[dimension] = step
            step *= self.shape[dimension]
        return tuple(strides)

    def view(self, vector: Float[Tensor, " n"]) -> Tensor:
        """This entry's part of `vector`, in its own shape and memory order, sharing memory."""
        return vector.as_strided(self.shape, self.stride, vector.storage_offset() + self.offset)

    def cut(self, start: int, stop: int) -> Entry | None:
        """What of it lies between these elements of the vector, counted from `start`; `None` if nothing does.

        An entry that is cut is a row of values as they lie in memory, and its name says which: `weight[32:96]`.
        """
        first, last = max(self.offset, start), min(self.offset + self.numel, stop)
        if first >= last:
            return None
        if last - first == self.numel:
            return replace(self, offset=self.offset - start)
        name = f"{self.name}[{first - self.offset}:{last - self.offset}]"
        order = (0,) if last - first > 1 else ()
        return Entry(name, (last - first,), self.dtype, first - start, order, self.kind)

    def plain(self) -> dict[str, Any]:
        """This entry as JSON holds it."""
        return asdict(self)

    @staticmethod
    def from_plain(plain: dict[str, Any]) -> Entry:
        """The entry back from `plain`."""
        return Entry(**{**plain, "shape": tuple(plain["shape"]), "order": tuple(plain["order"])})


def end_of(entries: Sequence[Entry]) -> int:
    """Length of the vector that holds `entries`."""
    return entries[-1].end if entries else 0


class FlatParameters:
    """The trainable parameters of `model` (and, on request, its floating-point buffers) as one float32 vector.

    Tied parameters are counted once, frozen ones left out. The vector holds the parameters first, then the buffers;
    unused elements between entries are 0.

    Args:
        model: Any module whose parameters are on one device; of a `DistributedDataParallel` the module inside.
        buffers: Whether the persistent floating-point buffers (batch-norm statistics) belong to it.

    Attributes:
        vector: `Float32[n]` on the parameters' device. Call `gather_()` before reading it where a parameter may be
            mirrored or a buffer may have changed.
        entries: Where each tensor lies in it.

    Raises:
        ValueError: A parameter that one vector can't hold: sharded, complex, uninitialized, on another device, part of
            another's memory; or no trainable parameter at all; or a buffer with values that are not finite.

    Example:
        >>> model = nn.Linear(2, 1)
        >>> flat = FlatParameters(model)
        >>> _ = flat.vector.fill_(0.5)
        >>> model.weight.detach()
        tensor([[0.5000, 0.5000]])
    """

    def __init__(self, model: nn.Module, *, buffers: bool = False) -> None:
        self._model = model = _inside(model)
        parameters = _trainable(model)
        _check(parameters)
        self._homes = _homes(model)
        self._buffers = _averaged_buffers(model) if buffers else {}
        self.entries = _lay_out(parameters, self._buffer_tensors())
        self._tied = [tied for _, tied in parameters]
        device = self._tied[0][0].device
        self.vector: Tensor = torch.zeros(end_of(self.entries), dtype=torch.float32, device=device)
        self.parameters_end = end_of([entry for entry in self.entries if entry.kind == "parameter"])
        self._adopted = [_is_adoptable(parameter) for parameter, *_ in self._tied]
        self._views = [self._view(index) for index in range(len(self.entries))]
        self._released = False
        with torch.no_grad():
            for index, view in enumerate(self._views):
                view.copy_(self._tensor(index))
                if self._is_adopted(index):
                    self._adopt(index)

    @property
    def numel(self) -> int:
        """Number of values that count: the vector without its unused elements."""
        return sum(entry.numel for entry in self.entries)

    @property
    def is_view(self) -> bool:
        """Whether the whole vector is the model's own memory: no mirrored parameter, no buffer."""
        return all(self._adopted) and not self._buffers

    @property
    def has_mirrors(self) -> bool:
        """Whether some parameter has its float32 master copy in the vector only."""
        return not all(self._adopted)

    def parameters(self) -> Iterator[tuple[int, nn.Parameter]]:
        """Each Parameter object with the index of its entry; those that share memory share the entry."""
        for index, tied in enumerate(self._tied):
            for parameter in tied:
                yield index, parameter

    @torch.no_grad()
    def gather_(self) -> Float[Tensor, " n"]:
        """Bring mirrored parameters and buffers into the vector; take back parameters that were moved elsewhere.

        Raises:
            ValueError: A parameter has left the device on which the vector lies, or another object is in its place.
        """
        self._take_back_moved()
        for index, view in enumerate(self._views):
            if self._is_adopted(index):
                continue
            tensor = self._tensor(index)
            if self._is_rounded(index):
                _follow_(view, tensor)
            else:
                view.copy_(tensor)
        return self.vector

    @torch.no_grad()
    def scatter_(self) -> None:
        """Write the vector to mirrored parameters and to buffers."""
        for index, view in enumerate(self._views):
            if not self._is_adopted(index):
                self._tensor(index).copy_(view)

    @torch.no_grad()
    def set_(self, values: Float[Tensor, " n"]) -> None:
        """Give the model the parameters (and buffers) in `values`."""
        self.vector.copy_(values)
        self.scatter_()

    @contextmanager
    def holding(self, values: Float[Tensor, " n"]) -> Iterator[None]:
        """Give the model `values` inside the block, and its own back afterwards, to the bit."""
        self._take_back_moved()
        own = self.vector.clone()
        mirrored = {i: self._tensor(i).clone() for i in range(len(self.entries)) if not self._is_adopted(i)}
        self.set_(values)
        try:
            yield
        finally:
            self._take_back_moved()
            self.vector.copy_(own)
            with torch.no_grad():
                for index, tensor in mirrored.items():
                    self._tensor(index).copy_(tensor)

    @torch.no_grad()
    def subtract_(self, correction: Float[Tensor, " m"], part: slice = slice(None)) -> None:
        """Subtract `correction` from that part of the model's parameters (and buffers). Default: from all."""
        self.gather_()[part].sub_(correction)
        if correction.numel() < self.vector.numel() and any(map(self._is_wide, range(len(self.entries)))):
            whole = torch.zeros_like(self.vector)
            whole[part] = correction
            correction = whole
        for index, entry in enumerate(self.entries):
            if self._is_wide(index):  # a float64 parameter would lose digits on the way through float32
                self._tensor(index).sub_(entry.view(correction))
            elif not self._is_adopted(index):
                self._tensor(index).copy_(self._views[index])

    @torch.no_grad()
    def release(self) -> None:
        """Give each parameter memory of its own again, with the values it has now."""
        if self._released:
            return
        self._released = True
        for tied, adopted in zip(self._tied, self._adopted, strict=True):
            if adopted:
                own = tied[0].data.clone(memory_format=torch.preserve_format)
                for parameter in tied:
                    parameter.data = own

    def _buffer_tensors(self) -> list[tuple[str, Tensor]]:
        return [(name, module._buffers[key]) for name, (module, key) in self._buffers.items()]  # type: ignore[misc]

    def _tensor(self, index: int) -> Tensor:
        """The model's tensor of an entry. A buffer is looked up anew: modules may replace theirs by assignment."""
        if index < len(self._tied):
            return self._tied[index][0].data
        module, key = self._buffers[self.entries[index].name]
        buffer = module._buffers[key]
        assert buffer is not None
        return buffer

    def _view(self, index: int) -> Tensor:
        entry = self.entries[index]
        if not self._is_adopted(index):
            return entry.view(self.vector)
        tensor = self._tensor(index)  # its own strides, also those of dimensions of size 1: compiled code looks at them
        return self.vector.as_strided(tensor.shape, tensor.stride(), entry.offset)

    def _is_adopted(self, index: int) -> bool:
        return index < len(self._tied) and self._adopted[index]

    def _is_rounded(self, index: int) -> bool:
        return self._tensor(index).element_size() < 4

    def _is_wide(self, index: int) -> bool:
        return self._tensor(index).element_size() > 4

    def _adopt(self, index: int) -> None:
        for parameter in self._tied[index]:
            parameter.data = self._views[index]

    @torch.no_grad()
    def _take_back_moved(self) -> None:
        """Make parameters that were moved elsewhere views of the vector again."""
        for module, key, parameter in self._homes:
            if module._parameters.get(key, parameter) is not parameter:
                raise ValueError(
                    f"FlatParameters: {type(module).__name__}.{key} must stay the Parameter that optimizer holds. Got "
                    "another in its place. Load with assign=False, or do it before the Worker starts."
                )
        for index, view in enumerate(self._views):
            if self._is_adopted(index) and self._tensor(index).data_ptr() != view.data_ptr() and view.numel():
                self._take_back(index)

    def _take_back(self, index: int) -> None:
        parameter = self._tied[index][0]
        if parameter.device != self.vector.device or parameter.dtype != torch.float32:
            raise ValueError(
                f"FlatParameters: {self.entries[index].name} must stay float32 on {self.vector.device}. Got "
                f"{parameter.dtype} on {parameter.device}. Move the model before the Worker starts."
            )
        self._views[index].copy_(parameter.data)
        self._adopt(index)


def _inside(model: nn.Module) -> nn.Module:
    """The user's own module, without what puts a prefix before its parameters' names."""
    compiled = getattr(model, "_orig_mod", model)
    return compiled.module if isinstance(compiled, nn.parallel.DistributedDataParallel) else model


def _trainable(model: nn.Module) -> list[tuple[str, list[nn.Parameter]]]:
    """Trainable parameters by their first name, each with all Parameter objects that share its memory."""
    found: dict[object, tuple[str, list[nn.Parameter]]] = {}
    named = list(model.named_parameters())
    for name, parameter in named:
        if parameter.requires_grad:
            found.setdefault(_memory(name, parameter), (_clean(name), []))[1].append(parameter)
    for name, parameter in named:
        if not parameter.requires_grad and (trained := found.get(_memory(name, parameter))):
            trained[1].append(parameter)
    return list(found.values())


def _homes(model: nn.Module) -> list[tuple[nn.Module, str, nn.Parameter]]:
    """Where each trainable parameter hangs."""
    slots = [(module, key, parameter) for module in model.modules() for key, parameter in module._parameters.items()]
    return [(module, key, p) for module, key, p in slots if p is not None and p.requires_grad]


def _memory(name: str, parameter: nn.Parameter) -> object:
    """What two parameters have in common if they are one in memory; the name where there is no memory to share."""
    if _problem(parameter) is not None or not parameter.numel():
        return name
    return parameter.data_ptr(), parameter.dtype, parameter.shape, parameter.stride()


def _clean(name: str) -> str:
    """The name without what `torch.compile` puts into it."""
    return name.replace("_orig_mod.", "")


def _averaged_buffers(model: nn.Module) -> dict[str, tuple[nn.Module, str]]:
    """Where each persistent floating-point buffer hangs, by name."""
    found: dict[str, tuple[nn.Module, str]] = {}
    for prefix, module in model.named_modules():
        for key, buffer in module._buffers.items():
            if buffer is None or key in module._non_persistent_buffers_set or not buffer.is_floating_point():
                continue
            name = _clean(f"{prefix}.{key}" if prefix else key)
            if not bool(buffer.isfinite().all()):
                raise ValueError(
                    f"FlatParameters: averaged buffers must be finite. Got other values in {name}. "
                    'Use buffers="local", or register it with persistent=False.'
                )
            found[name] = (module, key)
    return found


def _check(parameters: list[tuple[str, list[nn.Parameter]]]) -> None:
    if not parameters:
        raise ValueError("FlatParameters: model must have a trainable parameter. Got none. Set requires_grad=True.")
    devices = {tied[0].device for _, tied in parameters}
    if len(devices) > 1:
        names = ", ".join(sorted(map(str, devices)))
        raise ValueError(f"FlatParameters: parameters must be on one device. Got {names}. Move the model to one.")
    for name, (parameter, *_) in parameters:
        problem = _problem(parameter)
        if problem:
            raise ValueError(f"FlatParameters: {name} must be a dense floating-point tensor. Got {problem}")
    _check_apart(parameters)


def _check_apart(parameters: list[tuple[str, list[nn.Parameter]]]) -> None:
    """Refuse parameters that share memory under different shapes: as parts of one vector they would come apart."""
    ranges = sorted((p.data_ptr(), p.data_ptr() + _span(p), name, _is_dense(p)) for name, (p, *_) in parameters)
    for (_, end, name, dense), (start, _, other, other_dense) in pairwise(one for one in ranges if one[0] < one[1]):
        if start < end and (dense or other_dense):
            raise ValueError(
                f"FlatParameters: {name} and {other} must not overlap in memory. Got parameters tied in different "
                "shapes. Tie them by using one Parameter, e.g. transposed in forward."
            )


def _span(tensor: Tensor) -> int:
    """Bytes from the first to behind the last element."""
    if not tensor.numel():
        return 0
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    return tensor.element_size() * (1 + sum((size - 1) * stride for size, stride in steps))


def _problem(parameter: nn.Parameter) -> str | None:
    if hasattr(parameter, "placements"):
        return "a sharded one (DTensor). Use hooke between whole replicas, e.g. one worker per FSDP group, unsharded."
    if isinstance(parameter, nn.parameter.UninitializedParameter):
        return "an uninitialized one. Run the model on one batch first."
    if not parameter.is_floating_point():
        return f"{parameter.dtype}. Store it as real numbers, or set requires_grad=False."
    if parameter.layout != torch.strided:
        return f"{parameter.layout}. Turn it into a dense one with .to_dense()."
    if parameter.is_meta:
        return "one without values (meta device). Call model.to_empty(device=...) and load its weights first."
    return None


def _memory_order(tensor: Tensor) -> tuple[int, ...]:
    """Dimensions from the slowest to the fastest in memory; those of size 1 say nothing and are left out."""
    wide = [dimension for dimension in range(tensor.dim()) if tensor.shape[dimension] != 1]
    return tuple(sorted(wide, key=lambda dimension: -tensor.stride(dimension)))


def _is_adoptable(parameter: Tensor) -> bool:
    """Whether the parameter's memory can be a part of the vector."""
    return parameter.dtype == torch.float32 and (_is_dense(parameter) or parameter.numel() == 0)


def _is_dense(tensor: Tensor) -> bool:
    """Whether its elements fill its memory without gaps or overlaps, in any order of dimensions."""
    step = 1
    for dimension in reversed(_memory_order(tensor)):
        if tensor.stride(dimension) != step:
            return False
        step *= tensor.shape[dimension]
    return True


def _follow_(master: Tensor, rounded: Tensor) -> None:
    """Bring the master copy to where `rounded` has gone, keeping what rounding dropped as long as it rounds away again.

    A master that could round to something else, or is not finite any more, is given up for the parameter itself.
    """
    dropped = master - master.to(rounded.dtype)
    kept = rounded + dropped
    torch.where(kept.to(rounded.dtype) == rounded, kept, rounded.float(), out=master)


def _lay_out(parameters: list[tuple[str, list[nn.Parameter]]], buffers: list[tuple[str, Tensor]]) -> tuple[Entry, ...]:
    tensors = [(name, tied[0].data, "parameter") for name, tied in parameters]
    tensors += [(name, buffer, "buffer") for name, buffer in buffers]
    entries: list[Entry] = []
    for name, tensor, kind in tensors:
        dtype = str(tensor.dtype).removeprefix("torch.")
        order = _memory_order(tensor)
        entries.append(Entry(name, tuple(tensor.shape), dtype, end_of(entries), order, kind))
    return tuple(entries)
