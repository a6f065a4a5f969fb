"""Tests of Safety-Gymnasium's own tasks, as benchmark_envs gives them to Gymnasium."""

import re
import subprocess
import sys

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from helpers import rollout, same

import benchmark_envs

IDS = ["SafetyPointGoal1-v0", "SafetyAntCircle1-v0", "SafetyHopperVelocity-v1", "SafetySwimmerVelocity-v1"]
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*Box observation space m..imum value",  # the robots' velocities have no bound
    "ignore:Conversion of an array:DeprecationWarning",  # NumPy's, about an index in safety_gymnasium
)


def make(env_id, **options):
    return gym.make(f"benchmark_envs:{env_id}", **options)


@pytest.mark.parametrize("env_id", IDS)
def test_it_passes_gymnasiums_checker(env_id):
    check_env(make(env_id).unwrapped, skip_render_check=True)  # it would open a window for "human"


@pytest.mark.parametrize("env_id", IDS)
def test_steps_have_five_values_and_the_cost_in_info(env_id):
    env = make(env_id)
    env.reset(seed=0)
    env.action_space.seed(0)
    for _ in range(200):
        obs, reward, terminated, truncated, info = env.step(env.action_space.sample())
        assert env.observation_space.contains(obs) and np.isfinite(obs).all()
        assert [*map(type, (reward, terminated, truncated, info["cost"]))] == [float, bool, bool, float]
        kinds = [value for key, value in info.items() if key.startswith("cost_")]
        assert "cost_sum" not in info and bool(kinds) == ("Velocity" not in env_id)
        assert info["cost"] == max(kinds, default=info["cost"]) and info["cost"] in (0.0, 1.0)
        if terminated or truncated:
            env.reset()


@pytest.mark.parametrize(
    "env_id, seed, action, kind",
    [
        ("SafetyPointGoal1-v0", 2, [1.0, 0.0], "_hazards"),
        ("SafetyCarButton1-v0", 17, [1.0, 1.0], "_gremlins"),
        ("SafetySwimmerVelocity-v1", 0, [1.0, 1.0], ""),
    ],
)
def test_a_violation_costs_and_ends_nothing(env_id, seed, action, kind):
    env, costs = make(env_id), []
    env.reset(seed=seed)
    for _ in range(60):
        _, _, terminated, _, info = env.step(action)
        assert not terminated and info["cost"] >= info[f"cost{kind}"]
        costs.append(info[f"cost{kind}"])
    assert set(costs) == {0.0, 1.0}


@pytest.mark.parametrize("env_id", ["SafetyPointGoal2-v0", "SafetyHopperVelocity-v1"])
def test_the_numbers_are_safety_gymnasiums(env_id):
    """Under its own sky, with its own six values; and the same again from the same seed."""
    env, original = make(env_id), benchmark_envs.import_safety_gymnasium().make(env_id)
    actions = np.random.default_rng(0).uniform(-1, 1, (60, *env.action_space.shape))
    first = rollout(env, 3, actions)
    assert same(rollout(env, 3, actions), first) and not same(rollout(env, 4, actions), first)
    env.reset(seed=3)
    assert np.array_equal(original.reset(seed=3)[0], first[0])
    for action, both in zip(actions, first[1:]):
        obs, reward, cost, terminated, _, _ = original.step(action)
        assert np.array_equal([*obs, reward], both) and env.step(action)[4]["cost"] == cost
        if terminated:
            break


def test_the_list_is_safety_gymnasiums():
    benchmark_envs.import_safety_gymnasium()
    from safety_gymnasium.utils.registration import _find_spec, safe_registry

    theirs = {name: _find_spec(name).max_episode_steps for name in safe_registry}
    ours = benchmark_envs.SAFETY_GYMNASIUM_STEPS
    assert ours.items() < theirs.items()
    assert all(re.search("Race[0-9]|Debug", name) for name in theirs.keys() - ours.keys())
    for name in ours:
        spec = gym.spec(name)
        assert spec.entry_point == "benchmark_envs:SafetyGymnasium" and spec.max_episode_steps == theirs[name]


@pytest.mark.parametrize("env_id, steps", [("SafetyPointRun0-v0", 500), ("SafetySwimmerVelocity-v1", 1000)])
def test_the_time_limit_truncates(env_id, steps):
    for env, limit in ((make(env_id), steps), (make(env_id, max_episode_steps=7), 7)):
        env.reset(seed=0)
        for step in range(1, limit + 1):
            _, _, terminated, truncated, _ = env.step(np.zeros(2))
            assert not terminated and truncated == (step == limit)


def test_without_safety_gymnasium_one_line_says_what_to_install():
    code = (
        "import sys; sys.modules['safety_gymnasium'] = None\n"
        "import gymnasium as gym, benchmark_envs\n"
        "gym.make('benchmark_envs:PushTopple')\n"
        "for env_id in ('SafetyPointGoal1-v0', 'SafetyHopperVelocity-v1', 'CarCircle2') * 2:\n"
        "    try: gym.make('benchmark_envs:' + env_id)\n"
        "    except ImportError as error: print(error)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    lines = result.stdout.splitlines()
    assert len(lines) == 6 and all("pip install --no-deps safety-gymnasium==1.0.0" in line for line in lines)


def test_importing_benchmark_envs_leaves_safety_gymnasium_alone():
    code = "import sys, benchmark_envs; assert not any('safety_gymnasium' in name for name in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_frames():
    """Of both kinds: not black, whatever the other does in between, and after close()."""
    options = {"render_mode": "rgb_array", "width": 160, "height": 120}
    envs = [make(env_id, **options) for env_id in ("SafetyHopperVelocity-v1", "SafetyPointGoal1-v0")]
    frames = [env.reset(seed=0) and env.render() for env in envs]
    for frame in frames:
        assert frame.shape == (120, 160, 3) and frame.dtype == np.uint8 and frame.std() > 20
    for env in envs:
        env.close()
        assert all((env.render() == frame).all() for env, frame in zip(envs, frames))
    for env in envs:
        env.close()


def test_render_modes():
    assert [make(env_id).metadata["render_fps"] for env_id in IDS] == [30, 30, 125, 25]
    with pytest.raises(ValueError, match="render_mode has to be None, human or rgb_array"):
        benchmark_envs.SafetyGymnasium("SafetySwimmerVelocity-v1", render_mode="depth_array")
