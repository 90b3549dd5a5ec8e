"""The launcher for GKE: what it asks Kubernetes for, by real kubectl against a small API server, and what runs in a pod."""

import contextlib
import copy
import io
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import types

import psutil
import pytest
from end_to_end import small_corpora, trainer_process
from kubernetes_api import kubernetes_api
from stub_slurm.clusters import eventually

from launch import kubernetes, kubernetes_task
from launch.command_line import TrainerJob
from launch.exit_codes import is_lost, worth_restarting

yaml = pytest.importorskip("yaml")

HERE = pathlib.Path(__file__).parent
ROOT = str(HERE.parent.parent)
GOLDEN = HERE / "golden"
HOSTILE = [
    "it's",
    '"; rm -rf $HOME; #',
    "$(PYTHONUNBUFFERED) $$(A) $$$ ${B} $",
    "a\nb\n---\n- c: d",
    "\\n",
    "%s {{x}}",
]
HOSTILE += ["é 漢 \u2028", "", "null", "no", "1e5", "0x1", "~", "1_0", ".5", "&a *a !!int 1 @ `"]
VERSIONS = ["1.31", "1.34"]  # since the first of them podFailurePolicy is stable
IMAGE = "europe-docker.pkg.dev/project/images/bert-trainer:1"
BASE = ["--gin", "pretrain.gin", "--image", IMAGE, "--run_dir", "gs://bucket/runs/base"]
GOLDEN_RUNS = {
    "gke_on_demand": [
        *(*BASE, "--gin", "models/small.gin", "--gin_param", 'data="gs://bucket/prepared"'),
        *("--nodes", "2", "--gpus_per_node", "8", "--gpu_type", "nvidia-h100-80gb", "--cpu", "64", "--memory", "400Gi"),
        *("--shm", "32Gi", "--namespace", "training", "--service_account", "trainer", "--name", "bert-small"),
    ],
    "gke_spot": [
        *(*BASE, "--gin_param", 'data="gs://bucket/o\'brien; rm -rf $(HOME)"', "--max_restarts", "50"),
        *("--nodes", "4", "--gpus_per_node", "1", "--gpu_type", "nvidia-l4", "--spot", "--grace_seconds", "25"),
    ],
    "gke_cpu": [*BASE[:-1], "gs://bucket/runs/2024_quick", "--cpu", "8", "--memory", "16Gi", "--top_k", "3"],
}


def parsed(arguments):
    """Returns what --dry_run prints, as Kubernetes would read it: (service, job)."""
    options, job = kubernetes.parse_job(kubernetes._parser(), arguments)
    name = options.name or kubernetes._default_name(job.run_dir)
    return kubernetes.manifests(options, job, name)


def validate(content, version=VERSIONS[-1]):
    """Checks an object by the schemas of a version of Kubernetes."""
    validator = pytest.importorskip("kubernetes_validate")
    validator.validate(copy.deepcopy(content), version, strict=True)


def expand(text, variables):
    """What Kubernetes makes of an argument: $(NAME) is a variable's value if there is one, $$ a dollar sign."""

    def replace(match):
        if match[0] == "$$":
            return "$"
        return variables.get(match[1], match[0])

    return re.sub(r"\$\$|\$\(([^)]*)\)", replace, text)


@pytest.mark.parametrize("name", GOLDEN_RUNS)
def test_dry_run_is_as_reviewed(name, capsys):
    assert kubernetes.main([*GOLDEN_RUNS[name], "--dry_run"]) == 0
    assert capsys.readouterr().out == (GOLDEN / f"{name}.yaml").read_text()


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", GOLDEN_RUNS)
def test_reviewed_files_are_valid_by_the_schemas_of_kubernetes(name, version):
    documents = list(yaml.safe_load_all((GOLDEN / f"{name}.yaml").read_text()))
    assert [document["kind"] for document in documents] == ["Service", "Job"]
    for document in documents:
        validate(document, version)


def test_the_validator_finds_what_is_wrong():
    _, job = parsed(BASE)
    validate(job)
    for spoil in (
        lambda job: job["spec"].update(backoffLimits=3),
        lambda job: job["spec"]["podFailurePolicy"]["rules"][0].pop("action"),
        lambda job: job["spec"]["template"]["spec"]["containers"][0].update(args=[1]),
    ):
        wrong = copy.deepcopy(job)
        spoil(wrong)
        with pytest.raises(Exception, match=r"backoffLimits|action|string"):
            validate(wrong)


def test_yaml_holds_every_text_as_it_is():
    service, job = parsed([*BASE, *(part for text in HOSTILE for part in ("--gin_param", f"{text}"))])
    assert list(yaml.safe_load_all(kubernetes.yaml_text([service, job]))) == [service, job]


def test_the_trainer_gets_the_exact_arguments():
    _, job = parsed([*BASE, *(part for text in HOSTILE for part in ("--gin_param", text))])
    (container,) = job["spec"]["template"]["spec"]["containers"]
    given = [expand(text, {"PYTHONUNBUFFERED": "1", "A": "a", "HOME": "/root"}) for text in container["args"]]
    own = given[given.index("--") + 1 :]
    expected = TrainerJob(("pretrain.gin",), tuple(HOSTILE), "gs://bucket/runs/base").arguments()
    assert tuple(own) == expected


def outcome(rules, code, is_disrupted=False):
    """What Kubernetes does about a pod that failed: the action of the first rule that fits, else it counts."""
    for rule in rules:
        if "onExitCodes" in rule and code in rule["onExitCodes"]["values"]:
            return rule["action"]
        if is_disrupted and any(each["type"] == "DisruptionTarget" for each in rule.get("onPodConditions", [])):
            return rule["action"]
    return "Count"


def test_pods_are_made_anew_where_the_exit_code_says_that_this_helps():
    _, job = parsed([*BASE, "--max_restarts", "7"])
    rules = job["spec"]["podFailurePolicy"]["rules"]
    assert job["spec"]["backoffLimit"] == 7
    for code in (2, 70, 74):
        assert outcome(rules, code) == outcome(rules, code, is_disrupted=True) == "FailJob"
        assert not worth_restarting(code)
    assert outcome(rules, 75) == "Ignore"
    for code in (124, 134, 137, 139, 143):
        assert outcome(rules, code) == "Count" and worth_restarting(code)
        assert outcome(rules, code, is_disrupted=True) == "Ignore"
        assert code == 124 or is_lost(code)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--gin", "a.gin"], "--run_dir gs://BUCKET/FOLDER is needed"),
        (["--gin", "a.gin", "--run_dir", "runs/a", "--image", "i"], "would be lost with the pod"),
        (["--gin", "a.gin", "--run_dir", "gs://b/a"], "--image IMAGE is needed"),
        ([*BASE, "--image", "a b"], "--image 'a b'"),
        ([*BASE, "--image", "a\nb"], "--image"),
        ([*BASE, "--name", "My Job"], "--name 'My Job'"),
        ([*BASE, "--name", "a" * 62], "more than 63"),
        ([*BASE, "--namespace", "a/b"], "--namespace 'a/b'"),
        ([*BASE, "--cpu", "many"], "--cpu 'many'"),
        ([*BASE, "--memory", "1 GB"], "--memory '1 GB'"),
        ([*BASE, "--service_account", "a: b"], "--service_account"),
        ([*BASE, "--gpu_type", "nvidia-l4"], "is for --gpus_per_node"),
        ([*BASE, "--gpu_type", "$(x)", "--gpus_per_node", "1"], "--gpu_type"),
        ([*BASE, "--nodes", "0"], "at least 1"),
        ([*BASE, "--nodes", "2", "--mode", "predict"], "--mode predict runs in one process"),
        ([*BASE, "--nodes", "2", "--gin_param", "strategy='cpu'"], "Remove the --gin_param for strategy"),
    ],
)
def test_what_does_not_go_is_refused_with_a_message(capsys, arguments, expected):
    with pytest.raises(SystemExit) as caught:
        kubernetes.main([*arguments, "--dry_run"])
    assert caught.value.code == 2
    assert expected in capsys.readouterr().err


@pytest.fixture
def api(tmp_path, monkeypatch):
    """An empty cluster that real kubectl reaches."""
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed")
    with kubernetes_api(tmp_path, validate) as (made, config):
        monkeypatch.setenv("KUBECONFIG", str(config))
        monkeypatch.setenv("HOME", str(tmp_path))  # for kubectl's cache
        yield made


def finish(api, kind):
    """Lets the only job end."""
    (job,) = api.of("jobs")
    job["status"] = {"conditions": [{"type": kind, "status": "True"}]}


def test_kubectl_makes_the_job_and_finds_it_again(api, capfd):
    hostile = [part for text in HOSTILE for part in ("--gin_param", text)]
    assert kubernetes.main([*BASE, *hostile, "--nodes", "3", "--yes"]) == 0
    assert "launch/gke.sh logs -f --name base" in capfd.readouterr().out
    service, job = parsed([*BASE, *hostile, "--nodes", "3"])
    assert [made["spec"] for made in api.of("services")] == [service["spec"]]
    assert [made["spec"] for made in api.of("jobs")] == [job["spec"]]

    assert kubernetes.main(["status", "--name", "base"]) == 0
    said = capfd.readouterr().out
    assert "job.batch/base" in said and all(f"pod/base-{index}-" in said for index in range(3))
    old = next(pod for pod in api.of("pods") if pod["metadata"]["name"].startswith("base-1-"))
    api.add_pod("default", api.of("jobs")[0], 1)
    assert kubernetes.main(["logs", "1", "--name", "base"]) == 0
    said = capfd.readouterr().out
    assert said.startswith("this is base-1-") and old["metadata"]["name"] not in said
    assert kubernetes.main(["logs", "7", "--name", "base"]) == 2

    assert kubernetes.main(["stop", "--run_dir", "gs://bucket/runs/base"]) == 0
    assert api.objects == {}
    assert kubernetes.main(["stop", "--name", "base"]) == 0


def test_a_job_that_runs_is_not_made_twice(api, capsys):
    assert kubernetes.main([*BASE, "--yes", "--namespace", "team"]) == 0
    before = copy.deepcopy(api.objects)
    assert {key[0] for key in before} == {"team"}
    assert kubernetes.main([*BASE, "--yes", "--namespace", "team"]) == 2
    assert "job base runs already. First: launch/gke.sh stop --name base --namespace team" in capsys.readouterr().err
    assert api.objects == before


@pytest.mark.parametrize(("kind", "word"), [("Complete", "finished"), ("Failed", "failed")])
def test_a_job_that_has_ended_is_made_anew(api, capsys, monkeypatch, kind, word):
    assert kubernetes.main([*BASE, "--yes"]) == 0
    finish(api, kind)
    old = api.of("jobs")[0]["metadata"]["uid"]
    monkeypatch.setattr("sys.stdin", io.StringIO())
    assert kubernetes.main(BASE) == 2
    question = f"Delete job base, which has {word}, with its pods' logs, and make it anew: 1 pod, in loopback?"
    assert question in capsys.readouterr().err
    assert api.of("jobs")[0]["metadata"]["uid"] == old
    assert kubernetes.main([*BASE, "--yes"]) == 0
    assert api.of("jobs")[0]["metadata"]["uid"] != old


def test_what_kubernetes_refuses_is_told(api, capsys, monkeypatch):
    monkeypatch.setattr(api, "check", lambda content: 1 / 0)
    assert kubernetes.main([*BASE, "--yes"]) == 2
    assert "division by zero" in capsys.readouterr().err


def test_without_kubectl_or_yaml_there_is_a_message(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert kubernetes.main([*BASE, "--yes"]) == 2
    assert "kubectl is not installed" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "yaml", None)
    assert kubernetes.main([*BASE, "--dry_run"]) == 2
    assert "pip install 'bert-trainer[kubernetes]'" in capsys.readouterr().err


def options(*arguments, pods=2, processes=1):
    return [
        *("--service", "base", "--pods", str(pods), "--processes", str(processes)),
        *("--module", "stand_in", "--", *map(str, arguments)),
    ]


def environments(pod, pods, processes):
    """Returns the variables of the trainers of a pod."""
    options = types.SimpleNamespace(
        service="base", pods=pods, processes=processes, module="m", arguments=["--gin", "a"]
    )
    commands = kubernetes_task.make_commands(options, pod)
    assert all(command.arguments == (sys.executable, "-m", "m", "--gin", "a") for command in commands)
    return [command.environment for command in commands]


def test_all_trainers_of_all_pods_make_one_cluster():
    four = [environment for pod in range(2) for environment in environments(pod, pods=2, processes=2)]
    tasks = [json.loads(environment["TF_CONFIG"]) for environment in four]
    assert [task["task"]["index"] for task in tasks] == [0, 1, 2, 3]
    expected = ["base-0.base:2222", "base-0.base:2223", "base-1.base:2222", "base-1.base:2223"]
    assert all(task["cluster"]["worker"] == expected for task in tasks)
    assert [environment["CUDA_VISIBLE_DEVICES"] for environment in four] == ["0", "1", "0", "1"]
    (alone,) = environments(0, pods=1, processes=1)
    assert alone == {}
    (one_of_two,) = environments(1, pods=2, processes=1)
    assert list(one_of_two) == ["TF_CONFIG"]


def test_names_in_the_cluster_are_those_of_the_pods():
    service, job = parsed([*BASE, "--nodes", "2", "--gpus_per_node", "2", "--name", "small"])
    pod = job["spec"]["template"]["spec"]
    arguments = pod["containers"][0]["args"]
    name = arguments[arguments.index("--service") + 1]
    # An Indexed Job names its pods' hosts NAME-INDEX; they are found as HOST.SUBDOMAIN, by a service of that name.
    assert name == job["metadata"]["name"] == pod["subdomain"] == service["metadata"]["name"] == "small"
    assert service["spec"]["selector"].items() <= job["spec"]["template"]["metadata"]["labels"].items()
    assert arguments[arguments.index("--pods") + 1] == str(job["spec"]["completions"]) == "2"
    assert arguments[arguments.index("--processes") + 1] == str(
        pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"]
    )


def test_a_pod_waits_until_the_names_of_all_are_known(capsys):
    known, looks = {"a"}, []

    def resolve(host, _):
        if host not in known:
            raise OSError("not known")

    def sleep(seconds):
        looks.append(seconds)
        known.add("bcd"[len(looks) - 1])

    kubernetes_task.wait_for_names(["a", "b", "c", "d"], resolve=resolve, sleep=sleep)
    assert len(looks) == 3
    assert capsys.readouterr().err.count("waiting for 3 of 4 pods, b among them") == 1


@pytest.fixture
def pod(tmp_path):
    """Starts what runs in a pod, with stand-ins for the trainer."""
    started = []

    def start(*arguments, index="0"):
        environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{HERE / 'stub_slurm'}", "JOB_COMPLETION_INDEX": index}
        process = subprocess.Popen(
            [sys.executable, "-m", "launch.kubernetes_task", *arguments],
            env={name: value for name, value in environment.items() if value is not None},
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(
    ("plan", "code"),
    [(["finish", "finish"], 0), ([75, "wait"], 75), (["die", "wait"], 137), (["wait", 74], 74), ([2, 2], 2)],
)
def test_a_pod_ends_as_the_cause_says(pod, tmp_path, plan, code):
    process = pod(*options("--run_dir", tmp_path, "--plan", json.dumps([plan]), pods=1, processes=2))
    output, _ = process.communicate(timeout=120)
    assert process.returncode == code, output
    notes = [json.loads((tmp_path / "notes" / f"0-{rank}.json").read_text()) for rank in (0, 1)]
    assert [note["gpus"] for note in notes] == ["0", "1"]
    assert "[worker 1] stand-in 1" in output


def test_a_pod_that_is_deleted_saves_first(pod, tmp_path):
    process = pod(*options("--run_dir", tmp_path, "--plan", '[["wait"]]', pods=1))
    eventually((tmp_path / "notes" / "0-0.json").exists, "the stand-in")
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 75 and "saved" in output


def test_a_pod_that_is_deleted_while_it_waits_for_others_ends(pod, tmp_path):
    process = pod(*options("--run_dir", tmp_path, pods=2))
    assert "waiting for 2 of 2 pods, base-0.base among them" in process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=120)
    assert process.returncode == 75


@pytest.mark.parametrize("index", [None, "x"])
def test_a_pod_without_a_number_is_refused(pod, index):
    process = pod(*options(), index=index)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 2 and "JOB_COMPLETION_INDEX is not set" in output


def network_namespaces():
    """Returns whether this process may make network namespaces."""
    if os.getuid() != 0 or shutil.which("ip") is None:
        return False
    name = f"try-{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True).returncode == 0
    return subprocess.run(["ip", "netns", "delete", name], capture_output=True).returncode == 0 and made


class Pods:
    """Two pods of a job, each in a network of its own, restarted as Kubernetes does; a context manager.

    Args:
        job: the job, as Kubernetes gets it.
        run_dir: a folder that takes the place of the run directory in a bucket.
        folder: for names and logs.
    """

    def __init__(self, job, run_dir, folder):
        self._rules = job["spec"]["podFailurePolicy"]["rules"]
        (container,) = job["spec"]["template"]["spec"]["containers"]
        given = [expand(text, {}) for text in (*container["command"], *container["args"])]
        place = {"python3": sys.executable, "gs://bucket/runs/base": str(run_dir)}
        self._command = [place.get(text, text) for text in given]
        self._folder = folder
        self._networks = [f"pod-{os.getpid()}-{index}" for index in (0, 1)]
        self._running = {}
        self.ended = []

    def __enter__(self):
        hosts = [f"10.0.0.{index + 1} base-{index}.base" for index in (0, 1)]
        (self._folder / "hosts").write_text("\n".join(["127.0.0.1 localhost", *hosts, ""]))
        first, second = self._networks
        self._ip("netns", "add", first)
        self._ip("netns", "add", second)
        self._ip("link", "add", "eth0", "netns", first, "type", "veth", "peer", "name", "eth0", "netns", second)
        for index, network in enumerate(self._networks):
            self._ip("-n", network, "address", "add", f"10.0.0.{index + 1}/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                self._ip("-n", network, "link", "set", device, "up")
        return self

    def __exit__(self, *_):
        for index in list(self._running):
            self.kill(index)
        for network in self._networks:
            subprocess.run(["ip", "netns", "delete", network], capture_output=True)

    def _ip(self, *arguments):
        subprocess.run(["ip", *arguments], check=True)

    def start(self, index):
        """Starts a pod."""
        names = 'mount --bind "$0" /etc/hosts && exec "$@"'
        into = ["ip", "netns", "exec", self._networks[index], "sh", "-c", names, str(self._folder / "hosts")]
        with open(self._folder / f"pod-{index}.log", "ab") as log:
            self._running[index] = subprocess.Popen(
                [*into, *self._command],
                env=trainer_process.environment(JOB_COMPLETION_INDEX=str(index), PYTHONPATH=ROOT),
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def kill(self, index):
        """Takes a pod away, with all that runs in it."""
        process = psutil.Process(self._running[index].pid)
        for each in [*process.children(recursive=True), process]:
            with contextlib.suppress(psutil.Error):
                each.kill()
        self._running[index].wait()

    def delete(self, index):
        """Asks a pod to end."""
        self._running[index].terminate()

    def look(self):
        """Does what Kubernetes does about pods that have ended; returns whether the job has ended."""
        for index, process in list(self._running.items()):
            if process.poll() is None:
                continue
            code = process.returncode if process.returncode >= 0 else 128 - process.returncode
            self.ended.append((index, code))
            del self._running[index]
            if code:
                assert outcome(self._rules, code) != "FailJob", self.log(index)
                self.start(index)
        return not self._running

    def log(self, index):
        """Returns what the pods of an index have said."""
        return (self._folder / f"pod-{index}.log").read_text()


@pytest.mark.slow  # four runs of the trainer in two processes
@pytest.mark.skipif(not network_namespaces(), reason="network namespaces cannot be made here")
def test_pods_that_are_lost_come_back_and_the_run_has_the_bits_of_an_undisturbed_one(tmp_path):
    changes = "steps = 1500\neval_every = None\ncheckpoint_every = 100\ndevices = 'all'\n"
    gin = tmp_path / "tiny.gin"
    gin.write_text(small_corpora.TINY_GIN.format(data=small_corpora.prepare_small_corpus(tmp_path)) + changes)
    _, job = parsed([*BASE[2:], "--gin", str(gin), "--nodes", "2"])

    def run(name, disturb):
        folder = tmp_path / name
        folder.mkdir()
        with Pods(job, folder / "run", folder) as pods:
            pods.start(0)
            pods.start(1)

            def ended():
                if disturb and trainer_process.last_step(folder / "run") >= disturb[0][0]:
                    _, do, index = disturb.pop(0)
                    do(pods, index)
                return pods.look()

            eventually(ended, lambda: pods.log(0) + pods.log(1))
            return pods, folder / "run"

    pods, undisturbed = run("undisturbed", [])
    assert sorted(pods.ended) == [(0, 0), (1, 0)]
    assert "strategy multi_worker, 2 replicas" in pods.log(0)
    pods, disturbed = run("disturbed", [(150, Pods.kill, 1), (600, Pods.delete, 1)])
    # A lost pod's peer ends by itself; a pod that is deleted takes its peer with it, when both have saved.
    assert pods.ended[:2] == [(1, 137), (0, 75)]
    assert sorted(pods.ended[2:4]) == [(0, 75), (1, 75)]
    assert sorted(pods.ended[4:]) == [(0, 0), (1, 0)]
    assert len(trainer_process.losses(disturbed)) == 1500
    assert trainer_process.losses(disturbed) == trainer_process.losses(undisturbed)
    ours, expected = (trainer_process.checkpoint_values(folder, 1500) for folder in (disturbed, undisturbed))
    trainer_process.assert_same_bits(ours, expected)


def test_script_works_from_any_folder_and_loads_no_tensorflow(tmp_path):
    command = [os.path.join(ROOT, "launch", "gke.sh"), "run", *BASE, "--dry_run"]
    environment = {**os.environ, "PYTHON": sys.executable}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert [document["kind"] for document in yaml.safe_load_all(done.stdout)] == ["Service", "Job"]
    code = "import launch.kubernetes, launch.kubernetes_task, sys; sys.exit('tensorflow' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
