"""The training loop: the story of a run from its first step, or the one it stopped at, to its last."""

import contextlib
import dataclasses
import resource
import sys
import time

import tensorflow as tf

from trainer import storage
from trainer.data.stored_rows import explain_read_error
from trainer.errors import InputError, Preempted, StorageFailed, TrainingFailed
from trainer.training.best_checkpoint import BestCheckpoint, check_best_metric
from trainer.training.checkpoints import CheckpointManager
from trainer.training.evaluation_weights import evaluation_weights, use_evaluation_weights
from trainer.training.heartbeat import Heartbeat
from trainer.training.interruption import Interruption
from trainer.training.preemption_notice import preemption_watchers
from trainer.training.starvation import StarvationWatch
from trainer.training.telemetry import Telemetry
from trainer.training.watchdog import Watchdog

_STATUS_EVERY_SECONDS = 5.0
_SAMPLE_ANSWERS = 4
_LOST_PEER = (
    tf.errors.UnavailableError,
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.DeadlineExceededError,
)


def guard_directory(assembly):
    """Refuses to go on in the directory of a run that was started with another configuration or data; changes nothing.

    Raises:
        InputError: with the differences, one a line.
    """
    directory = assembly.directory
    differences = ()
    if storage.exists(directory.config_path) and storage.listing(directory.checkpoints_path):
        differences = assembly.config_differences(storage.read_text(directory.config_path))
    if differences:
        listed = "\n  ".join(differences)
        raise InputError(
            f"{directory.path} was started with another configuration:\n  {listed}\n"
            "Use the same, or another --run_dir (initial_weights can start it from these weights)."
        )
    checkpoints = CheckpointManager(directory.checkpoints_path, {}, is_chief=False)
    _guard_data(assembly, checkpoints, reversed(checkpoints.steps()))


def _guard_data(assembly, checkpoints, steps):
    """Refuses data that no checkpoint of some steps knows; one whose manifest is damaged says nothing."""
    now, saved = list(assembly.task.fingerprints), None
    for step in steps:
        with contextlib.suppress(ValueError, AttributeError, StorageFailed):
            saved = checkpoints.read_manifest(step).get("metadata", {}).get("data")
            if saved is None or saved == now:
                return
    if saved is not None:
        raise InputError(
            f"the run in {assembly.directory.path} was started on other data than this: fingerprints {saved}, now {now}. "
            "Going on would repeat some examples and miss others: give the same data, or another --run_dir."
        )


@dataclasses.dataclass
class _Progress:
    """What the loop remembers between two calls of the device."""

    step: int
    tracing_seconds: float = 0.0
    skipped_in_a_row: int = 0
    status_at: float = 0.0
    wait_seconds: float = 0.0
    loop_seconds: float = 0.0

    def waited(self, wait_seconds, loop_seconds):
        """Adds one call's time of waiting for input, and its whole time; None for a call that compiled."""
        if loop_seconds is not None:
            self.wait_seconds += wait_seconds
            self.loop_seconds += loop_seconds

    def take_wait_share(self):
        """Returns the share of time spent waiting since this was last asked, or None."""
        share = self.wait_seconds / self.loop_seconds if self.loop_seconds else None
        self.wait_seconds = self.loop_seconds = 0.0
        return share


class TrainingRun:
    """Trains, evaluates, saves and tells of it until the last step, or until the run is asked to stop.

    Args:
        assembly: the `Assembly`.
        console: `rich.console.Console`; standard output if None.
        lock: the `RunLock` that this process holds, or None.
    """

    def __init__(self, assembly, console=None, lock=None):
        self.lock = lock
        self.assembly, self.run, self.cluster = assembly, assembly.run, assembly.cluster
        self.directory, self.task, self.batch = assembly.directory, assembly.task, assembly.batch
        self.telemetry = Telemetry(
            self.directory,
            total_steps=self.run.steps,
            batch=self.run.global_batch,
            tokens_per_example=self.task.tokens_per_example,
            num_accumulation_steps=self.batch.accumulation,
            is_chief=self.cluster.is_chief,
            console=console,
        )
        self.state = assembly.new_state()
        self.best = None
        if self.run.best_metric is not None:
            self.best = BestCheckpoint(
                self.directory.best_path,
                self.run.best_metric,
                self.run.best_metric_goal,
                self.run.early_stopping_patience,
                report=self.telemetry.note if self.cluster.is_chief else lambda message: None,
                is_chief=self.cluster.is_chief,
            )
        self.checkpoints = CheckpointManager(
            self.directory.checkpoints_path,
            self.state.checkpoint_variables(),
            keep_last=self.run.keep_checkpoints,
            keep_every=self.run.keep_checkpoint_every,
            asynchronous=self.run.asynchronous_checkpoints,
            is_chief=self.cluster.is_chief,
            metadata=self._metadata,
            report=self.telemetry.note,
            on_commit=self._committed,
            kept_steps=lambda: () if self.best is None else self.best.kept(),
        )
        self.train_step = assembly.train_step(self.state)
        self.evaluation = assembly.evaluation_step(self.state)

    def train(self):
        """Runs to the last step.

        Raises:
            Preempted: if the run was asked to stop; its state is saved.
            TrainingFailed: if too many steps in a row were not finite.
            InputError: if the data turns out damaged, or the run directory belongs to another run.
        """
        run, directory = self.run, self.directory
        progress = _Progress(max(self.checkpoints.steps(), default=0))
        directory.write_status("starting", progress.step, run.steps)
        with contextlib.ExitStack() as stack:
            interruption = Interruption(watchers=preemption_watchers(), report=self.telemetry.note)
            stack.enter_context(interruption)
            watchdog = Watchdog(run.watchdog_seconds, directory.path, self.telemetry.note, Heartbeat.from_environment())
            stack.enter_context(watchdog)
            try:
                if progress.step < run.steps:
                    with watchdog.allowance(self._allowance):
                        self._trace(progress)
                progress.step = self._restore()
                if progress.step < run.steps and not self._has_stalled():
                    self.telemetry.start(progress.step, self.assembly.config.text)
                    stack.callback(self.telemetry.close)
                    self._train_from(progress, interruption, watchdog)
                elif progress.step < run.steps:
                    self.telemetry.note(f"nothing to do: {self._early_end(progress)}")
                else:
                    self.telemetry.note(f"nothing to do: step {progress.step} of {run.steps} is done")
            except tf.errors.OpError as error:
                explained = self._explain(error)
                state = "preempted" if isinstance(explained, Preempted) else "failed"
                directory.write_status(state, progress.step, run.steps, str(explained or error.message))
                if explained is None:
                    raise
                raise explained from error
            except Preempted as error:
                self._write_status("preempted", progress.step, str(error))
                raise
            except (Exception, KeyboardInterrupt) as error:
                directory.write_status("failed", progress.step, run.steps, str(error) or type(error).__name__)
                raise
            self._write_status("finished", progress.step)

    def _write_status(self, state, step, last_error=None):
        """Writes the status with how long a step takes, once training goes on."""
        rate = self.telemetry.seconds_per_step
        self.directory.write_status(state, step, self.run.steps, last_error, seconds_per_step=rate)

    @property
    def _allowance(self):
        """Seconds that compiling or evaluating may take before the watchdog speaks."""
        return 4 * self.run.watchdog_seconds

    def _explain(self, error):
        """Returns what a TensorFlow error means for a person, or None if it is a fault of the program."""
        if explained := explain_read_error(error, self.task.data_rows):
            return explained
        if isinstance(error, tf.errors.ResourceExhaustedError):
            return InputError(
                f"out of memory with a microbatch of {self.batch.microbatch} examples: set a smaller one, such as "
                f"--gin_param 'microbatch={max(1, self.batch.microbatch // 2)}' (the losses stay the same), or "
                "--gin_param 'encoder.rematerialize=True'"
            )
        if self.cluster.num_processes > 1 and isinstance(error, _LOST_PEER):
            return Preempted(
                f"another process of the run was lost ({error.message.splitlines()[0]}); started again, the run goes on "
                "at the last checkpoint"
            )
        return None

    def _trace(self, progress):
        """Traces the programs before anything that differs between a first start and a later one.

        TensorFlow numbers what it makes, and the numbers are part of the names by which XLA's persistent cache knows a
        program: only thus does a run that goes on find its programs compiled.
        """
        began = time.perf_counter()
        number = tf.TensorSpec([], tf.int32)
        self.train_step.loop.get_concrete_function(self.assembly.training_iterator(0, placeholder=True), number)
        if self._evaluates:
            iterator, _ = self.assembly.evaluation_iterator(placeholder=True)
            self.evaluation.loop.get_concrete_function(iterator, number)
        progress.tracing_seconds = time.perf_counter() - began

    def _restore(self):
        """Goes to the newest good checkpoint, all processes to the same, or to the initial weights; returns the step."""
        if self.cluster.num_processes == 1:
            step = self.checkpoints.restore_latest()
        else:
            # The chief looks first, because it moves damaged ones aside; the others then read what it read.
            step = self.checkpoints.restore_latest() if self.cluster.is_chief else None
            step = self.cluster.from_chief(-1 if step is None else step)
            step = None if step < 0 else step
            if step is not None and not self.cluster.is_chief:
                self.checkpoints.restore(step)
        if self.best is not None:
            saved = None if step is None else self.checkpoints.read_manifest(step).get("metadata", {}).get("best")
            self.best.resume(saved, self.checkpoints.steps())
        if step is not None:
            _guard_data(self.assembly, self.checkpoints, [step])
            self.telemetry.note(f"resumed at step {step} of {self.run.steps} from {self.checkpoints.path(step)}")
            return step
        if self.run.initial_weights:
            self.telemetry.note(f"initial weights: {self.assembly.load_initial_weights(self.state).summary()}")
        return 0

    def _metadata(self):
        """Returns what checkpoints must know of this run."""
        return self.assembly.metadata() | ({} if self.best is None else {"best": self.best.as_json()})

    def _committed(self, manifest):
        if self.best is not None:
            self.best.committed(manifest["metadata"]["best"], self.checkpoints.steps())

    def _has_stalled(self):
        """Returns whether the run is to end before its last step, in all processes the same."""
        if self.run.early_stopping_patience is None:
            return False
        return bool(self.cluster.from_chief(int(self.best.has_stalled)))

    def _early_end(self, progress):
        return f"finished early at step {progress.step} of {self.run.steps}: {self.best.describe()}"

    @property
    def _evaluates(self):
        return bool(self.run.eval_every) and self.task.has_evaluation

    def _train_from(self, progress, interruption, watchdog):
        run = self.run
        started = time.perf_counter()
        if run.eval_every and not self._evaluates:
            self.telemetry.note("there are no held-out examples to evaluate on")
        iterator = self.assembly.training_iterator(progress.step)
        if progress.step:
            self.telemetry.note(f"the data is at step {progress.step} after {time.perf_counter() - started:.2f} s")
        per_loop = run.loop_steps(self.cluster)
        num_hosts = self.cluster.num_hosts
        starvation = StarvationWatch(lambda busy: self.task.input_advice(busy, num_hosts), self.telemetry.note)
        compiled = stalled = False
        while progress.step < run.steps and not stalled:
            if self.cluster.any(interruption.requested):
                self._stop(progress, interruption)
            if self.lock is not None:
                self.lock.check()
            steps = 1 if not compiled else min(per_loop, self._until_boundary(progress.step))
            self.telemetry.state("training" if compiled else "compiling")
            began = time.perf_counter()
            with contextlib.nullcontext() if compiled else watchdog.allowance(self._allowance):
                rows, waited = (tensor.numpy() for tensor in self.train_step.loop(iterator, tf.constant(steps)))
            seconds = time.perf_counter() - began
            progress.waited(float(waited), seconds if compiled else None)
            if compiled:
                starvation.add(float(waited), seconds)
            progress.step += steps
            watchdog.beat(progress.step)
            if not compiled:
                seconds += progress.tracing_seconds
                self.telemetry.compiled(seconds)
                self.telemetry.note(f"traced, compiled and did the first step in {seconds:.1f} s")
            self._record(progress, rows, seconds if compiled else None)
            compiled = True
            self._guard(progress, rows)
            is_best = False
            if self._evaluates and (progress.step % run.eval_every == 0 or progress.step == run.steps):
                is_best = self._evaluate(progress.step, watchdog)
                stalled = progress.step < run.steps and self._has_stalled()
            if progress.step % run.checkpoint_every == 0 or progress.step == run.steps or is_best or stalled:
                self._save(progress.step)
        self.checkpoints.wait()
        if stalled:
            self.telemetry.note(self._early_end(progress))

    def _evaluate(self, step, watchdog):
        """Evaluates and tells of it; returns whether it is the best evaluation so far, in a run that looks for it."""
        self.telemetry.state("evaluating")
        with watchdog.allowance(self._allowance), evaluation_weights(self.run.optimizer, self.state):
            metrics = evaluate(self.assembly, self.evaluation)
        self.telemetry.evaluation(step, metrics)
        return self.best is not None and self.best.take(step, metrics)

    def _until_boundary(self, step):
        """Returns the number of steps until something is due on the host."""
        run = self.run
        every = [run.checkpoint_every] + ([run.eval_every] if self._evaluates else [])
        return min([run.steps - step] + [number - step % number for number in every])

    def _record(self, progress, rows, seconds):
        """Gives the steps that are to be logged to telemetry, and now and then the status file."""
        run = self.run
        names = self.train_step.metric_names
        records = []
        first = progress.step - len(rows) + 1
        for offset, row in enumerate(rows.tolist()):
            step = first + offset
            if step % run.log_every and step not in (1, run.steps):
                continue
            metrics = dict(zip(names, row, strict=True))
            task_metrics = self.task.report({name: metrics.pop(name) for name in self.task.metric_names})
            records.append({"step": step} | metrics | task_metrics)
        if records:
            records[-1]["memory_bytes"] = self._peak_memory_bytes()
            if (share := progress.take_wait_share()) is not None:
                records[-1]["input_wait_share"] = share
        self.telemetry.train(records, seconds, num_examples=run.global_batch * len(rows))
        now = time.monotonic()
        if now - progress.status_at >= _STATUS_EVERY_SECONDS:
            progress.status_at = now
            self._write_status("training", progress.step)

    def _peak_memory_bytes(self):
        """Returns the most memory that was in use: of the first GPU, else of this process on the host."""
        if self.cluster.device_kind == "GPU":
            return tf.config.experimental.get_memory_info("GPU:0")["peak"]
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit

    def _guard(self, progress, rows):
        """Ends the run if too many steps in a row were skipped because something was not finite."""
        column = self.train_step.metric_names.index("skipped")
        for offset, skipped in enumerate(rows[:, column]):
            step = progress.step - len(rows) + 1 + offset
            progress.skipped_in_a_row = progress.skipped_in_a_row + 1 if skipped else 0
            if skipped:
                self.telemetry.note(f"step {step}: loss or gradient is not finite; no weight was changed")
            if progress.skipped_in_a_row > self.run.max_skipped_steps:
                self.checkpoints.wait()
                raise TrainingFailed(
                    f"{progress.skipped_in_a_row} steps in a row, up to step {step}, had a loss or gradient that is not "
                    f"finite. Weights are as they were before. Look into the first of them with `python -m trainer "
                    f"--run_dir {self.directory.path} --mode replay --step {step - progress.skipped_in_a_row + 1}`"
                )

    def _save(self, step, wait=False):
        self.telemetry.state("saving")
        if self.lock is not None:
            self.lock.check()
        self.directory.flush()  # the trail of metrics must not lag behind the checkpoint
        began = time.perf_counter()
        if self.checkpoints.save(step, wait=wait):
            self.telemetry.saved(time.perf_counter() - began)

    def _stop(self, progress, interruption):
        """Saves and ends because this process, or another, was asked to stop."""
        self._save(progress.step, wait=True)
        reason = interruption.reason or "another process was asked to stop"
        raise Preempted(
            f"{reason}: the run is saved at step {progress.step} of {self.run.steps}; start it again to go on"
        )


def evaluate(assembly, evaluation):
    """Evaluates a model on the held-out examples, of which there must be some.

    Args:
        assembly: the `Assembly`.
        evaluation: the `EvaluationStep`.

    Returns:
        dict of floats.
    """
    iterator, num_steps = assembly.evaluation_iterator()
    began = time.perf_counter()
    metrics = evaluation.metrics(iterator, num_steps)
    return metrics | {"evaluation_seconds": time.perf_counter() - began}


def train(assembly, console=None, lock=None):
    """Trains in the assembly's run directory, under its lock.

    Args:
        assembly: the `Assembly`.
        console: `rich.console.Console`; standard output if None.
        lock: the `RunLock` that this process holds, or None.
    """
    if assembly.run.best_metric is not None:
        check_best_metric(assembly.run.best_metric, assembly.task)
    guard_directory(assembly)
    if assembly.cluster.is_chief:
        storage.write_text(assembly.directory.config_path, assembly.config.text)
        assembly.task.save_description(assembly.directory.path)
    training = TrainingRun(assembly, console, lock)
    training.train()
    if assembly.task.samples and assembly.cluster.is_chief and console is not None:
        use_evaluation_weights(assembly.run.optimizer, training.state)
        try:
            answers = assembly.task.predict(training.state.model, list(assembly.task.samples), _SAMPLE_ANSWERS)
        except InputError as error:  # a sample that does not fit must not spoil a run that has finished
            console.print(f"samples are not shown: {error}", markup=False)
        else:
            assembly.task.show_predictions(answers, console)
