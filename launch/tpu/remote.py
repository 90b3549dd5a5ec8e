"""The machine, reached through `gcloud ... ssh`: the folder that travels there, and the agent's commands.

No command holds what a person wrote: names are validated, all else is in `job.json`.
"""

import base64
import dataclasses
import functools
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile

from launch.tpu import agent
from launch.tpu.gcloud import GcloudError

_REPOSITORY = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
_SSH_SECONDS = 1800  # installing takes a while
_LIBTPU = "https://storage.googleapis.com/libtpu-tf-releases/index.html"


@dataclasses.dataclass(frozen=True)
class Answer:
    """What a command on the machine gave.

    Attributes:
        reached: whether the machine answered at all.
        text: what the command printed.
        error: why not, or what went wrong.
    """

    reached: bool
    text: str = ""
    error: str = ""


def folder_name(name):
    """Returns the folder of a job in a machine's home folder."""
    return f"bert-trainer-{name}"


def command(name, verb):
    """Returns the command of the agent: `setup`, `start`, `status`, `stop`, or `log` with a number.

    Args:
        name: of the job, validated.
        verb: as above.
    """
    words = verb.split()
    if words[0] not in ("setup", "start", "status", "stop", "log") or not all(word.isdigit() for word in words[1:]):
        raise ValueError(f"the agent knows no {verb!r}")
    return f"python3 {folder_name(name)}/agent.py {verb}"


def build_wheel(target):
    """Builds the wheel of this repository, or of this version as it is installed; returns its path.

    Raises:
        ValueError: with a message for a person, if that fails.
    """
    if not os.path.exists(os.path.join(_REPOSITORY, "setup.py")):
        raise ValueError("the launcher was not started from a copy of the repository: give --wheel FILE")
    with tempfile.TemporaryDirectory(prefix="bert-trainer-source-") as source:
        # Building writes into the folder: not into the person's.
        ignored = shutil.ignore_patterns(".*", "__pycache__", "runs", "build", "dist", "*.egg-info", "tests", "docs")
        copy = os.path.join(source, "bert-trainer")
        shutil.copytree(_REPOSITORY, copy, ignore=ignored)
        arguments = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", target, copy]
        built = subprocess.run(arguments, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    wheels = [name for name in os.listdir(target) if name.endswith(".whl")]
    if built.returncode or not wheels:
        raise ValueError(
            f"no wheel could be built: {built.stderr.strip()[-500:]}. --wheel FILE takes one that is there."
        )
    return os.path.join(target, wheels[0])


def install_arguments(machine):
    """Returns the arguments of each `pip install` that a machine needs, a list of lists."""
    minor = ".".join(machine.tensorflow.split(".")[:2])
    return [
        ["--upgrade", "pip"],
        [f"tensorflow-tpu=={machine.tensorflow}", "--find-links", _LIBTPU],
        ["--no-deps", f"tensorflow-text=={minor}.*"],
        ["keras>=3.10", "absl-py", "gin-config>=0.5", "google-cloud-storage", "google-crc32c", "rich", "safetensors"],
        ["tensorboard", "cloud-tpu-client"],
    ]


@dataclasses.dataclass(frozen=True)
class Bundle:
    """What travels to the machine.

    Attributes:
        name: of the job.
        trainer_job: `command_line.TrainerJob`; gin files of it that lie here travel along.
        machine: `accelerators.Machine`.
        wheel: path of the wheel; None builds it.
        python: an interpreter on the machine that has all it needs; None makes an environment.
        allow_cpu: whether to train on the processor where there is no TPU.
        environment: texts `NAME=VALUE` for the trainer.
    """

    name: str
    trainer_job: object
    machine: object
    wheel: str | None = None
    python: str | None = None
    allow_cpu: bool = False
    environment: tuple = ()

    @functools.cached_property
    def _gin_files(self):
        """`{name on the machine: content}` of the gin files that travel, and the names of all as the trainer gets them."""
        files, names = {}, []
        for number, name in enumerate(self.trainer_job.gin):
            if os.path.isfile(name):  # else it is one of the trainer's own
                with open(name, "rb") as file:
                    files[name := f"{number}-{os.path.basename(name)}"] = file.read()
            names.append(name)
        return files, tuple(names)

    @functools.cached_property
    def description(self):
        """What `job.json` holds besides the wheel: a dict; its `key` changes with anything in it and with the gin files."""
        files, names = self._gin_files
        trainer_job = dataclasses.replace(self.trainer_job, gin=names)
        job = {
            "node": self.name,
            "python": self.python or "python3",
            "install": [] if self.python else install_arguments(self.machine),
            "is_pod": self.machine.is_pod,
            "allow_cpu": self.allow_cpu,
            "environment": dict(text.split("=", 1) for text in self.environment),
            # The launcher decides about restarts, in one place.
            "arguments": ["run", "--once", *trainer_job.arguments()],
        }
        digests = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
        return job | {"key": hashlib.sha256(json.dumps([job, digests]).encode()).hexdigest()[:16]}

    def write(self, folder):
        """Puts everything into an empty folder; raises ValueError if no wheel can be built."""
        shutil.copy(agent.__file__, folder)
        wheel = shutil.copy(self.wheel, folder) if self.wheel else build_wheel(folder)
        with open(wheel, "rb") as file:
            digest = hashlib.sha256(file.read()).hexdigest()
        os.mkdir(os.path.join(folder, "files"))
        for name, content in self._gin_files[0].items():
            with open(os.path.join(folder, "files", name), "wb") as file:
                file.write(content)
        job = self.description | {"wheel": os.path.basename(wheel), "wheel_sha256": digest}
        with open(os.path.join(folder, "job.json"), "w", encoding="utf-8") as file:
            json.dump(job, file, indent=1)


class RemoteMachine:
    """A machine of Cloud TPU.

    Args:
        gcloud: `Gcloud`.
        name: of the machine, and of the job.
        zone: where it is.
    """

    def __init__(self, gcloud, name, zone):
        self._gcloud = gcloud
        self._name = name
        self._zone = zone

    def copy(self, folder):
        """Copies a folder to all its machines, into the agent's; returns an `Answer`."""
        with tempfile.TemporaryDirectory(prefix="bert-trainer-bundle-") as parent:
            named = os.path.join(parent, folder_name(self._name))
            shutil.copytree(folder, named)
            return self._call(self._gcloud.copy_arguments(named, self._name, self._zone, "."))

    def run(self, verb, worker=0):
        """Runs a command of the agent; returns an `Answer`."""
        return self._call(self._gcloud.ssh_arguments(self._name, self._zone, worker, command(self._name, verb)))

    def status(self):
        """Returns the agent's status as a dict.

        Its `state` is `none` if nothing was started there, `unreachable` if the machine cannot be asked.
        """
        answer = self.run("status")
        if not answer.reached:
            missing = "No such file" in answer.error or "can't open file" in answer.error
            return {"state": "none"} if missing else {"state": "unreachable", "error": answer.error}
        status = _find(answer.text, "state")
        return status or {"state": "unreachable", "error": f"the agent said {answer.text[-200:]!r}"}

    def log(self, offset):
        """Returns bytes of the trainer's log from a place on; none if there are none, or the machine does not answer."""
        found = _find(self.run(f"log {offset}").text, "log")
        return base64.b64decode(found["log"]) if found else b""

    def _call(self, arguments):
        try:
            return Answer(True, self._gcloud.call(*arguments, timeout=_SSH_SECONDS, attempts=1))
        except GcloudError as error:
            return Answer(False, error=str(error))


def _find(text, name):
    """Returns the last line that is a JSON object with an entry of a name; gcloud says things of its own besides."""
    for line in reversed(text.splitlines()):
        try:
            found = json.loads(line)
        except ValueError:
            continue
        if isinstance(found, dict) and name in found:
            return found
    return None
