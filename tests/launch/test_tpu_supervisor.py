"""Keeping a job going on machines that come and go: a cloud and a machine that follow a script."""

import json

import pytest

from launch.attempts import Attempts
from launch.command_line import TrainerJob
from launch.tpu.accelerators import plan_machine
from launch.tpu.gcloud import Gcloud, GcloudError
from launch.tpu.remote import Answer, Bundle
from launch.tpu.supervisor import Settings, Supervisor


class Cloud(Gcloud):
    """Requests and machines by zone; each look goes one state further.

    Args:
        path: states that a new request goes through: pairs of (request, machine); the last one stays.
        refusals: `{zone: [GcloudError, ...]}` raised by the next calls that ask for a machine there.
    """

    def __init__(
        self, path=(("WAITING_FOR_RESOURCES", None), ("ACTIVE", "CREATING"), ("ACTIVE", "READY")), refusals=None
    ):
        super().__init__()
        self.path, self.refusals = path, refusals or {}
        self.jobs, self.created, self.deleted, self.copied = {}, [], [], []

    def describe_request(self, name, zone):
        job = self.jobs.get((name, zone))
        if job is None:
            return None
        job["now"] = job["path"].pop(0) if len(job["path"]) > 1 else job["path"][0]
        if job["now"] == (None, None):
            del self.jobs[name, zone]
            return None
        return {"state": {"state": job["now"][0]}} if job["now"][0] else None

    def describe_node(self, name, zone):
        job = self.jobs.get((name, zone))
        return {"state": job["now"][1]} if job and job["now"][1] else None

    def call(self, *arguments, **_):
        verb = arguments[3]
        if arguments[:2] == ("storage", "cp"):
            self.copied.append(arguments[3])
        elif verb == "create":
            zone = next(text for text in arguments if text.startswith("--zone=")).removeprefix("--zone=")
            if self.refusals.get(zone):
                raise self.refusals[zone].pop(0)
            self.created.append(zone)
            self.jobs[arguments[4], zone] = {"path": list(self.path), "now": None}
        elif verb == "delete":
            zone = arguments[5].removeprefix("--zone=")
            self.deleted.append(zone)
            self.jobs[arguments[4], zone]["path"] = [("DELETING", "DELETING"), (None, None)]
        return ""


class Machine:
    """The agent on a machine: its status comes from a script, a new line at each look.

    Args:
        script: list of states: an exit code, `running`, `none`, `unreachable`, or a callable that does something.
    """

    def __init__(self, script):
        self.script, self.verbs, self.setups, self.key = list(script), [], [], None

    def __call__(self, gcloud, name, zone):
        return self

    def copy(self, folder):
        self.verbs.append("copy")
        return Answer(True)

    def run(self, verb, worker=0):
        self.verbs.append(verb if worker == 0 else f"{verb} {worker}")
        if verb == "setup":
            return Answer(True, self.setups.pop(0) if self.setups else "agent: setup ended with 0\n")
        return Answer(True)

    def log(self, offset):
        self.verbs.append(f"log {offset}")
        return b"a line\n"

    def status(self):
        while callable(self.script[0]):
            self.script.pop(0)()
        now = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        if isinstance(now, int):
            return {"state": "ended", "code": now, "log_bytes": 7, "job": self.key}
        if now == "running":
            return {"state": now, "job": self.key}
        return {"state": now, "error": "ssh: no route"} if now == "unreachable" else {"state": now}


@pytest.fixture
def job(tmp_path, monkeypatch):
    """Makes supervisors of one job whose run directory is a folder here."""
    wheel = tmp_path / "code.whl"
    wheel.write_bytes(b"code")
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    waits = []

    def supervisor(cloud, machine, **more):
        settings = {"zones": ("us-west1-c", "us-east5-b"), "capacity": "spot", "machine": plan_machine("v4-8")}
        settings |= {"name": "bert-x", "run_dir": str(run_dir), "backoff_seconds": 1.0, "poll_seconds": 0.01}
        bundle = Bundle(
            "bert-x", TrainerJob(("pretrain.gin",), (), str(run_dir)), plan_machine("v4-8"), wheel=str(wheel)
        )
        shown = []
        made = Supervisor(
            Settings(**(settings | more)), cloud, bundle, show=shown.append, machine_at=machine, sleep=waits.append
        )
        made.shown = shown
        return made

    supervisor.attempts = lambda: Attempts(str(run_dir)).read()
    supervisor.waits = waits

    def step(number):
        (run_dir / "status.json").write_text(json.dumps({"state": "training", "step": number, "total": 100}))

    supervisor.step = step
    return supervisor


def test_machine_is_asked_for_set_up_followed_and_deleted(job):
    cloud, machine = Cloud(), Machine(["none", "running", "running", 0])
    supervisor = job(cloud, machine)
    assert supervisor.run() == 0
    assert cloud.created == ["us-west1-c"] and cloud.deleted == ["us-west1-c"] and not cloud.jobs
    assert machine.verbs == ["copy", "setup all", "start", "log 0"] and b"".join(supervisor.shown) == b"a line\n"
    assert [(attempt.code, bool(attempt.ended_at)) for attempt in job.attempts()] == [(0, True)]


def test_machine_is_kept_if_asked(job):
    cloud = Cloud()
    assert job(cloud, Machine(["none", 0]), keep=True).run() == 0
    assert cloud.deleted == [] and cloud.jobs


@pytest.mark.parametrize("code", [2, 70, 74, 1])
def test_what_starting_again_does_not_mend_ends_the_job(job, code):
    cloud = Cloud()
    assert job(cloud, Machine(["none", code])).run() == code
    assert not cloud.jobs and len(cloud.created) == 1


@pytest.mark.parametrize("code", [75, 124, 137])
def test_trainer_is_started_again_on_the_same_machine(job, code):
    cloud, machine = Cloud(), Machine(["none", code, "running", 0])
    assert job(cloud, machine).run() == 0
    assert machine.verbs.count("start") == 2 and machine.verbs.count("copy") == 1 and len(cloud.created) == 1


def test_preempted_machine_is_deleted_and_asked_for_anew(job):
    cloud = Cloud()

    def preempt():
        cloud.jobs["bert-x", "us-west1-c"]["path"] = [("SUSPENDING", "PREEMPTED"), ("SUSPENDED", None)]

    machine = Machine(["none", "running", preempt, "running", "none", 0])
    assert job(cloud, machine).run() == 0
    assert cloud.created == ["us-west1-c"] * 2 and cloud.deleted == ["us-west1-c"] * 2
    assert [attempt.code for attempt in job.attempts()] == [None, 0]
    assert "request SUSPENDED" in job.attempts()[0].reason


def test_machine_that_is_ready_but_does_not_answer_counts_as_lost(job):
    cloud, machine = Cloud(), Machine(["none", "running", "unreachable", "none", 0])
    assert job(cloud, machine, lost_seconds=0.0).run() == 0
    assert len(cloud.created) == 2 and len(cloud.deleted) == 2


def test_machine_that_answers_again_in_time_is_not_lost(job):
    cloud, machine = Cloud(), Machine(["none", "unreachable", "unreachable", "running", 0])
    assert job(cloud, machine, lost_seconds=3600.0).run() == 0
    assert len(cloud.created) == 1


def test_next_zone_is_asked_when_there_is_no_quota_and_when_nothing_comes(job):
    quota = GcloudError("quota", "RESOURCE_EXHAUSTED: Quota limit")
    cloud = Cloud(refusals={"us-west1-c": [quota]})
    assert job(cloud, Machine(["none", 0])).run() == 0
    assert cloud.created == ["us-east5-b"]
    waiting = Cloud(path=(("WAITING_FOR_RESOURCES", None),))
    supervisor = job(waiting, Machine(["none", 0]), wait_seconds=0.0)
    original = waiting.call

    def call(*arguments, **options):
        if "--zone=us-east5-b" in arguments:
            waiting.path = (("ACTIVE", "READY"),)
        return original(*arguments, **options)

    waiting.call = call
    assert supervisor.run() == 0
    assert waiting.created == ["us-west1-c", "us-east5-b"] and waiting.deleted == ["us-west1-c", "us-east5-b"]


def test_no_room_anywhere_is_tried_again_and_given_up_at_last(job):
    quota = GcloudError("quota", "RESOURCE_EXHAUSTED: Quota limit")
    cloud = Cloud(refusals={zone: [quota] * 9 for zone in ("us-west1-c", "us-east5-b")})
    assert job(cloud, Machine([0]), max_restarts=2).run() == 75
    assert not cloud.created and len(job.waits) == 2 and job.waits[1] > job.waits[0]


def test_job_outlives_a_time_without_network(job, capsys):
    cloud = Cloud()
    original, failures = cloud.describe_request, [2, 5, 6]
    calls = iter(range(100))

    def describe_request(name, zone):
        if next(calls) in failures:
            raise GcloudError("transient", "gcloud crashed (ConnectionError)")
        return original(name, zone)

    cloud.describe_request = describe_request
    assert job(cloud, Machine(["none", "running", "running", 0])).run() == 0
    assert len(cloud.created) == 1 and "Google does not answer" in capsys.readouterr().err


def test_what_is_not_allowed_ends_at_once(job):
    cloud = Cloud(refusals={"us-west1-c": [GcloudError("permission", "PERMISSION_DENIED")]})
    with pytest.raises(GcloudError, match="PERMISSION_DENIED"):
        job(cloud, Machine([0])).run()


def test_request_whose_answer_was_lost_is_found(job):
    cloud = Cloud()
    cloud.jobs["bert-x", "us-west1-c"] = {"path": [("ACTIVE", "READY")], "now": None}
    cloud.refusals = {"us-west1-c": [GcloudError("exists", "ALREADY_EXISTS")]}
    machine = Machine(["running", 0])
    assert job(cloud, machine).run() == 0
    assert cloud.created == [] and machine.verbs == ["log 0"]  # nothing was copied or started: the trainer ran


def test_machine_that_cannot_be_set_up_ends_the_job_instead_of_costing_money(job):
    cloud, machine = Cloud(), Machine(["none"])
    machine.setups = ["No matching distribution\nagent: setup ended with 1\n"] * 3
    assert job(cloud, machine).run() == 2
    assert not cloud.jobs and len(cloud.created) == 1 and machine.verbs.count("setup all") == 3
    cloud, machine = Cloud(), Machine(["none", "none", 0])
    machine.setups = ["agent: setup ended with 1\n"]
    assert job(cloud, machine).run() == 0


def test_job_with_another_configuration_is_left_alone(job, capsys):
    cloud, machine = Cloud(), Machine(["running"])
    cloud.jobs["bert-x", "us-west1-c"] = {"path": [("ACTIVE", "READY")], "now": None}
    machine.key = "another"
    assert job(cloud, machine).run() == 2
    assert cloud.jobs and machine.verbs == [] and "another configuration" in capsys.readouterr().err


def test_second_launcher_takes_up_the_job_and_its_attempt(job):
    cloud = Cloud()

    class Killed(BaseException):
        """The first launcher is killed here."""

    def kill():
        raise Killed

    with pytest.raises(Killed):
        job(cloud, Machine(["none", "running", kill, "running"])).run()
    machine = Machine(["running", 0])
    assert job(cloud, machine).run() == 0
    assert len(cloud.created) == 1 and "start" not in machine.verbs and len(job.attempts()) == 1


def test_restarts_count_without_progress_alone(job):
    steps = iter(range(10, 100, 10))

    def progress():
        job.step(next(steps))

    script = ["none", progress, 137, progress, 137, progress, 137, progress, 0]
    assert job(Cloud(), Machine(script), max_restarts=1).run() == 0
    assert job(Cloud(), Machine(["none", 137]), max_restarts=3).run() == 137


def test_budget_stops_saves_and_deletes(job):
    cloud, machine = Cloud(), Machine(["none", "running"])
    assert job(cloud, machine, max_hours=1e-9).run() == 75
    assert not cloud.jobs
    cloud, machine = Cloud(), Machine(["none", "running"])
    assert job(cloud, machine, max_dollars=1e-9).run() == 75
    assert not cloud.jobs


def test_record_is_copied_into_a_bucket(job, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr("launch.tpu.supervisor.read_text", lambda path: None)
    monkeypatch.setattr("launch.tpu.supervisor.read_status", lambda run_dir: None)
    cloud = Cloud()
    assert job(cloud, Machine(["none", 0]), run_dir="gs://bucket/runs/x").run() == 0
    assert set(cloud.copied) == {"gs://bucket/runs/x/attempts.jsonl"}
