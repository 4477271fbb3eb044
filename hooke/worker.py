"""Hooks the user's optimizer and exchanges with the center when the `schedule` says."""

from __future__ import annotations

import math
import time
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from hooke import resume
from hooke.center import Center
from hooke.divergence import Watch
from hooke.exchange import AtOnce, ByHalves, Exchange, Outcome, Overlapped
from hooke.flat import FlatParameters
from hooke.journal import Journal
from hooke.pacing import Pace, schedule_of
from hooke.prepared import prepared_center
from hooke.ranks import ranks_of
from hooke.rehearsal import Rehearsal
from hooke.rule import Rule
from hooke.run import Run
from hooke.schedule import Period
from hooke.setting import check_center, check_choice, check_halves, check_optimizer, separate_periods
from hooke.spec import CenterSpec, length

DEFAULT_PERIOD = 10
"""tau of EASGD and EAMSGD in the study of p in arXiv 1412.6651, section 5."""

TRIES, PAUSE_SECONDS = 60, 1.0
"""How often, and after which pauses, the center is asked for its values where a script needs them."""


class Worker:
    """One worker of a run: a context manager around the user's own model and optimizer.

    The training loop stays the user's; `optimizer.step()` exchanges with the center by itself. A missed or refused
    exchange costs nothing but a longer period. Leaving the block removes every trace.

    Args:
        model: The model; its parameters become views of one flat vector while the worker is active. Of a
            `DistributedDataParallel` it is the model inside, so that names are the same on every worker.
        optimizer: Any `torch.optim.Optimizer` that updates the model's parameters.
        rule: What is exchanged: `hooke.EASGD()`, `hooke.EAMSGD()`, `hooke.LocalSGD()`, `hooke.DiLoCo()` or another.
        center: Where the center lives. Default: the one that `hooke run` prepared, or the one at `HOOKE_CENTER`.
        communication_period: tau, in this worker's optimizer steps. Default 10, from section 5 of the paper. A mapping
            from the step where a phase begins to its period makes phases: `{0: 1, 1000: 16}` is period 1 first and 16
            from step 1000 on, post-local SGD beside `hooke.LocalSGD()` (Lin et al., arXiv 1808.07217). `"auto"`: the
            smallest whose exchanges stay hidden behind this worker's steps, measured all the time; needs `overlap`.
        collect_period: Steps between two collections of this worker's parameters by the center, where it differs.
        delivery_period: Steps between two deliveries of the center to this worker, where it differs.
        pull: `"exchange"`: the spring pulls when the center is delivered. `"every_step"`: every step carries the
            penalty alpha * (x - the center this worker was told last).
        overlap: Whether exchanges run beside the next steps; the correction is subtracted after the first step that
            finds it ready.
        fragments: F. The vector of parameters and averaged buffers is cut into F parts of equal length, which are
            exchanged in turn, each once in a period: the link carries 1/F at a time, F times as often (Douillard et
            al., arXiv 2501.18512, whose parts are whole layers). At most the period.
        buffers: `"average"`: floating-point buffers (batch-norm statistics) are pulled into the center by the same
            moving rate; beside other than elastic rules they are averaged. `"local"`: each worker keeps its own.

    Attributes:
        steps: Optimizer steps taken under this worker.
        center: Where the center lives.
        communication_period: tau as it is now.

    Raises:
        ValueError: A setting outside its range, or an optimizer that does not fit the model or the rule.

    Example:
        >>> from hooke.center import LocalCenter
        >>> from hooke.rule import EASGD
        >>> model = nn.Linear(1, 1)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> center = LocalCenter()
        >>> with Worker(model, optimizer, EASGD(beta=0.9), center=center, communication_period=2) as worker:
        ...     for _ in range(4):
        ...         model(torch.ones(1, 1)).square().mean().backward()
        ...         optimizer.step()
        ...         optimizer.zero_grad()
        >>> worker.steps, center.exchanges
        (4, 2)
        >>> center.close()
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        rule: Rule,
        *,
        center: Center | None = None,
        communication_period: Period | Literal["auto"] = DEFAULT_PERIOD,
        collect_period: int | None = None,
        delivery_period: int | None = None,
        pull: Literal["exchange", "every_step"] = "exchange",
        overlap: bool = False,
        fragments: int = 1,
        buffers: Literal["average", "local"] = "average",
    ) -> None:
        self.model, self.optimizer, self.rule = model, optimizer, rule
        check_choice("pull", pull, ("exchange", "every_step"))
        check_choice("buffers", buffers, ("average", "local"))
        check_optimizer(model, optimizer, rule)
        self._schedule = schedule_of(communication_period, fragments, overlap=overlap)
        self._pace = self._schedule if isinstance(self._schedule, Pace) else None
        self._every_step = pull == "every_step"
        self._periods = separate_periods(self._schedule, collect_period, delivery_period, self._every_step)
        check_halves(rule, self._periods is not None, overlap)
        if rule.follows_leader and fragments > 1:
            raise ValueError(
                f"Worker: fragments must be 1 beside {type(rule).__name__}, or the center would be a patchwork of "
                f"leaders. Got {fragments}. Drop it."
            )
        self._overlap, self._buffers = overlap, buffers == "average"
        self.run = Run.current()
        self.center: Center = center if center is not None else prepared_center(self.run)
        check_center(self.center, self._schedule, overlap)
        self._ranks = ranks_of(self.center)
        self.steps = 0
        self.examples = 0
        self._losses: list[float] = []
        self._has_loss: bool | None = None
        self._hooks: list[Any] = []
        self._rehearsal: Rehearsal | None = None
        self._evaluating = False

    # The life of a worker ---------------------------------------------------------------------------------------

    def start(self) -> Worker:
        """Join the center, take its values and hook the optimizer; `with` calls this."""
        if self._hooks:
            raise RuntimeError("Worker: start() comes once. Got a worker that is active. Call stop() first.")
        self._flat = FlatParameters(self.model, buffers=self._buffers)
        self._schedule.check_fits(self._flat.vector.numel())
        with ExitStack() as undo:  # what fails on the way leaves no trace
            undo.callback(self._flat.release)
            initial = self._flat.gather_()
            initial = initial.cpu() if self.center.on_host else initial
            spec = CenterSpec.of(self._flat.entries, self.rule.center_memory, str(self._schedule))
            told = self.center.join(initial, spec, self.rule.init_center(initial))
            undo.callback(self.center.leave)
            self._flat.set_(told.to(self._flat.vector.device))
            self._journal = Journal(self.run if self._ranks.speaks else None, self.center)
            self._exchange = self._new_exchange(told)
            self._rehearsal = self._new_rehearsal()
            self._watch = self._new_watch()
            undo.pop_all()
        self._used = [(0.0, 0.0)] * len(self.optimizer.param_groups)
        self._saved = time.monotonic()
        if self._pace is not None:
            self._pace.rest()
        self._hooks = [
            self.optimizer.register_step_pre_hook(self._before_step),
            self.optimizer.register_step_post_hook(self._after_step),
        ]
        self.center.beat(self.steps)
        return self

    def stop(self, *, finished: bool = True) -> None:
        """Finish an exchange under way, leave the center, give the model its own memory back; `with` calls this.

        Args:
            finished: Whether the worker's part of the run is done, so that the moving rate of those who still train
                goes on counting it; `with` says so unless the block raised.
        """
        if not self._hooks:
            return
        self._active("stop()")
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        with ExitStack() as stack:  # whatever fails, the rest is done
            if self._rehearsal is not None:
                stack.callback(self._rehearsal.close)
            stack.callback(self._journal.close)
            stack.callback(self._flat.release)
            stack.callback(self.center.leave, finished=finished)
            stack.callback(self._exchange.close)
            if finished or self._ranks.size == 1:  # ranks that go on would not come to finish one that raised
                self._exchange.finish()

    def __enter__(self) -> Worker:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.stop(finished=kind is None or issubclass(kind, SystemExit))

    def _new_exchange(self, told: Tensor) -> Exchange:
        options: dict[str, Any] = {
            "done": self._exchanged,
            "measures_distance": True,
        }
        if self._periods is not None:
            options |= {"collect_period": self._periods[0], "delivery_period": self._periods[1]}
            return ByHalves(self._flat, self.center, self.rule, told, every_step=self._every_step, **options)
        kind = Overlapped if self._overlap else AtOnce
        return kind(self._flat, self.center, self.rule, told, **options)

    def _exchanged(self, outcome: Outcome) -> None:
        self._journal.exchanged(outcome, self.steps)
        if self._pace is not None:
            self._pace.exchanged(outcome)
        if self._rehearsal is not None:
            self._rehearsal.exchanged(outcome.wait_seconds, failed=outcome.failure is not None)
        if outcome.center_distance is not None:
            self._warn_if_diverging(outcome.center_distance)

    def _warn_if_diverging(self, distance: float) -> None:
        known = {"num_workers": self.center.counted_workers, "length": lambda: length(self._flat.vector)}
        sign = self._watch.sign(distance, self.steps, **known)
        if sign is not None:
            self._journal.diverging(sign.growth, self.steps, sign.text)

    def _new_watch(self) -> Watch:
        plain = type(self.optimizer) is torch.optim.SGD and self._periods is None and not self._overlap
        phases = self._schedule.phases if self._periods is None else [(0, self._longest_period())]
        known = {"synchronous": self.center.is_synchronous, "has_border": plain}
        return Watch(self.rule, self.optimizer, phases, **known)

    @property
    def communication_period(self) -> int:
        """tau as it is now; between two collections, where both directions have periods of their own."""
        if self._periods is not None:
            return self._periods[0]
        return next(period for since, period in reversed(self._schedule.phases) if since <= self.steps)

    def _longest_period(self) -> int:
        return max(self._periods or (period for _, period in self._schedule.phases))

    def _new_rehearsal(self) -> Rehearsal | None:
        """What `hooke plan SCRIPT` measures; `None` in a run."""
        if self.run is None or not self.run.rehearses:
            return None
        self._one_process("hooke plan SCRIPT", "Give it the numbers instead: hooke plan --parameters ... --workers ...")
        about = {
            "parameters": self._flat.vector.numel(),
            "period": self._longest_period(),
            "by_halves": self._periods is not None,
            "synchronous": self.center.is_synchronous,
            "overlap": self._overlap,
            "automatic": self._pace is not None,
        }
        known = (self.run, self.optimizer, self._flat.vector.device, self.rule, about)
        return Rehearsal(*known, exchange=self.exchange, examples=lambda: self.examples)

    # Around the optimizer's step --------------------------------------------------------------------------------

    @torch.no_grad()
    def _before_step(self, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._active("optimizer.step()")
        if self._rehearsal is not None:
            self._rehearsal.before_step()
        if self.rule.order == "jacobi":
            self._exchange_if_due(subtract_now=self._step_reads_no_parameters(args[1:], kwargs))

    @torch.no_grad()
    def _after_step(self, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._exchange.after_step()
        if self.rule.plain_point:
            self._used = [(float(group["lr"]), group["momentum"]) for group in optimizer.param_groups]
        self._count_step()

    def _count_step(self) -> None:
        self.steps += 1
        if self._pace is not None and (choice := self._pace.stepped()) is not None:
            self._journal.paced(choice, self.steps)
            self._watch.paced(self.steps, choice.period)
        if self.rule.order == "gauss-seidel":
            self._exchange_if_due(subtract_now=True)
        self.center.beat(self.steps)
        if self._rehearsal is not None:
            self._rehearsal.after_step()

    def _exchange_if_due(self, *, subtract_now: bool) -> None:
        if isinstance(self._exchange, ByHalves):
            if self._exchange.at(self.steps) is not None:
                self._begin_exchange(subtract_now=subtract_now)
        elif self._pace is not None and self._exchange.is_under_way:
            return  # what is due begins when that one has come in
        elif (fragment := self._schedule.due(self.steps)) is not None:
            part = self._schedule.part(fragment, self._flat.vector.numel())
            self._begin_exchange(subtract_now=subtract_now, part=part)

    def _step_reads_no_parameters(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether the step adds something that does not depend on the parameters: plain SGD without decay or closure.

        Then the correction may be subtracted before it as well as after it, and one pass over memory is saved.
        """
        if type(self.optimizer) is not torch.optim.SGD or any(args) or kwargs.get("closure") is not None:
            return False
        return all(group["weight_decay"] == 0 for group in self.optimizer.param_groups)

    @torch.no_grad()
    def exchange(self) -> None:
        """Exchange the whole vector with the center now, between two steps, whatever the period says.

        With `overlap=True` the exchange only begins here. A failure is recorded, not raised.
        """
        self._active("exchange()")
        self._exchange.after_step()
        if isinstance(self._exchange, ByHalves):
            self._exchange.at(0)  # everything is due at step 0
        self._begin_exchange(subtract_now=True)

    @torch.no_grad()
    def pull_(self, rate: float) -> None:
        """Go part of the way to the center that this worker was told last: `x' = x - rate * (x - told)`.

        No data travel. It counts as a step, in place of one of the optimizer, and the exchange that is due after it
        happens. PALSGD is `hooke.DiLoCo()` or `hooke.LocalSGD()` with such a step at probability P, at `rate = lr * eta
        / P`, and otherwise the optimizer's own at lr / (1 - P): on average SGD on the loss plus eta / 2 |x - told|^2.
        Averaged buffers stay as they are; an exchange under way is finished first.

        Args:
            rate: Dimensionless, in (0, 1].

        Raises:
            ValueError: `rate` outside its range, or a rule whose workers remember no center.

        Example:
            ```python
            if random.random() < probability:
                worker.pull_(lr * eta / probability)
            else:
                loss(batch).backward()
                optimizer.step()
            ```

        Reference:
            Naganuma et al., "Pseudo-asynchronous local SGD: robust and efficient data-parallel training", arXiv
            2504.18454, Algorithm 1.
        """
        self._active("pull_()")
        if not 0 < rate <= 1:
            raise ValueError(f"Worker: rate of pull_ must be in (0, 1]. Got {rate}. Lower lr * eta / probability.")
        self._exchange.finish()
        if not self._exchange.memory:
            raise ValueError(
                f"Worker: pull_() needs a rule that goes on from the center. Got {self.rule!r}. Use hooke.DiLoCo() or "
                "hooke.LocalSGD(); elastic rules have pull='every_step'."
            )
        parameters = slice(0, CenterSpec.of(self._flat.entries).parameters_end)
        x = self._flat.gather_()[parameters]
        told = self._exchange.memory[0][parameters].to(x.device)
        self._flat.subtract_(rate * (x - told), parameters)
        self._count_step()

    def _begin_exchange(self, *, subtract_now: bool, part: slice | None = None) -> None:
        known = {id(parameter) for _, parameter in self._flat.parameters()}
        updated = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        if any(parameter.requires_grad and id(parameter) not in known for parameter in updated):
            raise RuntimeError(
                "Worker: optimizer must update the parameters that were trainable when the worker started. Got another "
                "(unfrozen, or in an added group). Call worker.stop(), then start a new Worker on every worker."
            )
        if self.rule.follows_leader:
            self._report_loss()
        if self._pace is not None:
            self._pace.begun(self.steps)
        self._exchange.begin(self._point, subtract_now=subtract_now, part=part)

    def _report_loss(self) -> None:
        """Tell the center the mean loss since the last exchange; the first exchange may come before any."""
        if self._losses:
            self.center.report(math.fsum(self._losses) / len(self._losses))
        elif not self._has_loss and self._has_loss is not None:
            raise RuntimeError(
                f"Worker: {type(self.rule).__name__} needs this worker's training loss. Got none up to its second "
                "exchange. Call worker.record(loss=loss.item()) at each step."
            )
        self._has_loss = bool(self._has_loss or self._losses)
        self._losses = []

    def _point(self) -> Tensor:
        """x as the rule means it: the parameters, or for EAMSGD the point without Nesterov's look-ahead."""
        vector = self._flat.gather_()
        if not self.rule.plain_point or not any(lr * momentum for lr, momentum in self._used):
            return vector
        point = self._exchange.staging.scratch.copy_(vector)
        ahead = {
            id(parameter): lr * momentum
            for group, (lr, momentum) in zip(self.optimizer.param_groups, self._used, strict=False)  # one may be new
            for parameter in group["params"]
        }
        for index, parameter in self._flat.parameters():
            momentum_buffer = self.optimizer.state.get(parameter, {}).get("momentum_buffer")
            if momentum_buffer is not None:
                self._flat.entries[index].view(point).add_(momentum_buffer, alpha=ahead[id(parameter)])
        return point

    # The center's weights ---------------------------------------------------------------------------------------

    @contextmanager
    def center_weights(self, *, average: bool = False) -> Iterator[nn.Module]:
        """The model with the center's parameters (and averaged buffers) inside the block: evaluate, save or serve it.

        A center elsewhere that can't be reached is waited for, for a minute: training alone can go on without it.

        Args:
            average: Whether to take the center's running average, which `hooke.Averaged` keeps, and not the center.

        Raises:
            RuntimeError: The worker is not active, or `optimizer.step()` is called inside.
            ValueError: The rule keeps no average.
            OSError: The center can't be reached.

        Example:
            ```python
            with worker.center_weights() as model:
                evaluate(model)
            ```
        """
        self._active("center_weights()")
        if average and "average" not in self.rule.center_memory:
            raise ValueError(
                f"Worker: center_weights(average=True) needs a rule that keeps one. Got {self.rule!r}. Use "
                "hooke.Averaged(rule)."
            )
        vector = _patiently((lambda: self.center.pull_memory()["average"]) if average else self.center.pull)
        with self._flat.holding(vector.to(self._flat.vector.device)):
            self._evaluating = True
            try:
                yield self.model
            finally:
                self._evaluating = False

    @property
    def seed(self) -> int:
        """A seed for this worker's order of the data: another on every worker, on every machine.

        Under `hooke run` on one machine it is the worker's number; across machines it comes from the name that the
        center knows the worker by, so a worker that is started again by `hooke run` has the same one. Alone it is 0.

        Example:
            ```python
            generator = torch.Generator().manual_seed(worker.seed)
            ```
        """
        name = getattr(self.center, "name", None)
        if name is not None:
            return zlib.crc32(name.encode())
        return 0 if self.run is None else self.run.worker

    # State ------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def state_dict(self) -> dict[str, Any]:
        """What this worker needs, beside the model's and the optimizer's `state_dict`, to go on exactly.

        An exchange under way is finished first.
        """
        self._active("state_dict()")
        self._exchange.finish()
        return {
            "rule": repr(self.rule),
            "steps": self.steps,
            "examples": self.examples,
            "used": [list(used) for used in self._used],
            "losses": list(self._losses),
            "pace": None if self._pace is None else self._pace.state(),
            "master": self._flat.vector.to("cpu", copy=True) if self._flat.has_mirrors else None,
            **self._exchange.state(),
        }

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` returned; call it in the block, after the model's and the optimizer's own.

        Raises:
            ValueError: The state is another rule's.
        """
        self._active("load_state_dict()")
        if state["rule"] != repr(self.rule):
            raise ValueError(
                f"Worker: a state must come from the same rule. Got {state['rule']}, this worker has {self.rule!r}. "
                "Use that rule, or start without the state."
            )
        self.steps, self.examples = state["steps"], state["examples"]
        self._used = [(lr, momentum) for lr, momentum in state["used"]]
        self._losses = list(state.get("losses", ()))  # older states have none
        if self._pace is not None and state.get("pace") is not None:
            self._pace.load_state(state["pace"])
        self._exchange.load_state({"memory": state["memory"], "told": state["told"]})
        if state["master"] is not None:
            self._flat.vector.copy_(state["master"])
        self.center.beat(self.steps)

    @property
    def checkpoint_due(self) -> bool:
        """Whether the seconds of `hooke run --checkpoint-every` have passed since the last `save`; never without it."""
        self._one_process("checkpoint_due", "Save worker.state_dict() on every rank, after a number of steps.")
        return self.run is not None and time.monotonic() - self._saved > self.run.checkpoint_every

    def save(self, **position: Any) -> None:
        """Write this worker's checkpoint into the run directory: model, optimizer, worker, random states, `position`.

        Args:
            position: Where the loop stands, as tensors and plain data; `restore` gives it back.

        Raises:
            RuntimeError: The script was not started by `hooke run`, or the worker is several ranks.
        """
        self._one_process("save()", "Save model, optimizer and worker.state_dict() yourself, on every rank.")
        if self.run is None:
            raise RuntimeError(
                "Worker: save() needs a run directory. Got a script that was started alone. Start it with `hooke run`, "
                "or save model, optimizer and worker.state_dict() yourself."
            )
        self._active("save()")
        self._saved = time.monotonic()
        if bool(self._flat.gather_().isfinite().all()):
            resume.save(self, self.run, position)
        else:
            warnings.warn(
                "Worker: save() keeps the checkpoint before: the parameters are not finite any more. Lower the "
                "learning rate, and start again.",
                RuntimeWarning,
                stacklevel=2,
            )

    def restore(self) -> dict[str, Any] | None:
        """Go on from this worker's checkpoint, if the run is resumed or this worker was started again after a crash.

        Returns:
            The position that `save` was given, or `None` where there is nothing to go on from; then the worker starts
            from the center.

        Raises:
            ValueError: The checkpoint can't be read, or is of another model, optimizer or rule.
        """
        self._active("restore()")
        return None if self.run is None else resume.restore(self, self.run)

    # Rows -------------------------------------------------------------------------------------------------------

    def record(self, *, of: Literal["worker", "center"] = "worker", examples: float = 0, **values: float) -> None:
        """Add rows to the record of the run, from which progress and report are drawn.

        Without `hooke run` there is no record: the values are checked and dropped.

        Args:
            of: Whom the values are about; `"center"` for what was measured with the center's weights.
            examples: Training examples used since the last call.
            values: By name: `loss`, `test_loss`, `accuracy`.

        Raises:
            ValueError: A name that is not one of `hooke.record.NAMES`.
        """
        check_choice("of", of, ("worker", "center"))
        self.examples += int(examples)
        self._active("record()", evaluating_too=True)
        if self.rule.follows_leader and of == "worker" and "loss" in values:
            self._losses.append(float(values["loss"]))
        for name, value in values.items():
            self._journal.note(name, value, self.steps, about="center" if of == "center" else None)
        if examples:
            self._journal.note("examples", self.examples, self.steps)

    def _one_process(self, verb: str, repair: str) -> None:
        if self._ranks.size > 1:
            raise RuntimeError(
                f"Worker: {verb} needs a worker of one process. Got one of {self._ranks.size} ranks. {repair}"
            )

    def _active(self, verb: str, *, evaluating_too: bool = False) -> None:
        if not self._hooks:
            raise RuntimeError(f"Worker: {verb} needs an active worker. Got one that is not. Use it inside `with`.")
        if self._evaluating and not evaluating_too:
            raise RuntimeError(
                f"Worker: {verb} needs the worker's own weights. Got a call inside center_weights(). Leave its block "
                "first."
            )


def _patiently(ask: Callable[[], Tensor]) -> Tensor:
    """What the center says, once it can be reached; tries are counted, so that all ranks of a worker end together.

    Raises:
        OSError: It never can, or turns this worker away.
    """
    for left in reversed(range(TRIES)):
        try:
            return ask()
        except PermissionError:
            raise
        except OSError as error:
            if not left:
                raise
            if left == TRIES - 1:
                warnings.warn(f"Worker: center_weights() waits for the center. {error}", RuntimeWarning, stacklevel=4)
        time.sleep(PAUSE_SECONDS)
    raise AssertionError
