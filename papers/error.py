"""What the person who started it can put right."""


class PapersError(Exception):
    """One sentence: what must hold, what came, what to do. `python -m papers` prints it and exits with 2."""
