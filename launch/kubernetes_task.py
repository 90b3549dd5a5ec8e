"""One pod of a Kubernetes job: waits for the other pods' names, and runs one trainer per GPU as a part of one cluster.

    python3 -m launch.kubernetes_task --service NAME --pods 2 --processes 8 -- TRAINER'S ARGUMENTS

The pod's number is JOB_COMPLETION_INDEX, its name NAME-NUMBER.NAME, by the headless service. The pod ends with the exit code
of the cause: a trainer whose peer is lost ends with 75, and so its pod starts again together with the lost one.
"""

import argparse
import os
import signal
import socket
import sys
import time

from launch.command_line import say
from launch.exit_codes import PREEMPTED, WRONG_INPUT
from launch.processes import Command, cluster_variables
from launch.supervision import supervise

_FIRST_PORT = 2222
_POLL_SECONDS = 2.0
_SAY_SECONDS = 60.0


def workers(service, pods, processes):
    """Returns the addresses of all trainers, pod by pod."""
    return [f"{service}-{pod}.{service}:{_FIRST_PORT + process}" for pod in range(pods) for process in range(processes)]


def make_commands(options, pod):
    """Returns a `Command` for each trainer of a pod.

    Args:
        options: the command line.
        pod: the pod's number.
    """
    addresses = workers(options.service, options.pods, options.processes)
    commands = []
    for process in range(options.processes):
        environment = {}
        if len(addresses) > 1:
            index = pod * options.processes + process
            environment |= cluster_variables(addresses, index)
        if options.processes > 1:
            environment |= {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": str(process)}
        commands.append(Command((sys.executable, "-m", options.module, *options.arguments), environment))
    return commands


def wait_for_names(hosts, *, resolve=socket.getaddrinfo, sleep=time.sleep):
    """Waits until all names are known: a pod has one once it has a node.

    Args:
        hosts: list of names.
        resolve: called with a name and None; raises OSError while the name is not known.
        sleep: called with the seconds between two looks.
    """
    missing, said_at = list(hosts), float("-inf")
    while True:
        missing = [host for host in missing if not _is_known(host, resolve)]
        if not missing:
            return
        if time.monotonic() - said_at > _SAY_SECONDS:
            said_at = time.monotonic()
            say(f"waiting for {len(missing)} of {len(hosts)} pods, {missing[0]} among them")
        sleep(_POLL_SECONDS)


def _is_known(host, resolve):
    try:
        resolve(host, None)
    except OSError:
        return False
    return True


def main(arguments=None):
    """Runs the command line; returns the pod's exit code, which is the trainer's."""
    parser = argparse.ArgumentParser(prog="python3 -m launch.kubernetes_task", allow_abbrev=False)
    add = parser.add_argument
    add("--service", required=True, help="name of the job and of its headless service")
    add("--pods", type=int, required=True)
    add("--processes", type=int, default=1, help="trainers in a pod; several have a GPU each")
    add("--grace_seconds", type=float, default=120.0)
    add("--module", default="trainer")
    add("arguments", nargs="*", help="the trainer's")
    options = parser.parse_args(arguments)
    # The first process of a container gets no signal that it does not handle.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(PREEMPTED))
    try:
        pod = int(os.environ["JOB_COMPLETION_INDEX"])
    except (KeyError, ValueError):
        say("JOB_COMPLETION_INDEX is not set: this runs in a pod of an Indexed Job")
        return WRONG_INPUT
    if options.pods > 1:
        wait_for_names([f"{options.service}-{number}.{options.service}" for number in range(options.pods)])
    say(f"pod {pod} of {options.pods}")
    commands = make_commands(options, pod)
    return supervise(lambda _: commands, max_restarts=0, grace_seconds=options.grace_seconds)


if __name__ == "__main__":
    sys.exit(main())
