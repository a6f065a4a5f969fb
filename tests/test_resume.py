"""Tests of what keeps a run: checkpoints, resume, signals, full disks, damaged files, evaluation, bad numbers."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import ROOT, SCRIPT, SHORT, assert_one_line, run, scalars, train

from meta_sac_lag import ReplayBuffer, episode_seed, save

KILL_AT = ROOT / "tests" / "kill_at.py"
TOY = (*SHORT, "--env-id", "my_env:GlobalRandom-v0", "--total-timesteps", 500, "--checkpoint-every", 60)


def differences(a, b, where=""):
    """The places where two checkpoints differ; equal means equal to the bit."""
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        return [d for key in a for d in differences(a[key], b[key], f"{where}/{key}")]
    if isinstance(a, list | tuple):
        assert len(a) == len(b)
        return [d for i, (x, y) in enumerate(zip(a, b)) for d in differences(x, y, f"{where}/{i}")]
    return [] if (torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b) else [where]


def load(run_dir, name="checkpoint.pt"):
    checkpoint = torch.load(run_dir / name, weights_only=True)
    del checkpoint["args"]["resume"]
    return checkpoint


def start(folder, *flags, stderr=subprocess.DEVNULL, **environment):
    """The script in the background, from the moment when its run folder exists, and that folder."""
    process = subprocess.Popen(
        [sys.executable, "-u", *map(str, flags)], cwd=folder, env={**os.environ, **environment},
        stdout=subprocess.PIPE, stderr=stderr, text=True,
    )
    for line in process.stdout:
        if ", logging to " in line:
            return process, folder / line.split(", logging to ")[1].strip()
    raise AssertionError("the run has ended before it began")


def wait_for(condition, seconds=120):
    deadline = time.time() + seconds
    while not condition():
        assert time.time() < deadline
        time.sleep(0.01)


def check_killed(folder, flags, moments, script=SCRIPT):
    """Kills a run at each of the moments and resumes it after each; it must end as one that was left alone.

    A checkpoint calls `replace` three times: for the policy, for the checkpoint before, for itself. A kill at the last
    leaves no checkpoint.pt, only the one before.
    """
    reference = train(folder, *flags, script=script)
    process, run_dir = start(folder, script, *flags)
    checkpoint = run_dir / "checkpoint.pt"
    wait_for(checkpoint.exists)
    time.sleep(0.5)
    process.kill()
    process.wait()
    resume, steps = ("--resume", run_dir), []
    for moment in moments:
        steps.append(load(run_dir, "checkpoint.pt" if checkpoint.exists() else "checkpoint.prev.pt")["step"])
        if isinstance(moment, float):  # seconds after the start
            process, _ = start(folder, script, *resume)
            time.sleep(moment)
            process.kill()
        else:
            process, _ = start(folder, KILL_AT, *moment, "SIGKILL", script, *resume)
        process.communicate()
        assert process.returncode in (-signal.SIGKILL, 0)
    if process.returncode != 0:  # the last moment may have come after the run's end
        result = run(folder, *resume, script=script)
        assert result.returncode == 0, result.stderr
    print("resumed from steps", steps)
    assert len(set(steps)) > 1
    a, b = scalars(reference), scalars(run_dir)
    assert [len(a[tag]) for tag in a] == [len(b[tag]) for tag in a] and a.keys() == b.keys()
    del a["charts/SPS"], b["charts/SPS"]
    assert a == b
    assert differences(load(reference), load(run_dir)) == []
    assert differences(load(reference, "checkpoint.prev.pt"), load(run_dir, "checkpoint.prev.pt")) == []
    policies = [sorted(path.name for path in folder_.glob("policy_*.pt")) for folder_ in (reference, run_dir)]
    assert policies[0] == policies[1] and len(policies[0]) > 5


def test_a_run_that_is_killed_goes_on_to_the_bit(folder):
    check_killed(folder, TOY, [("replace", 6), ("write", 5), random.uniform(0.2, 4)])


def test_what_an_environment_told_is_known_after_a_resume(folder):
    check_killed(folder, (*TOY, "--env-id", "my_env:TellsWhatHappened-v0"), [("replace", 6), ("replace", 6)])


@pytest.mark.slow
def test_twenty_kills(folder):
    """Ten on an environment that uses the global generators, ten on EggManipulate while it is filmed."""
    moments = [
        ("write", 3), 1.0, ("write", 30), ("fsync", 2), 5.0, ("replace", 3), ("replace", 6), 5.0, ("fsync", 4), 5.0,
    ]
    moments = [random.uniform(0.1, moment) if isinstance(moment, float) else moment for moment in moments]
    check_killed(folder, (*TOY, "--total-timesteps", 3000, "--eval-every", 170), moments)
    flags = "--env-id EggManipulate --total-timesteps 2000 --checkpoint-every 150 --capture-video".split()
    check_killed(folder, (*SHORT, *flags), moments)


@pytest.mark.slow
@pytest.mark.parametrize("env_id", ["HumanoidVelocity", "FrankaDrawerClose", "CarCircle2", "PushTopple"])
def test_each_environment_goes_on_to_the_bit(tmp_path, env_id):
    """Nothing that an environment keeps besides what reset(seed) sets has a say."""
    flags = "--total-timesteps 2500 --checkpoint-every 300 --learning-starts 1500".split()
    moments = [("replace", 6), random.uniform(0.1, 3.0)]
    check_killed(tmp_path, (*SHORT, "--env-id", env_id, *flags), moments)


def test_a_checkpoint_holds_what_is_in_the_buffers_and_no_more(tmp_path):
    """A million rows may come, a hundred are there; and a ring that has gone round goes on where it was."""
    sizes = {}
    for n in (100, 1100):
        D = ReplayBuffer(1_000_000, np.random.default_rng(0), "cpu", obs=(10,), cost=())
        for i in range(n):
            D.add(obs=np.full(10, i), cost=i)
        save(D.state_dict(), str(tmp_path / "D"))
        sizes[n] = os.path.getsize(tmp_path / "D")
    assert sizes[100] < 10_000 and sizes[1100] - sizes[100] == pytest.approx(1000 * 11 * 4, abs=1000)

    rings = [ReplayBuffer(8, np.random.default_rng(0), "cpu", cost=()) for _ in range(2)]
    for i in range(11):
        rings[0].add(cost=i)
    rings[1].load_state_dict(rings[0].state_dict())
    for ring in rings:
        ring.add(cost=11)
    assert rings[1].rows["cost"].tolist() == rings[0].rows["cost"].tolist() == [8, 9, 10, 11, 4, 5, 6, 7]
    assert rings[0].sample(20).cost.tolist() == rings[1].sample(20).cost.tolist()


def test_the_number_of_threads_is_kept(folder):
    """Another number of threads adds up in another order, and the bits differ."""
    run_dir = train(folder, *TOY, "--total-timesteps", 40, OMP_NUM_THREADS="2")  # no update: it ends at once
    result = run(folder, "--resume", run_dir, "--total-timesteps", 45, OMP_NUM_THREADS="1")
    assert result.returncode == 0 and load(run_dir)["step"] == 45 and load(run_dir)["threads"] == 2


@pytest.mark.parametrize("signum, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals(folder, signum, code):
    """Stops, keeps the last checkpoint, says how to go on and how many steps that repeats; which is then so."""
    process, run_dir = start(folder, SCRIPT, *TOY, stderr=subprocess.PIPE)
    wait_for((run_dir / "checkpoint.pt").exists)
    time.sleep(0.3)
    process.send_signal(signum)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == code and "Traceback" not in stderr
    (line,) = [line for line in stderr.splitlines() if line.startswith("stopped at step ")]
    stopped, saved, repeated = map(int, re.findall(r"step (\d+);.* is of step (\d+)\. .*, (\d+) steps again", line)[0])
    assert saved == load(run_dir)["step"] and stopped - saved == repeated
    assert max(step for series in scalars(run_dir).values() for step, _ in series) > saved - 60  # logs were flushed
    command = line.split("again: python ")[1].split()
    result = run(folder, *command[1:], script=command[0])
    assert result.returncode == 0 and load(run_dir)["step"] == 500


def test_a_signal_before_a_resumed_runs_first_checkpoint(folder, copied):
    """The flags that were changed are in no checkpoint yet, so the command has them."""
    again = ["--resume", str(copied), "--total-timesteps", "100000", "--checkpoint-every", "0"]
    process = subprocess.Popen([sys.executable, SCRIPT, *again], cwd=folder, stderr=subprocess.PIPE, text=True)
    time.sleep(8)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130 and f"python {SCRIPT} {' '.join(again)}\n" in stderr


def test_a_signal_before_the_first_checkpoint(folder):
    flags = (*TOY, "--checkpoint-every", 0, "--total-timesteps", 100_000)
    process, run_dir = start(folder, SCRIPT, *flags, stderr=subprocess.PIPE)
    time.sleep(8)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in stderr and "the first checkpoint was not reached" in stderr
    assert not list(run_dir.glob("*.pt*"))


@pytest.mark.parametrize("call, n", [("write", 9), ("write", 60), ("fsync", 4), ("replace", 5), ("replace", 6)])
def test_a_signal_while_a_checkpoint_is_written(folder, call, n):
    """torch.save turns the SystemExit of a signal into a RuntimeError of its own: it must not be lost."""
    process, run_dir = start(folder, KILL_AT, call, n, "SIGTERM", SCRIPT, *TOY, stderr=subprocess.PIPE)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 143 and "Traceback" not in stderr, stderr
    assert not list(run_dir.glob("*.tmp"))
    assert (run_dir / "checkpoint.pt").exists() or (run_dir / "checkpoint.prev.pt").exists() or call == "write"
    assert all(load(path.parent, path.name) for path in run_dir.glob("checkpoint*.pt"))


def test_a_full_disk(folder):
    """RLIMIT_FSIZE: first the checkpoints do not fit, later the log neither; the training goes on to its end."""
    for limit, words in ((60_000, "cannot write"), (8_000, "cannot log")):
        set_limit = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit})); "
        (folder / "limited.py").write_text(
            f"import runpy, sys; {set_limit} sys.argv.pop(0); runpy.run_path(sys.argv[0], run_name='__main__')"
        )
        result = run(folder, SCRIPT, *TOY, script=folder / "limited.py")
        assert any(words in line and "File too large" in line for line in result.stderr.splitlines()), result.stderr
        assert result.returncode == 1 and "error: the last policy and checkpoint" in result.stderr
        assert "500/500" in result.stderr  # it went on to the end
    run_dir = min(folder.glob("runs/*"))
    assert not list(run_dir.glob("*.tmp"))
    saved = load(run_dir)["step"]  # from before the buffers outgrew the limit
    assert 60 <= saved < 500
    written = scalars(run_dir)
    assert written["meta/nu"][-1][0] == 500  # the log was not disturbed
    result = run(folder, "--resume", run_dir)
    assert result.returncode == 0 and load(run_dir)["step"] == 500


def test_an_unwritable_folder(folder):
    """Something stands in the checkpoint's way for a while: reported, and the next one is written."""
    process, run_dir = start(folder, SCRIPT, *TOY, "--total-timesteps", 2000, stderr=subprocess.PIPE)
    wait_for((run_dir / "checkpoint.pt").exists)
    (run_dir / "checkpoint.pt.tmp").mkdir()
    first = load(run_dir)["step"]
    time.sleep(3)
    held = load(run_dir)["step"]
    (run_dir / "checkpoint.pt.tmp").rmdir()
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 0 and "Traceback" not in stderr and load(run_dir)["step"] == 2000
    assert held <= first + 200 and "warning: cannot write" in stderr and "checkpoint.pt.tmp" in stderr


def test_a_file_in_the_folder_s_place(folder):
    process, run_dir = start(folder, SCRIPT, *TOY, stderr=subprocess.PIPE)
    wait_for((run_dir / "checkpoint.pt").exists)
    run_dir.rename(folder / "moved")
    run_dir.write_text("mine")
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 1  # the traceback in here is TensorBoard's own thread's
    for words in ("warning: cannot log", "warning: cannot write", "Not a directory", "500/500"):
        assert words in stderr
    assert run_dir.read_text() == "mine"
    result = run(folder, "--resume", folder / "moved")  # what was saved is whole, wherever it lies now
    assert result.returncode == 0 and load(folder / "moved")["step"] == 500


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run with two checkpoints, and its folder."""
    folder = tmp_path_factory.mktemp("finished")
    shutil.copy(ROOT / "tests" / "my_env.py", folder)
    return train(folder, *TOY, "--total-timesteps", 400, "--eval-every", 200)


@pytest.fixture
def copied(finished, folder):
    return Path(shutil.copytree(finished, folder / "run"))


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1000])


def empty(path):
    path.write_bytes(b"")


def garbage(path):
    path.write_text("not a checkpoint")


def flip_a_bit(path):
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as file:  # inside a tensor: torch.load alone would take it
        largest = max(file.infolist(), key=lambda entry: entry.file_size)
    data[largest.header_offset + 30 + len(largest.filename) + largest.file_size // 2] ^= 1
    path.write_bytes(bytes(data))


class Malicious:
    def __reduce__(self):
        return os.mkdir, ("pwned",)


def malicious(path):
    torch.save({"format": "meta_sac_lag 2", "args": Malicious()}, path)


@pytest.mark.parametrize("damage", [truncate, empty, garbage, flip_a_bit, malicious, os.remove])
def test_a_damaged_checkpoint(folder, copied, damage):
    """It is refused with a line that says so, put aside, and the one before is used; the run ends as it should."""
    whole = load(copied)
    before = load(copied, "checkpoint.prev.pt")["step"]
    damage(copied / "checkpoint.pt")
    result = run(folder, "--resume", copied)
    assert result.returncode == 0, result.stderr
    (note,) = [line for line in result.stdout.splitlines() if line.startswith("note: ")]
    assert "cannot read" in note and "checkpoint.pt: " in note and "going back to" in note
    assert differences(load(copied), whole) == []
    assert load(copied, "checkpoint.prev.pt")["step"] == before  # the good one was not pushed out
    assert (copied / "checkpoint.pt.damaged").exists() == (damage is not os.remove)
    assert not (folder / "pwned").exists()


@pytest.mark.parametrize("damage", [truncate, flip_a_bit, malicious])
def test_no_checkpoint_is_left(folder, run_here, copied, damage):
    damage(copied / "checkpoint.pt")
    os.remove(copied / "checkpoint.prev.pt")
    assert_one_line(run_here("--resume", copied), "cannot read", "checkpoint.pt")
    damage(next(copied.glob("policy_400.pt")))
    assert_one_line(run_here("--evaluate", copied), "cannot read", "policy_400.pt")
    assert_one_line(run_here("--evaluate", copied / "policy_400.pt"), "cannot read", "policy_400.pt")
    assert not (folder / "pwned").exists()


def test_other_formats_and_other_shapes(folder, run_here, copied):
    resume = ("--resume", copied, "--total-timesteps", 500)
    assert_one_line(run_here(*resume, "--hidden-size", 32), "hidden_size 16", "32")
    assert_one_line(run_here("--resume", "nowhere"), "no run folder 'nowhere'")
    assert_one_line(run_here("--resume", folder), "checkpoint.pt: No such file")
    assert_one_line(run_here("--resume", copied, "--evaluate", copied), "--resume", "--evaluate")
    assert_one_line(run_here("--evaluate", "nowhere"), "nowhere", "No such file")
    (folder / "none").mkdir()
    assert_one_line(run_here("--evaluate", "none"), "no policy_*.pt in none")

    # The environment has changed since: another observation, another box of actions
    code = (folder / "my_env.py").read_text()
    for old, new, words in (
        ("(2,), np.float32", "(3,), np.float32", ["obs_dim 2", "3"]),
        ("Box(-0.4, 0.4, (1,)", "Box(-0.5, 0.4, (1,)", ["action_low [-0.4", "-0.5"]),
        ("Box(-0.4, 0.4, (1,)", "Box(-0.4, 0.4, (2,)", ["action_dim 1", "2"]),
    ):
        (folder / "my_env.py").write_text(code.replace(old, new))
        assert_one_line(run(folder, *resume), *words)
        assert_one_line(run(folder, "--evaluate", copied), *words)
    (folder / "my_env.py").write_text(code)

    # The script's networks have changed since
    wider = folder / "wider.py"
    code = SCRIPT.read_text()
    wider.write_text(code.replace("hidden_size, 2 * action_dim", "hidden_size, 2 * action_dim, False"))
    assert_one_line(run_here(*resume, script=wider), "Unexpected key", "net.4.bias")
    wider.write_text(code.replace("self.net = nn", "hidden_size *= 2\n        self.net = nn"))
    assert_one_line(run_here(*resume, script=wider), "[16, 2]", "[32, 2]")
    assert_one_line(run_here("--evaluate", copied, script=wider), "[16, 2]", "[32, 2]")

    checkpoint = torch.load(copied / "checkpoint.pt", weights_only=True)
    torch.save({**checkpoint, "format": "meta_sac_lag 99"}, copied / "checkpoint.pt")
    assert_one_line(run_here(*resume), "meta_sac_lag 99", "meta_sac_lag 2")
    torch.save([1], copied / "checkpoint.pt")
    assert_one_line(run_here(*resume), "None", "meta_sac_lag 2")


def test_names_that_say_nothing(run_here, copied):
    """An unset variable of a shell is no wish for a new run; and which policy is the last tells its number only."""
    assert_one_line(run_here("--resume", ""), "no run folder ''")
    assert_one_line(run_here("--evaluate", ""), "cannot read : No such file")
    for name in ("policy_500 (copy).pt", "policy_900_best.pt", "policy_best.pt"):
        shutil.copy(copied / "policy_400.pt", copied / name)
    result = run_here("--evaluate", copied)
    assert result.returncode == 0 and "policy_400.pt on" in result.stdout


def test_one_process_at_a_time(folder):
    process, run_dir = start(folder, SCRIPT, *TOY, "--total-timesteps", 100_000)
    wait_for((run_dir / "checkpoint.pt").exists)
    assert_one_line(run(folder, "--resume", run_dir), "another process is training in", run_dir.name)
    process.kill()
    process.wait()
    result = run(folder, "--resume", run_dir, "--total-timesteps", load(run_dir)["step"] + 10)
    assert result.returncode == 0, result.stderr


def test_weights_only_everywhere():
    for path in (*ROOT.glob("*.py"), *ROOT.glob("experiments/*.py"), ROOT / "README.md"):
        for call in re.findall(r"torch\.load\(.*", path.read_text()):
            assert "weights_only=True" in call, (path, call)


def test_saved_arguments_win(folder, run_here, copied):
    """All but how far, and how often to save and to evaluate; and a finished run can be taken further."""
    for total in (300, 400):
        assert_one_line(run_here("--resume", copied, "--total-timesteps", total), "has 400 steps", "--total-timesteps")
    further = ("--resume", copied, "--total-timesteps", 600, "--checkpoint-every", 50, "--eval-every", 0)
    result = run(folder, *further, "--seed", 7, "--nu-lr", 1)
    assert result.returncode == 0, result.stderr
    notes = sorted(line for line in result.stdout.splitlines() if line.startswith("note: "))
    assert len(notes) == 2 and "--nu-lr 1.0 is not taken" in notes[0]
    assert "--seed 7 is not taken, the run keeps its 1" in notes[1]
    checkpoint = load(copied)
    assert checkpoint["step"] == 600 and checkpoint["args"]["checkpoint_every"] == 50
    assert 550 <= load(copied, "checkpoint.prev.pt")["step"] < 600
    written = scalars(copied)
    assert [step for step, _ in written["meta/nu"]] == [200, 300, 400, 500, 600]


def test_videos_and_tracking_can_be_left_out_later(folder, copied):
    """For what they need may be missing on the next machine, and neither goes with a robot."""
    checkpoint = torch.load(copied / "checkpoint.pt", weights_only=True)
    checkpoint["args"] |= dict(capture_video=True, track=True)
    save(checkpoint, str(copied / "checkpoint.pt"))
    further = ("--resume", copied, "--total-timesteps", 500)
    assert_one_line(run(folder, *further, "--no-track"), "rgb_array")
    result = run(folder, *further, "--no-track", "--no-capture-video")
    assert result.returncode == 0 and "note: " not in result.stdout, result.stderr


@pytest.mark.parametrize(
    "env_id, words",
    [
        ("Nan-observation-v0", ["observation is not finite: [", "nan]"]),
        ("Nan-reward-v0", ["reward is not finite: nan"]),
        ("Inf-reward-v0", ["reward is not finite: -inf"]),
        ("Float64-reward-v0", ["reward is not finite: 1e+39"]),
        ("Huge-reward-v0", ["not finite at step 23", ": losses/qr"]),
    ],
)
def test_numbers_that_are_not_finite(folder, run_here, env_id, words):
    result = run_here(*TOY, "--env-id", f"my_env:{env_id}", "--batch-size", 256)
    assert_one_line(result, *words)
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("stopped at step ")]
    (run_dir,) = folder.glob("runs/*")
    checkpoint = load(run_dir)
    assert 180 <= checkpoint["step"] <= 230 and f"{run_dir.name} is of step {checkpoint['step']}." in line
    if "Huge" in env_id:  # found at a check, but named with the step at which it was so
        step = int(re.search(r"at step (\d+): losses/qr", result.stderr)[1])
        assert 230 <= step < 240 <= int(re.search(r"stopped at step (\d+)", line)[1]) <= 300
    else:
        assert line.startswith("stopped at step 230;")
    tensors = [checkpoint["parts"][name] for name in checkpoint["parts"]] + [checkpoint["tensors"]]
    assert all(t.isfinite().all() for state in tensors for t in state.values() if isinstance(t, torch.Tensor))


def test_a_reset_that_is_not_finite(run_here):
    result = run_here(*TOY, "--env-id", "my_env:Nan-reset-v0", "--initial-states", 300)
    assert_one_line(result, "observation is not finite: [nan, ")
    assert "stopped at step 0; the first checkpoint was not reached" in result.stderr


@pytest.mark.parametrize("poisoned", ["phi", "qr", "qc", "nu", "epsilon", "log_alpha"])
def test_a_poisoned_state_is_never_saved(folder, run_here, poisoned):
    """Whatever turns to NaN inside the block, the next checkpoint is not written and the run ends."""
    poison = {
        "phi": "phi['net.0.weight'].data[0, 0] = math.nan", "qr": "next(qr.parameters()).data[0, 0] = math.nan",
        "qc": "next(qc.parameters()).data[0, 0] = math.nan", "nu": "nu.fill_(math.nan)",
        "epsilon": "epsilon.data.fill_(math.nan)", "log_alpha": "log_alpha.data.fill_(math.nan)",
    }[poisoned]
    script = folder / "poisoned.py"
    marker = "                # >>> Algorithm 1, lines 12 to 20\n"
    code = SCRIPT.read_text()
    assert code.count(marker) == 1
    poison = f"                if global_step == 251:\n                    {poison}\n"
    script.write_text(code.replace(marker, poison + marker))
    result = run_here(*TOY, script=script)
    assert_one_line(result, "not finite at step 251: ")
    (run_dir,) = folder.glob("runs/*")
    assert 180 <= load(run_dir)["step"] < 251


def test_evaluation(folder, copied):
    """--evaluate FOLDER and FILE give the same table and JSON, twice; training's own evaluation gave it too."""
    own = json.loads((copied / "eval_400.json").read_text())
    tables = []
    for path in (copied, copied / "policy_400.pt", copied / "checkpoint.pt"):
        os.remove(copied / "eval_400.json")
        result = run(folder, "--evaluate", path)
        assert result.returncode == 0, result.stderr
        tables.append(result.stdout.splitlines()[1:])
        written = json.loads((copied / "eval_400.json").read_text())
        assert written == own
    assert tables[0] == tables[1] == tables[2]
    facts = dict(env_id="my_env:GlobalRandom-v0", step=400, seed=1)
    assert {key: written[key] for key in facts} == facts
    episodes = written["episodes"]
    assert set(episodes) >= {"episodic_return", "episodic_length", "violation", "success", "acceleration", "jerk"}
    for key, values in episodes.items():
        assert len(values) == 10
        assert written["mean"][key] == pytest.approx(np.mean(values))
        assert written["std"][key] == pytest.approx(np.std(values))
        (row,) = [line for line in tables[0] if line.startswith(key)]
        assert row.split()[1:] == [f"{np.mean(values):.3f}", f"{np.std(values):.3f}"]
    assert len(set(episodes["episodic_return"])) == 10  # ten different episodes
    assert scalars(copied)["eval/episodic_return"][-1] == (400, pytest.approx(own["mean"]["episodic_return"]))
    (copied / "eval_400.json").unlink()
    (copied / "eval_400.json").mkdir()  # in the way: the table is shown all the same
    result = run(folder, "--evaluate", copied)
    assert "warning: cannot write" in result.stderr and result.stdout.splitlines()[1:] == tables[0]
    (copied / "eval_400.json").rmdir()
    run(folder, "--evaluate", copied, "--seed", 2, "--episodes", 3)
    other = json.loads((copied / "eval_400.json").read_text())
    assert len(other["episodes"]["violation"]) == 3
    assert other["episodes"]["episodic_return"] != own["episodes"]["episodic_return"][:3]


def test_an_environment_that_tells_only_what_happened(folder):
    """Success and kinds of violation count as 0 in the episodes that do not mention them."""
    run_dir = train(folder, *SHORT, "--env-id", "my_env:TellsWhatHappened-v0", "--total-timesteps", 600)
    assert run(folder, "--evaluate", run_dir, "--episodes", 30, "--seed", 2).returncode == 0
    episodes = json.loads((run_dir / "eval_600.json").read_text())["episodes"]
    assert episodes["cost_outside"] == episodes["violation"] and 0 < sum(episodes["violation"]) < 30
    assert len(episodes["success"]) == 30 and 0 < sum(episodes["success"]) < 30
    written = scalars(run_dir)
    (first, rate), *_ = written["charts/success_rate"]
    before = sum(step <= first for step, _ in written["charts/violation"])
    assert before > 1 and rate * before in (0, pytest.approx(1))


def test_notes_on_flags_that_do_nothing(folder, copied):
    result = run(folder, "--evaluate", copied, "--env-id", "Pendulum-v1", "--robot-ip", "10.0.0.1")
    notes = [line for line in result.stdout.splitlines() if line.startswith("note: ")]
    assert len(notes) == 2 and "--robot-ip" in notes[0] and "--env-id Pendulum-v1 is not taken" in notes[1]


def test_evaluation_leaves_the_training_alone(folder):
    flags = (*TOY, "--total-timesteps", 400)
    a, b = (scalars(train(folder, *flags, *more)) for more in ([], ["--eval-every", 60, "--episodes", 2]))
    assert len(b["eval/violation"]) > 3
    assert all(a[tag] == b[tag] for tag in a if tag != "charts/SPS")


def test_videos(tmp_path):
    flags = "--env-id EggManipulate --total-timesteps 260 --learning-starts 260 --initial-states 2".split()
    run_dir = train(tmp_path, *flags, "--capture-video", "--checkpoint-every", 150)
    train_videos = sorted(path.name for path in (run_dir / "videos").glob("train*.mp4"))
    assert "train-episode-0.mp4" in train_videos and "train-episode-1.mp4" in train_videos
    assert "train-episode-2.mp4" not in train_videos
    result = run(tmp_path, "--evaluate", run_dir, "--episodes", 2, "--capture-video")
    assert result.returncode == 0, result.stderr
    for k in range(2):
        assert (run_dir / "videos" / f"eval_260-episode-{k}.mp4").stat().st_size > 1000


def test_videos_of_an_environment_that_cannot_draw(folder):
    assert_one_line(run(folder, *TOY, "--capture-video"), "rgb_array", "GlobalRandom-v0")


def test_an_evaluations_episodes_are_none_of_the_trainings(folder, train_here, monkeypatch):
    import my_env

    seeds, reset = [], my_env.MyEnv.reset

    def note(self, *, seed=None, options=None):
        seeds.append(seed)
        return reset(self, seed=seed, options=options)

    monkeypatch.setattr(my_env.MyEnv, "reset", note)
    names = train_here("my_env:MyEnv-v0", *SHORT, "--eval-every", 300, "--episodes", 3)
    trained, evaluated = seeds[:-3], seeds[-3:]
    assert len(trained) == names["episode"] > 15
    assert trained == [episode_seed(1, k) for k in range(len(trained))]
    assert evaluated == [episode_seed(1, k, stream=1) for k in range(3)]
    assert len(set(seeds)) == len(seeds)
