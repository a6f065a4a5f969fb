"""Tests of what keeps a run: checkpoints, resume, signals, full disks, damaged files, evaluation, bad numbers."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import gymnasium as gym
import my_env
import numpy as np
import pytest
import torch
from helpers import ROOT, SCRIPT, SHORT, assert_one_line, run, scalars, start, train, wait_for

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
    last = load(run_dir)["step"] if checkpoint.exists() else 0
    if last < load(reference)["step"]:  # the last moment may have come after the run's end
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
    a, b = ({path.name: path.read_text() for path in parent.glob("eval_*.json")} for parent in (reference, run_dir))
    assert a == b


def test_a_run_that_is_killed_goes_on_to_the_bit(folder):
    check_killed(folder, TOY, [("replace", 6), ("write", 2), random.uniform(0.2, 4)])


def test_what_an_environment_told_is_known_after_a_resume(folder):
    check_killed(folder, (*TOY, "--env-id", "my_env:TellsWhatHappened-v0"), [("replace", 6), ("replace", 6)])


def test_a_run_that_is_killed_in_an_evaluation(folder):
    """Before it, between its scalars and its file, and before the file is written: it is logged once, and whole."""
    check_killed(folder, (*TOY, "--eval-every", 60, "--episodes", 2), [("make", 3), ("open", 2), ("dump", 2)])


def test_a_kill_in_the_last_evaluation(folder):
    """The run's last checkpoint is there by then."""
    flags = (*TOY, "--total-timesteps", 60, "--eval-every", 60)
    process, run_dir = start(folder, KILL_AT, "make", 2, "SIGKILL", SCRIPT, *flags)
    process.communicate()
    assert process.returncode == -signal.SIGKILL and load(run_dir)["step"] == 60
    assert not (run_dir / "eval_60.json").exists()
    assert run(folder, "--evaluate", run_dir).returncode == 0 and (run_dir / "eval_60.json").exists()


@pytest.mark.slow
def test_twenty_kills(folder):
    """Ten on an environment that uses the global generators, ten on EggManipulate while it is filmed."""
    moments = [
        ("write", 3), 1.0, ("write", 1), ("fsync", 2), 5.0, ("replace", 3), ("replace", 6), 5.0, ("fsync", 4), 5.0,
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
        D = ReplayBuffer(1_000_000, torch.Generator(), "cpu", obs=(10,), cost=())
        for i in range(n):
            D.add(obs=np.full(10, i), cost=i)
        save(D.state_dict(), str(tmp_path / "D"))
        sizes[n] = os.path.getsize(tmp_path / "D")
    assert sizes[100] < 10_000 and sizes[1100] - sizes[100] == pytest.approx(1000 * 11 * 4, abs=1000)

    rings = [ReplayBuffer(8, torch.Generator().manual_seed(0), "cpu", cost=()) for _ in range(2)]
    for i in range(11):
        rings[0].add(cost=i)
    rings[1].load_state_dict(rings[0].state_dict())
    for ring in rings:
        ring.add(cost=11)
    assert rings[1].rows["cost"].tolist() == rings[0].rows["cost"].tolist() == [8, 9, 10, 11, 4, 5, 6, 7]
    assert len(rings[0]) == len(rings[1]) == rings[1].size.item() == 8
    assert rings[0].sample(20).cost.tolist() == rings[1].sample(20).cost.tolist()


def test_the_number_of_threads_is_kept(folder):
    """Another number of threads adds up in another order, and the bits differ."""
    run_dir = train(folder, *TOY, "--total-timesteps", 40, OMP_NUM_THREADS="2")  # no update: it ends at once
    result = run(folder, "--resume", run_dir, "--total-timesteps", 45, OMP_NUM_THREADS="1")
    assert result.returncode == 0 and load(run_dir)["step"] == 45 and load(run_dir)["threads"] == 2


def stopped(stderr, code, process):
    """What the farewell says: at which step it stopped, from which it goes on (None: from none), by which command."""
    assert process.returncode == code and "Traceback" not in stderr and "Exception ignored" not in stderr, stderr
    (line,) = [line for line in stderr.splitlines() if line.startswith("stopped at step ")]
    if line.endswith("; there is no checkpoint yet"):
        return int(line.split()[3][:-1]), None, None
    step, saved, command = re.fullmatch(r"stopped at step (\d+); to go on from step (\d+): python (.*)", line).groups()
    return int(step), int(saved), command.split()


@pytest.mark.parametrize("signum, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals(folder, signum, code):
    """Stops, keeps the last checkpoint, says from which step it goes on and by which command; which is then so."""
    process, run_dir = start(folder, SCRIPT, *TOY, stderr=subprocess.PIPE)
    wait_for((run_dir / "checkpoint.pt").exists)
    time.sleep(0.3)
    process.send_signal(signum)
    _, stderr = process.communicate(timeout=60)
    step, saved, command = stopped(stderr, code, process)
    assert saved == load(run_dir)["step"] <= step < 500
    assert max(logged for series in scalars(run_dir).values() for logged, _ in series) > saved - 60  # logs were flushed
    result = run(folder, *command[1:], script=command[0])
    assert result.returncode == 0 and load(run_dir)["step"] == 500


def test_a_signal_before_a_resumed_runs_first_checkpoint(folder, copied):
    """How far the run shall go is in no checkpoint yet, so the command has it."""
    again = ["--resume", str(copied), "--total-timesteps", "100000", "--checkpoint-every", "0"]
    process, run_dir = start(folder, SCRIPT, *again, stderr=subprocess.PIPE)
    wait_for(lambda: scalars(run_dir)["charts/violation"][-1][0] > 400)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    step, saved, command = stopped(stderr, 130, process)
    assert step > saved == 400 and command == [str(SCRIPT), "--resume", str(copied), "--total-timesteps", "100000"]


def test_a_signal_before_the_first_checkpoint(folder):
    flags = (*TOY, "--checkpoint-every", 0, "--total-timesteps", 100_000)
    process, run_dir = start(folder, SCRIPT, *flags, stderr=subprocess.PIPE)
    wait_for(lambda: scalars(run_dir))
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    step, saved, _ = stopped(stderr, 130, process)
    assert step > 0 and saved is None and not list(run_dir.glob("*.pt*"))


@pytest.mark.parametrize("call, n", [("write", 1), ("write", 2), ("fsync", 4), ("replace", 5), ("replace", 6)])
def test_a_signal_while_a_checkpoint_is_written(folder, call, n):
    process, run_dir = start(folder, KILL_AT, call, n, "SIGTERM", SCRIPT, *TOY, stderr=subprocess.PIPE)
    _, stderr = process.communicate(timeout=120)
    _, saved, _ = stopped(stderr, 143, process)
    whole = [load(run_dir, path.name)["step"] for path in run_dir.glob("checkpoint*.pt")]
    assert bool(whole) == ((call, n) != ("write", 1)) == (saved is not None) and saved in (None, *whole)


def limited(folder, limit, *flags):
    """The script where no file can be larger than `limit` bytes"""
    set_limit = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit})); "
    (folder / "limited.py").write_text(
        f"import runpy, sys; {set_limit} sys.argv.pop(0); runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    return run(folder, SCRIPT, *flags, script=folder / "limited.py")


def test_a_full_disk(folder):
    """At some step the checkpoints do not fit any more: a warning each, and the training goes on to its end."""
    result = limited(folder, 60_000, *TOY)
    assert_one_line(result, "the last checkpoint could not be written")
    assert result.stderr.count("warning: cannot write") > 2 and "500/500" in result.stderr
    assert "stopped at step" not in result.stderr
    (run_dir,) = folder.glob("runs/*")
    saved = load(run_dir)["step"]  # from before the buffers outgrew the limit
    assert 60 <= saved < 500
    assert scalars(run_dir)["meta/nu"][-1][0] == 500  # the log was not disturbed
    result = run(folder, "--resume", run_dir)
    assert result.returncode == 0 and load(run_dir)["step"] == 500
    assert not list(run_dir.glob("*.tmp"))


def test_a_checkpoint_that_does_not_fit_leaves_nothing(tmp_path, monkeypatch):
    def half(state, path):
        Path(path).write_bytes(b"0" * 1000)
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0")

    monkeypatch.setattr("torch.save", half)
    assert not save({}, str(tmp_path / "checkpoint.pt"))
    assert not list(tmp_path.iterdir())


def test_a_log_that_cannot_be_written(folder):
    """TensorBoard's writer is lost then; the training goes on to its end."""
    process, run_dir = start(folder, SCRIPT, *TOY, stderr=subprocess.PIPE)
    wait_for((run_dir / "checkpoint.pt").exists)
    (events,) = run_dir.glob("events*")
    events.rename(folder / events.name)
    events.mkdir()
    _, stderr = process.communicate(timeout=120)  # the traceback in here is TensorBoard's own thread's
    assert process.returncode == 0 and "warning: cannot log: [Errno 21] Is a directory" in stderr
    assert "500/500" in stderr and load(run_dir)["step"] == 500


def test_an_unwritable_folder(folder):
    """Something stands in the checkpoint's way for a while: reported, and the next one is written."""
    process, run_dir = start(folder, SCRIPT, *TOY, "--total-timesteps", 1000, stderr=subprocess.PIPE)
    wait_for((run_dir / "checkpoint.pt").exists)
    (run_dir / "checkpoint.pt.tmp").mkdir()
    first = load(run_dir)["step"]
    time.sleep(3)
    held = load(run_dir)["step"]
    (run_dir / "checkpoint.pt.tmp").rmdir()
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 0 and "Traceback" not in stderr and load(run_dir)["step"] == 1000
    assert held <= first + 200 and f"warning: cannot write {run_dir.relative_to(folder)}/checkpoint.pt: " in stderr


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


class Malicious:
    def __reduce__(self):
        return os.mkdir, ("pwned",)


def malicious(path):
    torch.save({"sizes": {}, "args": Malicious()}, path)


@pytest.mark.parametrize("damage", [truncate, empty, garbage, malicious, os.remove])
def test_a_damaged_checkpoint(folder, run_here, copied, damage):
    """It is refused with a line that says so, put aside, and the one before is used; the run ends as it should."""
    whole = load(copied)
    before = load(copied, "checkpoint.prev.pt")["step"]
    damage(copied / "checkpoint.pt")
    result = run_here("--resume", copied)
    assert result.returncode == 0, result.stderr
    (note,) = [line for line in result.stdout.splitlines() if line.startswith("note: ")]
    assert "cannot read" in note and "checkpoint.pt: " in note and "going back to" in note
    assert differences(load(copied), whole) == []
    assert load(copied, "checkpoint.prev.pt")["step"] == before  # the good one was not pushed out
    assert (copied / "checkpoint.pt.damaged").exists() == (damage is not os.remove)
    assert not (folder / "pwned").exists()


@pytest.mark.parametrize("damage", [truncate, malicious])
def test_no_checkpoint_is_left(folder, run_here, copied, damage):
    damage(copied / "checkpoint.pt")
    os.remove(copied / "checkpoint.prev.pt")
    assert_one_line(run_here("--resume", copied), "cannot read", "checkpoint.pt")
    damage(copied / "policy_400.pt")
    assert_one_line(run_here("--evaluate", copied), "cannot read", "policy_400.pt")
    assert_one_line(run_here("--evaluate", copied / "policy_400.pt"), "cannot read", "policy_400.pt")
    assert not (folder / "pwned").exists()


def test_what_is_no_run_and_what_does_not_fit(folder, run_here, copied, monkeypatch):
    resume = ("--resume", copied, "--total-timesteps", 500)
    (folder / "none").mkdir()
    for flag, file in (("--resume", "/checkpoint.pt"), ("--evaluate", "")):
        assert_one_line(run_here(flag, "nowhere"), f"cannot read nowhere{file}: ")
        assert_one_line(run_here(flag, "none"), f"cannot read none{file}: ")

    # The environment has changed since: another observation, another box of actions
    init = my_env.MyEnv.__init__
    for name, space in (
        ("observation_space", gym.spaces.Box(-np.inf, np.inf, (3,), np.float32)),
        ("action_space", gym.spaces.Box(-0.5, 0.4, (1,), np.float32)),
        ("action_space", gym.spaces.Box(-0.4, 0.4, (2,), np.float32)),
    ):
        monkeypatch.setattr("my_env.MyEnv.__init__", lambda self: init(self) or setattr(self, name, space))
        for flags in (resume, ("--evaluate", copied)):
            made_for = "made for observations Box(-inf, inf, (2,), float32) and actions Box(-0.4, 0.4, (1,), float32)"
            assert_one_line(run_here(*flags), made_for, str(space))
    monkeypatch.setattr("my_env.MyEnv.__init__", init)

    policy = torch.load(copied / "policy_400.pt", weights_only=True)
    for other, words in (([1], "no policy or checkpoint"), (policy, "another script")):
        torch.save(other, copied / "checkpoint.pt")
        (copied / "checkpoint.prev.pt").unlink(missing_ok=True)
        assert_one_line(run_here(*resume), words)
    torch.save([1], copied / "policy_400.pt")
    assert_one_line(run_here("--evaluate", copied / "policy_400.pt"), "policy_400.pt", "no policy or checkpoint")


def test_names_that_say_nothing(run_here, copied):
    """An unset variable of a shell is no wish for a new run; and which policy is the last tells its number only."""
    for flag in ("--resume", "--evaluate"):
        assert_one_line(run_here(flag, ""), "cannot read")
    for name in ("policy_500 (copy).pt", "policy_900_best.pt", "policy_best.pt", "policy_1000.pt.tmp", "policy_99.pt"):
        (copied / name).write_text("none")
    assert run_here("--evaluate", copied, "--episodes", 1).returncode == 0


def test_weights_only_everywhere():
    for path in (*ROOT.glob("*.py"), *ROOT.glob("experiments/*.py"), ROOT / "README.md"):
        for call in re.findall(r"torch\.load\(.*", path.read_text()):
            assert "weights_only=True" in call, (path, call)


def test_saved_arguments_win(run_here, copied):
    """All but how far, and how often to save and to evaluate; and a finished run can be taken further."""
    for total in (300, 400):
        assert_one_line(run_here("--resume", copied, "--total-timesteps", total), "has 400 steps", "--total-timesteps")
    further = ("--resume", copied, "--total-timesteps", 600, "--checkpoint-every", 50, "--eval-every", 0)
    before = load(copied)["args"]
    result = run_here(*further, "--seed", 7, "--nu-lr", 1, "--hidden-size", 32, "--env-id", "Pendulum-v1")
    assert result.returncode == 0, result.stderr
    (note,) = [line for line in result.stdout.splitlines() if line.startswith("note: ")]
    assert {*re.findall(r"\w+", note.split("keeps its own")[1])} == {"seed", "nu_lr", "hidden_size", "env_id"}
    checkpoint = load(copied)
    assert checkpoint["step"] == 600 and checkpoint["sizes"]["hidden_size"] == 16
    changed = dict(total_timesteps=600, checkpoint_every=50, eval_every=0)
    assert checkpoint["args"] == before | changed != before
    assert 550 <= load(copied, "checkpoint.prev.pt")["step"] < 600
    written = scalars(copied)
    assert [step for step, _ in written["meta/nu"]] == [200, 300, 400, 500, 600]


def test_videos_and_tracking_can_be_left_out_later(run_here, copied):
    """For what they need may be missing on the next machine, and neither goes with a robot."""
    checkpoint = torch.load(copied / "checkpoint.pt", weights_only=True)
    checkpoint["args"] |= dict(capture_video=True, track=True)
    torch.save(checkpoint, copied / "checkpoint.pt")
    further = ("--resume", copied, "--total-timesteps", 500)
    assert_one_line(run_here(*further, "--no-track"), "rgb_array")
    result = run_here(*further, "--no-track", "--no-capture-video")
    assert result.returncode == 0 and "note: " not in result.stdout, result.stderr


@pytest.mark.parametrize(
    "env_id, words",
    [
        ("Nan-observation-v0", ["observations must be finite numbers of shape (2,)", "nan]"]),
        ("Nan-reward-v0", ["the reward must be finite", "nan"]),
        ("Inf-reward-v0", ["the reward must be finite", "-inf"]),
        ("Float64-reward-v0", ["the reward must be finite", "1e+39"]),
        ("Huge-reward-v0", ["not finite at step 2", "critics"]),
    ],
)
def test_numbers_that_are_not_finite(folder, run_here, env_id, words):
    result = run_here(*TOY, "--env-id", f"my_env:{env_id}", "--batch-size", 256)
    assert_one_line(result, *words)
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("stopped at step ")]
    (run_dir,) = folder.glob("runs/*")
    checkpoint = load(run_dir)
    assert 180 <= checkpoint["step"] <= 230 and f"to go on from step {checkpoint['step']}: " in line
    if "Huge" not in env_id:  # which is found before the next checkpoint only
        assert line.startswith("stopped at step 230;")
    tensors = [checkpoint["parts"][name] for name in checkpoint["parts"]] + [checkpoint["tensors"]]
    assert all(t.isfinite().all() for state in tensors for t in state.values() if isinstance(t, torch.Tensor))


def test_a_reset_that_is_not_finite(run_here):
    result = run_here(*TOY, "--env-id", "my_env:Nan-reset-v0", "--initial-states", 300)
    assert_one_line(result, "observations must be finite", "[nan")
    assert "stopped at step 0; there is no checkpoint yet" in result.stderr


def poisoned_run(folder, run_here, before, line):
    """The script with one more line before another"""
    code = SCRIPT.read_text()
    assert code.count(before) == 1
    indent = before[: len(before) - len(before.lstrip())]
    (folder / "poisoned.py").write_text(code.replace(before, f"{indent}{line}\n{before}"))
    return run_here(*TOY, script=folder / "poisoned.py")


POISON = {
    "phi": "phi[0] = math.nan", "qr": "next(qr.parameters()).data[0, 0] = math.nan",
    "qc": "next(qc.parameters()).data[0, 0] = math.nan", "nu": "nu.fill_(math.nan)",
    "epsilon": "epsilon.data.fill_(math.nan)", "log_alpha": "log_alpha.data.fill_(math.nan)",
    "adam": "qc_optimizer.state[qc.bias_1]['exp_avg'][0] = math.nan", "nu_square": "nu_square.fill_(math.inf)",
    "phi_square": "phi_square[0] = math.nan", "epsilon_square": "epsilon_square.fill_(math.nan)",
}  # fmt: skip


@pytest.mark.parametrize("poisoned", POISON)
def test_a_poisoned_state_is_never_saved(folder, run_here, poisoned):
    """Whatever is not finite between two updates, the next check finds and names, and the run ends."""
    end = "                # <<< Algorithm 1, lines 12 to 20\n"
    result = poisoned_run(folder, run_here, end, f"if global_step == 300: {POISON[poisoned]}")
    assert_one_line(result, "not finite at step 300: ")
    names = re.search(r"at step 300: (.*)", result.stderr)[1].split(", ")
    assert ("critics" if poisoned in ("qr", "qc", "adam") else poisoned) in names
    (run_dir,) = folder.glob("runs/*")
    assert 240 <= load(run_dir)["step"] < 300


@pytest.mark.parametrize("poisoned", ["phi", "qr", "nu", "epsilon", "log_alpha"])
def test_what_an_update_poisons_is_never_saved(folder, run_here, poisoned):
    """It reaches the policy within that update, whose action is no number then."""
    start = "                # >>> Algorithm 1, lines 12 to 20\n"
    result = poisoned_run(folder, run_here, start, f"if global_step == 251: {POISON[poisoned]}")
    assert_one_line(result, "the policy's action must be finite", "nan")
    (run_dir,) = folder.glob("runs/*")
    assert 180 <= load(run_dir)["step"] < 251


def test_evaluation(run_here, copied):
    """--evaluate FOLDER and FILE give the same table and JSON, twice; training's own evaluation gave it too."""
    own = json.loads((copied / "eval_400.json").read_text())
    tables = []
    for path in (copied, copied / "policy_400.pt", copied / "checkpoint.pt"):
        os.remove(copied / "eval_400.json")
        result = run_here("--evaluate", path)
        assert result.returncode == 0, result.stderr
        tables.append(result.stdout)
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
        (row,) = [line for line in tables[0].splitlines() if line.startswith(key)]
        assert re.findall(r"-?\d+\.\d+", row) == [f"{np.mean(values):.3f}", f"{np.std(values):.3f}"]
    assert len(set(episodes["episodic_return"])) == 10  # ten different episodes
    assert scalars(copied)["eval/episodic_return"][-1] == (400, pytest.approx(own["mean"]["episodic_return"]))
    run_here("--evaluate", copied, "--seed", 2, "--episodes", 3)
    other = json.loads((copied / "eval_400.json").read_text())
    assert len(other["episodes"]["violation"]) == 3
    assert other["episodes"]["episodic_return"] != own["episodes"]["episodic_return"][:3]


def test_an_evaluation_that_cannot_be_written(run_here, copied):
    """It is shown and logged all the same, and the training goes on."""
    (copied / "eval_500.json").mkdir()
    result = run_here("--resume", copied, "--total-timesteps", 500, "--eval-every", 500)
    assert result.returncode == 0 and "warning: cannot write" in result.stderr
    assert scalars(copied)["eval/episodic_return"][-1][0] == 500


def test_an_environment_that_tells_only_what_happened(folder, train_here, run_here):
    """Success and kinds of violation count as 0 in the episodes that do not mention them."""
    train_here("my_env:TellsWhatHappened-v0", *SHORT, "--total-timesteps", 400, "--learning-starts", 300)
    (run_dir,) = folder.glob("runs/*")
    assert run_here("--evaluate", run_dir, "--episodes", 30, "--seed", 2).returncode == 0
    episodes = json.loads((run_dir / "eval_400.json").read_text())["episodes"]
    assert "cost_sum" not in episodes  # no kind of violation
    assert episodes["cost_outside"] == episodes["violation"] and 0 < sum(episodes["violation"]) < 30
    assert len(episodes["success"]) == 30 and 0 < sum(episodes["success"]) < 30
    written = scalars(run_dir)
    (first, rate), *_ = written["charts/success_rate"]
    before = sum(step <= first for step, _ in written["charts/violation"])
    assert before > 1 and rate * before in (0, pytest.approx(1))


def test_evaluation_leaves_the_training_alone(folder, train_here):
    logged = []
    for name, more in (("a", []), ("b", ["--eval-every", 60, "--episodes", 2])):
        train_here("my_env:GlobalRandom-v0", *TOY, "--total-timesteps", 400, "--exp-name", name, *more)
        logged.append(scalars(next(folder.glob(f"runs/*__{name}__*"))))
    a, b = logged
    assert len(b["eval/violation"]) > 3
    assert all(a[tag] == b[tag] for tag in a if tag != "charts/SPS")


def test_videos(folder, run_here):
    """Of episodes 0, 1, 8, 27 and so on, counted on after a resume; and of every episode of an evaluation."""
    flags = (*SHORT, "--env-id", "my_env:Draws-v0", "--learning-starts", 1000, "--checkpoint-every", 150)
    assert run_here(*flags, "--capture-video").returncode == 0
    (run_dir,) = folder.glob("runs/*")
    for total, numbers in ((300, {0, 1, 8}), (600, {0, 1, 8, 27})):
        if total > 300:
            assert run_here("--resume", run_dir, "--total-timesteps", total).returncode == 0
        videos = {int(re.fullmatch(r"train-episode-(\d+)\.mp4", path.name)[1]) for path in run_dir.glob("videos/*.mp4")}
        assert videos == numbers
    result = run_here("--evaluate", run_dir, "--episodes", 2, "--capture-video")
    assert result.returncode == 0, result.stderr
    for k in range(2):
        assert (run_dir / "videos" / f"eval_600-episode-{k}.mp4").stat().st_size > 500


def test_videos_of_an_environment_that_cannot_draw(run_here):
    assert_one_line(run_here(*TOY, "--capture-video"), "rgb_array", "GlobalRandom-v0")


def test_an_evaluations_episodes_are_none_of_the_trainings(folder, train_here, monkeypatch):
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
