"""Keeps a job on Cloud TPU going: a machine is asked for, set up, watched, and made again when it is taken away.

Nothing that matters is kept in this process: the request and the machine have the job's name, the agent on the machine knows
the trainer, the run directory has checkpoints. So the launcher can be killed at any time, and started again anywhere.
"""

import dataclasses
import os
import random
import re
import tempfile
import time

from launch.attempts import Attempts
from launch.background import duration
from launch.command_line import say
from launch.exit_codes import PREEMPTED, STORAGE, WRONG_INPUT, describe, worth_restarting
from launch.run_files import is_remote, job_folder, read_status, read_text
from launch.tpu.gcloud import GcloudError
from launch.tpu.remote import RemoteMachine
from launch.tpu.states import Action, decide, is_known

_SETUPS = 3  # how often a machine may fail to be set up


@dataclasses.dataclass(frozen=True)
class Settings:
    """How a job is kept going.

    Attributes:
        name: of the job, its request and its machine.
        zones: tried in this order.
        capacity: `on_demand`, `spot` or `reserved`.
        machine: `accelerators.Machine`.
        run_dir: the run directory.
        max_restarts: how often in a row it may be started again without a step more than it had.
        max_hours, max_dollars: of paid machine time, over all attempts; None for no limit.
        wait_seconds: how long a zone may take to give a machine before the next one is asked.
        lost_seconds: how long a machine may be unreachable, or under repair, before it counts as lost.
        poll_seconds: pause between two looks.
        backoff_seconds: before the first restart; it doubles with each in a row, up to ten minutes.
        keep: whether to leave the machine at the end.
        service_account, network: of the machine.
    """

    name: str
    zones: tuple
    capacity: str
    machine: object
    run_dir: str
    max_restarts: int = 20
    max_hours: float | None = None
    max_dollars: float | None = None
    wait_seconds: float = 3600.0
    lost_seconds: float = 300.0
    poll_seconds: float = 20.0
    backoff_seconds: float = 10.0
    keep: bool = False
    service_account: str | None = None
    network: str | None = None


class Supervisor:
    """One job.

    Args:
        settings: `Settings`.
        gcloud: `Gcloud`.
        bundle: `remote.Bundle`.
        show: callable that takes bytes of the trainer's log.
        machine_at: callable `(gcloud, name, zone) -> RemoteMachine`.
        sleep: callable that waits for seconds.
    """

    def __init__(self, settings, gcloud, bundle, *, show, machine_at=RemoteMachine, sleep=time.sleep):
        self.settings = settings
        self._gcloud = gcloud
        self._bundle = bundle
        self._show = show
        self._machine_at = machine_at
        self._sleep = sleep
        self._attempts = Attempts(job_folder(settings.run_dir, os.environ))
        self._zone = None  # where the request is, as far as is known
        self._zones_tried = 0
        self._since = {}  # when something began: waiting, being unreachable
        self._restarts, self._farthest = 0, None
        self._attempt = None  # number of the attempt that is paid for
        self._log_at = 0
        self._said = None
        self._failed_setups = 0

    def run(self):
        """Keeps the job going to its end; returns the trainer's exit code, or 75 if the budget is spent."""
        self._fetch_attempts()
        while True:
            try:
                code = self._go_on()
            except GcloudError as error:
                if error.kind != "transient":
                    raise
                # This computer is offline, or Google is: the job goes on meanwhile.
                self._tell(f"Google does not answer: {_first_line(error)}; trying again")
                self._pause()
                continue
            if code is not None:
                return code

    def _go_on(self):
        """Looks, and does what the states ask for; returns the exit code, None to go on."""
        request, node = self._look()
        if (zone := self._zone) is None:
            zone = self.settings.zones[self._zones_tried % len(self.settings.zones)]
        action = decide(request, node, is_lost=self._lasts("lost", self.settings.lost_seconds))
        if action != Action.WAIT:
            self._since.pop("wait", None)
        do = {
            Action.CREATE: self._create,
            Action.WAIT: self._wait,
            Action.WAIT_FOR_REPAIR: self._wait_for_repair,
            Action.USE: self._use,
            Action.RECREATE: self._recreate,
            Action.WAIT_UNTIL_GONE: self._wait_until_gone,
        }
        return do[action](zone, request, node)

    # Looking.

    def _look(self):
        """Returns (state of the request, state of the machine), None for what is not there."""
        name = self.settings.name
        for zone in (self._zone,) if self._zone else self.settings.zones:
            request = self._gcloud.describe_request(name, zone)
            node = self._gcloud.describe_node(name, zone)
            if request or node:
                if self._zone is None:
                    self._tell(f"{name} is in {zone}: going on with it")
                self._zone = zone
                states = (
                    (request.get("state") or {}).get("state", "UNSPECIFIED") if request else None,
                    node.get("state", "UNSPECIFIED") if node else None,
                )
                known = "" if is_known(*states) else " (unknown here: waiting)"
                self._tell(f"request {states[0] or 'gone'}, machine {states[1] or 'not there'}{known}")
                return states
        self._zone = None
        return None, None

    def _tell(self, text):
        """Says something once."""
        if text != self._said:
            self._said = text
            say(text)

    def _lasts(self, what, seconds):
        """Returns whether something that began has lasted so long."""
        return what in self._since and time.monotonic() - self._since[what] > seconds

    def _begins(self, what):
        self._since.setdefault(what, time.monotonic())

    def _pause(self):
        self._sleep(self.settings.poll_seconds * random.uniform(0.8, 1.2))

    # What the states ask for.

    def _create(self, zone, request, node):
        settings = self.settings
        if (code := self._check_budget()) is not None:
            return code
        say(f"asking for {settings.machine.accelerator} ({settings.capacity}) in {zone}")
        try:
            self._gcloud.call(
                *self._gcloud.create_arguments(
                    settings.name,
                    zone,
                    settings.machine,
                    settings.capacity,
                    service_account=settings.service_account,
                    network=settings.network,
                )
            )
        except GcloudError as error:
            if error.kind == "exists":  # asked for by a call whose answer was lost
                self._zone = zone
                return None
            self._zones_tried += 1
            if error.kind not in ("quota", "not_found", "transient") or self._zones_tried % len(settings.zones) == 0:
                if error.kind not in ("quota", "transient"):
                    raise
                if (code := self._count_restart(f"no zone has room: {_first_line(error)}", PREEMPTED)) is not None:
                    return code
            else:
                say(f"{zone}: {_first_line(error)}; trying the next zone")
            return None
        self._zone = zone
        return None

    def _wait(self, zone, request, node):
        self._begins("wait")
        if self._lasts("wait", self.settings.wait_seconds):
            self._zones_tried += 1
            self._since.pop("wait")
            # Spot machines have been seen to stay in PROVISIONING for ever.
            if len(self.settings.zones) > 1 or request == "PROVISIONING":
                say(f"no machine in {zone} after {duration(self.settings.wait_seconds)}: asking again")
                self._delete(zone)
                return
            say(f"no machine in {zone} after {duration(self.settings.wait_seconds)}; waiting on (Ctrl-C ends it)")
        self._pause()
        return

    def _wait_for_repair(self, zone, request, node):
        self._begins("lost")
        self._pause()
        return

    def _wait_until_gone(self, zone, request, node):
        self._end_attempt(None, "the machine was deleted")
        self._pause()
        return

    def _recreate(self, zone, request, node):
        self._since.pop("lost", None)
        reason = f"the machine is lost (request {request or 'gone'}, machine {node or 'gone'})"
        self._end_attempt(None, reason)
        self._delete(zone)
        return self._count_restart(reason, PREEMPTED)

    def _use(self, zone, request, node):
        """The machine is ready: has the trainer run there, and follows it."""
        if self._attempt is None:
            self._take_up_attempt()
        if (code := self._check_budget()) is not None:
            return code
        machine = self._machine_at(self._gcloud, self.settings.name, zone)
        status = machine.status()
        if status["state"] == "unreachable":
            self._begins("lost")
            self._tell(f"the machine does not answer: {_first_line(status['error'])}")
            self._pause()
            return None
        self._since.pop("lost", None)
        ours = status.get("job") in (None, self._bundle.description["key"])
        if not ours and status["state"] == "running":
            say(
                f"a job with another configuration runs as {self.settings.name}: stop it (launch/tpu.sh stop), give the "
                "options it was started with, or another --name"
            )
            return WRONG_INPUT
        if status["state"] == "none" or not ours:
            return self._start(machine)
        self._follow(machine, status.get("log_bytes", 0))
        if status["state"] == "running":
            self._attempts.see(self._attempt, self._step())
            self._pause()
            return None
        return self._ended(machine, status["code"])

    def _start(self, machine):
        """Sets the machine up and starts the trainer; what fails is tried again in the next round."""
        with tempfile.TemporaryDirectory(prefix="bert-trainer-bundle-") as folder:
            self._bundle.write(folder)
            say("copying the code to the machine")
            answer = machine.copy(folder)
            if answer.reached:
                say("setting it up")
                answer = machine.run("setup", "all")
                if answer.reached and (failed := _setup_failure(answer.text, self.settings.machine.vms)):
                    return self._count_failed_setup(failed)
            if answer.reached:
                answer = machine.run("start")
        if not answer.reached:
            self._begins("lost")
            say(f"setting the machine up failed: {answer.error.strip()[-500:]}")
            self._pause()
            return None
        self._since.pop("lost", None)
        self._log_at = 0
        say("the trainer runs")
        return None

    def _count_failed_setup(self, reason):
        """Tries again, but not for long: the machine costs money. Returns the exit code, or None to go on."""
        self._failed_setups += 1
        say(f"setting the machine up failed ({self._failed_setups} of {_SETUPS}): {reason}")
        if self._failed_setups < _SETUPS:
            self._pause()
            return None
        self._end_attempt(WRONG_INPUT, "the machine could not be set up")
        return self._finish(WRONG_INPUT)

    def _ended(self, machine, code):
        step = self._step()
        say(f"the trainer ended with {describe(code)}")
        if not worth_restarting(code):
            self._end_attempt(code, describe(code))
            return self._finish(code)
        if (given_up := self._count_restart(describe(code), code)) is not None:
            return given_up
        self._attempts.see(self._attempt, step)
        answer = machine.run("start")
        if not answer.reached:
            self._begins("lost")
        return None

    # Counting.

    def _step(self):
        status = read_status(self.settings.run_dir)
        return status["step"] if status and isinstance(status.get("step"), int) else None

    def _count_restart(self, reason, code):
        """Notes that the job has to be started again; waits, and returns None, or the exit code if it is given up."""
        step = self._step()
        if step is not None and (self._farthest is None or step > self._farthest):
            self._farthest, self._restarts = step, 0
        if self._restarts >= self.settings.max_restarts:
            say(f"{reason}; given up after {self._restarts} restarts without progress (--max_restarts)")
            self._end_attempt(code, reason)
            return self._finish(code)
        wait = min(600.0, self.settings.backoff_seconds * 2**self._restarts) * random.uniform(0.8, 1.2)
        self._restarts += 1
        say(f"{reason}; going on in {wait:.0f} s (restart {self._restarts} of {self.settings.max_restarts})")
        self._sleep(wait)
        return None

    def _take_up_attempt(self):
        """Takes up the attempt that a launcher before this one began, if it is still open, or begins one."""
        last = next(reversed(self._attempts.read()), None)
        self._attempt = last.number if last and last.ended_at is None else self._attempts.begin()
        self._publish_attempts()

    def _end_attempt(self, code, reason):
        if self._attempt is None:
            last = next(reversed(self._attempts.read()), None)
            if last is None or last.ended_at is not None:
                return
            self._attempt = last.number
        self._attempts.end(self._attempt, code, self._step(), reason)
        self._attempt = None
        self._publish_attempts()

    def end(self, reason):
        """Notes that the machine was deleted by somebody else."""
        self._end_attempt(PREEMPTED, reason)
        self._zone = None

    def paid(self):
        """Returns (hours of machine time so far, about how many dollars they cost, or None)."""
        now = time.time()
        hours = 0.0
        for attempt in self._attempts.read():
            runs = attempt.number == self._attempt and attempt.ended_at is None
            hours += (now - attempt.began_at if runs else attempt.seconds) / 3600
        price = self.settings.machine.dollars_per_hour.get(self.settings.capacity)
        return hours, None if price is None else hours * price

    def _check_budget(self):
        """Returns None, or the exit code, with everything stopped, if the budget is spent."""
        settings = self.settings
        hours, dollars = self.paid()
        spent = settings.max_hours is not None and hours >= settings.max_hours
        spent |= settings.max_dollars is not None and dollars is not None and dollars >= settings.max_dollars
        if not spent:
            return None
        about = "" if dollars is None else f", about ${dollars:,.2f}"
        say(f"the budget is spent: {hours:.2f} hours{about}; saving and stopping")
        if self._zone is not None and self._attempt is not None:
            machine = self._machine_at(self._gcloud, settings.name, self._zone)
            machine.run("stop")
            self._follow(machine, machine.status().get("log_bytes", 0))
        self._end_attempt(PREEMPTED, "the budget is spent")
        return self._finish(PREEMPTED)

    # The end.

    def _finish(self, code):
        hours, dollars = self.paid()
        about = "" if dollars is None else f", about ${dollars:,.2f}"
        say(f"{hours:.2f} hours of machine time{about}")
        if self._zone is not None and self.settings.keep:
            say(
                f"the machine is kept and paid for: launch/tpu.sh delete --name {self.settings.name} --zone {self._zone}"
            )
        elif self._zone is not None:
            self._delete(self._zone)
        return code

    def _delete(self, zone):
        """Deletes the request and the machine, and waits until both are gone."""
        delete_job(self._gcloud, self.settings.name, zone, self._pause)
        self._zone = None

    # Log and record.

    def _follow(self, machine, size):
        if size < self._log_at:  # another machine's log
            self._log_at = 0
        while self._log_at < size:
            content = machine.log(self._log_at)
            if not content:
                return
            self._log_at += len(content)
            self._show(content)

    def _publish_attempts(self):
        """Copies the record into the run directory, if that is in a bucket."""
        if is_remote(self.settings.run_dir):
            target = f"{self.settings.run_dir.rstrip('/')}/{os.path.basename(self._attempts.path)}"
            try:
                self._gcloud.call("storage", "cp", self._attempts.path, target)
            except GcloudError as error:
                say(f"the record of attempts could not be copied to {target}: {_first_line(error)}")

    def _fetch_attempts(self):
        """Takes over the record of a launcher on another machine."""
        if not is_remote(self.settings.run_dir) or os.path.exists(self._attempts.path):
            return
        text = read_text(f"{self.settings.run_dir.rstrip('/')}/{os.path.basename(self._attempts.path)}")
        if text:
            os.makedirs(os.path.dirname(self._attempts.path), exist_ok=True)
            with open(self._attempts.path, "w", encoding="utf-8") as file:
                file.write(text)


def delete_job(gcloud, name, zone, pause):
    """Deletes a request and its machine, in whatever state they are; waits until both are gone.

    Args:
        gcloud: `Gcloud`.
        name, zone: of the request.
        pause: called between two looks.
    """
    asked = False
    while True:
        request, node = gcloud.describe_request(name, zone), gcloud.describe_node(name, zone)
        if request is None and node is None:
            say(f"{name} in {zone} is deleted")
            return
        deleting = "DELETING" in ((request or {}).get("state", {}).get("state"), (node or {}).get("state"))
        if not asked or not deleting:
            arguments = gcloud.delete_arguments if request else gcloud.delete_node_arguments
            try:
                gcloud.call(*arguments(name, zone))
            except GcloudError as error:
                if error.kind not in ("not_found", "other", "transient"):
                    raise
                say(f"deleting {name}: {_first_line(error)}")
            asked = True
        pause()


def _setup_failure(text, num_vms):
    """Returns why machines could not be set up, from what their agents printed; None if all were."""
    codes = re.findall(r"^agent: setup ended with (\d+)\s*$", text, re.MULTILINE)
    if len(codes) == num_vms and set(codes) == {"0"}:
        return None
    said = [line.strip() for line in text.splitlines() if line.strip()]
    return " | ".join(said[-5:]) or "the agent said nothing"


def exit_code_of(error):
    """Returns the launcher's exit code for a `GcloudError`."""
    return 2 if error.kind in ("permission", "missing", "not_found", "other") else STORAGE


def _first_line(error):
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "no reason given")[:300]
