"""The audit of a net, in the order in which it runs; `hooke.nn.audit` is in `report`.

`acceptance` says which models can be run, and `untouched` keeps them as they were; `measure` and `backward` watch one
pass each way, with `operation` for what a torch function is, and make a `graph` whose numbers a `ledger` holds until
the end; `evidence` reads the numbers of each layer; `flow_rule` and `weight_rule` judge them by the thresholds of
`finding`, and `diagnosis` chooses what to say; `table` shows it, and `command` is what `hooke audit` does.
"""
