"""A rehearsal: the first steps of a user's script, timed and measured; then the script is stopped (`hooke plan`)."""

from hooke.rehearsal.rehearsal import Rehearsal

__all__ = ["Rehearsal"]
