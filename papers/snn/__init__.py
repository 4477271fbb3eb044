"""The studies of `papers.klambauer2017snn`: one module each, whose functions run one trial."""
