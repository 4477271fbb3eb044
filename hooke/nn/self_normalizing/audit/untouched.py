"""Run a model and leave no trace of it: mode, gradients, buffers and random numbers are as before, to the bit."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn


@contextmanager
def untouched(model: nn.Module, *, seed: int, also: Iterable[Tensor] = ()) -> Iterator[None]:
    """Inside, every submodule is in training mode and random numbers come from `seed`; after it all is as before.

    Restored, also after an exception: the mode of every submodule (set by attribute, so that no overridden `train()`
    acts), `.grad` of every parameter (`None` inside), every buffer, its values and its place, the random state of the
    CPU, of the accelerators that hold a tensor of `model` or of `also`, of numpy and of Python.
    """
    modules = list(model.modules())
    modes = [module.training for module in modules]
    buffers = [dict(module._buffers) for module in modules]
    values = {id(b): (b, b.detach().clone()) for own in buffers for b in own.values() if b is not None}
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
    devices = {tensor.device for tensor in (*model.parameters(), *model.buffers(), *also)}
    with _random_state(devices, seed):
        try:
            for module in modules:
                module.training = True
            for parameter, _ in gradients:
                parameter.grad = None
            yield
        finally:
            for module, mode, own in zip(modules, modes, buffers, strict=True):
                module.training = mode
                module._buffers.clear()
                module._buffers.update(own)
            with torch.no_grad():
                for buffer, value in values.values():
                    buffer.copy_(value)
            for parameter, gradient in gradients:
                parameter.grad = gradient


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
