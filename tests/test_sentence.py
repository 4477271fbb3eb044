from __future__ import annotations

import pytest

from hooke.sentence import first_line


@pytest.mark.parametrize(
    ("said", "longest", "first"),
    [
        ("One. Two.\nThree.", 100, "One. Two"),
        ("\n  indented...\n", 100, "indented"),
        ("abcdef", 3, "abc"),
        ("ab. cdef", 3, "ab"),
        (" \n ", 100, "OSError"),
        ("", 100, "OSError"),
    ],
)
def test_the_first_line_goes_into_a_sentence(said: str, longest: int, first: str) -> None:
    assert first_line(OSError(said), longest) == first
