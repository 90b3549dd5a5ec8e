"""Stands in for the trainer: notes what it was given, and does what it is told.

    python -m stand_in ... --run_dir DIR ... --plan JSON

The plan has a list for each start of the job, the last one for all later ones; in it a word for each task: `finish`; `wait`
for SIGTERM, then end with 75; a number to end with; `die` by SIGKILL; `hang`, whatever comes. `step:N:WORD` does N steps.
Notes lie in DIR/notes/START-RANK.json.
"""

import json
import os
import pathlib
import signal
import struct
import sys
import time

arguments = sys.argv[1:]
run_dir = pathlib.Path(arguments[arguments.index("--run_dir") + 1])
plan = json.loads(arguments[arguments.index("--plan") + 1])
start = int(os.environ.get("SLURM_RESTART_COUNT", 0))
task = json.loads(os.environ.get("TF_CONFIG", "{}"))
rank = task.get("task", {}).get("index", 0)
word = str(plan[min(start, len(plan) - 1)][rank])
note = {
    "arguments": arguments,
    "cluster": task.get("cluster", {}).get("worker", []),
    "gpus": os.environ.get("CUDA_VISIBLE_DEVICES"),
    "working_directory": os.getcwd(),
    "pid": os.getpid(),
}
asked = []
if "hang" not in word:
    signal.signal(signal.SIGTERM, lambda number, _: asked.append(number))
else:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if word.startswith("step:"):
    _, step, word = word.split(":")
    with open(os.environ["BERT_TRAINER_HEARTBEAT"], "wb") as file:
        file.write(struct.pack("<dq", float("inf"), int(step)))
(run_dir / "notes").mkdir(exist_ok=True)
path = run_dir / "notes" / f"{start}-{rank}.json"
path.with_suffix(".new").write_text(json.dumps(note))
path.with_suffix(".new").rename(path)
print(f"stand-in {rank}, start {start}: {word}", flush=True)
if word == "die":
    os.kill(os.getpid(), signal.SIGKILL)
while word in ("wait", "hang") and not asked:
    time.sleep(0.02)
if word == "wait":
    print("saved", flush=True)
    sys.exit(75)
sys.exit(0 if word == "finish" else int(word))
