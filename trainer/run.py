"""A run: what a person chooses, and the pieces that follow from it."""

import dataclasses
import math
import os
import re
import subprocess

import tensorflow as tf

from trainer.distribution import BatchArithmetic, Cluster, divide_batch
from trainer.errors import InputError
from trainer.tasks.task import Task
from trainer.training.adversarial import FastGradient, GradientPenalty
from trainer.training.best_checkpoint import GOALS
from trainer.training.evaluation import EvaluationStep
from trainer.training.initial_weights import load_initial_weights
from trainer.training.run_directory import RunDirectory
from trainer.training.state import create_state
from trainer.training.step import TrainStep

PRECISIONS = {"float32": 4, "mixed_bfloat16": 2, "mixed_float16": 2}

# Parameters that may change when a run goes on: they decide where and how it runs, not what it computes.
FREE_PARAMETERS = (
    "run.strategy",
    "run.devices",
    "run.microbatch",
    "run.steps_per_loop",
    "run.compile_step",
    "run.log_every",
    "run.eval_every",
    "run.best_metric",
    "run.best_metric_goal",
    "run.early_stopping_patience",
    "run.checkpoint_every",
    "run.keep_checkpoints",
    "run.keep_checkpoint_every",
    "run.asynchronous_checkpoints",
    "run.max_skipped_steps",
    "run.watchdog_seconds",
    "encoder.rematerialize",
    "pretraining.samples",
    "pretraining_data.source",  # a data set may move; its fingerprint may not change, see `TrainingRun`
    "pretraining_data.num_parallel_reads",
    "pretraining_data.services",
    "pretraining_data.check",
    "pretraining_data.cache_dir",
    "pretraining_data.cache_gigabytes",
    "classification.samples",
    "classification_data.train",  # files may move, too
    "classification_data.held_out",
    "classification_data.vocabulary",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """What a run does. Together with the data it decides every number that comes out.

    Args:
        task: what to learn, such as `PretrainingConfig`.
        optimizer: how: `trainer.optimizers.optimizer.Optimizer`, such as `trainer.optimizers.recipes.adamw` makes.
        steps: optimizer steps of the whole run.
        global_batch: examples in an optimizer step, over all replicas and microbatches.
        microbatch: examples that go through the model at once on a replica; `auto` takes what memory allows.
        seed: decides initial weights, data order, masks and dropout.
        initial_weights: what the run starts from: a run directory or checkpoint of this trainer, or weights of another
            library, see `trainer.weights.opening.open_weights`; None for random weights.
        allow_missing_weights: regular expressions, looked for in our names of tensors: those may be missing in
            `initial_weights` besides whole heads, which start at random.
        allow_unused_weights: regular expressions, looked for in names of tensors there: those may be of no use.
        reinitialize: regular expressions, looked for in the names of parameters: those keep their random initial values
            where `initial_weights` are read.
        frozen: regular expressions, looked for in the names of parameters: those are not trained.
        adversarial: `FastGradient` or `GradientPenalty`; None for neither.
        strategy: `auto`, `cpu`, `one_device`, `mirrored`, `multi_worker` or `tpu`.
        devices: number of devices, or `all`; for `cpu` the number of logical devices.
        precision: `float32`, `mixed_bfloat16` or `mixed_float16` (with dynamic loss scaling).
        steps_per_loop: steps in one call from the host; `auto` takes 1 on CPU, 10 on GPU, 50 on TPU.
        compile_step: whether XLA compiles the step.
        eval_every: steps between evaluations on held-out examples, one at the end included; None for none.
        best_metric: metric of evaluation, such as `accuracy` or `loss`, whose best checkpoint is kept besides the newest
            ones; None for no such.
        best_metric_goal: `max`, `min`, or `auto` for `min` where the name has loss, perplexity, mse or error in it.
        early_stopping_patience: after so many evaluations in which `best_metric` was not better than before, the run is
            finished; None to do all steps.
        checkpoint_every: steps between checkpoints.
        log_every: steps between lines of metrics.
        keep_checkpoints: how many of the newest checkpoints stay.
        keep_checkpoint_every: checkpoints whose step is a multiple of this stay for ever; None for none.
        asynchronous_checkpoints: whether checkpoints are written while training goes on.
        max_skipped_steps: more steps than this in a row without finite numbers end the run.
        watchdog_seconds: after so long without a step the stacks of all threads are written down; compiling and
            evaluating may take four times as long.
    """

    task: object
    optimizer: object
    steps: int
    global_batch: int
    microbatch: object = "auto"
    seed: int = 0
    initial_weights: str | None = None
    allow_missing_weights: tuple = ()
    allow_unused_weights: tuple = ()
    reinitialize: tuple = ()
    frozen: tuple = ()
    adversarial: FastGradient | GradientPenalty | None = None
    strategy: str = "auto"
    devices: object = "all"
    precision: str = "float32"
    steps_per_loop: object = "auto"
    compile_step: bool = True
    eval_every: int | None = None
    best_metric: str | None = None
    best_metric_goal: str = "auto"
    early_stopping_patience: int | None = None
    checkpoint_every: int = 1000
    log_every: int = 10
    keep_checkpoints: int = 3
    keep_checkpoint_every: int | None = None
    asynchronous_checkpoints: bool = True
    max_skipped_steps: int = 20
    watchdog_seconds: float = 900.0

    def __post_init__(self):
        for name in ("steps", "global_batch", "checkpoint_every", "log_every", "keep_checkpoints"):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 1:
                raise ValueError(f"run.{name} must be a whole number of at least 1, got {getattr(self, name)!r}")
        for name in ("eval_every", "keep_checkpoint_every", "early_stopping_patience"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < 1):
                raise ValueError(f"run.{name} must be None or a whole number of at least 1, got {value!r}")
        if self.steps_per_loop != "auto" and (not isinstance(self.steps_per_loop, int) or self.steps_per_loop < 1):
            raise ValueError(f"run.steps_per_loop must be 'auto' or at least 1, got {self.steps_per_loop!r}")
        if self.precision not in PRECISIONS:
            raise ValueError(f"run.precision must be one of {', '.join(PRECISIONS)}, got {self.precision!r}")
        for name in ("reinitialize", "frozen", "allow_missing_weights", "allow_unused_weights"):
            patterns = getattr(self, name)
            patterns = (patterns,) if isinstance(patterns, str) else tuple(patterns)
            object.__setattr__(self, name, patterns)
            for pattern in patterns:
                try:
                    re.compile(pattern)
                except (re.error, TypeError) as error:
                    raise ValueError(f"run.{name}: {pattern!r} is no regular expression: {error}") from None
        if self.best_metric_goal not in GOALS:
            raise ValueError(f"run.best_metric_goal must be one of {', '.join(GOALS)}, got {self.best_metric_goal!r}")
        if self.best_metric is None and self.early_stopping_patience is not None:
            raise ValueError("run.early_stopping_patience needs run.best_metric, such as 'accuracy' or 'loss'")
        if self.best_metric is not None and self.eval_every is None:
            raise ValueError("run.best_metric needs evaluations: set run.eval_every")

    def loop_steps(self, cluster):
        """Returns how many steps the device does in one call."""
        if self.steps_per_loop != "auto":
            return self.steps_per_loop
        return {"CPU": 1, "GPU": 10, "TPU": 50}[cluster.device_kind]


@dataclasses.dataclass(frozen=True)
class Assembly:
    """A run's pieces, opened and checked; what a model is trained with is made from them.

    Attributes:
        run: the `Run`.
        config: the `ResolvedConfig`.
        cluster: the `Cluster`.
        directory: the `RunDirectory`.
        task: the opened `Task`.
        batch: the `BatchArithmetic`.
    """

    run: Run
    config: object
    cluster: Cluster
    directory: RunDirectory
    task: Task
    batch: BatchArithmetic

    def metadata(self):
        """Returns what checkpoints and later starts must know of this run."""
        return {
            "config": self.config.fingerprint(FREE_PARAMETERS),
            "data": list(self.task.fingerprints),
            "vocabulary": self.task.vocabulary_sha256,
            "batch": str(self.batch),
        }

    def config_differences(self, text):
        """Returns what a written configuration has otherwise, a line each, where that changes what is computed."""
        return self.config.differences(text, free=FREE_PARAMETERS)

    def new_state(self):
        """Builds the model and the optimizer's slots; returns the `TrainState` at step 0."""
        run = self.run
        return create_state(
            self.cluster.strategy, self.task, run.optimizer, seed=run.seed, dtype=run.precision, frozen=run.frozen
        )

    def load_initial_weights(self, state):
        """Reads the run's initial weights into a new state; returns the `Report`."""
        run = self.run
        return load_initial_weights(
            run.initial_weights,
            state,
            self.task.description(),
            run.reinitialize,
            run.allow_missing_weights,
            run.allow_unused_weights,
        )

    def train_step(self, state):
        """Returns the `TrainStep` that trains a state."""
        run, strategy = self.run, self.cluster.strategy
        return TrainStep(
            strategy,
            self.task,
            run.optimizer,
            state,
            self.batch,
            seed=run.seed,
            compile_step=run.compile_step,
            adversarial=run.adversarial,
        )

    def evaluation_step(self, state):
        """Returns the `EvaluationStep` of a state's model."""
        strategy = self.cluster.strategy
        return EvaluationStep(strategy, self.task, state.model, self.batch, compile_step=self.run.compile_step)

    def training_iterator(self, step, *, placeholder=False):
        """Returns the iterator over training examples from a step on; reaching any step costs the same.

        Args:
            step: optimizer steps done.
            placeholder: whether to give an iterator over zeros of the same types, which reads nothing.
        """

        def make(host, num_hosts):
            return self.task.training_dataset(
                seed=self.run.seed,
                start_step=step,
                global_batch=self.run.global_batch,
                rows_per_element=self.batch.rows_per_replica,
                host=host,
                num_hosts=num_hosts,
            )

        return _distributed_iterator(self.cluster.strategy, make, placeholder)

    def evaluation_iterator(self, *, placeholder=False):
        """Returns the iterator over held-out examples, and the number of global batches that hold all of them.

        Args:
            placeholder: as in `training_iterator`.
        """
        num_steps = 0

        def make(host, num_hosts):
            nonlocal num_steps
            dataset, num_steps = self.task.evaluation_dataset(
                global_batch=self.run.global_batch,
                rows_per_element=self.batch.rows_per_replica,
                host=host,
                num_hosts=num_hosts,
            )
            return dataset

        iterator = _distributed_iterator(self.cluster.strategy, make, placeholder)
        return iterator, num_steps


def _largest_microbatch(run, cluster, task):
    """Returns how many examples fit into half of a device's memory; the other half is for weights and the unforeseen."""
    most = math.inf
    if cluster.device_kind == "GPU":
        memory = _gpu_memory_bytes()
    elif cluster.device_kind == "TPU":
        memory = 16 << 30  # v5e has the least of all that TensorFlow runs on
    else:
        memory = _host_memory_bytes() * cluster.num_hosts / cluster.replicas
        most = 64  # more rows at a time make nothing faster on a CPU, but caches miss more
    fitting = int(memory / 2 / task.activation_bytes(PRECISIONS[run.precision]))
    return cluster.from_chief(max(1, min(fitting, most)))  # processes must agree, also where one has less memory


def _host_memory_bytes():
    """Returns all the memory of this machine: what happens to be free would split the next start's batch otherwise."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _gpu_memory_bytes():
    """Returns the memory of the first GPU, from the driver; 16 GiB if that cannot be told."""
    try:
        text = subprocess.run(
            ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        ).stdout
        return int(text.splitlines()[0]) << 20
    except (OSError, ValueError, IndexError, subprocess.SubprocessError):
        return 16 << 30


def assemble(run, config, cluster, directory, report=print, *, examples=True):
    """Opens the data and does the arithmetic of the batch.

    Args:
        run: `Run`.
        config: `ResolvedConfig`.
        cluster: `Cluster`.
        directory: `RunDirectory`.
        report: callable that shows one line to a person.
        examples: whether examples will be read; a trained model may answer without; `held_out` for those alone.

    Returns:
        `Assembly`.

    Raises:
        InputError: if data is missing or something does not divide.
    """
    batch = None
    if run.microbatch != "auto":  # what can be refused before data is prepared, is
        batch = divide_batch(run.global_batch, cluster.replicas, run.microbatch, 1)
    task = run.task.open(directory, is_chief=cluster.is_chief, report=report, examples=examples)
    if batch is None:
        batch = divide_batch(run.global_batch, cluster.replicas, "auto", _largest_microbatch(run, cluster, task))
    if run.global_batch % cluster.num_hosts:
        raise InputError(f"global_batch {run.global_batch} is not a multiple of the {cluster.num_hosts} hosts")
    return Assembly(run, config, cluster, directory, task, batch)


def _distributed_iterator(strategy, make_dataset, placeholder):
    """Returns an iterator over elements for all replicas.

    Args:
        strategy: `tf.distribute.Strategy`.
        make_dataset: callable `(host, num_hosts) -> tf.data.Dataset` of one element a replica and step.
        placeholder: whether the elements are zeros instead.
    """

    def of_host(context):
        dataset = make_dataset(host=context.input_pipeline_id, num_hosts=context.num_input_pipelines)
        if not placeholder:
            return dataset
        zeros = tf.nest.map_structure(lambda spec: tf.zeros(spec.shape, spec.dtype), dataset.element_spec)
        return tf.data.Dataset.from_tensors(zeros).repeat()

    return iter(strategy.distribute_datasets_from_function(of_host))
