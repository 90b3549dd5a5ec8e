"""Stands in for the commands of Slurm on this machine: `slurm_stub.py COMMAND ARGUMENTS`; jobs really run, on loopback.

What happens is what Slurm 22.05 was seen to do:

- `scancel --signal=S JOB` reaches the tasks alone, `scancel --batch --signal=S JOB` the batch script alone.
- `scancel JOB`, and `scontrol requeue JOB`, send SIGTERM to the batch script and the tasks, and SIGKILL after KillWait.
- srun kills its tasks when it gets SIGTERM. It returns the highest exit code of its tasks, but 128 + n if one was killed.
- srun leaves other tasks alone when one ends, until `--wait` is over.
- A requeued job starts again with SLURM_RESTART_COUNT; with what it got at submission otherwise.

Environment: STUB_SLURM is a folder, for `jobs/N.json`; STUB_SLURM_NODES is a list of nodes such as `127.0.0.[9-10]`.
"""

import argparse
import contextlib
import fcntl
import json
import os
import pathlib
import re
import shlex
import signal
import subprocess
import sys
import time

FOLDER = pathlib.Path(os.environ["STUB_SLURM"])
KILL_WAIT_SECONDS = 20.0
POLL_SECONDS = 0.02


@contextlib.contextmanager
def job(number):
    """Yields the dict of a job, which is written back."""
    path = FOLDER / "jobs" / f"{number}.json"
    with open(f"{path}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            raise SystemExit("slurm_load_jobs error: Invalid job id specified")
        content = json.loads(path.read_text())
        yield content
        new = path.with_suffix(".new")
        new.write_text(json.dumps(content, indent=1))
        new.rename(path)


def look(number):
    with job(number) as content:
        return content


def send(pids, number):
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def nodes(count):
    """Returns the first nodes of STUB_SLURM_NODES as a list of names, and as Slurm writes it."""
    prefix, first, last = re.fullmatch(r"(.*)\[(\d+)-(\d+)\]", os.environ["STUB_SLURM_NODES"]).groups()
    numbers = range(int(first), int(last) + 1)[:count]
    text = f"{prefix}[{numbers[0]}-{numbers[-1]}]" if count > 1 else f"{prefix}{first}"
    return [f"{prefix}{number}" for number in numbers], text


def parser():
    made = argparse.ArgumentParser(allow_abbrev=False)
    for name in ("job-name", "gpus-per-node", "partition", "account", "qos", "constraint", "mem", "time", "chdir"):
        made.add_argument(f"--{name}")
    for name in ("output", "open-mode", "signal", "comment"):
        made.add_argument(f"--{name}")
    for name in ("nodes", "ntasks", "ntasks-per-node", "cpus-per-task"):
        made.add_argument(f"--{name}", type=int, default=1)
    for name in ("requeue", "exclusive", "hold"):
        made.add_argument(f"--{name}", action="store_true")
    return made


def sbatch(arguments):
    assert arguments[0] == "--parsable"
    script = pathlib.Path(arguments[1]).read_text()
    directives = []
    for line in script.splitlines():
        if line.startswith("#SBATCH"):
            directives += shlex.split(line)[1:]
        elif not line.startswith("#"):
            break
    options = vars(parser().parse_args(directives))
    (FOLDER / "jobs").mkdir(exist_ok=True)
    number = 100 + len(list((FOLDER / "jobs").glob("*.json")))
    content = {"state": "PENDING", "options": options, "restarts": 0, "tasks": [], "batch": None, "code": None}
    (FOLDER / "jobs" / f"{number}.script").write_text(script)
    (FOLDER / "jobs" / f"{number}.json").write_text(json.dumps(content))
    with open(FOLDER / "controller.log", "a") as log:
        # Slurm's own daemon: outlives this command.
        subprocess.Popen(
            [sys.executable, "-S", __file__, "controller", str(number)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    print(number)


def controller(arguments):
    """Runs a job's attempts until it has ended."""
    number = arguments[0]
    while look(number)["options"]["hold"] and look(number)["state"] == "PENDING":
        time.sleep(POLL_SECONDS)
    while attempt(number):
        pass


def attempt(number):
    """Runs a job's batch script once; returns whether it is to be run again."""
    content = look(number)
    options = content["options"]
    _, text = nodes(options["nodes"])
    variables = {
        "SLURM_JOB_ID": number,
        "SLURM_JOB_NODELIST": text,
        "SLURM_NTASKS": str(options["ntasks"]),
        "STUB_SLURM_OPTIONS": json.dumps(options),
    }
    if content["restarts"]:
        variables["SLURM_RESTART_COUNT"] = str(content["restarts"])
    with open(options["output"].replace("%j", number), "ab") as log, job(number) as content:
        if content["state"] != "PENDING":
            return False
        # Slurm runs a copy of its own.
        batch = subprocess.Popen(
            ["bash", str(FOLDER / "jobs" / f"{number}.script")],
            cwd=options["chdir"],
            env=os.environ | variables,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        content.update(state="RUNNING", batch=batch.pid)
    kill_at = None
    while batch.poll() is None:
        content = look(number)
        if content["state"] != "RUNNING":
            kill_at = kill_at or time.monotonic() + KILL_WAIT_SECONDS
            if time.monotonic() > kill_at:
                send([*content["tasks"], batch.pid], signal.SIGKILL)
        time.sleep(POLL_SECONDS)
    code = batch.returncode
    with job(number) as content:
        content.update(batch=None, tasks=[], code=code)
        if content["state"] == "REQUEUED":
            content.update(state="PENDING", restarts=content["restarts"] + 1)
            return True
        if content["state"] == "RUNNING":
            content["state"] = "FAILED" if code else "COMPLETED"
    return False


def srun(arguments):
    made = argparse.ArgumentParser(allow_abbrev=False)
    made.add_argument("--distribution", choices=["block"], required=True)
    made.add_argument("--kill-on-bad-exit", choices=["0"], required=True)
    made.add_argument("--wait", type=float, required=True)
    made.add_argument("--gpu-bind", choices=["none"])
    made.add_argument("--cpus-per-task", type=int)
    made.add_argument("--open-mode", choices=["append"], required=True)
    made.add_argument("--output", required=True)
    made.add_argument("command", nargs=argparse.REMAINDER)
    options = made.parse_args(arguments)
    number, asked = os.environ["SLURM_JOB_ID"], json.loads(os.environ["STUB_SLURM_OPTIONS"])
    hosts, text = nodes(asked["nodes"])
    per_node = asked["ntasks_per_node"]
    tasks = []
    signal.signal(signal.SIGTERM, lambda *_: (print("srun: forcing job termination"), send_all(tasks, signal.SIGKILL)))
    for rank in range(asked["ntasks"]):
        variables = {
            "SLURM_PROCID": str(rank),
            "SLURM_NODEID": str(rank // per_node),
            "SLURM_LOCALID": str(rank % per_node),
            "SLURM_STEP_NODELIST": text,
            "SLURM_STEP_TASKS_PER_NODE": f"{per_node}(x{len(hosts)})",
        }
        if asked["gpus_per_node"]:
            variables["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, range(int(asked["gpus_per_node"].split(":")[-1]))))
        with open(options.output.replace("%t", str(rank)), "ab") as log:
            task = subprocess.Popen(
                options.command,
                env=os.environ | variables,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        tasks.append(task)
    with job(number) as content:
        content["tasks"] = [task.pid for task in tasks]
    wait_until = None
    while None in (codes := [task.poll() for task in tasks]):
        if wait_until is None and any(code is not None for code in codes):
            wait_until = time.monotonic() + options.wait
        if wait_until is not None and time.monotonic() > wait_until:
            print("srun: First task exited too long ago: terminating the step", flush=True)
            send_all(tasks, signal.SIGKILL)
        time.sleep(POLL_SECONDS)
    for rank, code in enumerate(codes):
        if code:
            print(f"srun: error: task {rank}: {'Killed' if code < 0 else f'Exited with exit code {code}'}", flush=True)
    killed = [128 - code for code in codes if code < 0]
    raise SystemExit(killed[0] if killed else max(codes))


def send_all(tasks, number):
    send([task.pid for task in tasks if task.poll() is None], number)


def terminate(number, state):
    """Changes a job's state and has its processes end."""
    with job(number) as content:
        if content["state"] == "PENDING":
            content["state"] = state
            return
        if content["state"] != "RUNNING":
            raise SystemExit("error: Job/step already completing or completed")
        content["state"] = state
        send([*content["tasks"], content["batch"]], signal.SIGTERM)


def scancel(arguments):
    made = argparse.ArgumentParser(allow_abbrev=False)
    made.add_argument("--batch", action="store_true")
    made.add_argument("--signal")
    made.add_argument("number")
    options = made.parse_args(arguments)
    if options.signal is None:
        terminate(options.number, "CANCELLED")
        return
    content = look(options.number)
    if content["state"] != "RUNNING":
        raise SystemExit(f"scancel: error: Kill job error on job id {options.number}: Invalid job id specified")
    pids = [content["batch"]] if options.batch else content["tasks"]
    send(pids, signal.Signals[f"SIG{options.signal}"])


def scontrol(arguments):
    verb, number = arguments
    assert verb == "requeue"
    terminate(number, "REQUEUED")


def squeue(arguments):
    made = argparse.ArgumentParser(allow_abbrev=False)
    made.add_argument("--noheader", action="store_true", required=True)
    made.add_argument("--jobs", required=True)
    made.add_argument("--format", required=True)
    options = made.parse_args(arguments)
    content = look(options.jobs)
    if content["state"] not in ("PENDING", "RUNNING", "REQUEUED") and content["batch"] is None:
        return
    state = {"REQUEUED": "COMPLETING", "CANCELLED": "COMPLETING"}.get(content["state"], content["state"])
    text = nodes(content["options"]["nodes"])[1] if state == "RUNNING" else ""
    values = {"T": state, "M": "0:05", "l": content["options"]["time"] or "UNLIMITED", "N": text, "r": "None"}
    print(re.sub(r"%(\w)", lambda match: values[match[1]], options.format))


if __name__ == "__main__":
    {
        "sbatch": sbatch,
        "srun": srun,
        "scancel": scancel,
        "scontrol": scontrol,
        "squeue": squeue,
        "controller": controller,
    }[sys.argv[1]](sys.argv[2:])
