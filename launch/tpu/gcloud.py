"""Google's command `gcloud`: the argument lists for Cloud TPU, and what its answers mean."""

import contextlib
import json
import os
import random
import signal
import subprocess
import time

LABEL = "bert-trainer"
# gcloud itself waits for a dead machine for ever; without the last, it refuses one whose host key it could not ask for once.
_SSH = ("ConnectTimeout=20", "ServerAliveInterval=15", "ServerAliveCountMax=4")
_TRANSIENT = (
    "UNAVAILABLE",
    "503",
    "500",
    "502",
    "429 ",
    "timed out",
    "Connection reset",
    "Connection refused",
    "INTERNAL",
    "ConnectionError",
    "network connectivity",
)
_TIMEOUT_SECONDS = 300


class GcloudError(Exception):
    """A command of gcloud failed.

    Attributes:
        kind: `not_found`, `exists`, `quota`, `permission`, `transient`, `missing` (no gcloud here) or `other`.
    """

    def __init__(self, kind, message):
        super().__init__(message)
        self.kind = kind


def classify(text):
    """Returns the kind of an error from what gcloud printed."""
    lowered = text.lower()
    if "resource_exhausted" in lowered or "quota" in lowered:
        return "quota"
    if "not_found" in lowered or "not found" in lowered or "was not found" in lowered:
        return "not_found"
    if "already_exists" in lowered or "already exists" in lowered:
        return "exists"
    if (
        "permission_denied" in lowered
        or "permission" in lowered
        or "unauthenticated" in lowered
        or "gcloud auth" in lowered
    ):
        return "permission"
    return "transient" if any(word.lower() in lowered for word in _TRANSIENT) else "other"


class Gcloud:
    """Runs gcloud.

    Args:
        project: the project; None for the one that gcloud is configured with.
        run: callable `(arguments, seconds) -> subprocess.CompletedProcess`.
        attempts: how often a transient error is tried again.
    """

    def __init__(self, project=None, run=None, attempts=5):
        self._project = project
        self._run = run or _run
        self._attempts = attempts

    def command(self, *arguments):
        """Returns the whole argument list of a command."""
        return ["gcloud", *arguments, *([f"--project={self._project}"] if self._project else []), "--quiet"]

    def call(self, *arguments, timeout=_TIMEOUT_SECONDS, attempts=None):
        """Runs a command and returns what it printed; transient errors are tried again.

        Args:
            arguments: behind `gcloud`.
            timeout: seconds that it may take.
            attempts: how often a transient error is tried again; None for the number of this object.

        Raises:
            GcloudError: if it fails.
        """
        attempts = attempts or self._attempts
        for attempt in range(attempts):
            try:
                answer = self._run(self.command(*arguments), timeout)
            except FileNotFoundError:
                raise GcloudError(
                    "missing", "the command gcloud is not here: cloud.google.com/sdk/docs/install"
                ) from None
            except subprocess.TimeoutExpired:
                error = GcloudError("transient", f"gcloud {' '.join(arguments[:4])} did not answer in {timeout} s")
            else:
                if answer.returncode == 0:
                    return answer.stdout
                text = answer.stderr.strip() or answer.stdout.strip()
                error = GcloudError(classify(text), text)
            if error.kind != "transient" or attempt + 1 == attempts:
                raise error
            time.sleep(min(30.0, 2.0**attempt) * random.uniform(0.5, 1.0))
        raise AssertionError("the loop returns or raises")

    def _json(self, *arguments):
        text = self.call(*arguments, "--format=json")
        return json.loads(text) if text.strip() else None

    def _or_none(self, *arguments):
        try:
            return self._json(*arguments)
        except GcloudError as error:
            if error.kind == "not_found":
                return None
            raise

    def describe_request(self, name, zone):
        """Returns the queued resource as a dict, None if there is none."""
        return self._or_none("compute", "tpus", "queued-resources", "describe", name, f"--zone={zone}")

    def describe_node(self, name, zone):
        """Returns the machine as a dict, None if there is none."""
        return self._or_none("compute", "tpus", "tpu-vm", "describe", name, f"--zone={zone}")

    def list_requests(self, zone):
        """Returns the queued resources of a zone, a list of dicts."""
        return self._json("compute", "tpus", "queued-resources", "list", f"--zone={zone}") or []

    def list_nodes(self, zone):
        """Returns the machines of a zone, a list of dicts."""
        return self._json("compute", "tpus", "tpu-vm", "list", f"--zone={zone}") or []

    @staticmethod
    def create_arguments(name, zone, machine, capacity, *, service_account=None, network=None, valid_until=None):
        """Returns the arguments, behind `gcloud`, that ask for a machine.

        Args:
            name: of the request and of its node.
            zone: where.
            machine: `accelerators.Machine`.
            capacity: `on_demand`, `spot` or `reserved`.
            service_account, network: of the machine, or None for the project's default.
            valid_until: after so many seconds Google stops looking for a machine; None for never.
        """
        flags = [f"--node-id={name}", f"--zone={zone}", f"--accelerator-type={machine.accelerator}"]
        flags += [f"--runtime-version={machine.image}", f"--labels={LABEL}={name}"]
        flags += {"spot": ["--spot"], "reserved": ["--reserved"], "on_demand": []}[capacity]
        flags += [f"--service-account={service_account}"] if service_account else []
        flags += [f"--network={network}"] if network else []
        flags += [f"--valid-until-duration={valid_until}s"] if valid_until else []
        return ["compute", "tpus", "queued-resources", "create", name, *flags, "--async"]

    @staticmethod
    def delete_arguments(name, zone):
        """Returns the arguments that delete a request with its machine, in whatever state they are."""
        return ["compute", "tpus", "queued-resources", "delete", name, f"--zone={zone}", "--force", "--async"]

    @staticmethod
    def delete_node_arguments(name, zone):
        """Returns the arguments that delete a machine without a request."""
        return ["compute", "tpus", "tpu-vm", "delete", name, f"--zone={zone}", "--async"]

    @staticmethod
    def ssh_arguments(name, zone, worker, command):
        """Returns the arguments that run a command on a machine.

        Args:
            name, zone: of the machine.
            worker: number of one of its machines, or `all`.
            command: one of `remote.command`, which hold nothing that a person wrote.
        """
        flags = [*(f"--ssh-flag=-o {option}" for option in _SSH), "--strict-host-key-checking=no"]
        where = [name, f"--zone={zone}", f"--worker={worker}"]
        return ["compute", "tpus", "tpu-vm", "ssh", *where, *flags, f"--command={command}"]

    @staticmethod
    def copy_arguments(folder, name, zone, target):
        """Returns the arguments that copy a folder to all machines."""
        copied = ["--recurse", folder, f"{name}:{target}", f"--zone={zone}", "--worker=all"]
        flags = [*(f"--scp-flag=-o {option}" for option in _SSH), "--strict-host-key-checking=no"]
        return ["compute", "tpus", "tpu-vm", "scp", *copied, *flags]


def _run(arguments, seconds):
    """Runs a command; when its time is over, or it is interrupted, the `ssh` that it started is ended with it."""
    process = subprocess.Popen(
        arguments,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=seconds)
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        raise
    return subprocess.CompletedProcess(arguments, process.returncode, out, err)
