"""Which models can be looked at, and the sentence for those that can't."""

from __future__ import annotations

from itertools import chain
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy


def accepted(function: str, model: Any) -> nn.Module:
    """The model itself, out of `torch.compile`'s wrapping; `function` begins the sentence of a refusal.

    Raises:
        TypeError: No module.
        ValueError: A scripted module, or a parameter or buffer that is lazy, on the meta device, or complex.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"{function}: model must be an nn.Module. Got {type(model).__name__}. Give the module itself.")
    inner: nn.Module = getattr(model, "_orig_mod", model)
    for name, module in inner.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise ValueError(
                f"{function}: every module must be written in Python. Got {name or 'a model'}, which is scripted. "
                "Give the model that was scripted."
            )
    for name, tensor in chain(inner.named_parameters(), inner.named_buffers()):
        for found, what, got, repair in _REFUSED:
            if found(tensor):
                raise ValueError(f"{function}: every parameter and buffer must {what}. Got {got} {name}. {repair}")
    return inner


_REFUSED: tuple[Any, ...] = (
    (is_lazy, "have its shape", "lazy", "Run one batch through the model first."),
    (lambda x: x.is_meta, "have values", "on the meta device", "Make them by to_empty and reset_parameters."),
    (lambda x: x.is_complex(), "be real", "complex", "Give the real part of the model."),
)
