"""Self-normalizing neural networks (Klambauer et al. 2017, arXiv 1706.02515); public names are in `hooke.nn`.

`moments` is the theory and `theorem` the paper's domains; `layers` builds such nets, `audit` checks any net, `repair`
mends one.
"""
