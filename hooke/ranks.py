"""The processes that one worker consists of, as an exchange sees them: by default this process alone."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from hooke.center import Center


class Ranks:
    """One process that is a whole worker. A center that serves several has others: `GroupedCenter.ranks`.

    Args:
        center: Whom the rank that speaks exchanges with; its calls concern no other rank.

    Attributes:
        size: How many processes.
        speaks: Whether this one exchanges, measures and writes rows for all of them.
    """

    size: int = 1
    speaks: bool = True

    def __init__(self, center: Center) -> None:
        self.center = center

    def begin(self, x: Tensor, start: int | None) -> None:
        """Every rank is about to exchange x.

        Raises:
            Refused: They have not all the same x.
        """

    def agree(self, arrived: bool, *, finishing: bool = False) -> bool:
        """Whether it has arrived at the rank that speaks; every rank asks at the same point."""
        return arrived

    def share(self, failure: Exception | None, vectors: Sequence[Tensor] = ()) -> None:
        """Give every rank what the one that speaks has: its failure, which is raised, or else its vectors."""
        if failure is not None:
            raise failure


def ranks_of(center: Center) -> Ranks:
    """The processes that share `center` as one worker: this one alone, unless the center says otherwise."""
    return getattr(center, "ranks", None) or Ranks(center)
