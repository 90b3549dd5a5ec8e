"""The local launcher, with real processes: tiny Python scripts stand in for the trainer."""

import json
import os
import shlex
import signal
import socket
import subprocess
import sys

import psutil
import pytest
from waiting import DEADLINE_SECONDS, eventually

from launch import local
from launch.processes import Command
from launch.supervision import supervise

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

# Starts a process of its own that ignores SIGTERM, writes both process ids, then waits until it is told to stop.
WAITING = """
import os, signal, subprocess, sys, time
folder, name, on_term = sys.argv[1:4]
def stop(number, _):
    open(f"{folder}/{name}.stopped", "a").write(f"{number}\\n")
    if on_term != "ignore":
        os._exit(int(on_term))
signal.signal(signal.SIGTERM, stop); signal.signal(signal.SIGINT, stop)
child = subprocess.Popen([sys.executable, "-S", "-c",
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"])
open(f"{folder}/{name}.tmp", "w").write(f"{os.getpid()} {child.pid}")
os.rename(f"{folder}/{name}.tmp", f"{folder}/{name}.pids")
while True:
    time.sleep(0.05)
"""


def script(code, *arguments, **environment):
    return Command((sys.executable, "-S", "-c", code, *map(str, arguments)), environment)


def read_pids(folder, *names):
    paths = [folder / f"{name}.pids" for name in names]
    eventually(lambda: all(path.exists() for path in paths), paths)
    return [int(number) for path in paths for number in path.read_text().split()]


def running(pids):
    return [pid for pid in pids if psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE]


def attempts(*lists, **options):
    """Supervises with other commands for each attempt; returns (exit code, number of attempts)."""
    made = []

    def make_commands(attempt):
        made.append(attempt)
        return lists[min(attempt, len(lists) - 1)]

    code = supervise(make_commands, backoff_seconds=0.01, **{"takedown_seconds": 5.0, **options})
    return code, len(made)


@pytest.fixture
def launcher(tmp_path):
    """Starts a launcher process that supervises the commands given; kills what is left of it at the end."""
    started = []

    def start(commands, **options):
        code = (
            "import json, sys; from launch.processes import Command; from launch.supervision import supervise\n"
            "commands, options = json.loads(sys.argv[1]), json.loads(sys.argv[2])\n"
            "sys.exit(supervise(lambda _: [Command(tuple(part)) for part in commands], **options))"
        )
        parts = json.dumps([command.arguments for command in commands])
        process = subprocess.Popen(
            [sys.executable, "-c", code, parts, json.dumps({"log_folder": str(tmp_path / "logs"), **options})],
            cwd=ROOT,
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


@pytest.mark.parametrize("code", [0, 1, 2, 70, 74, 255])
def test_exit_code_of_the_trainer_is_the_jobs_and_final(code):
    assert attempts([script(f"raise SystemExit({code})")]) == (code, 1)


def test_job_starts_again_after_preemption_and_after_a_lost_worker():
    preempted, finished = [script("raise SystemExit(75)")], [script("pass")]
    killed = [script("import os; os.kill(os.getpid(), 9)")]
    assert attempts(preempted, killed, finished) == (0, 3)


def test_job_is_given_up_after_max_restarts(capfd):
    assert attempts([script("raise SystemExit(75)")], max_restarts=2) == (75, 3)
    assert "not started again after 2 restarts without progress (--max_restarts)" in capfd.readouterr().err
    assert attempts([script("import os; os.kill(os.getpid(), 11)")], max_restarts=0) == (128 + 11, 1)


def test_command_that_is_not_there_ends_with_a_message(capfd):
    assert attempts([Command(("/no/such/python",))]) == (127, 1)
    assert "cannot run /no/such/python" in capfd.readouterr().err


def test_worker_that_dies_takes_the_others_down_and_the_job_starts_again(tmp_path):
    first = [script(WAITING, tmp_path, "a", 0), script(WAITING, tmp_path, "b", "ignore")]
    dying = script(
        "import os, sys, time\n"
        "while not all(os.path.exists(f'{sys.argv[1]}/{name}.pids') for name in 'ab'): time.sleep(0.02)\n"
        "os.kill(os.getpid(), 9)",
        tmp_path,
    )
    assert attempts([*first, dying], [script("pass")], takedown_seconds=0.5) == (0, 2)
    assert (tmp_path / "a.stopped").read_text() == f"{int(signal.SIGTERM)}\n"
    assert running(read_pids(tmp_path, "a", "b")) == []


@pytest.mark.parametrize("code", [2, 70, 74])
def test_worker_that_fails_takes_the_others_down_for_good(tmp_path, code):
    waiting = script(WAITING, tmp_path, "a", 0)
    failing = script(
        "import os, sys, time\n"
        "while not os.path.exists(sys.argv[1] + '/a.pids'): time.sleep(0.02)\n"
        f"raise SystemExit({code})",
        tmp_path,
    )
    assert attempts([waiting, failing]) == (code, 1)
    assert running(read_pids(tmp_path, "a")) == []


def test_cause_of_the_end_is_the_lost_worker_not_the_peer_that_failed_for_it():
    lost = script("import os; os.kill(os.getpid(), 9)")
    peer = script("raise SystemExit(70)")
    assert attempts([peer, lost], [script("pass")]) == (0, 2)
    assert attempts([peer, script("raise SystemExit(75)")], [script("pass")]) == (0, 2)
    assert attempts([peer, script("raise SystemExit(74)")]) == (74, 1)


def test_several_workers_are_prefixed_on_the_terminal_and_kept_in_logs(tmp_path, capfd):
    code = (
        "import sys, os; print('from', sys.argv[1]); print('warning', file=sys.stderr); sys.stdout.write('no newline')"
    )
    assert attempts([script(code, 0), script(code, 1)], log_folder=str(tmp_path / "logs")) == (0, 1)
    terminal = capfd.readouterr().out.splitlines()
    assert {"[worker 0] from 0", "[worker 1] from 1", "[worker 1] warning", "[worker 1] no newline"} <= set(terminal)
    log = (tmp_path / "logs" / "worker-1.log").read_text()
    assert "from 1\n" in log and "warning\n" in log and "from 0" not in log


def test_single_worker_keeps_the_terminal(tmp_path):
    """The trainer's progress display needs the real terminal on its standard output."""
    leader, follower = os.openpty()
    code = f"import os; open({str(tmp_path / 'tty')!r}, 'w').write(str(os.isatty(1)) + os.ttyname(1))"
    supervising = (
        "import sys; from launch.processes import Command; from launch.supervision import supervise\n"
        "sys.exit(supervise(lambda _: [Command((sys.executable, '-c', sys.argv[1]))]))"
    )
    subprocess.run([sys.executable, "-c", supervising, code], cwd=ROOT, stdout=follower, check=True)
    assert (tmp_path / "tty").read_text() == "True" + os.ttyname(follower)
    os.close(leader)
    os.close(follower)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signal_lets_the_trainer_save_and_the_job_is_not_started_again(tmp_path, launcher, number):
    process = launcher([script(WAITING, tmp_path, "a", 75), script(WAITING, tmp_path, "b", 75)])
    pids = read_pids(tmp_path, "a", "b")
    process.send_signal(number)
    output, _ = process.communicate(timeout=DEADLINE_SECONDS)
    assert process.returncode == (75 if number != signal.SIGHUP else 128 + signal.SIGHUP), output
    assert running(pids) == []
    if number != signal.SIGHUP:
        assert (tmp_path / "a.stopped").read_text() == f"{int(number)}\n"


def test_third_interrupt_kills_at_once(tmp_path, launcher):
    process = launcher([script(WAITING, tmp_path, "a", "ignore")], grace_seconds=600)
    pids = read_pids(tmp_path, "a")
    for count in (1, 2):
        process.send_signal(signal.SIGINT)
        stopped = tmp_path / "a.stopped"
        eventually(lambda: stopped.exists() and len(stopped.read_text().split()) >= count, "the interrupt")  # noqa: B023
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=DEADLINE_SECONDS)
    assert process.returncode == 128 + signal.SIGKILL
    assert running(pids) == []


def test_trainer_that_does_not_stop_is_killed_after_the_grace_time(tmp_path, launcher):
    process = launcher([script(WAITING, tmp_path, "a", "ignore")], grace_seconds=0.3)
    pids = read_pids(tmp_path, "a")
    process.terminate()
    output, _ = process.communicate(timeout=DEADLINE_SECONDS)
    assert process.returncode == 128 + signal.SIGKILL
    assert "the time to stop is over" in output
    assert running(pids) == []


@pytest.mark.parametrize("on_term", ["75", "ignore"])
def test_no_process_is_left_when_the_launcher_itself_is_killed(tmp_path, launcher, on_term):
    process = launcher([script(WAITING, tmp_path, name, on_term) for name in "ab"], grace_seconds=0.3)
    pids = read_pids(tmp_path, "a", "b")
    keepers = [child.pid for child in psutil.Process(process.pid).children()]
    assert len(keepers) == 2
    process.kill()
    eventually(lambda: not running(pids + keepers), "the end of all processes")
    assert (tmp_path / "a.stopped").read_text() == f"{int(signal.SIGTERM)}\n"


def test_reserved_port_can_be_listened_on_by_a_worker_and_by_no_other_program():
    (holder,) = local.reserve_ports(1)
    with holder, socket.socket() as other, socket.socket() as worker:
        with pytest.raises(OSError):
            other.bind(holder.getsockname())
        worker.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        worker.bind(holder.getsockname())
        worker.listen()
        with socket.create_connection(holder.getsockname(), timeout=DEADLINE_SECONDS):
            worker.accept()[0].close()


def dry_run(capsys, *arguments, environment=None, monkeypatch=None):
    """Returns [(variables, arguments)] of the commands that --dry_run prints, read as a shell does."""
    assert local.main([*arguments, "--dry_run"]) == 0
    commands = []
    for line in capsys.readouterr().out.splitlines():
        words = shlex.split(line)
        count = words.index(sys.executable)
        commands.append((dict(word.split("=", 1) for word in words[:count]), words[count:]))
    return commands


@pytest.fixture
def no_gpus(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


def test_dry_run_of_one_process_is_the_trainers_command_line(capsys, no_gpus):
    given = [
        "--gin",
        "pretrain.gin",
        "--gin",
        "models/tiny.gin",
        "--gin_param",
        'data="it\'s"',
        "--top_k",
        "5",
        "A [MASK].",
    ]
    ((variables, command),) = dry_run(capsys, *given)
    assert variables == {}
    assert command == [
        *(sys.executable, "-m", "trainer", "--gin", "pretrain.gin", "--gin", "models/tiny.gin"),
        *(
            "--gin_param",
            'data="it\'s"',
            "--run_dir",
            "runs/pretrain-tiny",
            "--mode",
            "train",
            "--top_k",
            "5",
            "A [MASK].",
        ),
    ]


def test_dry_run_of_several_processes_gives_each_its_task_on_its_own_port(capsys, no_gpus):
    commands = dry_run(capsys, "--gin", "a.gin", "--processes", "3", "--run_dir", "r")
    tasks = [json.loads(variables["TF_CONFIG"]) for variables, _ in commands]
    assert [task["task"] for task in tasks] == [{"type": "worker", "index": index} for index in range(3)]
    assert all(task["cluster"] == tasks[0]["cluster"] for task in tasks)
    addresses = tasks[0]["cluster"]["worker"]
    assert len(set(addresses)) == 3 and all(address.startswith("127.0.0.1:") for address in addresses)
    for variables, command in commands:
        assert 'strategy="auto"' in command
        assert variables["CUDA_VISIBLE_DEVICES"] == ""


def test_one_process_per_gpu_is_the_default_and_one_for_all_an_option(capsys, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    per_gpu = dry_run(capsys, "--gin", "a.gin")
    assert [variables["CUDA_VISIBLE_DEVICES"] for variables, _ in per_gpu] == ["4", "5", "6", "7"]
    halves = dry_run(capsys, "--gin", "a.gin", "--processes", "2")
    assert [variables["CUDA_VISIBLE_DEVICES"] for variables, _ in halves] == ["4,5", "6,7"]
    ((variables, command),) = dry_run(capsys, "--gin", "a.gin", "--strategy", "mirrored")
    assert variables == {} and 'strategy="mirrored"' in command
    ((variables, command),) = dry_run(capsys, "--gin", "a.gin", "--gin_param", 'strategy="cpu"')
    assert variables == {} and "multi_worker" not in " ".join(command)
    assert len(dry_run(capsys, "--gin", "a.gin", "--mode", "predict")) == 1


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "--gin FILE is needed"),
        (
            ["--gin", "a.gin", "--processes", "3"],
            "--processes 3 does not divide the 4 GPUs of this machine: use 1, 2, 4",
        ),
        (["--gin", "a.gin", "--processes", "0"], "--processes 0: at least 1"),
        (["--gin", "a.gin", "--processes", "2", "--strategy", "mirrored"], "Remove one of them"),
        (
            ["--gin", "a.gin", "--processes", "2", "--gin_param", "strategy='cpu'"],
            "Remove the --gin_param for strategy",
        ),
    ],
)
def test_what_does_not_go_together_is_refused_with_a_message(capsys, monkeypatch, arguments, expected):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    with pytest.raises(SystemExit) as caught:
        local.main(arguments)
    assert caught.value.code == 2
    assert expected in capsys.readouterr().err


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("", []),
        ("-1", []),
        ("0", ["0"]),
        ("2, 3", ["2", "3"]),
        ("1,-1,2", ["1"]),
        ("GPU-ab,GPU-cd", ["GPU-ab", "GPU-cd"]),
    ],
)
def test_visible_devices_limit_the_gpus_as_cuda_does(value, expected):
    assert local.visible_gpus({"CUDA_VISIBLE_DEVICES": value}) == expected


def test_gpus_are_found_by_nvidia_smi(tmp_path):
    listing = (
        "GPU 0: NVIDIA A100 (UUID: GPU-1)\n"
        "GPU 1: NVIDIA A100 (UUID: GPU-2)\n"
        "  MIG 1g.10gb     Device  0: (UUID: MIG-a)\n"
        "  MIG 1g.10gb     Device  1: (UUID: MIG-b)\n"
    )
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\n[ \"$1\" = -L ] && printf '%s' '{listing}'\n")
    tool.chmod(0o755)
    assert local.visible_gpus({"PATH": f"{tmp_path}:/bin:/usr/bin"}) == ["0", "MIG-a", "MIG-b"]
    tool.write_text("#!/bin/sh\necho 'no driver'; exit 9\n")
    assert local.visible_gpus({"PATH": f"{tmp_path}:/bin:/usr/bin"}) == []
    assert local.visible_gpus({"PATH": str(tmp_path / "nowhere")}) == []


def test_script_works_from_any_folder_and_passes_the_exit_code(tmp_path):
    environment = {**os.environ, "PYTHON": sys.executable, "CUDA_VISIBLE_DEVICES": ""}
    command = [os.path.join(ROOT, "launch", "local.sh"), "--gin", "quickstart.gin", "--dry_run"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert shlex.split(done.stdout)[1:5] == ["-m", "trainer", "--gin", "quickstart.gin"]
    done = subprocess.run(command[:1], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert list(tmp_path.iterdir()) == []


def test_launcher_loads_neither_tensorflow_nor_gin():
    code = "import launch.local, sys; sys.exit(any(name in sys.modules for name in ('tensorflow', 'gin', 'keras')))"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
