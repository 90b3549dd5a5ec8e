"""What a run tells: progress on the screen, metrics for programs, TensorBoard, and a summary at the end."""

import contextlib
import math
import time

import numpy as np
import tensorflow as tf
from rich.table import Table

from trainer.amounts import duration, quantity
from trainer.errors import StorageFailed
from trainer.storage import google_cloud
from trainer.training.event_file import EventFile
from trainer.training.progress import ProgressDisplay
from trainer.training.step import of_the_whole

_STORAGE_ERRORS = (OSError, tf.errors.OpError, StorageFailed)
_WARN_EVERY_SECONDS = 600.0
_REOPEN_EVERY_SECONDS = 60.0


class Telemetry:
    """Shows and records a run. On hosts other than the chief it only prints notes.

    Storage that fails never stops training: it is reported once in a while and tried again.

    Args:
        run_directory: the `RunDirectory`.
        total_steps: optimizer steps of the whole run.
        batch: examples in a global batch, for rates and the time left.
        tokens_per_example: tokens in a row; None if the task does not count tokens.
        num_accumulation_steps: microbatches per optimizer step.
        is_chief: whether this process shows and records.
        console: `rich.console.Console`; standard output if None.
    """

    def __init__(
        self,
        run_directory,
        *,
        total_steps,
        batch,
        tokens_per_example=None,
        num_accumulation_steps=1,
        is_chief=True,
        console=None,
    ):
        self._run_directory = run_directory
        self._total_steps = total_steps
        self._batch = int(batch)
        self._tokens_per_example = tokens_per_example
        self._is_chief = is_chief
        self._display = ProgressDisplay(total_steps, num_accumulation_steps, console)
        self._events = None
        self._events_opened_at = self._warned_at = -math.inf
        self._config_text = None
        self._started_at = None
        self._first_step = self._step = 0
        self._last_record = {}
        self._evaluation = None
        self._examples = self._train_examples = self._window_examples = 0
        self._window_seconds = 0.0
        self._train_seconds = self._compile_seconds = self._stall_seconds = 0.0
        self._num_saves = 0
        self._closed = False

    def start(self, step, config_text=None):
        """Begins at a step: 0, or the one that was restored.

        Args:
            step: optimizer steps done.
            config_text: the resolved configuration, shown in TensorBoard.
        """
        self._first_step = self._step = int(step)
        self._config_text = config_text
        self._started_at = time.perf_counter()
        if self._is_chief:
            self._display.start(self._step)
            self._to_tensorboard(lambda events: None)

    def train(self, records, seconds=None, num_examples=None, show=True):
        """Takes the records of the steps that one call of the loop did.

        Args:
            records: list of dicts, each with `step` and, as far as there are, `loss`, `learning_rate`,
                `gradient_norm` and other numbers. Rates in them are kept; else they come from `seconds`. Numbers with
                a slash in their name, those of single parameters, go to TensorBoard alone.
            seconds: wall time of these steps without compilation, evaluation and saving.
            num_examples: examples in these steps; by default a global batch for each record.
            show: whether to show the last record on the screen.
        """
        self._examples += num_examples if num_examples is not None else self._batch * len(records)
        if seconds:
            # Rates are those of everything since the last record, not of the call that happened to bring it.
            self._window_examples += num_examples if num_examples is not None else self._batch * len(records)
            self._window_seconds += seconds
            self._train_seconds += seconds
        if not records:
            return
        rates = {}
        if self._window_seconds:
            rates["examples_per_second"] = self._window_examples / self._window_seconds
            if self._tokens_per_example is not None:
                rates["tokens_per_second"] = rates["examples_per_second"] * self._tokens_per_example
            self._train_examples += self._window_examples
            self._window_examples, self._window_seconds = 0, 0.0
        records = [{"step": int(record["step"]), "kind": "train", **rates, **record} for record in records]
        self._last_record = last = records[-1]
        self._step = last["step"]
        if not self._is_chief:
            return
        self._run_directory.append_metrics([of_the_whole(record) for record in records])
        self._to_tensorboard(lambda events: [events.scalars(r["step"], _scalars(r)) for r in records])
        if show:
            examples_per_second = last.get("examples_per_second")
            seconds_per_step = self._batch / examples_per_second if examples_per_second else None
            self._display.step(last, examples_per_second, last.get("tokens_per_second"), seconds_per_step)

    @property
    def seconds_per_step(self):
        """Wall time that a step has taken on average, without compilation, evaluation and saving; None before any."""
        steps = self._train_examples / self._batch
        return (self._train_seconds - self._window_seconds) / steps if steps else None

    def evaluation(self, step, metrics):
        """Takes the result of an evaluation: dict of names -> numbers."""
        record = {"step": int(step), "kind": "eval", **metrics}
        self._evaluation = record
        if not self._is_chief:
            return
        self._run_directory.append_metrics([record])
        self._to_tensorboard(lambda events: (events.scalars(record["step"], _scalars(record)), events.flush(True)))
        numbers = "  ".join(f"{name} {_short(value)}" for name, value in metrics.items())
        self._display.line(f"evaluation at step {step}  {numbers}")

    def state(self, word):
        """Shows what the run is doing, such as `compiling`, `training`, `evaluating` or `saving`."""
        if self._is_chief:
            self._display.state(word)

    def note(self, message):
        """Prints a line, on every host."""
        self._display.line(message)

    def compiled(self, seconds):
        """Takes the time of a compilation: it is reported apart from the rate."""
        self._compile_seconds += seconds

    def saved(self, stall_seconds):
        """Takes the time that training stood still for a checkpoint."""
        self._num_saves += 1
        self._stall_seconds += stall_seconds

    def close(self, summary=True):
        """Ends the progress, prints the summary and closes the files; may be called again.

        Args:
            summary: whether to print the table of totals.
        """
        if self._closed:
            return
        self._closed = True
        if not self._is_chief:
            return
        self._display.close()
        if summary and self._started_at is not None:
            self._display.console.print(self._summary())
        self._run_directory.flush()
        if self._events is not None:
            try:
                self._events.close()
            except _STORAGE_ERRORS as error:
                self._warn(error)

    def _summary(self):
        steps = self._step - self._first_step
        wall = time.perf_counter() - self._started_at
        table = Table(show_header=False, title="summary", title_justify="left")
        table.add_column(style="bold")
        table.add_column()
        resumed = f" (resumed at {self._first_step:,})" if self._first_step else ""
        table.add_row("steps", f"{self._step:,} of {self._total_steps:,}{resumed}")
        if self._last_record.get("loss") is not None:
            table.add_row("final loss", _short(self._last_record["loss"]))
        if self._evaluation is not None:
            numbers = ", ".join(f"{k} {_short(v)}" for k, v in self._evaluation.items() if k not in ("step", "kind"))
            table.add_row(f"evaluation at {self._evaluation['step']:,}", numbers)
        table.add_row("examples", f"{self._examples:,}")
        if self._train_seconds and steps:
            rate = self._train_examples / self._train_seconds
            tokens = self._tokens_per_example
            table.add_row(
                "rate",
                f"{quantity(rate)} examples/s" + (f", {quantity(rate * tokens)} tokens/s" if tokens else ""),
            )
        table.add_row("wall time", duration(wall))
        table.add_row("compilation", f"{self._compile_seconds:.1f} s")
        table.add_row("saving", f"{self._num_saves} checkpoints, training stood still for {self._stall_seconds:.2f} s")
        table.add_row("run directory", self._run_directory.path)
        if retries := google_cloud.retries():
            table.add_row("storage", f"{retries:,} requests to Google Cloud Storage were tried again")
        return table

    def _to_tensorboard(self, write):
        """Does `write(events)`; after a failure opens a new file, because the old one ends in a torn event."""
        now = time.monotonic()
        if self._events is None and now - self._events_opened_at < _REOPEN_EVERY_SECONDS:
            return
        try:
            if self._events is None:
                self._events_opened_at = now
                first = self._step if self._last_record else self._first_step
                self._events = EventFile(self._run_directory.tensorboard_path, first)
                if self._config_text:
                    self._events.text(self._first_step, "config", self._config_text)
            write(self._events)
            self._events.flush()
        except _STORAGE_ERRORS as error:
            broken, self._events = self._events, None
            self._warn(error)
            if broken is not None:
                with contextlib.suppress(*_STORAGE_ERRORS):  # the same fault again, already told
                    broken.close()

    def _warn(self, error):
        now = time.monotonic()
        if now - self._warned_at >= _WARN_EVERY_SECONDS:
            self._warned_at = now
            self._display.line(
                f"warning: cannot write to {self._run_directory.tensorboard_path}: "
                f"{getattr(error, 'message', None) or error}; training goes on without these points"
            )


def _scalars(record):
    kind = record["kind"]
    return {
        f"{kind}/{name}": value
        for name, value in record.items()
        if name not in ("step", "kind") and np.ndim(value) == 0 and not isinstance(value, str) and value is not None
    }


def _short(value):
    return f"{value:,}" if isinstance(value, int | np.integer) else f"{float(value):.4g}"
