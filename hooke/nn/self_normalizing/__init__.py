"""Self-normalizing neural networks (Klambauer et al. 2017, arXiv 1706.02515); public names are in `hooke.nn`.

`moments`, `fixed_point` and `theorem` are the theory; `layers` and `dropout` build such nets; `audit/` checks any net;
`repair` mends one, with `outline` (what is seen without inputs), `plan` (what must change) and `redraw` (weights).
"""
