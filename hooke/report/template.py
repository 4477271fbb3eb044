"""Fills the templates beside this file. jinja2 is imported when a page is written, not before."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from hooke.report.words import spell_command, spell_seconds, spell_share, spell_short, times

_FILTERS: Mapping[str, Callable[..., Any]] = {
    "short": lambda v: "\u2013" if v is None else spell_short(v),
    "count": lambda v: f"{v:,}",
    "share": spell_share,
    "seconds": spell_seconds,
    "bytes": lambda v: spell_short(v, "B"),
    "times": times,
    "command": spell_command,
}


def need_extra(caller: str) -> None:
    """Refuse where what draws a page is missing.

    Raises:
        ImportError: The extra `hooke[report]` is not installed; the message begins with `caller`.
    """
    try:
        import jinja2  # noqa: F401
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f'{caller}: matplotlib and jinja2 must be installed. Got: {error}. Run pip install "hooke[report]".'
        ) from error


def render(template: str, filters: Mapping[str, Callable[..., Any]] | None = None, **values: Any) -> str:
    """The page that `template`, a file beside this one, makes of `values`; everything in them is escaped.

    Args:
        template: Its name.
        filters: Filters for it beside those of every page.
        values: What it names.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, loader=loader)
    environment.filters |= {**_FILTERS, **(filters or {})}
    return environment.get_template(template).render(**values)
