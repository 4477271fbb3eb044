"""What `hooke audit` does: find the model, make a batch, audit. torch is imported when a model is."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hooke.nn.self_normalizing.audit.finding import words_of

if TYPE_CHECKING:
    from torch import nn

    from hooke.nn.self_normalizing.audit.report import AuditReport


class AuditError(ValueError):
    """Why a model can't be audited, in one sentence."""


def audit_target(
    target: str, *, shape: str | None = None, inputs: Path | None = None, batch: int | None = None, seed: int = 0
) -> AuditReport:
    """Audit the model that `MODULE:FACTORY` names.

    Args:
        target: A module that can be imported from the working directory, and in it an `nn.Module` or a callable that
            returns one, or a pair of it and its inputs.
        shape: Of one example, e.g. "3,32,32": inputs are drawn from N(0, 1).
        inputs: A `.npy` file with examples along its first dimension, of which `batch` are used. Whole numbers are
            words for a model with an embedding, and values for others.
        batch: Examples, 256 if not given; not with a factory's own inputs.
        seed: Of the model's weights, of the drawn inputs and of the audit.

    Raises:
        AuditError: Anything that keeps the model from being audited.
    """
    if batch is not None and batch < 2:
        raise AuditError(f"--batch must be 2 or more. Got {batch}. Use e.g. --batch 256.")
    if shape is not None and inputs is not None:
        raise AuditError("give --shape or --inputs, not both. Got both. Drop one.")
    found = _found(target)
    import torch
    from torch import nn

    from hooke.nn.self_normalizing.audit.report import audit

    torch.manual_seed(seed)
    made = found if isinstance(found, nn.Module) else _called(target, found)
    model, own = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if not isinstance(model, nn.Module):
        raise AuditError(
            f"{target} must be or return an nn.Module, or a pair of it and its inputs. Got {type(model).__name__}. "
            "Name a factory, e.g. mymodel:build."
        )
    given = own if shape is None and inputs is None else _batch(model, shape, inputs, batch or 256)
    if given is own is not None and batch is not None:
        raise AuditError(f"--batch must be left out where {target} gives the inputs. Got {batch}. Drop it.")
    if given is None:
        raise AuditError(f"inputs are needed. Got none with {target}. {_shape_hint(model)}")
    try:
        return audit(model, given, seed=seed)
    except Exception as error:
        if str(error).startswith("audit: "):
            raise AuditError(str(error).removeprefix("audit: ")) from error
        raise AuditError(
            f"forward must accept the inputs. Got {words_of(error)}. Give another --shape or --inputs."
        ) from error


def _found(target: str) -> Any:
    """What MODULE:FACTORY names."""
    path, colon, attribute = target.partition(":")
    if not (path and colon and attribute):
        raise AuditError(f"the model must be given as MODULE:FACTORY. Got {target}. Use e.g. mymodel:build.")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        found: Any = importlib.import_module(path)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{path}.".startswith(f"{error.name}."):
            raise AuditError(
                f"MODULE must be importable from here. Got {path}: no such module. "
                "Write it without .py, with dots for /."
            ) from error
        raise AuditError(f"{path} must be importable. Got {words_of(error)}. Install it or mend the import.") from error
    except (Exception, SystemExit) as error:
        raise AuditError(
            f"{path} must be importable. Got {words_of(error)}. Run python -m {path} to see where."
        ) from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise AuditError(f"{path} must have {attribute}. Got no such name. {_near(found, part)}")
        found = getattr(found, part)
    return found


def _near(found: Any, part: str) -> str:
    import difflib

    near = difflib.get_close_matches(part, [name for name in dir(found) if not name.startswith("_")], 1)
    return f"Did you mean {near[0]}?" if near else "Name a function that returns the model."


def _called(target: str, found: Any) -> Any:
    if not callable(found):
        raise AuditError(
            f"{target} must be or return an nn.Module. Got {type(found).__name__}. Name a factory, e.g. mymodel:build."
        )
    try:
        return found()
    except (Exception, SystemExit) as error:
        raise AuditError(
            f"{target} must return the model when called without arguments. Got {words_of(error)}. Mend it."
        ) from error


def _batch(model: nn.Module, shape: str | None, inputs: Path | None, batch: int) -> Any:
    import torch
    from torch import nn

    first = next((one for one in model.parameters() if one.is_floating_point()), torch.empty(0))
    if shape is not None:
        try:
            sizes = [int(size) for size in shape.split(",")]
        except ValueError:
            sizes = []
        if not sizes or min(sizes) < 1:
            raise AuditError(f"--shape must be whole numbers of one example, above 0. Got {shape}. Use e.g. 3,32,32.")
        return torch.randn(batch, *sizes, dtype=first.dtype, device=first.device)
    assert inputs is not None
    array = _array(inputs)[:batch]
    words = array.dtype.kind in "iub" and any(
        isinstance(one, nn.Embedding | nn.EmbeddingBag) for one in model.modules()
    )
    examples = torch.from_numpy(array.astype("int64" if words else "float64"))
    return examples.to(first.device, torch.int64 if words else first.dtype)


def _array(path: Path) -> Any:
    import numpy as np

    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise AuditError(
            f"--inputs must be a .npy file of numbers. Got {path}: {words_of(error)}. Write it by numpy.save."
        ) from error
    if not isinstance(array, np.ndarray):  # .npz: an open file of several
        array.close()
        raise AuditError(f"--inputs must hold one array. Got {path}. Write it by numpy.save.")
    if array.ndim < 1 or len(array) < 2 or array.dtype.kind not in "fiub":
        raise AuditError(f"--inputs must hold 2 examples or more, as numbers. Got {path}. Write it by numpy.save.")
    return array


def check_picture(path: Path) -> None:
    """Refuse a file that matplotlib can't write, before the audit is made."""
    from matplotlib.figure import Figure

    kinds = sorted(Figure().canvas.get_supported_filetypes())
    if path.suffix.removeprefix(".").lower() not in kinds:
        raise AuditError(f"--picture must end in one of {', '.join(kinds)}. Got {path}. Use e.g. audit.png.")
    if not path.parent.is_dir():
        raise AuditError(f"--picture must be in a folder that exists. Got {path}. Make {path.parent} first.")


def _shape_hint(model: nn.Module) -> str:
    from torch import nn

    for module in model.modules():
        if isinstance(module, nn.Linear):
            return f"Use e.g. --shape {module.in_features}, or --inputs FILE.npy."
        if isinstance(module, nn.Conv2d):
            return f"Use e.g. --shape {module.in_channels},32,32, or --inputs FILE.npy."
    return "Use --shape, e.g. --shape 784, or --inputs FILE.npy."
