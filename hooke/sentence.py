"""What an error says, to go on with in a sentence of one's own."""

from __future__ import annotations


def first_line(error: BaseException, longest: int = 1000) -> str:
    """What it says first, at most so many characters and without a full stop; its kind, where it says nothing.

    Example:
        >>> first_line(ValueError("Too short. Got 3.")), first_line(KeyError())
        ('Too short. Got 3', 'KeyError')
    """
    said = str(error).strip()
    return said.splitlines()[0][:longest].rstrip(".") if said else type(error).__name__
