"""Tests of meta_sac_lag.py as its users meet it: through the command line, and copied elsewhere."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import warnings

import gymnasium as gym
import imageio_ffmpeg
import numpy as np
import pytest
import torch
from helpers import ROOT, SCRIPT, SHORT, assert_one_line, run, scalars, start, train, wait_for
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import meta_sac_lag
import sac_lag_baselines

TAGS = (
    "charts/episodic_return charts/episodic_length charts/violation charts/violation_rate charts/violations_total "
    "charts/success_rate charts/SPS meta/epsilon meta/alpha meta/nu meta/nu_star meta/grad_epsilon meta/grad_alpha "
    "meta/grad_alpha_direct meta/grad_alpha_via_epsilon losses/qr losses/qc losses/policy losses/entropy "
    "values/qr values/qc gradients/reward gradients/entropy gradients/safety gradients/cosine"
).split()
README = (ROOT / "README.md").read_text()
KINDS = {"charts/cost_force", "charts/cost_drop"}  # EggManipulate's


def test_the_command_of_the_readme(tmp_path):
    """`python meta_sac_lag.py --env-id EggManipulate --seed 1`, a few hundred steps of it: tags, policy file."""
    flags = "--env-id EggManipulate --seed 1 --total-timesteps 400 --learning-starts 200 --initial-states 4".split()
    run_dir = train(tmp_path, *flags)
    assert re.fullmatch(r"EggManipulate__meta_sac_lag__1__\d{10}", run_dir.name)
    written = scalars(run_dir)
    assert set(written) == {*TAGS, *KINDS}
    assert [step for step, _ in written["meta/nu"]] == [300, 400]
    assert written["meta/nu"][-1][1] == pytest.approx(1000, abs=0.5)  # ten times Table 1
    assert all(np.isfinite(value) for series in written.values() for _, value in series)
    events = EventAccumulator(str(run_dir))
    events.Reload()
    assert "hyperparameters/text_summary" in events.Tags()["tensors"]


def test_a_trained_policy_elsewhere(monkeypatch):
    """README's lines, word for word."""
    monkeypatch.chdir(ROOT)
    names = {}
    exec(re.search(r"```python\n(import gymnasium.*?torch\.load.*?)```", README, re.S)[1], names)
    assert names["action"].shape == (4,) and names["env"].action_space.contains(names["action"])


@pytest.mark.parametrize("path", sorted((ROOT / "experiments" / "policies").glob("*.pt")), ids=lambda path: path.stem)
def test_the_policies_that_come_with_it(path, tmp_path, train_here):
    """They do their task, from where it begins, and violate nothing."""
    shutil.copy(path, tmp_path)
    train_here("EggManipulate", "--evaluate", tmp_path / path.name, "--episodes", 5)
    (told,) = tmp_path.glob("eval_*.json")
    mean = json.loads(told.read_text())["mean"]
    assert mean["violation"] == 0 and (mean["success"] >= 0.6 if "success" in mean else mean["episodic_return"] > 14), mean


def test_same_seed_same_scalars(tmp_path):
    flags = "--env-id EggManipulate --total-timesteps 400 --learning-starts 300 --initial-states 4".split()
    a, b, c = (scalars(train(tmp_path, *flags, "--seed", seed)) for seed in (1, 1, 2))
    for run_ in (a, b, c):
        del run_["charts/SPS"]
    assert a == b
    assert all(a[tag] != c[tag] for tag in ("meta/nu", "losses/qr", "values/qc", "charts/episodic_return"))


def test_copied_alone(folder):
    """The one file in an empty folder, with an environment that is defined there."""
    shutil.copy(SCRIPT, folder)
    result = run(folder, "--env-id", "my_env:MyEnv-v0", *SHORT, script=folder / "meta_sac_lag.py")
    assert result.returncode == 0, result.stderr
    (run_dir,) = folder.glob("runs/my_env_MyEnv-v0__*")
    assert set(scalars(run_dir)) == {*TAGS, "charts/acceleration", "charts/jerk"}
    result = run(folder, "--env-id", "EggManipulate", script=folder / "meta_sac_lag.py")
    assert_one_line(result, "benchmark_envs")  # told which file is missing


def test_the_environment_of_the_readme(tmp_path):
    readme = (ROOT / "README.md").read_text()
    code = re.search(r"```python\n(import gymnasium as gym\n\n\nclass .*?)```", readme, re.S)[1]
    assert code.strip() in (ROOT / "experiments" / "slow_pendulum.py").read_text()
    (tmp_path / "my_env.py").write_text(code)
    written = scalars(train(tmp_path, "--env-id", "my_env:SlowPendulum-v0", *SHORT, "--total-timesteps", 600))
    assert written["charts/violations_total"][-1][1] > 0


@pytest.mark.slow
def test_does_it_work(folder):
    """README's two minutes, word for word, and what it says is to be seen."""
    shutil.copytree(ROOT / "experiments", folder / "experiments", ignore=shutil.ignore_patterns("results", "images"))
    command = re.search(r"python meta_sac_lag\.py (--env-id experiments\.slow.*?)\ntensorboard", README, re.S)[1]
    written = scalars(train(folder, *command.replace("\\\n", " ").split()))
    returns = np.array(written["charts/episodic_return"])
    violations = [step for step, violated in written["charts/violation"] if violated]
    assert returns[returns[:, 0] < 1000, 1].mean() < 1000 < 1500 < returns[returns[:, 0] > 8000, 1].mean()
    assert len(violations) < 40 and max(violations) < 9000, violations
    assert [rate for _, rate in written["eval/violation"]][-1] == 0


def test_the_map_of_the_readme():
    """From Algorithm 1's lines to the script's."""
    lines, found = SCRIPT.read_text().splitlines(), {}
    for name, number in re.findall(r"\| ([\w-]+) \| [^|]*\| \[(\d+)\]\(meta_sac_lag\.py#L\2\)", README):
        found[name] = lines[int(number) - 1]
    for name, line in found.items():
        mark = {"RMSProp": "def rmsprop(", "Require": "# Require"}.get(name, "# Alg. 1, line" + "s" * ("-" in name))
        assert mark in line and (not name[0].isdigit() or re.search(rf"\b{name}\b", line)), (name, line)
    numbers = {int(n) for name in found if name[0].isdigit() for n in name.split("-")}
    assert len(found) == 20 and numbers == set(range(1, 22)) - {9, 10}


def test_copied_alone_on_the_newest_gymnasium(folder, tmp_path_factory):
    newest = tmp_path_factory.mktemp("newest")
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(newest), "gymnasium==1.4.0"]
    if subprocess.run(pip, capture_output=True).returncode:
        pytest.skip("no package index in reach")
    shutil.copy(SCRIPT, folder)
    flags = ["--env-id", "my_env:FreePendulum-v0", *SHORT, "--capture-video"]
    (folder / "version.py").write_text("import gymnasium; print(gymnasium.__version__)")
    assert run(folder, script=folder / "version.py", PYTHONPATH=str(newest)).stdout.strip() == "1.4.0"
    result = run(folder, *flags, script=folder / "meta_sac_lag.py", PYTHONPATH=str(newest))
    assert result.returncode == 0, result.stderr
    old = train(folder, *flags)
    (new,) = set(folder.glob("runs/*")) - {old}
    videos = [sorted(path.name for path in run_dir.glob("videos/*.mp4")) for run_dir in (new, old)]
    assert videos == 2 * [["train-episode-0.mp4", "train-episode-1.mp4"]]
    new, old = scalars(new), scalars(old)
    assert all(new[tag] == old[tag] for tag in new if tag != "charts/SPS")  # and to the bit the same run


@pytest.mark.parametrize("in_d", [True, False])
def test_buffers_get_the_transitions_they_should(folder, train_here, in_d):
    flag = "--store-violations-in-d" if in_d else "--no-store-violations-in-d"
    names = train_here("my_env:MyEnv-v0", *SHORT, flag)
    D, D_s, D_0 = (
        {field: rows[: len(names[b])] for field, rows in names[b].rows.items()} for b in ("D", "D_s", "D_0")
    )
    violations, episodes = names["violations_total"], names["episode"] - 4
    assert violations > 3
    assert len(D_s["cost"]) == violations and (D_s["cost"] == 1).all() and (D_s["terminated"] == 1).all()
    assert (D_s["next_obs"][:, 0].abs() > 1).all()
    assert len(D["cost"]) == (300 if in_d else 300 - violations)
    assert D["cost"].sum() == (violations if in_d else 0)
    outside = D["next_obs"][:, 0].abs() > 1
    assert (D["cost"] == outside).all() and (D["terminated"] == outside).all()  # time limits are no terminations
    assert (D["next_obs"][:, 1] == 1).any()  # there were some
    assert len(D_0["obs"]) == 4 + episodes and (D_0["obs"][:, 1] == 0).all()
    assert len(np.unique(D_0["obs"][:, 0])) == len(D_0["obs"])  # each episode has a seed of its own
    # Actions are stored in [-1, 1]; the environment saw 0.4 of them, and rewards are stored as they came
    np.testing.assert_allclose(D["next_obs"][:, 0] - D["obs"][:, 0], 0.4 * D["action"][:, 0], atol=1e-6)
    np.testing.assert_allclose(D["reward"], D["next_obs"][:, 0], atol=1e-6)
    assert 0.9 < D["action"].abs().max() <= 1


def test_an_end_without_a_violation_is_terminal_too(folder, train_here):
    D, n = (names := train_here("my_env:Ends-v0", *SHORT))["D"].rows, len(names["D"])
    seventh = D["next_obs"][:n, 1] == np.float32(7 / 20)
    assert (D["terminated"][:n] == seventh | (D["cost"][:n] == 1)).all()
    assert (D["cost"][:n][seventh] == 0).sum() > 3 and D["cost"][:n].sum() > 1


def test_whatever_a_violation_costs_it_is_one_violation(folder, train_here):
    """Q_c is a probability: a cost of 25, or of 0.3, would take its targets out of [0, 1]."""
    names = train_here("my_env:Weighs-v0", *SHORT)
    D, n = names["D"].rows, len(names["D"])
    right, left = D["next_obs"][:n, 0] > 1, D["next_obs"][:n, 0] < -1
    assert right.any() and left.any() and (D["cost"][:n] == (right | left)).all()
    written = scalars(next(folder.glob("runs/*")))
    assert {value for _, value in written["charts/violation"]} == {0, 1}
    assert written["charts/violations_total"][-1][1] == (right | left).sum()


def test_what_the_flags_make(folder, train_here):
    """The networks, optimizers and buffers that the tests of the mathematics make for themselves."""
    names = train_here("my_env:MyEnv-v0", *SHORT, "--q-lr", 0.002, "--alpha-lr", 0.003, "--buffer-size", 90)
    trained = {net: list(names[net].parameters()) for net in ("qr", "qc")} | {"alpha": [names["log_alpha"]]}
    for name, parameters in trained.items():
        (group,) = names[f"{name}_optimizer"].param_groups
        assert group["lr"] == (0.003 if name == "alpha" else 0.002)
        assert list(map(id, group["params"])) == list(map(id, parameters))
        assert names[f"{name}_optimizer"].state  # it has stepped
    assert all(names[net].probability for net in ("qc", "qc_target"))
    assert not any(names[net].probability for net in ("qr", "qr_target"))
    assert names["D"].capacity == names["D_s"].capacity == 90 == len(names["D"])
    assert names["D_0"].capacity == 10_000


def test_the_defaults():
    """The paper's where it has one, and README's "Paper / ours / why"."""
    expected = dict(
        total_timesteps=1_000_000, learning_starts=5000, buffer_size=1_000_000, batch_size=256, hidden_size=256,
        gamma_r=0.99, gamma_c=0.99, tau=0.005, policy_lr=3e-4, q_lr=1e-3, reward_scale=None,
        reward_shift=None, nu_init=None, nu_lr=3e-4, epsilon_init=1, epsilon_lr=3e-4, alpha_init=1, alpha_lr=3e-4,
        epsilon_objective="linear", epsilon_step="ascent", alpha_through_epsilon=True, store_violations_in_d=True,
        initial_states=256, checkpoint_every=10_000, eval_every=0, episodes=10, seed=1, cuda=True, real_robot=False,
    )  # fmt: skip
    for script in (meta_sac_lag, sac_lag_baselines):
        defaults = vars(script.Args())
        assert defaults["epsilon_init"] == (1 if script is meta_sac_lag else None)  # the baselines': Table 1's
        assert all(defaults[name] == expected[name] for name in expected.keys() & defaults.keys() - {"epsilon_init"})
    assert len(expected.keys() & vars(sac_lag_baselines.Args())) == len(expected) - 4  # of epsilon's step


def test_actions_are_uniform_first_and_then_sampled_from_the_policy(folder, train_here):
    actions = train_here("my_env:MyEnv-v0", *SHORT)["D"].rows["action"]
    assert actions[:100].std() == pytest.approx(1 / np.sqrt(3), abs=0.06)  # uniform on [-1, 1]
    assert actions[100:200].std() < 0.45  # a fresh policy's standard deviation is about 0.22
    frozen = (*SHORT, "--learning-starts", 0, "--total-timesteps", 200, "--policy-lr", 0)
    names = train_here("my_env:MyEnv-v0", *frozen)
    with torch.no_grad():
        mean, log_std = names["actor"].net(names["D"].rows["obs"]).chunk(2, -1)
    std = torch.exp(-5 + 3.5 * (torch.tanh(log_std) + 1))
    noise = (torch.atanh(names["D"].rows["action"]) - mean) / std
    assert noise.std().item() == pytest.approx(1, abs=0.2) and abs(noise.mean().item()) < 0.3


def test_a_violation_ends_the_episode_even_if_the_environment_goes_on(folder, train_here):
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("default")  # as outside of pytest: each once
        names = train_here("my_env:NotTerminating-v0", *SHORT)
    D, n = names["D"].rows, len(names["D"])
    assert (D["obs"][:n, 0].abs() <= 1).all()  # never a step from outside
    assert (D["terminated"][:n] == D["cost"][:n]).all() and D["cost"][:n].sum() == names["violations_total"] > 3
    assert sum("NotTerminating-v0 does not terminate on a violation" in str(one.message) for one in warned) == 1


def test_infra_failure_is_stored_nowhere(folder, train_here):
    """Nor is it in any statistic, of an evaluation neither; and the episode ends, truncated or not."""
    names = train_here("my_env:InfraFailure-v0", *SHORT, "--eval-every", 100, "--episodes", 40)
    D, n = names["D"].rows, len(names["D"])
    fifteenth = D["next_obs"][:n, 1] == np.float32(15 / 20)
    assert n < 300 and D["next_obs"][:n, 1].max() == np.float32(14 / 20) and not fifteenth.any()
    (run_dir,) = folder.glob("runs/*")
    ends = scalars(run_dir)["charts/episodic_length"]
    assert all(length < 15 for _, length in ends)  # an episode counts only if a violation ended it before
    evaluations = [json.loads(path.read_text())["episodes"] for path in run_dir.glob("eval_*.json")]
    violations = [episodes.get("violation", []) for episodes in evaluations]
    assert len(violations) == 3 and any(0 < len(episodes) < 40 for episodes in violations)
    assert all(length < 15 for episodes in evaluations for length in episodes.get("episodic_length", []))


def test_logged_episodes(folder, train_here):
    """Returns are as they came, whatever the learner sees; success needs no violation; acceleration and jerk are means
    over the episode."""
    flags = "--reward-scale 50 --reward-shift 7 --gamma-r 0 --seed 3".split()
    names = train_here("my_env:MyEnv-v0", *SHORT, *flags)
    torch.testing.assert_close(names["target_r"], 50 * (names["B"].reward + 7))
    written = scalars(next(folder.glob("runs/*")))
    length, violation = dict(written["charts/episodic_length"]), dict(written["charts/violation"])
    for step, value in written["charts/episodic_return"]:
        rewards = names["D"].rows["reward"][step - int(length[step]): step]
        assert value == pytest.approx(rewards.sum().item(), abs=1e-4)
    rate, total = written["charts/violation_rate"], written["charts/violations_total"]
    assert rate[-1][1] == pytest.approx(sum(violation.values()) / len(violation))
    assert total[-1][1] == sum(violation.values())
    assert (names["D_s"].rows["next_obs"][:, 0] > 1).any()  # a violation with is_success true
    successes = np.diff([rate * (i + 1) for i, (_, rate) in enumerate(written["charts/success_rate"])], prepend=0)
    assert all(success < 0.5 for success, v in zip(successes, violation.values()) if v) and successes.max() > 0.5
    assert all(value == pytest.approx((length[step] + 1) / 2) for step, value in written["charts/jerk"])


def test_rates_are_means_over_the_last_100_episodes(folder, train_here):
    train_here("my_env:MyEnv-v0", *SHORT, "--total-timesteps", 2500, "--learning-starts", 2500)
    written = scalars(next(folder.glob("runs/*")))
    violation = [value for _, value in written["charts/violation"]]
    rate = written["charts/violation_rate"][-1][1]
    assert rate == pytest.approx(np.mean(violation[-100:])) != pytest.approx(np.mean(violation))


@pytest.mark.parametrize(
    "env_id, nu, shift, kinds",
    [
        ("HumanoidVelocity", 10, 0, {"cost_velocity", "cost_fall"}),
        ("FrankaDrawerClose", 500, 2.5, {"cost_zone"}),
        ("CarCircle2", 500, 0, {"cost_out_of_boundary"}),
        ("PushTopple", 1000, 3.6, {"cost_topple", "cost_off_table"}),
    ],
)
def test_the_other_tasks_of_table_1(folder, train_here, env_id, nu, shift, kinds):
    names = train_here(env_id, *SHORT, "--total-timesteps", 600, "--learning-starts", 500)
    assert names["nu"].item() == pytest.approx(nu, abs=0.1) and names["args"].nu_init == nu
    assert names["args"].reward_scale == {"CarCircle2": 100, "FrankaDrawerClose": 5, "PushTopple": 20}.get(env_id, 1)
    assert names["args"].reward_shift == shift
    written = scalars(next(folder.glob("runs/*")))
    assert {tag.removeprefix("charts/") for tag in written if "/cost_" in tag} == kinds
    assert all(np.isfinite(value) for series in written.values() for _, value in series)


@pytest.mark.parametrize(
    "env_id, training, task",
    [("PourCoffeeSim4", "pour", "home"), ("PourCoffee", "pour", "home"), ("FrankaDrawerClose", "close", "home")],
)
@pytest.mark.parametrize("script", [SCRIPT, ROOT / "sac_lag_baselines.py"])
def test_training_starts_where_the_table_says_and_an_evaluation_as_the_task(
    folder, train_here, monkeypatch, env_id, training, task, script
):
    made, make = [], gym.make
    monkeypatch.setattr(gym, "make", lambda *args, **kwargs: made.append(make(*args, **kwargs)) or made[-1])
    flags = (*SHORT, "--total-timesteps", 2, "--initial-states", 1, "--eval-every", 2, "--episodes", 1)
    train_here(env_id, *flags, script=script)
    assert [env.unwrapped.start for env in made] == [training, task]


def test_table_1_for_either_spelling(folder, train_here):
    short = (*SHORT, "--total-timesteps", 30)
    names = train_here("benchmark_envs:EggManipulate", *short)
    assert names["nu"] == 1000 and names["epsilon"] == 1 and names["log_alpha"] == 0  # epsilon_0 = alpha_0 = 1
    names = train_here("my_env:MyEnv-v0", *short)
    assert names["nu"] == 10 and (names["args"].reward_scale, names["args"].reward_shift) == (1, 0)
    args = train_here("CarCircle2", *short, "--nu-init", 3, "--reward-scale", 3, "--reward-shift", -2)["args"]
    assert (args.nu_init, args.reward_scale, args.reward_shift) == (3, 3, -2)


def test_actions_stay_inside_an_awkward_box(folder, train_here):
    """float32 rounding takes low + (1 + 1) / 2 (high - low) past high for this box; the environment would refuse it."""
    names = train_here("my_env:Awkward-v0", *SHORT, "--alpha-init", 1)
    D, n = names["D"].rows, len(names["D"])
    moved = D["next_obs"][:n, 0] - D["obs"][:n, 0]
    np.testing.assert_allclose(moved, -1.5 + 2.4 * (D["action"][:n, 0] + 1) / 2, atol=1e-6)
    box, a = names["env"].box, np.float32(1)
    assert box.low + (a + 1) / 2 * (box.high - box.low) > box.high


def test_the_gradients_that_are_logged(folder, train_here):
    """nu* is the nu at which <nu g_c - g_r, P g_c> is 0."""
    names = train_here("my_env:MyEnv-v0", *SHORT)
    g_r, g_h, g_c, v = (names[name] for name in ("g_r", "g_h", "g_c", "phi_square"))
    logged = {tag: value.item() for tag, value in names["metrics"].items()}
    weighted = (logged["meta/nu_star"] * g_c - g_r) * g_c / (v + 1e-12).sqrt()
    assert abs(weighted.sum()) < 1e-3 * weighted.abs().sum()
    assert logged["gradients/reward"] == pytest.approx(g_r.norm().item())
    assert logged["gradients/entropy"] == pytest.approx(names["alpha"].item() * g_h.norm().item())
    assert logged["gradients/safety"] == pytest.approx(abs(names["nu_new"].item()) * g_c.norm().item())
    assert logged["gradients/cosine"] == pytest.approx((g_r @ g_c / g_r.norm() / g_c.norm()).item(), abs=1e-5)


def test_the_progress_bar_of_a_million_steps_is_at_most_100_wide(train_here):
    bar = train_here("my_env:MyEnv-v0", *SHORT)["bar"]
    text = dict(bar_format=bar.bar_format, prefix=bar.desc.replace("nu 9.9", "nu 999.9"), elapsed=36_000, unit=bar.unit)
    assert len(bar.format_meter(999_999, 1_000_000, **text)) <= 100


def test_no_update_is_said_and_what_the_progress_bar_shows(folder):
    """And the progress bar has the numbers to look at first, for narrow terminals."""
    result = run(folder, "--env-id", "my_env:MyEnv-v0", *SHORT, "--learning-starts", 400)
    (note,) = [line for line in result.stdout.splitlines() if line.startswith("note: ")]
    assert result.returncode == 0 and "no update in 300 steps" in note and "--learning-starts is 400" in note
    bar = re.split(r"[\r\n]", result.stderr.rstrip())[-1]
    shown = r"return -?[\d.]+, violations [\d.]+, epsilon [\d.]+, alpha [\d.]+, nu [\d.]+"
    assert re.match(shown, bar).end() <= 80 and "300/300" in bar, bar


def test_dict_observations_are_flattened(folder, train_here):
    assert train_here("my_env:Dict-v0", *SHORT)["obs_dim"] == 2


def test_two_runs_in_the_same_second(folder, train_here, monkeypatch):
    monkeypatch.setattr("time.time", lambda: 1_700_000_000.5)
    monkeypatch.setattr("sys.stderr", open(os.devnull, "w"))
    for _ in range(2):
        train_here("my_env:MyEnv-v0", *SHORT, "--total-timesteps", 50)
    names = sorted(path.name for path in folder.glob("runs/*"))
    assert names == ["my_env_MyEnv-v0__meta_sac_lag__1__1700000000", "my_env_MyEnv-v0__meta_sac_lag__1__1700000000-2"]


@pytest.mark.parametrize(
    "flags, words",
    [
        ("--env-id NoSuchTask", ["NoSuchTask", "EggManipulate"]),
        ("--env-id no_such_module:NoSuchTask-v0", ["no_such_module", "EggManipulate"]),
        ("--env-id my_env:NoSuchTask-v0", ["NoSuchTask", "EggManipulate"]),
        ("--env-id my_env:NoCost-v0", ['info["cost"]', "None"]),
        ("--env-id Pendulum-v1", ['info["cost"]', "None"]),
        ("--env-id my_env:Discrete-v0", ["Discrete(3)", "Box"]),
        ("--env-id my_env:Unbounded-v0", ["inf", "Box"]),
        ("--env-id my_env:Integer-v0", ["int32", "Box"]),
        ("--env-id my_env:VectorJerk-v0", ['info["jerk"]', "[1.0, 2.0, 3.0]"]),
        ("--env-id my_env:NamedCosts-v0", ['info["cost_names"]', "number"]),
        ("--env-id my_env:NoneSuccess-v0", ['info["is_success"]', "None"]),
        ("--policy-lr -0.001", ["--policy-lr", "-0.001"]),
        ("--nu-lr nan", ["--nu-lr", "nan"]),
        ("--q-lr inf", ["--q-lr", "inf"]),
        ("--batch-size 0", ["--batch-size", "not 0"]),
        ("--total-timesteps 0", ["--total-timesteps"]),
        ("--hidden-size -1", ["--hidden-size"]),
        ("--initial-states 0", ["--initial-states"]),
        ("--learning-starts -1", ["--learning-starts"]),
        ("--seed -1", ["--seed"]),
        ("--seed 4294967296", ["--seed", "4294967295"]),
        ("--env-id my_env:a:b", ["my_env:a", "cannot make"]),
        ("--env-id my_env:TextCost-v0", ['info["cost"]', "much"]),
        ("--env-id my_env:NanCost-v0", ['info["cost"]', "nan"]),
        ("--env-id my_env:Sequence-v0", ["Sequence", "vector"]),
        ("--gamma-c 1", ["--gamma-c", "from 0 to 0.999999"]),
        ("--alpha-init 0", ["--alpha-init", "to 1,"]),
        ("--alpha-init 2", ["--alpha-init", "to 1,"]),
        ("--epsilon-init 1.5", ["--epsilon-init", "from 0 to 1,"]),
        ("--nu-init -1", ["--nu-init", "from 0"]),
        ("--reward-scale 0", ["--reward-scale"]),
        ("--reward-shift inf", ["--reward-shift", "inf"]),
        ("--tau 0", ["--tau"]),
        ("--checkpoint-every -1", ["--checkpoint-every"]),
        ("--eval-every -1", ["--eval-every"]),
        ("--episodes 0", ["--episodes"]),
        ("--buffer-size 1000000000000000", ["--buffer-size"]),
        ("--env-id my_env:NoSeed-v0", ["NoSeed-v0", "reset(seed=...)", "'seed'"]),
        ("--env-id my_env:ObservationAlone-v0", ["ObservationAlone-v0", "observation"]),
        ("--env-id my_env:FourValues-v0", ["FourValues-v0", "step() must give", "expected 5, got 4"]),
        ("--env-id my_env:SixValues-v0", ["SixValues-v0", "step() must give", "expected 5"]),
        ("--env-id my_env:LastShape-v0", ["LastShape-v0", "observations", "(2,)", "[0. 0. 0.]"]),
        ("--env-id my_env:VectorEnd-v0", ["VectorEnd-v0", "step() must give"]),
        ("--env-id my_env:NoneReward-v0", ["NoneReward-v0", "reward", "None"]),
        ("--env-id my_env:TextReward-v0", ["TextReward-v0", "reward", "good"]),
        ("--env-id my_env:NoneInfo-v0", ["NoneInfo-v0", "step() must give", "info"]),
        ("--capture-video", ["render_mode", "MyEnv-v0"]),
    ],
)
def test_bad_input(run_here, flags, words):
    result = run_here("--env-id", "my_env:MyEnv-v0", *SHORT, *flags.split())
    assert_one_line(result, *words)


def test_an_error_of_the_environments_own_keeps_its_traceback(train_here):
    with pytest.raises(KeyError, match="gone"):
        train_here("my_env:Raises-v0", *SHORT)


def test_words_that_tyro_refuses(run_here):
    for flags in ("--epsilon-step sideways", "--batch-size many", "--no-such-flag 1"):
        result = run_here(*flags.split())
        assert result.returncode == 2 and "Traceback" not in result.stderr and flags.split()[0] in result.stderr


def test_a_file_where_the_run_folder_should_be(folder, run_here):
    (folder / "runs").write_text("mine")
    assert_one_line(run_here("--env-id", "my_env:MyEnv-v0", *SHORT), "runs")
    assert (folder / "runs").read_text() == "mine"


@pytest.mark.parametrize("flag, package", [("--track", "wandb"), ("--capture-video", "moviepy")])
def test_without_an_optional_package(folder, flag, package):
    (folder / f"{package}.py").write_text("raise ImportError")
    result = run(folder, "--env-id", "my_env:FreePendulum-v0", *SHORT, flag, PYTHONPATH=str(folder))
    assert_one_line(result, f"pip install {package}")
    assert not (folder / "runs").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_cuda_falls_back_and_says_so(run_here):
    for flag in ("--cuda", "--no-cuda"):
        result = run_here("--env-id", "my_env:MyEnv-v0", *SHORT, "--total-timesteps", 30, flag)
        assert result.returncode == 0 and "Training on cpu," in result.stdout


def test_other_choices_run(folder, train_here):
    descent, direct = "--epsilon-objective nonlinear --epsilon-step descent", "--no-alpha-through-epsilon"
    for flags in (descent, direct + " --learning-starts 0"):
        train_here("my_env:MyEnv-v0", *SHORT, *flags.split(), "--exp-name", flags[-1])
        (run_dir,) = folder.glob(f"runs/*__{flags[-1]}__*")
        assert all(np.isfinite(value) for series in scalars(run_dir).values() for _, value in series)


def test_what_an_environment_does_to_torch_is_its_own_affair(folder, train_here):
    """It takes the global generator for its own, and has set another default type: exploration does not repeat, and the
    training is in float32."""
    (folder / "float64.py").write_text("import torch; torch.set_default_dtype(torch.float64); import my_env")
    try:
        names = train_here("float64:SeedsTorch-v0", *SHORT, "--eval-every", 300, "--episodes", 1)
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    D = names["D"].rows
    assert len(D["action"].unique()) == 300 and names["B"].obs.unique().numel() > 32
    tensors = {key: value for key, value in names.items() if isinstance(value, torch.Tensor)}
    for net in ("actor", "qr", "qc", "qr_target", "qc_target"):
        tensors |= {f"{net}.{key}": x for key, x in names[net].state_dict().items()}
    tensors |= D | {f"adam.{key}": x for key, x in names["alpha_optimizer"].state[names["log_alpha"]].items()}
    assert len(tensors) > 60 and not {key for key, x in tensors.items() if x.dtype == torch.float64}


def whole(video):
    """The number of frames that can be read from an MP4 file, to its end"""
    return imageio_ffmpeg.count_frames_and_secs(str(video))[0]


@pytest.mark.parametrize("env_id", ["CarCircle2", "EggManipulate"])
def test_videos_of_a_training_without_a_display(folder, env_id):
    """The one that is being recorded at the end is whole, too."""
    flags = ("--env-id", env_id, *SHORT, "--capture-video", "--total-timesteps", 20, "--initial-states", 1)
    result = run(folder, *flags, DISPLAY=None, WAYLAND_DISPLAY=None, MUJOCO_GL=None)
    assert result.returncode == 0, result.stderr
    assert "Traceback" not in result.stderr and "Exception ignored" not in result.stderr, result.stderr
    (run_dir,) = folder.glob("runs/*")
    frames = {video.name: whole(video) for video in run_dir.glob("videos/train-episode-*.mp4")}
    ended = scalars(run_dir).get("charts/episodic_length", [])
    assert len(frames) > len(ended) and min(frames.values()) > 0, frames


def test_a_video_that_is_being_recorded_when_ctrl_c_comes(folder):
    flags = ("--env-id", "CarCircle2", *SHORT, "--capture-video", "--total-timesteps", 5000, "--learning-starts", 5000)
    no_display = dict.fromkeys(("DISPLAY", "WAYLAND_DISPLAY", "MUJOCO_GL"))
    process, run_dir = start(folder, SCRIPT, *flags, stderr=subprocess.PIPE, **no_display)
    wait_for((run_dir / "videos").exists)
    time.sleep(4)
    process.send_signal(signal.SIGINT)
    sent = time.time()
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130 and "stopped at step " in stderr
    assert "Traceback" not in stderr and "Exception ignored" not in stderr, stderr
    videos = list(run_dir.glob("videos/*.mp4"))
    assert max(video.stat().st_mtime for video in videos) > sent and all(whole(video) > 0 for video in videos)


@pytest.mark.slow
def test_without_a_constraint_it_solves_pendulum(folder):
    """With no cost and nu held at 0 this is SAC with alpha by metagradient and RMSProp in the actor: it must learn."""
    flags = "--total-timesteps 15000 --learning-starts 1000 --hidden-size 64 --batch-size 128 --nu-init 0 --nu-lr 0"
    written = scalars(train(folder, "--env-id", "my_env:FreePendulum-v0", *flags.split()))
    assert np.mean([value for _, value in written["charts/episodic_return"][-20:]]) > -250
    assert written["meta/alpha"][-1][1] < 0.2 and all(value == 0 for _, value in written["meta/nu"])
