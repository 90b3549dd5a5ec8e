"""The modes of the command line, each a short story."""

import contextlib
import csv
import io
import json
import os
import sys

from rich.console import Console

from trainer import storage
from trainer.data.labelled_texts import decoded, lines_of, without_empty
from trainer.distribution import create_cluster
from trainer.errors import InputError
from trainer.export import export_model
from trainer.plan import make_plan, show_plan
from trainer.replay import replay_step, show_replay
from trainer.run import assemble
from trainer.storage.preflight import check_storage
from trainer.training.best_checkpoint import best_step
from trainer.training.checkpoints import CheckpointManager
from trainer.training.evaluation_weights import use_evaluation_weights
from trainer.training.initial_weights import check_vocabulary
from trainer.training.loop import evaluate, train
from trainer.training.run_directory import RunDirectory
from trainer.training.run_lock import RunLock
from trainer.weights.model_weights import ModelWeights
from trainer.weights.writing import write_weights

_SHOWN_ANSWERS = 5
_TABLES = (".tsv", ".csv")


def run_mode(arguments, config):
    """Runs a mode.

    Args:
        arguments: the parsed command line.
        config: `ResolvedConfig`.
    """
    run = config.call("run")
    _check_storage(arguments, run)
    {
        "train": _train,
        "evaluate": _evaluate,
        "predict": _predict,
        "replay": _replay,
        "plan": _plan,
        "export": _export,
    }[arguments.mode](arguments, config, run)


def _check_storage(arguments, run):
    """Checks what lies in Google Cloud Storage before any device is started."""
    reads, writes = [], []
    if arguments.run_dir:
        (writes if arguments.mode in ("train", "export") else reads).append(arguments.run_dir)
    data = run.task.data
    if arguments.mode in ("train", "plan", "replay"):
        reads += data.paths
        reads += [run.initial_weights] if run.initial_weights else []
    if arguments.mode == "evaluate":
        reads += data.evaluation_paths
    reads += [arguments.input] if arguments.input else []
    writes += [arguments.output] if arguments.output else []
    check_storage(reads, writes, _reporter(_console(sys.stderr)))


def _console(file=None):
    # Plain lines must not be wrapped: programs read them.
    return Console(highlight=False, soft_wrap=True, file=file)


def _start(arguments, run, report):
    """Starts the devices and prints the first line of every mode; returns the cluster, the directory and the reporter."""
    cluster = create_cluster(run.strategy, run.devices)
    if not cluster.is_chief:
        report = _print_nothing
    report(cluster.describe())
    return cluster, RunDirectory(arguments.run_dir, is_chief=cluster.is_chief, report=report), report


def _assemble(run, config, cluster, directory, report, examples=True):
    """Opens the data and, where examples will be read, prints the batch arithmetic."""
    assembly = assemble(run, config, cluster, directory, report, examples=examples)
    if examples:
        report(str(assembly.batch))
    return assembly


def _print_nothing(*_, **__):
    """What processes other than the chief report."""


def _reporter(console):
    return lambda message: console.print(message, markup=False)


def _train(arguments, config, run):
    console = _console()
    cluster, directory, report = _start(arguments, run, _reporter(console))
    lock = None
    with contextlib.ExitStack() as stack:
        if cluster.is_chief:
            storage.make_folder(arguments.run_dir)
            lock = stack.enter_context(RunLock(directory.lock_path, report=report))
        assembly = _assemble(run, config, cluster, directory, report)
        for name, text in assembly.task.describe_data(run.steps * run.global_batch):
            report(f"{name}: {text}")
        train(assembly, console, lock)


def _restored(arguments, config, run, console, examples=False):
    """Returns the assembly and the state at the checkpoint that was asked for, and its step.

    Args:
        examples: `held_out` where these will be read, False where none will.
    """
    report = _reporter(console)
    assembly = _assemble(run, config, *_start(arguments, run, report), examples)
    state, manager = _fresh(assembly, report)
    steps = manager.steps()
    if not steps:
        raise InputError(f"{arguments.run_dir} holds no checkpoint: train first")
    step = steps[-1] if arguments.step is None else arguments.step
    if arguments.best:
        step = best_step(assembly.directory.best_path, arguments.run_dir)
    manager.restore(step)
    check_vocabulary(manager, step, assembly.task.vocabulary_sha256)
    use_evaluation_weights(run.optimizer, state)
    report(f"checkpoint of step {step}")
    return assembly, state, step


def _fresh(assembly, report):
    state = assembly.new_state()
    manager = CheckpointManager(
        assembly.directory.checkpoints_path, state.checkpoint_variables(), is_chief=False, report=report
    )
    return state, manager


def _evaluate(arguments, config, run):
    console = _console()
    assembly, state, step = _restored(arguments, config, run, console, examples="held_out")
    if not assembly.task.has_evaluation:
        raise InputError("the data has no held-out examples to evaluate on")
    metrics = evaluate(assembly, assembly.evaluation_step(state))
    if assembly.cluster.is_chief:
        console.print(f"evaluation at step {step}", markup=False)
        for name, value in metrics.items():
            console.print(f"  {name} {value:.6g}", markup=False)


def _texts(arguments, report):
    """Returns the texts to predict for, of the command line or standard input; None where --input names their file."""
    if arguments.input:
        if not storage.exists(arguments.input):
            raise InputError(f"--input {arguments.input}: there is no such file")
        return None
    lines, name = arguments.texts, "the command line"
    if not lines and not sys.stdin.isatty():
        name = "standard input"
        lines = lines_of(decoded(sys.stdin.buffer.read(), name))
    return _at_least_one(without_empty(lines, name, report))


def _at_least_one(texts):
    if not texts:
        raise InputError("nothing to predict: give texts, --input FILE, or lines on standard input")
    return texts


def _predict(arguments, config, run):
    if arguments.top_k is not None and arguments.top_k < 1:
        raise InputError(f"--top_k must be at least 1, got {arguments.top_k}")
    console = _console(sys.stderr)  # standard output holds the answers alone
    report = _reporter(console)
    texts = _texts(arguments, report)
    assembly, state, _ = _restored(arguments, config, run, console)
    task = assembly.task
    if arguments.output and _suffix(arguments.output) in _TABLES:
        task.prediction_table([])  # refuses before the work is done
    if texts is None:
        texts = _at_least_one(task.texts_in_file(arguments.input, report))
    top_k = arguments.top_k
    if top_k is None and not arguments.output:
        top_k = _SHOWN_ANSWERS
    answers = task.predict(state.model, texts, top_k)
    if not arguments.output:
        task.show_predictions(answers, _console())
        return
    storage.write_text(arguments.output, answer_file(arguments.output, task, answers))
    report(f"{len(answers)} answers in {arguments.output}")


def _suffix(path):
    return os.path.splitext(path)[1].lower()


def answer_file(path, task, answers):
    """Returns the content of a file of answers: a table where it ends in `.tsv` or `.csv`, else JSON lines.

    Args:
        path: of the file.
        task: the `Task`.
        answers: what its `predict` returned.
    """
    if _suffix(path) not in _TABLES:
        return "".join(json.dumps(answer, ensure_ascii=False) + "\n" for answer in answers)
    rows = task.prediction_table(answers)
    if _suffix(path) == ".tsv":  # has no quotes: white space of any kind is a space
        return "".join("\t".join(" ".join(cell.split()) for cell in row) + "\n" for row in rows)
    content = io.StringIO(newline="")
    csv.writer(content, lineterminator="\n").writerows(rows)
    return content.getvalue()


def _replay(arguments, config, run):
    if arguments.step is None:
        raise InputError("--mode replay needs --step N, the step to run again")
    console = _console()
    report = _reporter(console)
    assembly = _assemble(run, config, *_start(arguments, run, report))
    state, manager = _fresh(assembly, report)
    show_replay(replay_step(assembly, state, manager, arguments.step, report), assembly, console)


def _plan(arguments, config, run):
    console = _console()
    show_plan(make_plan(arguments, config, run, _reporter(console)), console)


def _export(arguments, config, run):
    console = _console()
    assembly, state, step = _restored(arguments, config, run, console)
    folder = arguments.output or storage.join(arguments.run_dir, "export", arguments.format, f"step_{step:08d}")
    task, model = assembly.task, state.model
    if arguments.format == "saved_model":
        export_model(task, model, folder)
        left_out = ()
    else:
        left_out = write_weights(ModelWeights(model, task.description()), folder, arguments.format)
    console.print(f"exported to {folder}", markup=False)
    if left_out:
        console.print(f"left out, the format has no place for them: {', '.join(left_out)}", markup=False)
