"""The progress a person watches: one living line on a terminal, plain lines anywhere else."""

import math

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn
from rich.text import Text

from trainer.amounts import duration, quantity

# The weight of the newest record in what is shown smoothed.
_SMOOTHING = 0.1
_REFRESHES_PER_SECOND = 4
_BAR_COLUMNS = 20
# Columns of a terminal that spinner, state, bar and step counter take.
_COLUMNS_BEFORE_NUMBERS = 52


class Smoothed:
    """An exponential moving average whose first values are not drawn towards zero."""

    def __init__(self, weight=_SMOOTHING):
        self._weight = weight
        self._sum = self._mass = 0.0

    def add(self, value):
        """Takes a value in; one that is not finite is left out."""
        if value is not None and math.isfinite(value):
            self._sum += self._weight * (value - self._sum)
            self._mass += self._weight * (1.0 - self._mass)

    @property
    def value(self):
        """The average, or None before the first value."""
        return self._sum / self._mass if self._mass else None


class ProgressDisplay:
    """Shows how training goes.

    Args:
        total_steps: optimizer steps of the whole run.
        num_accumulation_steps: microbatches per optimizer step, shown if more than one.
        console: `rich.console.Console`; standard output if None.
    """

    def __init__(self, total_steps, num_accumulation_steps=1, console=None):
        # Plain lines must not be wrapped: programs read them.
        self.console = console or Console(highlight=False, soft_wrap=True)
        self._total_steps = total_steps
        self._accumulation = num_accumulation_steps
        self._loss, self._seconds_per_step = Smoothed(), Smoothed(0.3)
        self._step = self._bar = self._task = None

    @property
    def living(self):
        """Whether there is a terminal to draw on."""
        return self.console.is_terminal

    def start(self, step):
        """Begins to show, at a step."""
        self._step = step
        if not self.living:
            return
        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=_BAR_COLUMNS),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}"),
            console=self.console,
            refresh_per_second=_REFRESHES_PER_SECOND,
        )
        self._bar.start()
        self._task = self._bar.add_task("training", total=self._total_steps, completed=step, numbers="")

    def state(self, word):
        """Shows what the run is doing, such as `compiling`, `training`, `evaluating` or `saving`."""
        if self._bar is not None:
            self._bar.update(self._task, description=word)

    def step(self, record, examples_per_second, tokens_per_second, seconds_per_step):
        """Shows the newest record of training.

        Args:
            record: dict with `step`, `loss` and `learning_rate`.
            examples_per_second: rate of the last steps; None if not measured.
            tokens_per_second: the same in tokens.
            seconds_per_step: the same as time; None if not measured.
        """
        self._step = record["step"]
        self._loss.add(record.get("loss"))
        self._seconds_per_step.add(seconds_per_step)
        parts = {}
        loss = self._loss.value if self._bar is not None else record.get("loss")
        if loss is not None:
            parts["loss"] = f"loss {loss:.4f}"
        if record.get("learning_rate") is not None:
            parts["learning_rate"] = f"learning_rate {record['learning_rate']:.1e}"
        if examples_per_second is not None:
            parts["examples"] = f"{quantity(examples_per_second)} examples/s"
        if tokens_per_second is not None:
            parts["tokens"] = f"{quantity(tokens_per_second)} tokens/s"
        if self._bar is not None and self._accumulation > 1:
            parts["accumulation"] = f"accumulation {self._accumulation}"
        if self._seconds_per_step.value is not None:
            left = (self._total_steps - self._step) * self._seconds_per_step.value
            parts["left"] = f"left {duration(left)}"
        if self._bar is not None:
            # A line that wraps cannot be drawn again in place: on a narrow terminal the least telling go first.
            for least in ("accumulation", "learning_rate", "tokens", "examples", "loss"):
                if len("  ".join(parts.values())) <= self.console.width - _COLUMNS_BEFORE_NUMBERS:
                    break
                parts.pop(least, None)
            self._bar.update(self._task, completed=self._step, numbers="  ".join(parts.values()))
        else:
            self.line("  ".join([f"step {self._step}/{self._total_steps}", *parts.values()]))

    def line(self, message):
        """Prints a line; on a terminal, above the progress."""
        self.console.print(Text(message), soft_wrap=True)
        if not self.living:
            self.console.file.flush()  # whoever reads a pipe sees the line now

    def close(self):
        """Stops the living line and leaves the terminal as it was."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
