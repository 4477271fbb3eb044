"""Commands that take a user's script, with options of its own."""

from __future__ import annotations

from typing import Any

from typer.core import TyperCommand


class ScriptCommand(TyperCommand):
    """Says where the script's own options belong when one of them stands before it."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """As typer does."""
        try:
            return super().parse_args(ctx, args)
        except Exception as error:  # typer brings its own copy of click: the class has no name that lasts
            if type(error).__name__ == "NoSuchOption":
                example = f"hooke {self.name} train.py --lr 0.1"
                error.message += f". Options of the script stand after it: {example}"  # type: ignore[attr-defined]
                near = [name for name in error.possibilities or () if name != "--help"]  # type: ignore[attr-defined]
                error.possibilities = near  # type: ignore[attr-defined]
            raise
