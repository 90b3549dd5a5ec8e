"""Beam workers: the jobs of data preparation on many machines, through Apache Beam (Direct, Flink, Spark, Dataflow).

Beam carries numbers only: places in a list of jobs that lies in the work folder. What a job makes, it writes to the work
folder or the data set, whole or not at all, and the same bytes every time. So a runner may do a job again, or twice at
once, and a preparation that is started again continues where the last one stopped, with this or any other runner.
"""

import dataclasses
import difflib
import functools
import hashlib
import logging
import os
import pickle
import time

from trainer import storage
from trainer.environment import prepare_environment
from trainer.errors import InputError, StorageFailed, TrainerError, TrainingFailed

RUNNERS = {"direct": "DirectRunner", "flink": "FlinkRunner", "spark": "SparkRunner", "dataflow": "DataflowRunner"}
_RECORDED_ERRORS = {error.__name__: error for error in (InputError, StorageFailed)}
_POLL_SECONDS = 5.0
_JOBS_NAME = "jobs.pickle"


def _beam():
    """The package apache_beam, imported when it is first needed: it takes two seconds."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)  # it warns of parts for other purposes that are not installed
    try:
        import apache_beam
    except ImportError:
        raise InputError(
            "this runner needs Apache Beam: pip install 'bert-trainer[beam]' (for dataflow also 'apache-beam[gcp]')."
        ) from None
    finally:
        logging.disable(disabled)
    return apache_beam


@dataclasses.dataclass(frozen=True)
class BeamOptions:
    """Where Beam does the work.

    Args:
        runner: one of `RUNNERS`.
        flags: Beam's own options as on a command line, e.g. `("--direct_num_workers=4",)`.
        own_flags: options of the calling command, to guess what a misspelt one was to be.
    """

    runner: str
    flags: tuple = ()
    own_flags: tuple = ()

    def __post_init__(self):
        if self.runner not in RUNNERS:
            near = difflib.get_close_matches(self.runner.lower().removesuffix("runner"), RUNNERS, n=1)
            raise InputError(
                f"the runner must be one of local, {', '.join(RUNNERS)}, got {self.runner!r}"
                + (f": did you mean {near[0]}?" if near else "")
            )
        self._check_flags()

    def _check_flags(self):
        """Refuses what Beam would only warn of, and go on without."""
        options = _options_class()
        known = options([]).get_all_options()
        given = options(list(self.flags)).get_all_options(drop_default=True, retain_unknown_options=True)
        for name in given:
            if name not in known:
                near = difflib.get_close_matches(f"--{name}", [*self.own_flags, *(f"--{each}" for each in known)], n=1)
                raise InputError(
                    f"--{name} is an option neither of this command nor of Apache Beam"
                    + (f": did you mean {near[0]}?" if near else ".")
                )
        lone = next((flag for flag in self.flags[:1] if not flag.startswith("-")), None)
        if lone is not None:
            raise InputError(f"{lone!r} belongs to no option.")

    def pipeline_options(self, job_name):
        """Returns Beam's options for one job."""
        _beam()
        from apache_beam.options.pipeline_options import DebugOptions, GoogleCloudOptions

        options = _options_class()([*self.flags, f"--runner={RUNNERS[self.runner]}"])
        cloud, debug = options.view_as(GoogleCloudOptions), options.view_as(DebugOptions)
        if self.runner == "dataflow":
            cloud.job_name = cloud.job_name or job_name
            # One job at a time in a process, as on one machine: that is what its memory is reckoned for.
            debug.number_of_worker_harness_threads = debug.number_of_worker_harness_threads or 1
        return options

    def check_paths(self, paths):
        """Raises `InputError` if workers on other machines could not reach a path."""
        for path in paths:
            if self.runner == "dataflow" and not storage.is_remote(path):
                raise InputError(f"Dataflow's workers cannot reach {path} on this machine: copy it to gs:// first.")


def _options_class():
    _beam()
    from apache_beam.options.pipeline_options import PipelineOptions

    return PipelineOptions


class BeamWorkers:
    """Workers that Beam starts; used as `workers.Workers`.

    Args:
        options: `BeamOptions`.
        folder: for the lists of jobs and their outcomes; all machines must reach it.
    """

    on_this_machine = False

    def __init__(self, options, folder):
        self._options = options
        self._folder = folder
        _this_process["is_worker"] = False

    def __enter__(self):
        return self

    def __exit__(self, *_):
        storage.remove(self._folder)

    @property
    def description(self):
        """See `Workers.description`."""
        return {"runner": self._options.runner}

    def run(self, function, jobs):
        """See `Workers.run`; results must be what JSON can hold.

        Raises:
            InputError: if a job raises it, the first that is noticed.
            StorageFailed: if a job raised it whenever it was tried.
            TrainingFailed: if Beam's job fails otherwise.
        """
        if not jobs:
            return
        content = pickle.dumps((function, jobs))
        folder = storage.join(self._folder, hashlib.sha256(content).hexdigest())
        storage.remove(folder)
        storage.make_folder(folder)
        storage.write_bytes(storage.join(folder, _JOBS_NAME), content)
        yield from self._outcomes(function, folder, len(jobs))
        storage.remove(folder)

    def _outcomes(self, function, folder, count):
        """Starts Beam's job and yields outcomes as they come in."""
        waiting, last_errors = set(range(count)), {}
        try:
            running = self._start(function, folder, count)
        except TrainerError:
            raise
        except Exception as error:  # the direct runner works until it fails
            if "KeyboardInterrupt" in str(error):  # which it hands on as text
                raise KeyboardInterrupt from None
            _fail(waiting, _read_outcomes(folder, waiting)[1], error)
        try:
            while waiting:
                ended = _has_ended(running)  # asked before looking, so that no outcome is missed
                results, last_errors = _read_outcomes(folder, waiting)
                yield from results
                if waiting and ended:
                    _fail(waiting, last_errors, f"Beam says {running.state}")
                if waiting:
                    time.sleep(_POLL_SECONDS)
            running.wait_until_finish()
        except BaseException:
            if not _has_ended(running):
                running.cancel()  # on Dataflow it would go on, at a price
            raise

    def _start(self, function, folder, count):
        beam = _beam()
        logging.getLogger("apache_beam").setLevel(logging.WARNING)
        name = f"prepare-data-{function.__name__}-{folder[-8:]}".replace("_", "-")
        pipeline = beam.Pipeline(options=self._options.pipeline_options(name))
        places = pipeline | "Jobs" >> beam.Create(range(count)) | beam.Reshuffle()  # else one worker would do them all
        _ = places | function.__name__ >> beam.Map(do_job, folder)
        try:
            return pipeline.run()
        except (ValueError, ImportError) as error:  # options that do not go together, or a runner that is not installed
            raise InputError(f"Beam cannot start: {error}") from error


def _fail(waiting, errors, cause):
    """Raises what a job raised, or says that Beam failed."""
    for kind, message in errors.values():
        raise _RECORDED_ERRORS[kind](message)
    raise TrainingFailed(
        f"the Beam job failed with {len(waiting):,} jobs to do ({cause}). What is finished is kept: run the same "
        "command again to continue."
    )


def do_job(place, folder):
    """Does a job, on a worker, and writes its outcome beside the list of jobs.

    Args:
        place: of the job in the list.
        folder: where the list is.
    """
    _start_process()
    function, jobs = _jobs(folder)
    outcome = storage.join(folder, f"{place:08d}.json")
    try:
        storage.write_json(outcome, {"result": function(jobs[place])})
    except InputError as error:  # would come again: an outcome like others, so that no runner tries again
        _write_error(outcome, error)
    except StorageFailed as error:  # may pass: the runner decides whether to try again
        _write_error(outcome, error)
        raise


def _write_error(path, error):
    storage.write_json(path, {"error": type(error).__name__, "message": str(error)})


# Not where the pipeline is started, in which the direct runner works: there the command has made everything ready.
_this_process = {"is_worker": True}


@functools.cache
def _start_process():
    """Makes a worker process ready: TensorFlow in one thread, as there is a process for every core."""
    if _this_process["is_worker"]:
        for name in ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"):
            os.environ.setdefault(name, "1")
        prepare_environment(os.environ)


@functools.lru_cache(maxsize=1)
def _jobs(folder):
    """The list of jobs, read once by each process.

    Beam carries the name of the folder, which is the hash of the list: what another hand put there is not unpickled.
    """
    content = storage.read_bytes(storage.join(folder, _JOBS_NAME))
    if hashlib.sha256(content).hexdigest() != os.path.basename(folder):
        raise StorageFailed(f"{folder}/{_JOBS_NAME} is not what this preparation wrote: run the same command again")
    return pickle.loads(content)


def _has_ended(running):
    from apache_beam.runners.runner import PipelineState

    return PipelineState.is_terminal(running.state)


def _read_outcomes(folder, waiting):
    """Reads the outcomes that are new: a list of (place, result), taken from `waiting`, and {place: (kind, message)}.

    Raises:
        InputError: if a job raised it.
    """
    results, errors = [], {}
    for name in storage.listing(folder):
        place = int(name[:8]) if name.endswith(".json") else None
        if place not in waiting:
            continue
        outcome = storage.read_json(storage.join(folder, name))
        if "result" in outcome:
            results.append((place, outcome["result"]))
            waiting.discard(place)
        elif outcome["error"] == "InputError":
            raise InputError(outcome["message"])
        else:
            errors[place] = (outcome["error"], outcome["message"])
    return results, errors
