"""Papers that judge themselves: one file a paper, named by its citation key. `python -m papers` runs them all."""
