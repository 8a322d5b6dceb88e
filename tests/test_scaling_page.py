"""Command lines of torchrun on the pages, and the Slurm script of docs/scaling.md with stand-ins for its commands."""

import os
import re
import shlex
import signal
import subprocess
import time
from pathlib import Path

import pytest
from torch.distributed.run import get_args_parser

from fastadaad import cli, recipes
from fastadaad.config_io import override
from fastadaad.run_config import RunConfig

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "scaling.md").read_text()
(SCRIPT,) = re.findall(r"```bash\n(.*?)```", PAGE, flags=re.DOTALL)
QUICK_START = (ROOT / "docs" / "quickstart-train.md").read_text()
LINES = re.findall(r"^    (torchrun .+)$", PAGE.replace(SCRIPT, "") + QUICK_START, flags=re.MULTILINE)

STANDINS = {
    "scontrol": 'if [ "$1" = show ]; then printf "node7\\nnode8\\n"; else echo "scontrol $*" >> log; fi',
    "scancel": 'echo "scancel $*" >> log; kill -TERM "$(cat srun.pid)"',
    "srun": """
        printf "%s\\n" "$@" > words
        trap 'sleep 0.3; echo saved >> log; exit "$CODE"' TERM
        echo $$ > srun.new; mv srun.new srun.pid
        [ "$WAITS" = yes ] || exit "$CODE"
        while :; do sleep 0.05; done
    """,
}


def started(words: list[str]) -> tuple[object, RunConfig]:
    """Returns torchrun's options and the configuration of one of its command lines."""
    options = get_args_parser().parse_args(words[1:])
    assert options.module
    assert options.training_script == "fastadaad"
    arguments = cli.parse(options.training_script_args)
    return options, override(recipes.get(arguments.recipe), arguments.overrides)


@pytest.mark.parametrize("line", LINES)
def test_a_line_of_torchrun_parses_and_its_batch_is_divisible_by_the_ranks(line):
    options, config = started(shlex.split(line))
    assert config.data.batch_size % (int(options.nproc_per_node) * int(options.nnodes.split(":")[-1])) == 0


def test_there_are_lines_for_a_node_and_for_several():
    assert {("--standalone" in line, "--nnodes 4" in line) for line in LINES} == {(True, False), (False, True)}


def run_script(folder: Path, *, code: int, is_stopped: bool) -> tuple[int, list[str]]:
    """Returns the exit code of the script and the log of its commands.

    srun ends with `code`: after SIGTERM if `is_stopped`, otherwise at once.
    """
    (folder / ".venv" / "bin").mkdir(parents=True)
    (folder / ".venv" / "bin" / "activate").touch()
    for name, text in STANDINS.items():
        path = folder / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/bash\n{text}\n")
        path.chmod(0o755)
    slurm = {"JOB_ID": "12", "JOB_NODELIST": "node[7-8]", "NNODES": "2", "CPUS_PER_TASK": "64"}
    environment = {f"SLURM_{name}": value for name, value in slurm.items()}
    environment |= {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "CODE": str(code)}
    environment["WAITS"] = "yes" if is_stopped else "no"
    (folder / "job.sh").write_text(SCRIPT)
    job = subprocess.Popen(["bash", "job.sh"], cwd=folder, env=environment)
    if is_stopped:
        while not (folder / "srun.pid").exists():
            assert job.poll() is None
            time.sleep(0.02)
        job.send_signal(signal.SIGTERM)
    exit_code = job.wait(timeout=60)
    log = folder / "log"
    return exit_code, log.read_text().splitlines() if log.exists() else []


def test_a_job_out_of_time_is_requeued_after_it_has_saved(tmp_path):
    code, log = run_script(tmp_path, code=1, is_stopped=True)
    assert log == ["scancel --signal=TERM 12", "saved", "scontrol requeue 12"]
    assert code == 1
    words = (tmp_path / "words").read_text().splitlines()
    options, config = started(words[words.index("torchrun") :])
    assert options.rdzv_endpoint == "node7:29500"
    assert (options.nnodes, options.rdzv_id) == ("2", "12")
    assert config.data.batch_size == 4096


@pytest.mark.parametrize(("code", "is_stopped"), [(0, False), (2, False), (0, True)])
def test_a_finished_or_failed_job_is_not_requeued(tmp_path, code, is_stopped):
    exit_code, log = run_script(tmp_path, code=code, is_stopped=is_stopped)
    assert exit_code == code
    assert not [line for line in log if "requeue" in line]
