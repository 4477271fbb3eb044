"""Run a model and leave no trace of it: mode, gradients, buffers and random numbers are as before, to the bit."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.grad_mode import _unsafe_preserve_version_counter


@contextmanager
def untouched(model: nn.Module, *, seed: int, also: Iterable[Tensor] = ()) -> Iterator[None]:
    """Inside, every submodule is in training mode and random numbers come from `seed`; after it all is as before.

    Restored, also after an exception: the mode of every submodule (set by attribute, so that no overridden `train()`
    acts), `.grad` of every parameter (`None` inside), every buffer, its values, its place and its version (a backward
    pass that waits outside still works), the random state of the CPU, of the accelerators that hold a tensor of
    `model` or of `also`, of numpy and of Python.
    """
    modules = list(model.modules())
    modes = [module.training for module in modules]
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
    devices = {tensor.device for tensor in (*model.parameters(), *model.buffers(), *also)}
    with _random_state(devices, seed), _buffers(modules):
        try:
            for module in modules:
                module.training = True
            for parameter, _ in gradients:
                parameter.grad = None
            yield
        finally:
            for module, mode in zip(modules, modes, strict=True):
                module.training = mode
            for parameter, gradient in gradients:
                parameter.grad = gradient


@contextmanager
def _buffers(modules: Iterable[nn.Module]) -> Iterator[None]:
    """What modules keep in buffers comes back; only those that changed are written."""
    places = [(one, dict(one._buffers), set(one._non_persistent_buffers_set)) for one in modules]
    buffers = {id(b): b for _, own, _ in places for b in own.values() if b is not None}
    values = [(buffer, buffer.detach().clone()) for buffer in buffers.values()]
    with ExitStack() as versions:
        for buffer in buffers.values():
            if not buffer.is_inference():  # those have no version
                versions.enter_context(_unsafe_preserve_version_counter(buffer))
        try:
            yield
        finally:
            for module, own, passing in places:
                module._buffers.clear()
                module._buffers.update(own)
                module._non_persistent_buffers_set = passing
            with torch.no_grad():
                for buffer, value in values:
                    if buffer.layout != torch.strided or not torch.equal(buffer, value):
                        buffer.copy_(value)


@contextmanager
def _random_state(devices: Iterable[torch.device], seed: int) -> Iterator[None]:
    """Random numbers from `seed`, on the CPU and on these devices only; the state before comes back."""
    accelerators = [device for device in devices if device.type not in ("cpu", "meta")]
    parts = [torch.get_device_module(device) for device in accelerators]
    before = [part.get_rng_state(device) for part, device in zip(parts, accelerators, strict=True)]
    cpu, python, numpy = torch.get_rng_state(), random.getstate(), np.random.get_state()
    try:
        torch.default_generator.manual_seed(seed)
        for part, device in zip(parts, accelerators, strict=True):
            with part.device(device):
                part.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)
        yield
    finally:
        torch.set_rng_state(cpu)
        random.setstate(python)
        np.random.set_state(numpy)
        for part, device, state in zip(parts, accelerators, before, strict=True):
            part.set_rng_state(state, device)
