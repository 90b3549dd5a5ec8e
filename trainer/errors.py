"""The errors a person meets, each with the exit code that launchers act on."""


class TrainerError(Exception):
    """Base of all errors that end a run with a message instead of a stack trace."""

    exit_code = 70


class InputError(TrainerError):
    """Bad configuration or input: the message names the offending thing, what is allowed and the nearest fix."""

    exit_code = 2


class TrainingFailed(TrainerError):
    """Training cannot go on: non-finite values, or another guard tripped."""

    exit_code = 70


class StorageFailed(TrainerError):
    """Storage refused what the run cannot do without."""

    exit_code = 74


class Preempted(TrainerError):
    """The run was asked to stop, saved its state, and wants to be started again."""

    exit_code = 75
