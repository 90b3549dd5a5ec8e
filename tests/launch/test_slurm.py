"""The launcher for Slurm: on stand-ins for its commands that really start processes, and on Slurm where it is installed."""

import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import types

import pytest
from end_to_end import small_corpora, trainer_process
from stub_slurm.clusters import eventually, slurm_cluster, stub_cluster
from tensorflow.python.distribute.cluster_resolver import slurm_cluster_resolver

from launch import slurm
from launch.attempts import Attempt, Attempts
from launch.slurm_batch import restarts_without_progress, step_code, why_not_again
from launch.slurm_task import expand_counts, expand_hosts, is_taken, place_of, port_of, task_environment

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
GOLDEN = pathlib.Path(__file__).parent / "golden"
HOSTILE = [
    "it's",
    '$(touch hacked) `touch hacked` "; touch hacked; #',
    "a\nb\n#SBATCH --hold",
    "--",
    "\\",
    "%j*?[a-z]~",
    "é 漢",
]


@pytest.fixture(scope="module", params=["stub", pytest.param("slurm", marks=pytest.mark.slow)])
def cluster(request, tmp_path_factory):
    """A cluster of two nodes, 127.0.0.9 and 127.0.0.10."""
    make = {"stub": stub_cluster, "slurm": slurm_cluster}[request.param]
    with make(tmp_path_factory.mktemp("cluster") / request.param) as made:
        yield made


class Job:
    """A job of stand-ins for the trainer, one on each node, in a folder whose name is hard to quote."""

    def __init__(self, cluster, folder, capfd):
        self.cluster, self._capfd = cluster, capfd
        self.run_dir = folder / "it's a $(touch hacked) run; #1"

    def launch(self, *arguments, **options):
        """Runs the launcher; returns its exit code."""
        return slurm.main([*map(str, arguments), "--run_dir", str(self.run_dir)], module="stand_in", **options)

    def submit(self, plan, *arguments, **options):
        """Submits the job."""
        plan = ["--plan", json.dumps(plan)]
        code = self.launch("--gin", "a.gin", "--nodes", 2, "--cpus_per_task", 1, *arguments, *plan, **options)
        assert code == 0, self.said()

    def said(self):
        """Returns what the launcher has said since this was last asked."""
        return "".join(self._capfd.readouterr())

    @property
    def number(self):
        """The job's number."""
        return json.loads((self.run_dir / "slurm" / "job.json").read_text())["job"]

    def notes(self, start=0, tasks=2):
        """Waits until all tasks have noted what they got; returns the notes."""
        paths = [self.run_dir / "notes" / f"{start}-{rank}.json" for rank in range(tasks)]
        eventually(lambda: all(path.exists() for path in paths), lambda: f"{paths}: {self.log()}")
        return [json.loads(path.read_text()) for path in paths]

    def log(self):
        """Returns what the job itself said."""
        paths = list((self.run_dir / "logs").glob("*.log"))
        return "".join(path.read_text() for path in paths if path.name.startswith("slurm-"))

    def finish(self):
        """Waits until the job has left the queue; returns what it said."""
        eventually(lambda: not self.cluster.state(self.number), lambda: f"the end: {self.log()}")
        return self.log()

    def starts(self):
        """Returns how often the job was started."""
        return len({path.name.split("-")[0] for path in (self.run_dir / "notes").glob("*.json")})


@pytest.fixture
def job(cluster, tmp_path, monkeypatch, capfd):
    for name in list(os.environ):
        if name not in cluster.environment:
            monkeypatch.delenv(name)
    for name, value in cluster.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    made = Job(cluster, tmp_path, capfd)
    yield made
    if (made.run_dir / "slurm" / "job.json").exists() and cluster.state(made.number):
        cluster.call("scancel", made.number)
        made.finish()
    assert not list(tmp_path.rglob("hacked"))


def test_every_task_gets_its_place_and_the_exact_arguments(job, tmp_path):
    parameters = [part for text in HOSTILE for part in ("--gin_param", f"x={text}")]
    job.submit([["finish", "finish"]], *parameters, "--sbatch=--comment=it's; touch hacked #", "--job_name", "small")
    notes = job.notes()
    assert "exit code 0: finished; the job is finished" in job.finish()
    hosts = [address.partition(":")[0] for address in notes[0]["cluster"]]
    assert hosts == ["127.0.0.9", "127.0.0.10"]
    assert notes[0]["cluster"] == notes[1]["cluster"] and len(set(notes[0]["cluster"])) == 2
    for note in notes:
        given = note["arguments"]
        assert given[:2] == ["--gin", "a.gin"]
        assert [text for text in given if text.startswith("x=")] == [f"x={text}" for text in HOSTILE]
        assert given[given.index("--run_dir") + 1] == str(job.run_dir)
        assert 'strategy="auto"' in given
        assert note["gpus"] == ""
        assert note["working_directory"] == str(tmp_path)
    assert "stand-in 1, start 0: finish" in (job.run_dir / "logs" / "worker-1.log").read_text()


def test_before_its_time_limit_a_job_saves_and_starts_again(job):
    job.submit([["wait", "wait"], ["finish", "finish"]], "--max_restarts", 1)
    first = job.notes()
    job.cluster.warn(job.number)
    job.cluster.let_start_again(job.number)
    second = job.notes(start=1)
    log = job.finish()
    assert "SIGUSR1: the tasks save and stop" in log
    assert "exit code 75: preempted, state saved; back into the queue" in log
    assert log.rstrip().endswith("exit code 0: finished; the job is finished")
    assert set(first[0]["cluster"]).isdisjoint(second[0]["cluster"])  # other ports
    assert first[0]["arguments"] == second[0]["arguments"]
    text = (job.run_dir / "logs" / "worker-0.log").read_text()
    assert "start 0: wait" in text and "saved" in text and "start 1: finish" in text


@pytest.mark.parametrize("grace", [True, False])
def test_a_preempted_job_saves_and_starts_again(job, grace):
    job.submit([["wait", "wait"], ["finish", "finish"]])
    job.notes()
    job.cluster.preempt(job.number, grace)
    job.cluster.let_start_again(job.number)
    job.notes(start=1)
    log = job.finish()
    # Slurm puts a job back by itself where there is no grace time; a second request would be one too many.
    assert ("back into the queue" in log) == grace
    assert job.starts() == 2
    assert (job.run_dir / "logs" / "worker-1.log").read_text().count("saved") == 1


def test_a_lost_task_makes_the_job_start_again(job):
    job.submit([["die", "wait"], ["finish", "finish"]], straggler_seconds=1)
    job.notes()
    job.cluster.let_start_again(job.number)
    job.notes(start=1)
    assert "killed by SIGKILL; back into the queue" in job.finish()


@pytest.mark.parametrize("code", [2, 70, 74])
def test_a_fault_ends_the_job_for_good(job, code):
    job.submit([[code, code]])
    assert f"exit code {code}" in (log := job.finish()) and "back into the queue" not in log
    assert job.starts() == 1


def test_a_fault_of_one_task_is_the_jobs_though_the_others_are_killed_for_it(job):
    job.submit([[74, "hang"]], straggler_seconds=1)
    assert "exit code 74: storage failed; the job ends" in job.finish()
    assert job.starts() == 1


def test_a_job_that_gets_no_further_is_given_up(job):
    job.submit([["step:3:75", "75"], ["step:9:75", "75"], ["step:9:75", "75"]], "--max_restarts", 1)
    for start in range(2):
        job.notes(start)
        job.cluster.let_start_again(job.number)
    log = job.finish()
    assert "the job was started again 1 times without progress (--max_restarts)" in log
    assert [attempt.step for attempt in Attempts(job.run_dir).read()] == [3, 9, 9]


def test_stop_lets_the_trainer_save_and_the_job_ends(job):
    job.submit([["wait", "wait"]])
    job.notes()
    assert job.launch("status") == 0
    assert re.search(rf"job +{job.number} RUNNING on 127\.0\.0\.\[9-10\]", job.said())
    assert job.launch("stop") == 0
    assert "SIGTERM: the tasks save and stop" in (log := job.finish())
    assert "exit code 75: preempted, state saved; it was asked to stop" in log
    assert "saved" in (job.run_dir / "logs" / "worker-1.log").read_text()
    assert job.starts() == 1
    job.said()
    assert job.launch("status") == 0
    assert f"{job.number} has ended" in (said := job.said()) and "attempt 0" in said
    assert job.launch("stop") == 2


def test_stop_now_cancels_the_job(job):
    job.submit([["wait", "wait"]])
    job.notes()
    assert job.launch("stop", "--now") == 0
    assert "back into the queue" not in job.finish()
    assert job.starts() == 1


def test_a_job_that_waits_is_refused_a_second_time_and_taken_out_of_the_queue(job):
    job.submit([["finish", "finish"]], "--sbatch=--hold")
    job.said()
    assert job.launch("--gin", "a.gin", "--cpus_per_task", 1) == 2
    assert f"job {job.number} has this run directory and is PENDING. First: launch/slurm.sh stop" in job.said()
    assert job.launch("logs") == 2
    assert job.launch("stop") == 0
    job.finish()
    assert not (job.run_dir / "notes").exists()


def test_logs_are_shown_of_the_job_and_of_a_worker(job):
    job.submit([["finish", "finish"]])
    job.notes()
    job.finish()
    job.said()
    assert job.launch("logs") == 0
    said = job.said()
    assert "the job is finished" in said and "stand-in 0" in said and "stand-in 1" not in said
    assert job.launch("logs", 1) == 0
    assert "stand-in 1, start 0: finish" in job.said()
    assert job.launch("logs", 7) == 2


def test_one_task_alone_needs_no_cluster(job):
    code = job.launch("--gin", "a.gin", "--cpus_per_task", 1, "--plan", '[["finish"]]', "--mode", "evaluate")
    assert code == 0, job.said()
    (note,) = job.notes(tasks=1)
    job.finish()
    assert note["cluster"] == [] and 'strategy="auto"' not in note["arguments"]


@pytest.fixture(scope="module")
def tiny_gin(tmp_path_factory):
    """A gin file: 1,500 steps of a tiny model, one device a process."""
    folder = tmp_path_factory.mktemp("tiny")
    path = folder / "tiny.gin"
    changes = "steps = 1500\neval_every = None\ncheckpoint_every = 500\ndevices = 'all'\n"
    path.write_text(small_corpora.TINY_GIN.format(data=small_corpora.prepare_small_corpus(folder)) + changes)
    return path


@pytest.mark.slow  # four runs of the trainer in two processes
def test_a_training_that_is_preempted_ends_with_the_bits_of_one_that_is_not(cluster, tiny_gin, tmp_path):
    def submit(run_dir):
        options = ["--nodes", "2", "--cpus_per_task", "1", "--gin", tiny_gin, "--run_dir", run_dir]
        command = [os.path.join(ROOT, "launch", "slurm.sh"), *map(str, options)]
        subprocess.run(command, env=cluster.environment, cwd=tmp_path, check=True, stdout=subprocess.DEVNULL)
        return json.loads((run_dir / "slurm" / "job.json").read_text())["job"]

    def finish(run_dir, number):
        eventually(lambda: not cluster.state(number), "the end of the job")
        log = (run_dir / "logs" / f"slurm-{number}.log").read_text()
        workers = [(run_dir / "logs" / f"worker-{rank}.log").read_text() for rank in (0, 1)]
        assert log.rstrip().endswith("exit code 0: finished; the job is finished"), log + "".join(workers)
        return workers

    undisturbed, disturbed = tmp_path / "undisturbed", tmp_path / "disturbed"
    number = submit(undisturbed)
    assert "strategy multi_worker, 2 replicas" in finish(undisturbed, number)[0]
    number = submit(disturbed)
    eventually(lambda: trainer_process.last_step(disturbed) >= 10, "the tenth step")
    cluster.warn(number)
    cluster.let_start_again(number)
    workers = finish(disturbed, number)
    (stopped,) = re.findall(r"the run is saved at step (\d+) of 1500", workers[0])
    assert f"resumed at step {stopped} of 1500" in workers[0]
    assert len(trainer_process.losses(disturbed)) == 1500
    assert trainer_process.losses(disturbed) == trainer_process.losses(undisturbed)
    ours, expected = (trainer_process.checkpoint_values(folder, 1500) for folder in (disturbed, undisturbed))
    trainer_process.assert_same_bits(ours, expected)
    steps = [attempt.step for attempt in Attempts(disturbed).read()]
    assert steps == [int(stopped), 1500]


def test_each_task_has_a_gpu_of_its_own(tmp_path, monkeypatch, capfd):
    with stub_cluster(tmp_path / "stub") as cluster:
        for name, value in cluster.environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.chdir(tmp_path)
        job = Job(cluster, tmp_path, capfd)
        job.submit([["finish"] * 4], "--gpus_per_node", "a100:2")
        notes = job.notes(tasks=4)
        job.finish()
    assert [note["gpus"] for note in notes] == ["0", "1", "0", "1"]
    hosts = [address.partition(":")[0] for address in notes[0]["cluster"]]
    assert hosts == ["127.0.0.9", "127.0.0.9", "127.0.0.10", "127.0.0.10"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("n1", ["n1"]),
        ("n[9-10]", ["n9", "n10"]),
        ("n[008-010,12],login,m-[1]", ["n008", "n009", "n010", "n12", "login", "m-1"]),
        ("10.0.0.[1-2]", ["10.0.0.1", "10.0.0.2"]),
    ],
)
def test_lists_of_nodes_are_expanded_as_by_tensorflow(text, expected):
    assert expand_hosts(text) == expected == slurm_cluster_resolver.expand_hostlist(text)


def test_lists_of_nodes_with_several_ranges_are_expanded_too():
    assert expand_hosts("r[1-2]n[3,05]x,a") == ["r1n3x", "r1n05x", "r2n3x", "r2n05x", "a"]
    for text in ("", "n[1", "n1]", "n[a-b]", "a,,b", "n[]", "n[1-]"):
        with pytest.raises(ValueError):
            expand_hosts(text)


def test_numbers_of_tasks_are_expanded_as_by_tensorflow():
    for text in ("3(x2),2,1", "8", "4(x3)"):
        assert expand_counts(text) == slurm_cluster_resolver.expand_tasks_per_node(text)
    with pytest.raises(ValueError, match="not a list of tasks"):
        expand_counts("8(y2)")


def variables(rank, node, local, nodes="n[9-10]", counts="2(x2)", **others):
    return {
        "SLURM_STEP_NODELIST": nodes,
        "SLURM_STEP_TASKS_PER_NODE": counts,
        "SLURM_PROCID": str(rank),
        "SLURM_NODEID": str(node),
        "SLURM_LOCALID": str(local),
        "SLURM_JOB_ID": "1234567",
        **others,
    }


def test_all_tasks_make_the_same_cluster_in_the_order_of_slurms_list():
    seen = [(0, 0, 0), (1, 0, 1), (2, 1, 0), (3, 1, 1)]
    tasks = []
    for place in seen:
        environment = variables(*place, CUDA_VISIBLE_DEVICES="4,7")
        made = task_environment(place_of(environment), environment, "gpu")
        assert made["CUDA_VISIBLE_DEVICES"] == ("4" if place[2] == 0 else "7")
        tasks.append(json.loads(made["TF_CONFIG"]))
    assert [task["task"] for task in tasks] == [{"type": "worker", "index": rank} for rank in range(4)]
    workers = tasks[0]["cluster"]["worker"]
    assert all(task["cluster"]["worker"] == workers for task in tasks)
    assert [worker.partition(":")[0] for worker in workers] == ["n9", "n9", "n10", "n10"]
    assert len({worker.partition(":")[2] for worker in workers}) == 4


def test_the_cluster_is_tensorflows_where_that_knows_the_order(monkeypatch):
    for rank in (0, 1):
        environment = variables(rank, rank, 0, nodes="n[1-2]", counts="1(x2)", SLURM_STEP_NUM_TASKS="2")
        with monkeypatch.context() as patch:
            for name, value in environment.items():
                patch.setenv(name, value)
            resolver = slurm_cluster_resolver.SlurmClusterResolver(gpus_per_node=1, auto_set_gpu=False)
            theirs = resolver.cluster_spec().as_dict()["worker"]
            assert resolver.get_task_info() == ("worker", rank)
        ours = json.loads(task_environment(place_of(environment), environment, "cpu")["TF_CONFIG"])["cluster"]["worker"]
        assert [address.partition(":")[0] for address in ours] == [address.partition(":")[0] for address in theirs]


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, "SLURM_STEP_NODELIST is not set"),
        (variables(1, 1, 0), "numbered node by node"),
        (variables(0, 0, 0, counts="2(x3)"), "2 nodes, but the tasks of 3"),
        (variables(0, 0, 0), "gave this task no GPU"),
        (variables(0, 0, 0, CUDA_VISIBLE_DEVICES="0,1,2"), r"3 GPUs \(0,1,2\) for 2 tasks"),
    ],
)
def test_what_does_not_fit_is_refused_by_a_task(environment, expected):
    with pytest.raises(ValueError, match=expected):
        task_environment(place_of(environment), environment, "gpu")


def test_a_gpu_that_slurm_has_bound_is_kept():
    environment = variables(3, 1, 1, CUDA_VISIBLE_DEVICES="0")
    assert task_environment(place_of(environment), environment, "gpu")["CUDA_VISIBLE_DEVICES"] == "0"


def test_jobs_that_share_a_node_have_ports_of_their_own():
    taken = {}
    for job in range(5000, 5200):
        for rank in range(16):
            port = port_of(rank, job, 0)
            assert 15_000 <= port < 32_768
            assert taken.setdefault(port, job) == job
    again = [{port_of(rank, 5000, restart) for rank in range(16)} for restart in range(10)]
    assert len(set.union(*again)) == 160
    assert len({port_of(rank, 999, 0) for rank in range(512)}) == 512


def test_a_port_that_is_taken_is_noticed():
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        assert is_taken(other.getsockname()[1])
        port = other.getsockname()[1]
    assert not is_taken(port)


@pytest.mark.parametrize(
    ("code", "recorded", "expected"),
    [
        (0, [], 0),
        (75, [75, 75], 75),
        (137, [74], 74),  # the other was killed for it
        (137, [2, 143], 2),
        (137, [75], 137),
        (253, [75], 137),  # out of memory
        (75, [70, 75], 75),
        (70, [70, 70], 70),
        (124, [124], 124),
        (143, [75, 143], 75),
        (1, [], 1),  # srun itself
    ],
)
def test_exit_code_of_the_job_is_that_of_the_cause(code, recorded, expected):
    assert step_code(code, recorded) == expected


@pytest.mark.parametrize(
    ("earlier", "own", "expected"),
    [
        ([], [], 0),
        ([], [None], 0),
        ([], [5], 0),
        ([], [None, None, None], 2),
        ([], [5, 5, 5], 2),
        ([], [5, 9, 9], 1),
        ([], [5, 9, 12], 0),
        ([9], [5, 9], 1),
        ([9], [9, 10], 0),
        ([1, 2, 3, 3, 3, 3], [3], 0),
    ],
)
def test_restarts_are_counted_since_the_run_last_got_further(earlier, own, expected):
    attempts = [Attempt(number, 0.0, step=step) for number, step in enumerate([*earlier, *own])]
    assert restarts_without_progress(attempts, max(0, len(own) - 1)) == expected


@pytest.mark.parametrize(
    ("code", "signals", "state", "in_a_row", "again"),
    [
        (75, [], "RUNNING", 0, True),
        (75, [signal.SIGUSR1], "RUNNING", 2, True),
        (137, [], "RUNNING", 0, True),
        (124, [], "RUNNING", 0, True),
        (75, [], "RUNNING", 3, False),
        (75, [signal.SIGTERM], "RUNNING", 0, False),
        (75, [signal.SIGUSR1, signal.SIGTERM], "RUNNING", 0, False),
        (75, [], "COMPLETING", 0, False),
        (75, [], None, 0, False),
        (0, [signal.SIGUSR1], None, 0, False),
        (2, [], None, 0, False),
        (70, [signal.SIGUSR1], None, 0, False),
        (74, [], None, 0, False),
        (1, [], None, 0, False),
    ],
)
def test_a_job_goes_back_into_the_queue_where_that_helps(code, signals, state, in_a_row, again):
    assert (why_not_again(code, signals, state, in_a_row, max_restarts=3) is None) == again


GOLDEN_RUNS = {
    "slurm_cpu": ["--gin", "quickstart.gin", "--run_dir", "runs/quick", "--cpus_per_task", "16"],
    "slurm_gpu": [
        *("--gin", "pretrain.gin", "--gin", "models/small.gin", "--gin_param", 'data="/shared/prepared"'),
        *("--run_dir", "/shared/runs/small", "--gpus_per_node", "1", "--time", "04:00:00"),
    ],
    "slurm_nodes": [
        *("--gin", "pretrain.gin", "--gin_param", 'data="/shared/o\'brien; rm -rf $HOME"', "--top_k", "3"),
        *("--run_dir", "/shared/my runs/base", "--nodes", "2", "--gpus_per_node", "a100:8", "--cpus_per_task", "12"),
        *("--partition", "gpu,long", "--account", "lab_7", "--qos", "high", "--constraint", "nvlink&ib", "--mem", "0"),
        *("--time", "2-00", "--job_name", "bert-base", "--grace_seconds", "300", "--max_restarts", "10"),
        *("--sbatch=--exclusive", "--sbatch=--comment=it's ours"),
    ],
    "slurm_bucket": [
        *("--gin", "pretrain.gin", "--run_dir", "gs://bucket/runs/base", "--nodes", "4", "--gpus_per_node", "4"),
    ],
}


@pytest.fixture
def dry_run(tmp_path, monkeypatch, capsys):
    """Returns what the launcher would do, with other names for what differs between machines."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", "/home/me/state")

    def run(*arguments):
        assert slurm.main([*arguments, "--dry_run"]) == 0
        text = capsys.readouterr().out
        for found, name in ((sys.executable, "PYTHON"), (str(tmp_path), "FOLDER"), (ROOT, "REPOSITORY")):
            text = text.replace(found, name)
        return text

    yield run
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", GOLDEN_RUNS)
def test_dry_run_is_as_reviewed(name, dry_run):
    assert dry_run(*GOLDEN_RUNS[name]) == (GOLDEN / f"{name}.txt").read_text()


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
@pytest.mark.parametrize("name", GOLDEN_RUNS)
def test_shellcheck_finds_nothing_in_the_script(name, dry_run, tmp_path_factory):
    path = tmp_path_factory.mktemp("script") / "job.sbatch"
    text = dry_run(*GOLDEN_RUNS[name]).partition("the script\n")[2]
    path.write_text(re.sub(r"(?m)^  ", "", text))
    # SC2016: a dollar sign in what the user gives stands for itself.
    done = subprocess.run(["shellcheck", "--exclude=SC2016", str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


BASE = ["--gin", "a.gin", "--run_dir", "r"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "--gin FILE is needed"),
        (BASE, "without GPUs --cpus_per_task N is needed"),
        ([*BASE, "--gpus_per_node", "1", "--account", "a\n#SBATCH --uid=0"], "--account"),
        ([*BASE, "--gpus_per_node", "1", "--partition", "a b"], "--partition 'a b'"),
        ([*BASE, "--gpus_per_node", "1", "--constraint", "$(id)"], "--constraint"),
        ([*BASE, "--gpus_per_node", "1", "--mem", "'"], "--mem"),
        ([*BASE, "--gpus_per_node", "1", "--sbatch=--comment=a\nrm -rf /"], "holds a control character"),
        ([*BASE, "--gpus_per_node", "1", "--sbatch=rm"], "is not an option"),
        ([*BASE, "--gpus_per_node", "1", "--sbatch=--array=1-9"], "launch/sweep.sh"),
        ([*BASE, "--gpus_per_node", "1", "--time", "soon"], "--time 'soon'"),
        ([*BASE, "--gpus_per_node", "many"], "use a number, or TYPE:NUMBER"),
        ([*BASE, "--gpus_per_node", "1", "--job_name", "My Job"], "--job_name 'My Job'"),
        ([*BASE, "--nodes", "0"], "at least 1"),
        (["--gin", "a.gin", "--run_dir", "a%j", "--gpus_per_node", "1"], "mean something else to Slurm"),
        (["--gin", "a.gin", "--run_dir", "a\nb", "--gpus_per_node", "1"], "holds a control character"),
        ([*BASE, "--gpus_per_node", "2", "--mode", "predict"], "--mode predict runs in one process"),
        ([*BASE, "--gpus_per_node", "2", "--gin_param", "strategy='cpu'"], "Remove the --gin_param for strategy"),
    ],
)
def test_what_does_not_go_is_refused_with_a_message(capsys, tmp_path, monkeypatch, arguments, expected):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        slurm.main(arguments)
    assert caught.value.code == 2
    assert expected in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_working_directory_with_a_new_line_is_refused(capsys, tmp_path, monkeypatch):
    (tmp_path / "a\nrm -rf b").mkdir()
    monkeypatch.chdir(tmp_path / "a\nrm -rf b")
    with pytest.raises(SystemExit):
        slurm.main(["--gin", "a.gin", "--run_dir", "/r", "--gpus_per_node", "1", "--dry_run"])
    assert "--chdir" in capsys.readouterr().err


def test_without_slurm_there_is_a_message(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert slurm.main([*BASE, "--cpus_per_task", "1"]) == 2
    assert "sbatch is not on this machine" in capsys.readouterr().err
    assert slurm.main(["status", "--run_dir", "nowhere"]) == 2
    assert "no job was submitted for nowhere" in capsys.readouterr().err


def test_what_slurm_refuses_is_told(capsys, tmp_path, monkeypatch):
    (tmp_path / "sbatch").write_text("#!/bin/sh\necho 'sbatch: error: invalid partition specified: x' >&2; exit 1\n")
    (tmp_path / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    assert slurm.main([*BASE, "--cpus_per_task", "1"]) == 2
    assert "invalid partition specified: x" in capsys.readouterr().err
    assert slurm.main(["status", "--run_dir", "r"]) == 2


def test_without_tensorflow_nothing_is_submitted(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(slurm, "importlib", types.SimpleNamespace(util=types.SimpleNamespace(find_spec=lambda _: None)))
    monkeypatch.chdir(tmp_path)
    assert slurm.main([*BASE, "--cpus_per_task", "1"]) == 2
    assert "TensorFlow is not installed" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_script_works_from_any_folder_and_loads_no_tensorflow(tmp_path):
    command = [os.path.join(ROOT, "launch", "slurm.sh"), "run", *BASE, "--cpus_per_task", "1", "--dry_run"]
    environment = {**os.environ, "PYTHON": sys.executable}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert f"sbatch --parsable {tmp_path}/r/slurm/job.sbatch" in done.stdout
    code = "import launch.slurm, launch.slurm_task, launch.slurm_batch, sys; sys.exit('tensorflow' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
