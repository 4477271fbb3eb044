"""The audit of a net, in the order in which it runs; `hooke.nn.audit` is in `report`.

`untouched` keeps the model as it was; `graph` and `measure` watch one forward and one backward pass; `evidence` reads
the numbers of each layer; `flow_rule` and `weight_rule` judge them by the thresholds of `finding`, and `diagnosis`
chooses what to say; `table` shows it, and `command` is what `hooke audit` does.
"""
