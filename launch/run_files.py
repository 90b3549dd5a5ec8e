"""What a launcher reads of a run: its status, without TensorFlow, from a disk or, through gcloud, from a bucket."""

import hashlib
import json
import os
import re
import subprocess

_TIMEOUT_SECONDS = 60


def is_remote(path):
    """Returns whether a path lies in an object store."""
    return "://" in path


def job_folder(run_dir, environment):
    """Returns the folder on this machine for what a launcher keeps of a run: the run directory, if it is here.

    Args:
        run_dir: the run directory, local or `gs://`.
        environment: the environment variables.
    """
    if not is_remote(run_dir):
        return run_dir
    state = environment.get("XDG_STATE_HOME") or os.path.join(os.path.expanduser("~"), ".local", "state")
    readable = re.sub(r"[^A-Za-z0-9._-]+", "-", run_dir.partition("://")[2]).strip("-")[-60:]
    return os.path.join(state, "bert-trainer", f"{readable}-{hashlib.sha256(run_dir.encode()).hexdigest()[:8]}")


def read_text(path):
    """Returns the text of a file, None if it is not there or cannot be read now.

    Args:
        path: local or `gs://`; the latter needs the command `gcloud`.
    """
    if not is_remote(path):
        try:
            with open(path, encoding="utf-8", errors="replace") as file:
                return file.read()
        except OSError:
            return None
    try:
        answer = subprocess.run(
            ["gcloud", "storage", "cat", path],
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_SECONDS,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout if answer.returncode == 0 else None


def read_status(run_dir):
    """Returns the dict of a run's `status.json`, None if there is none."""
    text = read_text(f"{run_dir.rstrip('/')}/status.json")
    try:
        status = json.loads(text) if text else None
    except ValueError:
        return None
    return status if isinstance(status, dict) else None
