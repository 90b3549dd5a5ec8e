"""Runs the trainer on Cloud TPU: `launch/tpu.sh --accelerator v5litepod-8 --zone us-west1-c --gin pretrain.gin ...`

Asks for a machine, sets it up, runs the trainer, shows its log, starts it again when the machine is taken away, and deletes
the machine at the end. The job goes on when this command, or the computer it runs on, ends: the same command finds it again.
Options that are not listed here go to the trainer as they are. Other commands:

    launch/tpu.sh status | logs | ssh | stop | delete --name NAME --zone ZONE
    launch/tpu.sh list | gc --zone ZONE [--zone ZONE]...    # what there is; delete what only counts against the quota
"""

import argparse
import contextlib
import os
import re
import signal
import subprocess
import sys
import time

from launch.attempts import FILE as ATTEMPTS_FILE
from launch.attempts import Attempts, parse_attempts
from launch.background import status_lines
from launch.command_line import (
    add_job_options,
    check_name,
    command_text,
    confirm,
    default_run_dir,
    make_parser,
    parse_job,
    say,
    split_verb,
)
from launch.exit_codes import PREEMPTED, STORAGE, WRONG_INPUT
from launch.run_files import is_remote, job_folder, read_status, read_text
from launch.tpu.accelerators import CAPACITIES, plan_machine
from launch.tpu.gcloud import LABEL, Gcloud, GcloudError
from launch.tpu.remote import Bundle, RemoteMachine, command, folder_name, install_arguments
from launch.tpu.supervisor import Settings, Supervisor, delete_job, exit_code_of

_SCRIPT = "launch/tpu.sh"
_VERBS = {
    "run": "keeps a job going",
    "status": "Tells what a job does, on Google's side, on the machine and in the run directory.",
    "logs": "Shows the trainer's log.",
    "ssh": "Opens a shell on the machine.",
    "stop": "Lets the trainer save and stop; the machine stays, and is paid for.",
    "delete": "Deletes a job's request and machine.",
    "list": "Lists requests and machines that launch/tpu.sh made.",
    "gc": "Deletes requests of ours that will never give a machine again, and machines without a request.",
}
_ZONE = re.compile(r"[a-z]+-[a-z]+\d+-[a-z]")


def main(arguments=None):
    """Runs the command line; returns the exit code."""
    verb, arguments = split_verb(arguments, _VERBS)
    try:
        return _run(arguments) if verb == "run" else _look_after(verb, arguments)
    except GcloudError as error:
        say(f"gcloud: {error}")
        if error.kind == "permission":
            say(
                "`gcloud auth login` and `gcloud config set project PROJECT` may mend it; the account needs roles/tpu.admin"
            )
        return exit_code_of(error)


def _add_where(parser, several):
    add = parser.add_argument
    zones = "; several are tried in order" if several else ""
    add("--zone", action="append", default=[], metavar="ZONE", help=f"zone of Google Cloud (repeatable{zones})")
    add("--project", metavar="PROJECT", help="project of Google Cloud; default: gcloud's")


def _run_parser():
    parser = make_parser(_SCRIPT, __doc__)
    add = parser.add_argument
    add("--accelerator", required=True, metavar="TYPE", help="such as v5litepod-8, v5p-8, v4-8, v3-8")
    _add_where(parser, several=True)
    add("--name", help="of the job, its request and its machine; default: from the run directory")
    add("--capacity", choices=CAPACITIES, default="spot", help="default: spot, which may be taken away at any time")
    add_job_options(parser, max_restarts=20)
    add("--max_hours", type=_positive, metavar="H", help="of paid machine time; then it saves, stops and deletes")
    add("--max_cost", type=_positive, metavar="USD", help="as --max_hours, by the estimated price")
    add("--price", type=_positive, metavar="USD", help="of the whole machine an hour, instead of the estimate")
    add("--wait_minutes", type=_positive, default=60.0, metavar="M", help="for a machine in a zone; default: 60")
    add("--lost_minutes", type=_positive, default=5.0, metavar="M", help="not reached: lost; default: 5")
    add("--poll_seconds", type=_positive, default=20.0, metavar="S", help="between two looks; default: 20")
    add("--backoff_seconds", type=_positive, default=10.0, metavar="S", help="before a first restart; default: 10")
    add("--keep", action="store_true", help="leave the machine, and its price, at the end")
    add("--image", metavar="VERSION", help="runtime version; default: by a table")
    add("--tensorflow", metavar="VERSION", help="version of tensorflow-tpu; default: by a table")
    add("--allow_untested", action="store_true", help="try what is known not to work")
    add("--allow_cpu", action="store_true", help="train on the machine's processor if it has no TPU")
    add("--env", action="append", default=[], metavar="NAME=VALUE", help="variable for the trainer (repeatable)")
    add("--wheel", metavar="FILE", help="the code; default: a wheel is built from this repository")
    add(
        "--remote_python",
        metavar="PATH",
        help="interpreter there with all that is needed: nothing is installed",
    )
    add("--service_account", metavar="EMAIL", help="of the machine: give it the bucket, and no more")
    add("--network", metavar="NAME", help="of the machine")
    return parser


def _run(arguments):
    parser = _run_parser()
    options, job = parse_job(parser, arguments)
    try:
        settings = _settings(options, job)
    except ValueError as error:
        parser.error(str(error))
    gcloud = Gcloud(options.project)
    if options.dry_run:
        _show_plan(gcloud, settings, job, options)
        return 0
    _say_cost(settings)
    for warning in settings.machine.warnings:
        say(f"warning: {warning}")
    if not confirm(f"Ask for {settings.machine.accelerator} ({settings.capacity})?", options):
        return WRONG_INPUT
    bundle = Bundle(
        settings.name,
        job,
        settings.machine,
        wheel=options.wheel,
        python=options.remote_python,
        allow_cpu=options.allow_cpu,
        environment=tuple(options.env),
    )
    supervisor = Supervisor(settings, gcloud, bundle, show=_show)
    _say_commands(settings, options.project)
    with _terminated():
        while True:
            try:
                return supervisor.run()
            except KeyboardInterrupt:
                code = _interrupted(gcloud, settings, supervisor, options)
                if code is not None:
                    return code
            except _Terminated:
                say("this launcher ends; the job goes on, and is paid for. The same command finds it again.")
                return PREEMPTED


def _settings(options, job):
    """Returns the `Settings`; raises ValueError with a message for a person."""
    zones = _check_zones(options.zone)
    if not zones:
        raise ValueError("--zone ZONE is needed, for example --zone us-west1-c")
    name = _check_name(options.name, job.run_dir)
    if options.run_dir is None:
        raise ValueError("--run_dir gs://BUCKET/FOLDER is needed: what lies on the machine goes with it")
    if not is_remote(job.run_dir) and not os.path.isabs(job.run_dir):
        raise ValueError(
            f"--run_dir {job.run_dir} would lie on the machine's own disk and go with it: use gs://BUCKET/FOLDER, or the "
            "absolute path of a file system that is mounted on the machine and here"
        )
    for text in options.env:
        if not re.match(r"[A-Za-z_][A-Za-z0-9_]*=", text):
            raise ValueError(f"--env {text!r}: NAME=VALUE is needed")
    if options.wheel and not os.path.isfile(options.wheel):
        raise ValueError(f"--wheel {options.wheel}: there is no such file")
    machine = plan_machine(
        options.accelerator,
        image=options.image,
        tensorflow=options.tensorflow,
        allow_untested=options.allow_untested,
    )
    if options.price:
        machine.dollars_per_hour[options.capacity] = options.price
    if options.max_cost and options.capacity not in machine.dollars_per_hour:
        raise ValueError(f"--max_cost: the price of {options.accelerator} is not known: give --price, or --max_hours")
    return Settings(
        name=name,
        zones=zones,
        capacity=options.capacity,
        machine=machine,
        run_dir=job.run_dir,
        max_restarts=options.max_restarts,
        max_hours=options.max_hours,
        max_dollars=options.max_cost,
        wait_seconds=60 * options.wait_minutes,
        lost_seconds=60 * options.lost_minutes,
        poll_seconds=options.poll_seconds,
        backoff_seconds=options.backoff_seconds,
        keep=options.keep,
        service_account=options.service_account,
        network=options.network,
    )


def _check_name(name, run_dir):
    """Returns the name of a job, by default from its run directory; raises ValueError if it cannot be one."""
    default = f"bert-{os.path.basename((run_dir or '').rstrip('/'))}".lower()
    return check_name(name or re.sub(r"[^a-z0-9]+", "-", default), "--name")


def _check_zones(zones):
    for zone in zones:
        if not _ZONE.fullmatch(zone):
            raise ValueError(f"--zone {zone!r} is not a zone, such as us-west1-c")
    return tuple(dict.fromkeys(zones))


def _positive(text):
    number = float(text)
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text}: more than 0")
    return number


def _show_plan(gcloud, settings, job, options):
    """Prints what would be asked for, run and paid."""
    machine, name = settings.machine, settings.name
    chips = f"{machine.chips} chip{'s' if machine.chips > 1 else ''}"
    print(f"machine     {machine.accelerator}: {chips} on {machine.vms} machine{'s' if machine.is_pod else ''}")
    print(f"image       {machine.image}, tensorflow-tpu {machine.tensorflow}")
    print(f"capacity    {settings.capacity}, in {', then '.join(settings.zones)}")
    print(f"cost        {_cost(settings)}")
    for warning in machine.warnings:
        print(f"warning     {warning}")
    print(f"would make  queued resource {name} with machine {name}, label {LABEL}={name}")
    zone = settings.zones[0]
    account = {"service_account": settings.service_account, "network": settings.network}
    create = gcloud.create_arguments(name, zone, machine, settings.capacity, **account)
    lines = [create, gcloud.copy_arguments(f"BUNDLE/{folder_name(name)}", name, zone, ".")]
    lines += [gcloud.ssh_arguments(name, zone, "all", command(name, "setup"))]
    lines += [gcloud.ssh_arguments(name, zone, 0, command(name, "start"))]
    lines += [] if settings.keep else [gcloud.delete_arguments(name, zone)]
    print("would run")
    for line in lines:
        print(f"  {command_text(gcloud.command(*line))}")
    print("on every machine, in an environment of its own" if not options.remote_python else "on worker 0")
    for line in [] if options.remote_python else install_arguments(machine):
        print(f"  {command_text(['python', '-m', 'pip', 'install', *line])}")
    if not options.remote_python:
        print("on worker 0")
    python = options.remote_python or "python"
    trainer = [python, "-m", "launch.local", "run", "--once", *job.arguments()]
    print(f"  {command_text(trainer, dict(text.split('=', 1) for text in options.env))}")


def _cost(settings):
    price = settings.machine.dollars_per_hour.get(settings.capacity)
    limits = [f"at most {settings.max_hours:g} hours"] if settings.max_hours else []
    limits += [f"at most ${settings.max_dollars:g}"] if settings.max_dollars else []
    estimate = "not known: see cloud.google.com/tpu/pricing" if price is None else f"about ${price:,.2f} an hour"
    return ", ".join([estimate, *(limits or ["no limit (--max_hours, --max_cost)"])])


def _say_cost(settings):
    say(f"cost: {_cost(settings)}")


def _say_commands(settings, project):
    where = ["--name", settings.name, "--zone", settings.zones[0], *(["--project", project] if project else [])]
    say("the job goes on without this command. In another terminal:")
    for verb in ("status", "logs", "stop", "delete"):
        extra = ["--run_dir", settings.run_dir] if verb == "status" else []
        print(f"  {command_text([_SCRIPT, verb, *where, *extra])}", file=sys.stderr, flush=True)


def _show(content):
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.buffer.write(content)
        sys.stdout.buffer.flush()


class _Terminated(Exception):
    """This launcher was asked to end."""


@contextlib.contextmanager
def _terminated():
    """Turns SIGTERM and SIGHUP into `_Terminated` while the context lasts."""

    def terminate(*_):
        raise _Terminated

    before = {number: signal.signal(number, terminate) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _interrupted(gcloud, settings, supervisor, options):
    """Asks what Ctrl-C means; returns the exit code, or None to go on."""
    answer = "s" if options.yes else None
    while answer is None and sys.stdin.isatty():
        try:
            answer = (
                input("\nlaunch: [s]top and delete, [k]eep the job running and leave, [c]ontinue? ").strip().lower()[:1]
            )
        except (KeyboardInterrupt, EOFError):
            answer = "k"
        answer = answer if answer in ("s", "k", "c") else None
    if answer == "c":
        return None
    if answer == "s":
        for zone in settings.zones:
            if gcloud.describe_node(settings.name, zone):
                say("the trainer saves and stops")
                RemoteMachine(gcloud, settings.name, zone).run("stop")
            if gcloud.describe_request(settings.name, zone) or gcloud.describe_node(settings.name, zone):
                delete_job(gcloud, settings.name, zone, lambda: time.sleep(settings.poll_seconds))
        supervisor.end("stopped by Ctrl-C")
        return 128 + signal.SIGINT
    say("the job goes on, and is paid for. The same command finds it again.")
    return 128 + signal.SIGINT


def _look_after(verb, arguments):
    """Runs one of the other commands; returns the exit code."""
    parser = argparse.ArgumentParser(prog=f"{_SCRIPT} {verb}", description=_VERBS[verb], allow_abbrev=False)
    add = parser.add_argument
    _add_where(parser, several=False)
    if verb not in ("list", "gc"):
        add("--name", help="of the job; default: from --run_dir")
        add("--run_dir", metavar="DIR", help="the run directory of the job")
        add("--gin", action="append", default=[], metavar="FILE", help=argparse.SUPPRESS)
    if verb in ("delete", "gc", "stop"):
        add("--yes", action="store_true", help="answer every question with yes")
        add("--dry_run", action="store_true", help="print what would be done, do nothing")
        add("--poll_seconds", type=_positive, default=5.0, metavar="S", help="between two looks; default: 5")
    if verb == "logs":
        add("-f", "--follow", action="store_true", help="go on until the trainer ends")
    options = parser.parse_args(arguments)
    try:
        zones = _check_zones(options.zone)
        if not zones:
            raise ValueError("--zone ZONE is needed")
        if verb not in ("list", "gc"):
            run_dir = options.run_dir or (default_run_dir(options.gin) if options.gin else None)
            if options.name is None and run_dir is None:
                raise ValueError("--name NAME is needed, or the --run_dir of the job")
            name = _check_name(options.name, run_dir)
    except ValueError as error:
        parser.error(str(error))
    gcloud = Gcloud(options.project)
    if verb in ("list", "gc"):
        return _list(gcloud, zones) if verb == "list" else _collect(gcloud, zones, options)
    if verb == "status":
        return _status(gcloud, name, zones, run_dir)
    zone = next(
        (zone for zone in zones if gcloud.describe_request(name, zone) or gcloud.describe_node(name, zone)), None
    )
    if zone is None:
        say(f"there is no {name} in {', '.join(zones)}")
        return WRONG_INPUT
    machine = RemoteMachine(gcloud, name, zone)
    if verb == "delete":
        return _delete(gcloud, name, zone, options)
    if verb == "ssh":
        return subprocess.run(gcloud.command("compute", "tpus", "tpu-vm", "ssh", name, f"--zone={zone}")).returncode
    if verb == "stop":
        answer = machine.run("stop")
        say("the trainer has stopped; the machine is still paid for" if answer.reached else answer.error)
        return 0 if answer.reached else STORAGE
    return _logs(machine, options.follow)


def _status(gcloud, name, zones, run_dir):
    found = False
    for zone in zones:
        request, node = gcloud.describe_request(name, zone), gcloud.describe_node(name, zone)
        if request is None and node is None:
            continue
        found = True
        print(f"job        {name} in {zone}")
        print(f"request    {request['state']['state'] if request else 'gone'}")
        health = f", {node['health'].lower()}" if node and node.get("health") else ""
        print(f"machine    {node['state'] + health if node else 'not there'}")
        if node and node.get("state") == "READY":
            status = RemoteMachine(gcloud, name, zone).status()
            code = f" with {status['code']}" if "code" in status else ""
            print(f"trainer    {status['state']}{code}")
    if not found:
        print(f"job        {name} is not in {', '.join(zones)}")
    if run_dir is None:
        return 0 if found else WRONG_INPUT
    # Of a run in a bucket another computer may know more than this one.
    published = read_text(f"{run_dir.rstrip('/')}/{ATTEMPTS_FILE}") if is_remote(run_dir) else None
    attempts = parse_attempts(published) if published else Attempts(job_folder(run_dir, os.environ)).read()
    status = read_status(run_dir)
    for line in status_lines(status, attempts):
        print(line)
    return 0 if found or status or attempts else WRONG_INPUT


def _logs(machine, follow):
    position = 0
    while True:
        status = machine.status()
        if status["state"] == "unreachable":
            say(status["error"])
            return STORAGE
        while position < status.get("log_bytes", 0):
            content = machine.log(position)
            if not content:
                break
            position += len(content)
            _show(content)
        if not follow or status["state"] != "running":
            return 0
        time.sleep(5)


def _delete(gcloud, name, zone, options):
    if options.dry_run:
        print(command_text(gcloud.command(*gcloud.delete_arguments(name, zone))))
        return 0
    if not confirm(f"Delete {name} in {zone}, with its machine?", options):
        return WRONG_INPUT
    delete_job(gcloud, name, zone, lambda: time.sleep(options.poll_seconds))
    return 0


def _ours(gcloud, zone):
    """Returns what launch/tpu.sh made in a zone: a list of (name, state of the request, state of the machine)."""
    requests = {_last_part(entry["name"]): entry for entry in gcloud.list_requests(zone)}
    nodes = {_last_part(entry["name"]): entry for entry in gcloud.list_nodes(zone)}
    found = []
    for name in sorted(requests | nodes):
        request, node = requests.get(name), nodes.get(name)
        if _is_ours(request, node):
            state = (request.get("state") or {}).get("state", "UNSPECIFIED") if request else None
            found.append((name, state, node.get("state") if node else None))
    return found


def _is_ours(request, node):
    specs = ((request or {}).get("tpu") or {}).get("nodeSpec") or []
    labelled = [*(spec.get("node") or {} for spec in specs), node or {}]
    return any(LABEL in (entry.get("labels") or {}) for entry in labelled)


def _last_part(name):
    return name.rpartition("/")[2]


def _list(gcloud, zones):
    for zone in zones:
        for name, request, node in _ours(gcloud, zone):
            print(f"{zone:<18} {name:<40} request {request or 'gone':<22} machine {node or 'not there'}")
    return 0


def _collect(gcloud, zones, options):
    """Deletes what will never work again and only counts against the quota, or costs money for nothing."""
    for zone in zones:
        for name, request, node in _ours(gcloud, zone):
            dead = request in ("SUSPENDED", "FAILED") or (request is None and node != "DELETING")
            dead |= request == "ACTIVE" and node in (None, "PREEMPTED", "TERMINATED")
            if not dead:
                continue
            what = f"{name} in {zone} (request {request or 'gone'}, machine {node or 'not there'})"
            if options.dry_run:
                print(f"would delete {what}")
            elif confirm(f"Delete {what}?", options):
                delete_job(gcloud, name, zone, lambda: time.sleep(options.poll_seconds))
    return 0


if __name__ == "__main__":
    sys.exit(main())
