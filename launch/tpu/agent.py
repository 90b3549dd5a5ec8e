"""Runs the trainer on a Cloud TPU machine: set-up, start, status, log, stop. Standard library only.

    python3 agent.py setup | start | status | log OFFSET | stop

It is copied, with a wheel and `job.json`, into a folder of the machine. Everything that a person chose stands in `job.json`:
the commands themselves never hold any of it. `start` leaves a process of its own, which outlives the connection, the
launcher and the person's laptop; it keeps the process group of the trainer, its log and how it ended in files.
"""

import base64
import contextlib
import fcntl
import glob
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile

FOLDER = os.path.dirname(os.path.abspath(__file__))
_WRONG_INPUT, _LOST = 2, 137
_STOP_SECONDS = 180  # to save and stop
_LOG_BYTES = 256 << 10  # of the log in one answer
_RETRIES = 3


def path(name):
    """Returns the path of a file of the agent."""
    return os.path.join(FOLDER, name)


def read(name):
    """Returns what a JSON file holds, None if it is not there or damaged."""
    try:
        with open(path(name), encoding="utf-8") as file:
            return json.load(file)
    except (OSError, ValueError):
        return None


def write(name, value):
    """Writes a JSON file, all of it or nothing."""
    temporary = path(f"{name}.{os.getpid()}")
    with open(temporary, "w", encoding="utf-8") as file:
        json.dump(value, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path(name))


def began(pid):
    """Returns when a process began, as the system counts; None if it does not run."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return None
    return None if fields[0] == b"Z" else int(fields[19])


def setup(job):
    """Unpacks the code, verified, and installs what it needs; returns an exit code. Does nothing that is done already."""
    wheel = path(job["wheel"])
    with open(wheel, "rb") as file:
        if hashlib.sha256(file.read()).hexdigest() != job["wheel_sha256"]:
            print(f"agent: {wheel} did not arrive whole", file=sys.stderr)
            return _LOST  # worth another try
    key = hashlib.sha256(json.dumps([job["wheel_sha256"], job["python"], job["install"]]).encode()).hexdigest()
    if (read("setup.json") or {}).get("key") == key:
        return 0
    shutil.rmtree(path("code"), ignore_errors=True)
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(path("code"))
    python = job["python"]
    if job["install"]:
        environment = path("environment")
        python = os.path.join(environment, "bin", "python")
        commands = [[job["python"], "-m", "venv", "--clear", environment]]
        commands += [[python, "-m", "pip", "install", "--quiet", *arguments] for arguments in job["install"]]
        for command in commands:
            for attempt in range(_RETRIES):
                code = subprocess.run(command, stdin=subprocess.DEVNULL).returncode
                if code == 0:
                    break
                time.sleep(5 * attempt)
            else:
                print(f"agent: {' '.join(command)} failed with {code}", file=sys.stderr)
                return code
    write("setup.json", {"key": key, "python": python})
    return 0


def environment_of(job):
    """Returns the environment variables of the trainer; raises LookupError if there is no TPU where there should be one."""
    environment = dict(os.environ) | {"PYTHONPATH": path("code"), "PYTHONUNBUFFERED": "1"} | job["environment"]
    has_chips = glob.glob("/dev/accel*") or glob.glob("/dev/vfio/[0-9]*")
    if not has_chips:
        if job["allow_cpu"]:
            return environment
        raise LookupError("there is no TPU on this machine (neither /dev/accel* nor /dev/vfio)")
    if job["is_pod"]:  # one client, on worker 0; servers of the image do the rest
        return environment | {"TPU_NAME": job["node"], "TPU_LOAD_LIBRARY": "0"}
    library = job.get("libtpu") or next(
        iter(glob.glob(path("environment/lib/python3*/site-packages/libtpu/libtpu.so"))), ""
    )
    plug = {"TF_PLUGGABLE_DEVICE_LIBRARY_PATH": library} if library else {}
    return environment | {"TPU_NAME": "local", "NEXT_PLUGGABLE_DEVICE_USE_C_API": "true"} | plug


def start(job):
    """Starts the trainer, in a process that stays, unless it runs; returns an exit code."""
    with open(path("lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two launchers that start at once
        if status()["state"] == "running":
            return 0
        with open(path("log.txt"), "ab") as log:
            process = subprocess.Popen(
                [sys.executable, os.path.abspath(__file__), "keep"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                cwd=FOLDER,
                pass_fds=(),
            )
        write("state.json", {"state": "running", "keeper": process.pid, "keeper_began": began(process.pid)})
    return 0


def keep(job):
    """Runs the trainer and notes how it ended; the process that `start` leaves."""
    state = {"state": "running", "keeper": os.getpid(), "keeper_began": began(os.getpid()), "began_at": time.time()}
    print(f"--- started {time.strftime('%Y-%m-%d %H:%M:%S')} ---", flush=True)
    try:
        environment = environment_of(job)
    except LookupError as error:
        print(f"agent: {error}", flush=True)
        write("state.json", state | {"state": "ended", "code": _WRONG_INPUT, "ended_at": time.time()})
        return
    os.makedirs(path("files"), exist_ok=True)
    python = read("setup.json")["python"]
    trainer = subprocess.Popen(
        [python, "-m", "launch.local", *job["arguments"]], cwd=path("files"), env=environment, start_new_session=True
    )
    signal.signal(signal.SIGTERM, lambda *_: trainer.send_signal(signal.SIGTERM))
    write("state.json", state | {"group": trainer.pid, "group_began": began(trainer.pid)})
    code = trainer.wait()
    code = 128 - code if code < 0 else code
    print(f"--- ended with {code} ---", flush=True)
    write("state.json", state | {"state": "ended", "code": code, "ended_at": time.time()})


def status():
    """Returns `{"state": "none", "running" or "ended", ...}`; of a trainer whose keeper is gone, that it was lost."""
    state = read("state.json")
    if state is None:
        return {"state": "none"}
    if state["state"] == "running" and began(state["keeper"]) != state["keeper_began"]:
        _kill_group(state)
        state = state | {"state": "ended", "code": _LOST}
    with contextlib.suppress(OSError):
        state["log_bytes"] = os.path.getsize(path("log.txt"))
    return state | {"job": (read("job.json") or {}).get("key")}


def log(offset):
    """Returns the bytes of the log from a place on; some of them, if there are many."""
    try:
        with open(path("log.txt"), "rb") as file:
            file.seek(offset)
            return file.read(_LOG_BYTES)
    except OSError:
        return b""


def stop():
    """Lets the trainer save and stop, then makes sure that nothing of it is left; returns an exit code."""
    state = status()
    if state["state"] == "running":
        with contextlib.suppress(ProcessLookupError):
            os.kill(state["keeper"], signal.SIGTERM)
        deadline = time.monotonic() + _STOP_SECONDS
        while time.monotonic() < deadline and status()["state"] == "running":
            time.sleep(0.2)
    _kill_group(state)
    return 0


def _kill_group(state):
    """Kills what is left of a trainer's processes: one that lives on would hold the chips."""
    if state.get("group") and began(state["group"]) in (state.get("group_began"), None):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(state["group"], signal.SIGKILL)


def main(arguments):
    """Runs a command; returns the exit code."""
    verb = arguments[0]
    if verb == "status":
        print(json.dumps(status()))
    elif verb == "log":
        print(json.dumps({"log": base64.b64encode(log(int(arguments[1]))).decode()}))
    elif verb == "stop":
        return stop()
    elif verb == "setup":
        # The launcher reads it: the exit code of ssh may as well be that of a broken connection.
        print(f"\nagent: setup ended with {setup(read('job.json'))}", flush=True)
    else:
        return {"start": start, "keep": keep}[verb](read("job.json"))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]) or 0)
