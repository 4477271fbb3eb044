"""A model's parameters as one flat float32 vector, and back.

Where a parameter is float32 and dense, its memory *is* its part of the vector: nothing is copied on the hot path, and
the Parameter objects stay the same, so optimizers, compiled models and `state_dict` go on working. Other parameters
(bfloat16, float16, float64, or with gaps in memory) are mirrored: the vector is their float32 master copy, and what
rounding to their own dtype drops is kept there.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
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
        model: Any module whose parameters are on one device.
        buffers: Whether the persistent floating-point buffers (batch-norm statistics) belong to it.

    Attributes:
        vector: `Float32[n]` on the parameters' device. Call `gather_()` before reading it where a parameter may be
            mirrored or a buffer may have changed.
        entries: Where each tensor lies in it.

    Raises:
        ValueError: A parameter that one vector can't hold: sharded, complex, uninitialized, on another device; or no
            trainable parameter at all; or a buffer with values that are not finite.

    Example:
        >>> model = nn.Linear(2, 1)
        >>> flat = FlatParameters(model)
        >>> _ = flat.vector.fill_(0.5)
        >>> model.weight.detach()
        tensor([[0.5000, 0.5000]])
    """

    def __init__(self, model: nn.Module, *, buffers: bool = False) -> None:
        self._model = model
        parameters = _trainable(model)
        _check(parameters)
        self._buffers = _averaged_buffers(model) if buffers else {}
        self.entries = _lay_out(parameters, self._buffer_tensors())
        self._tied = [tied for _, tied in parameters]
        device = self._tied[0][0].device
        self.vector: Tensor = torch.zeros(end_of(self.entries), dtype=torch.float32, device=device)
        self.parameters_end = end_of([entry for entry in self.entries if entry.kind == "parameter"])
        self._adopted = [_fits(tied[0], entry) for tied, entry in zip(self._tied, self.entries, strict=False)]
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
        """Each parameter with the index of its entry; a tied one once."""
        for index, tied in enumerate(self._tied):
            yield index, tied[0]

    @torch.no_grad()
    def gather_(self) -> Float[Tensor, " n"]:
        """Bring mirrored parameters and buffers into the vector; take back parameters that were moved elsewhere.

        Raises:
            ValueError: A parameter has left the device on which the vector lies.
        """
        for index, view in enumerate(self._views):
            tensor = self._tensor(index)
            if self._is_adopted(index):
                if tensor.data_ptr() != view.data_ptr() and tensor.numel():
                    self._take_back(index)
            elif self._is_rounded(index):
                view.add_(tensor.float() - view.to(tensor.dtype).float())
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

    @torch.no_grad()
    def subtract_(self, correction: Float[Tensor, " n"]) -> None:
        """Subtract `correction` from the model's parameters (and buffers)."""
        if self.is_view:
            self.vector.sub_(correction)
            return
        self.gather_().sub_(correction)
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

    def _take_back(self, index: int) -> None:
        parameter = self._tied[index][0]
        if parameter.device != self.vector.device or parameter.dtype != torch.float32:
            raise ValueError(
                f"FlatParameters: {self.entries[index].name} must stay float32 on {self.vector.device}. Got "
                f"{parameter.dtype} on {parameter.device}. Move the model before the Worker starts."
            )
        self._views[index].copy_(parameter.data)
        self._adopt(index)


def _trainable(model: nn.Module) -> list[tuple[str, list[nn.Parameter]]]:
    """Trainable parameters by their first name, each with all Parameter objects that share its memory."""
    found: dict[object, tuple[str, list[nn.Parameter]]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        shared = (parameter.data_ptr(), parameter.shape, parameter.stride()) if _has_memory(parameter) else name
        found.setdefault(shared, (_clean(name), []))[1].append(parameter)
    return list(found.values())


def _has_memory(parameter: Tensor) -> bool:
    ordinary = not hasattr(parameter, "placements") and not isinstance(parameter, nn.parameter.UninitializedParameter)
    return ordinary and parameter.numel() > 0


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


def _problem(parameter: nn.Parameter) -> str | None:
    if hasattr(parameter, "placements"):
        return "a sharded one (DTensor). Use hooke between whole replicas, e.g. one worker per FSDP group, unsharded."
    if isinstance(parameter, nn.parameter.UninitializedParameter):
        return "an uninitialized one. Run the model on one batch first."
    if not parameter.is_floating_point():
        return f"{parameter.dtype}. Store it as real numbers, or set requires_grad=False."
    if parameter.layout != torch.strided:
        return f"{parameter.layout}. Turn it into a dense one with .to_dense()."
    return None


def _memory_order(tensor: Tensor) -> tuple[int, ...]:
    """Dimensions from the slowest to the fastest in memory; those of size 1 say nothing and are left out."""
    wide = [dimension for dimension in range(tensor.dim()) if tensor.shape[dimension] != 1]
    return tuple(sorted(wide, key=lambda dimension: -tensor.stride(dimension)))


def _fits(parameter: Tensor, entry: Entry) -> bool:
    """Whether the parameter's memory can be a part of the vector: float32, without gaps or overlaps."""
    dense = all(parameter.stride(dimension) == entry.stride[dimension] for dimension in entry.order)
    return parameter.dtype == torch.float32 and (dense or parameter.numel() == 0)


def _lay_out(parameters: list[tuple[str, list[nn.Parameter]]], buffers: list[tuple[str, Tensor]]) -> tuple[Entry, ...]:
    tensors = [(name, tied[0].data, "parameter") for name, tied in parameters]
    tensors += [(name, buffer, "buffer") for name, buffer in buffers]
    entries: list[Entry] = []
    for name, tensor, kind in tensors:
        dtype = str(tensor.dtype).removeprefix("torch.")
        order = _memory_order(tensor)
        entries.append(Entry(name, tuple(tensor.shape), dtype, end_of(entries), order, kind))
    return tuple(entries)
