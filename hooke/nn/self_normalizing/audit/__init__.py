"""The audit of a net, in the order in which it runs; `hooke.nn.audit` is in `report`.

`acceptance` says what can be audited and `untouched` keeps it as it was; `graph`, `operation` and `measure` watch one
forward pass, `backward` one backward pass, and `ledger` adds up their moments; `evidence` reads the numbers of each
layer; `flow_rule` and `weight_rule` judge them by the thresholds of `finding`, and `diagnosis` chooses what to say;
`table` shows it, and `command` is what `hooke audit` does.
"""
