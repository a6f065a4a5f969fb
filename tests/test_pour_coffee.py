"""pour_coffee_env.py: kinematics, Eq. 17, what spills and what does not, the contract."""

import dataclasses
import itertools
import math
import struct
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import pour_coffee_env as pour

IDS = ["PourCoffee", *(f"PourCoffeeSim{i}" for i in (1, 2, 3, 4))]
SPEC = pour.SPECIFICATION
HOME, _, _ = pour.kinematics(np.radians(SPEC.home))
HIGH = np.array([SPEC.speed_max] * 3 + [SPEC.roll_rate_max])  # of the actions


def si(observations):
    """(..., 15) -> (..., 12) in SI units: position, angles, velocity, goal."""
    return np.apply_along_axis(lambda one: np.concatenate(SPEC.measures(one)), -1, observations)


@pytest.fixture(scope="module")
def env():
    env = gym.make("pour_coffee_env:PourCoffee")
    yield env
    env.close()


def play(env, seed, policy):
    """Until the episode ends; policy(obs) -> action. Returns steps, return and the last info."""
    obs, _ = env.reset(seed=seed)
    total = 0.0
    for step in range(1, 101):
        obs, reward, terminated, truncated, info = env.step(np.asarray(policy(obs), np.float32))
        total += reward
        if terminated or truncated:
            break
    return step, total, info


@pytest.mark.filterwarnings("error::UserWarning")
@pytest.mark.parametrize("env_id", IDS)
def test_gymnasiums_checker(env_id):
    env = gym.make(f"pour_coffee_env:{env_id}").unwrapped
    check_env(env, skip_render_check=True)
    env.close()


@pytest.mark.parametrize("env_id", IDS)
def test_stable_baselines3s_checker(env_id):
    checker = pytest.importorskip("stable_baselines3.common.env_checker")
    env = gym.make(f"pour_coffee_env:{env_id}").unwrapped
    checker.check_env(env)
    env.close()


def test_kinematics_at_kinovas_poses():
    """Home and Zero of the real arm, the tool 12 cm before the flange; roll of joint 7 is roll of the mug alone."""
    home = np.radians(SPEC.home)
    position, R, _ = pour.kinematics(home)
    assert np.allclose(position, (0.5767, 0.0014, 0.4337), atol=1e-4)
    assert np.allclose(pour.tait_bryan(R), 0, atol=1e-9)
    assert pour.kinematics(np.zeros(7))[0][2] == pytest.approx(1.1874 + 0.12, abs=1e-4)
    rolled = pour.kinematics(home + np.eye(7)[6])
    assert np.allclose(rolled[0], position) and np.allclose(pour.tait_bryan(rolled[1]), (0, 0, -1))


def test_the_jacobian_is_the_derivative_and_the_model_agrees(env):
    rng = np.random.default_rng(0)
    for q in rng.uniform(-2, 2, (5, 7)):
        position, R, J = pour.kinematics(q)
        for i in range(7):
            step = 1e-6 * np.eye(7)[i]
            ahead, behind = pour.kinematics(q + step), pour.kinematics(q - step)
            assert np.allclose((ahead[0] - behind[0]) / 2e-6, J[:3, i], atol=1e-7)
            spin = (ahead[1] - behind[1]) / 2e-6 @ R.T
            assert np.allclose((spin[2, 1], spin[0, 2], spin[1, 0]), J[3:, i], atol=1e-7)
    env.reset(seed=0)
    u = env.unwrapped
    mug = u.bullet.getLinkState(u.arm, u.mug, 0, 1)
    assert np.allclose(mug[4], u.position, atol=1e-6)
    assert np.allclose(np.reshape(u.bullet.getMatrixFromQuaternion(mug[5]), (3, 3)), u.R, atol=1e-5)


@pytest.mark.parametrize("episodes", [5, pytest.param(50, marks=pytest.mark.slow)])
def test_the_same_seed_is_the_same_episode_whatever_came_before(env, episodes):
    def trajectory(seed):
        obs, _ = env.reset(seed=seed)
        rng, found = np.random.default_rng(seed), [obs]
        for _ in range(12):
            obs, *_, info = env.step(rng.uniform(-HIGH, HIGH).astype(np.float32))
            found += [obs, env.unwrapped._coffee().ravel()]
        return np.concatenate(found)

    first = trajectory(3)
    for seed in range(4, 4 + episodes):
        other = trajectory(seed)
    assert np.array_equal(first, trajectory(3)) and not np.array_equal(first, other)


def test_goals_fill_their_range_in_x_and_y_alone(env):
    goals = si([env.reset(seed=seed)[0] for seed in range(40)])[:, 9:]
    offsets = goals - SPEC.goal
    for end in (-offsets.min(0), offsets.max(0)):
        assert (0.04 < end[:2]).all() and (end[:2] < 0.05 + 1e-6).all() and end[2] < 1e-6


def test_the_observation_is_of_these_numbers_and_measures_gives_them_back():
    position, angles, velocity, goal = (0.65, -0.20, 0.345), (0.1, -0.2, 1.5), (0.25, -0.125, 0.05), (0.55, -0.25, 0.3)
    spec = pour.Specification(goal_roll=2.0)
    seen = spec.observe(np.array(position), np.array(angles), np.array(velocity), np.array(goal))
    by_hand = (1, -1, -0.3, 0.1, -0.2, 1.5, 1, -0.5, 0.2, 0, -1.5, -0.75, 0, 0, 2.0)
    assert seen.dtype == np.float32 and seen == pytest.approx(by_hand, abs=1e-6)
    rng = np.random.default_rng(0)
    slow = pour.Specification(speed_max=0.03, workspace_low=(0.3, -0.5, 0.25), workspace_high=(0.9, 0.1, 0.5))
    for spec in (SPEC, slow):
        for measured in rng.uniform(-1, 1, (20, 4, 3)):
            assert np.allclose(spec.measures(spec.observe(*measured)), measured, atol=1e-6)


def test_what_is_observed_is_the_mug_and_the_goal(env):
    obs, _ = env.reset(seed=0)
    for action in 4 * [(0.1, -0.2, 0.05, 0.4)]:
        u = env.unwrapped
        assert si(obs) == pytest.approx(np.concatenate([u.position, u.angles, u.velocity, u.goal]), abs=1e-6)
        obs, *_ = env.step(np.array(action, np.float32))


@pytest.mark.parametrize("episodes", [16, pytest.param(100, marks=pytest.mark.slow)])
def test_half_of_the_starts_are_along_the_pour(env, episodes):
    """To the bit after some 5 to 50 steps of it; the others are those of start="home"; nothing has been violated."""
    along, begun = gym.make("pour_coffee_env:PourCoffee", start="pour"), []
    for seed in range(episodes):
        obs, info = along.reset(seed=seed)
        assert info["cost"] == info["spilled"] == 0 and not along.unwrapped.touched
        other, _ = env.reset(seed=seed)
        policy, steps = pour.scripted_pour(), 0
        while not np.array_equal(obs, other) and steps < 51:
            steps += 1
            other, *_ = env.step(policy(other))
        begun.append(steps)
        for k in range(5):  # and it goes on alike
            action = bang_bang(seed + k)(None)
            assert np.array_equal(along.step(action)[0], env.step(action)[0])
    begun = np.array(begun)
    assert ((begun == 0) | (begun >= 5) & (begun <= 50)).all(), begun
    assert 0.3 < (begun > 0).mean() < 0.7 and begun.max() > 40 and begun[begun > 0].min() < 15
    along.close()


def test_a_start_along_the_pour_is_a_seeds_own_and_leads_to_success():
    env, seeds = gym.make("pour_coffee_env:PourCoffee", start="pour"), range(6)
    first = [env.reset(seed=seed)[0] for seed in seeds]
    for seed in reversed(seeds):
        env.step(HIGH)
        assert np.array_equal(env.reset(seed=seed)[0], first[seed])
    assert len({obs.tobytes() for obs in first}) == len(seeds)
    begun = [seed for seed in seeds if np.linalg.norm(si(first[seed])[:3] - HOME) > 0.02]
    assert 0 < len(begun) < len(seeds)
    for seed in begun[:3]:
        steps, _, info = play(env, seed, pour.scripted_pour())
        assert steps == 100 and info["is_success"] and not info["cost"]  # the time limit counts from the start
    env.close()


def test_a_start_that_would_be_a_violation_is_at_home(env, monkeypatch):
    monkeypatch.setattr(pour, "scripted_pour", lambda **_: lambda obs: (0, 0, 0, 0.8))  # spills at step 11 or so
    tilted, at_home = gym.make("pour_coffee_env:PourCoffee", start="pour"), []
    for seed in range(10):
        obs, info = tilted.reset(seed=seed)
        assert info["cost"] == info["spilled"] == 0 and obs[5] < 1.0
        at_home.append(np.array_equal(obs, env.reset(seed=seed)[0]))
        assert np.array_equal(tilted.step(HIGH)[0], env.step(HIGH)[0]) == at_home[-1]
    assert sum(at_home) > 6  # half, and most of the others
    tilted.close()


def test_starts_along_the_pour_with_randomization():
    settings = dict(start="pour", randomization=pour.Randomization(), specification=pour.Specification(latency=0.075))
    env = gym.make("pour_coffee_env:PourCoffee", **settings)

    def begin(seed):
        obs, info = env.reset(seed=seed)
        assert info["cost"] == info["spilled"] == 0
        return np.append(obs, env.step(np.zeros(4))[0])

    seen = np.array([begin(seed) for seed in range(12)])
    far = np.linalg.norm(si(seen[:, :15])[:, :3] - HOME, axis=1) > 0.05
    assert 2 < far.sum() < 10
    for seed in (11, 3, int(np.argmax(far))):
        assert np.array_equal(begin(seed), seen[seed])
    env.close()


@pytest.mark.parametrize("episodes", [10, pytest.param(100, marks=pytest.mark.slow)])
def test_standing_still_keeps_the_mug_full_and_in_its_place(env, episodes):
    for seed in range(episodes):
        start, _ = env.reset(seed=seed)
        for step in range(1, 101):
            obs, _, terminated, truncated, info = env.step(np.zeros(4, np.float32))
            assert not terminated and truncated == (step == 100)
        assert info["spilled"] == info["poured"] == 0
        assert np.linalg.norm(si(obs)[:3] - si(start)[:3]) < 1e-3 and np.abs(obs[3:6]).max() < 2e-3


@pytest.mark.parametrize("episodes", [10, pytest.param(100, marks=pytest.mark.slow)])
def test_gentle_transport_loses_nothing(env, episodes):
    """To the goal and there at rest, without the roll."""
    for seed in range(episodes):
        transport = pour.scripted_pour()
        steps, _, info = play(env, seed, lambda obs: transport(obs) * (1, 1, 1, 0))
        coffee = (env.unwrapped._coffee() - env.unwrapped.position) @ env.unwrapped.R
        assert steps == 100 and info["spilled"] == info["poured"] == 0
        assert (np.hypot(*coffee.T[:2]) < pour.MUG_RADIUS).all()


def test_velocity_acceleration_and_jerk_are_those_of_the_motion(env):
    """0.2 m/s is reached within a step, then it is 2 cm a step; the rest is differences of the velocity."""
    before = si(env.reset(seed=0)[0])
    acceleration = np.zeros(3)
    for step in range(6):
        obs, *_, info = env.step(np.array([0, -0.2, 0, 0], np.float32))
        obs = si(obs)
        last, acceleration = acceleration, (obs[6:9] - before[6:9]) / 0.1
        if step:
            assert info["acceleration"] == pytest.approx(np.linalg.norm(acceleration), abs=1e-4)
        if step > 1:
            assert info["jerk"] == pytest.approx(np.linalg.norm(acceleration - last) / 0.1, abs=1e-3)
            assert np.allclose(obs[:3] - before[:3], (0, -0.02, 0), atol=1e-3)
            assert np.allclose(obs[6:9], (0, -0.2, 0), atol=1e-2)
        before = obs


@pytest.mark.parametrize("env_id", IDS[1:])
@pytest.mark.parametrize("episodes", [3, pytest.param(100, marks=pytest.mark.slow)])
def test_a_smooth_pour_succeeds(env_id, episodes):
    env = gym.make(f"pour_coffee_env:{env_id}")
    ends = [play(env, seed, pour.scripted_pour()) for seed in range(episodes)]
    succeeded = [total for _, total, info in ends if info["is_success"] and not info["cost"] and not info["spilled"]]
    assert len(succeeded) >= 0.98 * episodes
    assert min(succeeded) > 780  # 10 - |phi - phi_goal| a step at the goal, where it is from step 12 on
    env.close()


@pytest.mark.parametrize("episodes", [4, pytest.param(40, marks=pytest.mark.slow)])
def test_an_early_tilt_spills_each_time(env, episodes):
    for seed in range(episodes):
        _, _, info = play(env, seed, lambda obs: (0, 0, 0, 0.8))
        assert info["cost_spill"] == 1 and info["cost"] == 1 and info["spilled"] > 0 and info["is_success"] == 0


def bang_bang(seed):
    """All four at their bounds, their signs drawn anew every fifth step."""
    rng, steps = np.random.default_rng(seed), itertools.count()
    signs = np.empty(4)

    def policy(obs):
        if next(steps) % 5 == 0:
            signs[:] = rng.choice([-1, 1], 4)
        return signs * HIGH

    return policy


@pytest.mark.parametrize("episodes", [10, pytest.param(100, marks=pytest.mark.slow)])
def test_bang_bang_motion_is_a_violation_and_mostly_a_spill(env, episodes):
    ends = [play(env, seed, bang_bang(seed))[2] for seed in range(episodes)]
    assert sum(info["cost"] for info in ends) >= 0.9 * episodes
    assert sum(info["cost_spill"] for info in ends) >= 0.6 * episodes


@pytest.mark.parametrize("episodes", [10, pytest.param(100, marks=pytest.mark.slow)])
def test_the_random_policy_violates_but_not_at_once(env, episodes):
    firsts, seen = [], []
    for seed in range(episodes):
        rng = np.random.default_rng(seed)
        steps, _, info = play(env, seed, lambda obs: seen.append(obs) or rng.uniform(-HIGH, HIGH))
        firsts.append(steps if info["cost"] else np.inf)
    assert np.isfinite(firsts).mean() > 0.5 and np.median(firsts) >= 20
    # Observations of order one: position, roll and velocity vary that much, and the goal
    assert np.abs(seen).max() < 4 and (np.std(seen, 0)[[0, 1, 2, 5, 6, 7, 8, 9, 10]] > 0.1).all()


# 123 points up to 4.5 cm from the goal, 1.5 cm apart: Eq. 17 pays within 5 cm, so a pour has to succeed there
GRID = [xyz for xyz in 0.015 * np.array(list(itertools.product(range(-3, 4), repeat=3))) if np.linalg.norm(xyz) < 0.046]


@pytest.mark.parametrize("rate", [0.3, 0.5, 0.8])
@pytest.mark.parametrize("every", [10, pytest.param(1, marks=pytest.mark.slow)])
def test_a_pour_anywhere_within_reach_of_the_goal_lands_in_the_cup(env, every, rate):
    """By a mug that takes a point beside the goal for it, and rolls at a rate (rad/s); five goals in turn."""
    slow, failed = dataclasses.replace(SPEC, roll_rate_max=rate), []
    for k, offset in enumerate(GRID[::every]):
        policy, beside = pour.scripted_pour(specification=slow), np.zeros(15, np.float32)
        beside[9:12] = 10 * offset
        *_, info = play(env, k % 5, lambda obs: policy(obs + beside))
        if info["is_success"] and not info["cost"]:
            missed = np.linalg.norm(env.unwrapped.position - env.unwrapped.goal - offset)
            assert missed < 0.012, "it has poured from elsewhere"
        else:
            failed.append((k % 5, offset.tolist(), {key: info[key] for key in ("poured", "spilled", "cost")}))
    tried = len(GRID[::every])
    print(f"{rate} rad/s: {tried - len(failed)} of {tried}, failed: {failed}")
    assert tried - len(failed) >= 0.98 * tried


EQUATION_17 = (  # distance (m), roll (rad), acceleration (m/s^2), spilled; the reward in Sim1, Sim2, Sim3, Sim4
    (0.30, 0.0, 0.0, False, -0.6, -0.6, -0.6, -0.6),
    (0.30, 0.0, 4.0, False, -0.6, -0.8, -0.8, -0.8),
    (0.30, 0.0, 0.0, True, -0.6, -0.6, -0.6, -1.6),
    (0.051, 2.2, 10.0, True, -0.102, -0.602, -0.602, -1.602),
    (0.049, 2.2, 10.0, True, 10.0, 10.0, 10.0, 10.0),
    (0.0, 0.0, 0.0, False, 7.8, 7.8, 7.8, 7.8),
    (0.0, 2.6, 0.0, False, 9.6, 9.6, 9.6, 9.6),
    (0.0, -1.0, 3.0, True, 6.8, 6.8, 6.8, 6.8),
)


@pytest.mark.parametrize("env_id", IDS)
def test_equation_17_by_hand(env_id, monkeypatch):
    env = gym.make(f"pour_coffee_env:{env_id}").unwrapped
    env.reset(seed=0)
    for distance, roll, acceleration, spilled, *rewards in EQUATION_17:
        def look():  # where the mug is found after the motion
            env.position, env.angles = env.goal + (0, distance, 0), np.array([0, 0, roll])
            env.velocity = env.last_velocity + (0.1 * acceleration, 0, 0)

        info = dict(env._info(acceleration, 0.0), spilled=int(spilled))
        monkeypatch.setattr(env, "_drive", lambda command: look())
        monkeypatch.setattr(env, "_info", lambda acceleration, jerk: dict(info, acceleration=acceleration))
        reward = env.step(np.zeros(4))[1]
        assert reward == pytest.approx(rewards[max(0, IDS.index(env_id) - 1)], abs=1e-9)
    env.close()


def test_the_rewards_distance_is_the_observed_one(env):
    obs, _ = env.reset(seed=0)
    for action in ((0.2, 0, 0, 0), (-0.3, -0.3, 0.2, 0.4)):
        obs, reward, *_ = env.step(np.array(action, np.float32))
        assert reward == pytest.approx(-2 * np.linalg.norm(si(obs)[:3] - si(obs)[9:]), abs=1e-5)


@pytest.mark.parametrize("env_id", IDS)
def test_one_sphere_spilled_is_a_violation_but_in_sim2(env_id):
    env = gym.make(f"pour_coffee_env:{env_id}")
    env.reset(seed=0)
    env.unwrapped.bullet.resetBasePositionAndOrientation(env.unwrapped.spheres[0], (0.3, 0.3, 0.01), (0, 0, 0, 1))
    _, _, terminated, _, info = env.step(np.zeros(4, np.float32))
    assert info["spilled"] == 1
    assert info["cost"] == info["cost_spill"] == terminated == (env_id != "PourCoffeeSim2")
    env.close()


def test_where_a_spill_is_no_violation_it_is_told_all_the_same():
    env = gym.make("pour_coffee_env:PourCoffeeSim2")
    steps, _, info = play(env, 0, lambda obs: (0, 0, 0, 0.8))
    assert steps == 100 and info["spilled"] > 0 and info["cost"] == info["cost_spill"] == 0
    env.close()


@pytest.mark.parametrize(
    "name, way",
    [
        ("collision_cup", [(0.55, -0.20, 0.08)]),
        ("collision_stand", [(0.66, -0.15, 0.08)]),
        ("collision_table", [(0.65, 0.0, -0.1)]),
        ("self_collision", [(0.0, 0.4, 0.1), (0.0, 0.0, 0.1)]),  # to the side, then into the base
    ],
)
def test_a_collision_is_caught_by_name_where_it_is_a_violation(name, way):
    """On a way that the specification's workspace would not allow, a spill being no violation."""
    wide = dataclasses.replace(
        SPEC, workspace_low=(-0.9,) * 3, workspace_high=(0.9, 0.9, 1.3), elbow_radius=0.0
    )
    for violates in (True, False):
        env = gym.make(
            "pour_coffee_env:PourCoffeeSim2", specification=wide, goal_range=0.0, collision_violates=violates
        )
        points = list(way)

        def policy(obs):
            position, *_ = wide.measures(obs)
            if len(points) > 1 and np.linalg.norm(points[0] - position) < 0.04:
                points.pop(0)
            return np.append(3 * (points[0] - position), 0)

        steps, _, info = play(env, 0, policy)
        costs = {key for key in info if key.startswith("cost") and info[key]}
        assert costs == ({"cost", f"cost_{name}"} if violates else set()) and violates == (steps < 100)
        assert name in env.unwrapped.touched
        env.close()


def test_a_thousand_adversarial_actions_lose_no_coffee_through_a_wall():
    """Full speed this way and that, in all settings that end no episode: nothing is launched, and nothing sinks."""
    env = gym.make("pour_coffee_env:PourCoffeeSim2", collision_violates=False)
    rng = np.random.default_rng(0)
    fastest = 0.0
    for episode in range(10):
        env.reset(seed=episode)
        u = env.unwrapped
        for step in range(100):
            if step >= 95:
                action = np.zeros(4)
            elif step % 3 == 0:
                action = rng.choice([-1e9, -0.5, 0.5, 1e9], 4)
            obs, *_, info = env.step(action)
            coffee = u._coffee()
            speeds = [np.linalg.norm(u.bullet.getBaseVelocity(sphere)[0]) for sphere in u.spheres]
            on_table = np.abs(coffee[:, :2] - (0.3, 0)).max(1) < 0.7
            fastest = max(fastest, *np.where(on_table, speeds, 0))
            assert np.isfinite(obs).all() and np.isfinite(coffee).all()
            assert (coffee[on_table, 2] > (0.5 * pour.SPHERE_RADIUS if step == 99 else -pour.SPHERE_RADIUS)).all()
    print(f"fastest: {fastest:.2f} m/s")
    assert fastest < 4.5  # m/s: a fall from the workspace's top, 3.3, at the mug's speed and its rim's from the roll


def ramp(velocity, towards, a_max, dt, n=100):
    """Motion of dt at a_max towards a velocity: displacement and the velocity that it comes to."""
    moved = np.zeros(3)
    for _ in range(n):
        change = towards - velocity
        velocity = velocity + change * min(1.0, a_max * dt / n / max(np.linalg.norm(change), 1e-12))
        moved += velocity * dt / n
    return moved, velocity


@pytest.mark.parametrize("latency, a_max", [(0.0, 2.0), (0.1, 2.0), (0.1, 5.0), (0.05, 3.0), (0.0, 1.0)])
def test_limits_hold_and_an_arm_that_ramps_and_is_late_stays_in_the_workspace(latency, a_max):
    spec = dataclasses.replace(SPEC, latency=latency, acceleration_max=a_max)
    low, high, rng = np.array(spec.workspace_low), np.array(spec.workspace_high), np.random.default_rng(0)
    position, velocity, roll, last, reached = np.array([0.6, 0.0, 0.4]), np.zeros(3), 0.0, np.zeros(4), []
    for step in range(2000):
        if step % 10 == 0:
            towards = rng.choice([-1, 1], 4) * 10 ** rng.uniform(-2, 9)
        now = spec.limit(towards * rng.uniform(0.5, 1, 4), position, velocity, roll, last)
        assert np.linalg.norm(now[:3]) <= spec.speed_max + 1e-9 and abs(now[3]) <= spec.roll_rate_max
        for command, dt in ((last, latency), (now, 0.1 - latency)):
            moved, velocity = ramp(velocity, command[:3], a_max, dt)
            position, roll = position + moved, roll + dt * command[3]
            assert (position >= low - 1e-4).all() and (position <= high + 1e-4).all()
            assert np.linalg.norm(position - spec.elbow) > spec.elbow_radius - 1e-3
            assert abs(roll) <= spec.roll_max + 1e-9
        last = now
        reached.append(position)
    assert np.allclose(np.min(reached, 0), low, atol=0.01) and np.allclose(np.max(reached, 0), high, atol=0.01)


def test_far_from_the_walls_the_change_of_the_velocity_is_bounded():
    spec, rng = SPEC, np.random.default_rng(0)
    wide = dataclasses.replace(
        spec, workspace_low=(-9,) * 3, workspace_high=(9,) * 3, elbow_radius=0.0, acceleration_max=2.0
    )
    last, largest = np.zeros(4), 0.0
    for _ in range(500):
        now = wide.limit(rng.uniform(-1, 1, 4) * 10 ** rng.uniform(-2, 9), np.array([5, 5, 5]), last[:3], 0.0, last)
        largest = max(largest, np.linalg.norm(now[:3] - last[:3]))
        last = now
    assert largest == pytest.approx(0.2, abs=1e-9)


def test_the_simulated_arm_keeps_its_limits_and_the_mug_the_workspace():
    """At full speed into every corner, also where joints come to their ends: the mug stays in there, and upright."""
    env = gym.make("pour_coffee_env:PourCoffeeSim2")
    u, spec, rng, near, far, steps = env.unwrapped, SPEC, np.random.default_rng(7), [], [], 0
    for episode in range(12):
        env.reset(seed=episode)
        for step in range(100):
            if step % 10 == 0:
                action = rng.choice([-1, 1], 4) * HIGH
                action[0] = -HIGH[0] if episode < 6 else action[0]
            *_, terminated, _, info = env.step(action)
            if terminated:
                break
            steps += 1
            q, qd = np.array([state[:2] for state in u.bullet.getJointStates(u.arm, range(7))]).T
            assert (np.abs(q) < pour.JOINT_LIMIT).all() and (np.abs(qd) < pour.JOINT_SPEED + 0.1).all()
            assert np.linalg.norm(u.velocity) < 1.1 * spec.speed_max and np.abs(u.angles[:2]).max() < 0.05
            assert (u.position > np.array(spec.workspace_low) - 0.006).all()
            assert (u.position < np.array(spec.workspace_high) + 0.006).all()
            near.append(np.linalg.norm(u.position - spec.elbow) - spec.elbow_radius)
            far.append((np.abs(q) / pour.JOINT_LIMIT).max())
    assert steps > 400 and -0.006 < min(near) < 0.01 and max(far) > 0.98
    env.close()


def test_the_arm_ramps(env):
    env.reset(seed=0)
    u, speeds = env.unwrapped, []
    drive = u._drive
    u._drive = lambda command: (drive(command), speeds.append(np.linalg.norm(u.going[:3])))
    u.step(np.array([0.12, 0, 0, 0]))
    del u._drive
    assert np.allclose(speeds, (0.05, 0.1, 0.12, 0.12))  # 2 m/s^2, 25 ms


def test_what_is_spilled_and_what_is_poured(env):
    """Spheres put here and there: on the stand, the table and the gripper, in flight, in the cup."""
    env.reset(seed=0)
    u = env.unwrapped
    outside = u.goal + pour.CUP_RIM + (0, 0, -pour.CUP_HEIGHT)  # the middle of the stand's top

    def told(*places):
        env.reset(seed=0)
        for sphere, place in zip(u.spheres, places):
            u.bullet.resetBasePositionAndOrientation(sphere, place, (0, 0, 0, 1))
        u.bullet.performCollisionDetection()
        return tuple(u._info(0, 0)[key] for key in ("spilled", "poured", "is_success"))

    assert told() == (0, 0, 0)
    assert told(outside + (0.115, 0, 0.01)) == (1, 0, 0)
    assert told((0.3, 0.3, 0.01)) == (1, 0, 0)
    assert told(u.position + (0, 0.2, 0), outside + (0, 0, 0.2)) == (0, 0, 0)
    finger = u.bullet.getLinkState(u.arm, u.mug - 1, 0, 1)
    side = np.reshape(u.bullet.getMatrixFromQuaternion(finger[5]), (3, 3)) @ (0.047 + 0.013, -0.025, 0.12)
    assert told(finger[4] + side) == (1, 0, 0)
    inside = [outside + (0, 0, 0.02)] * 13
    assert told(*inside) == (0, 13, 1) and told(*inside[1:]) == (0, 12, 0)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: pour.PourCoffee("ansi"), "render_mode"),
        (lambda: pour.PourCoffee(goal_range=-0.1), "goal_range"),
        (lambda: pour.PourCoffee(goal_range=0.5), "goal_range"),
        (lambda: pour.PourCoffee(goal_range=0.149), "elbow's way"),
        (lambda: pour.PourCoffee(specification=pour.Specification(goal=(0.52, -0.13, 0.30))), "elbow's way"),
        (lambda: pour.PourCoffee(start="x"), "start has to be home or pour"),
        (lambda: pour.PourCoffee(randomization=True), "randomization"),
        (lambda: pour.Randomization(friction=(0.2, 0.1)), "friction"),
        (lambda: pour.Randomization(fill=(0, 1)), "fill"),
        (lambda: pour.Randomization(action_delay=(-0.1, 0)), "action_delay"),
        (lambda: pour.Randomization(position_noise=-1), "position_noise"),
        (lambda: pour.Specification(latency=0.2), "latency"),
        (lambda: pour.Specification(latency=-0.1), "latency"),
        (lambda: pour.Specification(control_period=0.06), "control_period"),
        (lambda: pour.Specification(goal=(0.9, 0, 0.3)), "workspace"),
        (lambda: pour.Specification(goal=(0.55, 0, 0.20), workspace_low=(0, -1, 0)), "table"),
        (lambda: pour.Specification(speed_max=0), "bounds"),
    ],
)
def test_what_cannot_be_is_refused_at_once(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("action", [(math.nan, 0, 0, 0), (0, math.inf, 0, 0), (0, 0, 0)])
def test_an_action_that_is_none_is_refused_and_nothing_moves(env, action):
    env.reset(seed=0)
    before = env.unwrapped._observation()
    with pytest.raises(ValueError, match="four finite numbers"):
        env.unwrapped.step(np.array(action))
    assert np.array_equal(before, env.unwrapped._observation())


def test_videos_have_the_speed_of_the_task(env):
    fast = pour.PourCoffee(specification=pour.Specification(control_period=0.05))
    assert [one.metadata["render_fps"] for one in (fast, env, pour.PourCoffee)] == [20, 10, 10]
    fast.close()


def test_an_action_outside_the_box_is_clipped(env):
    """Each component by itself: a huge one does not drown the others."""
    runs = []
    for action in ((9, 0.1, 0, 9), (0.25, 0.1, 0, 0.8)):
        env.reset(seed=0)
        runs.append([env.unwrapped.step(np.array(action))[0] for _ in range(3)])
    assert np.array_equal(*runs)


def test_the_picture_shows_the_coffee():
    env = gym.make("pour_coffee_env:PourCoffee", render_mode="rgb_array")
    env.reset(seed=0)
    picture = env.render()
    assert picture.shape == (480, 480, 3) and picture.dtype == np.uint8
    r, g, b = picture.reshape(-1, 3).astype(int).T
    assert ((r < 80) & (g < 50) & (b < 30) & (r > b + 10)).sum() > 100
    env.close()


QUIET = dict(
    position_noise=0, angle_noise=0, velocity_noise=0, action_delay=(0, 0), friction=(0.1, 0.1), fill=(1, 1)
)


def trajectory(**kwargs):
    env = pour.PourCoffee(**kwargs)
    rows = [env.reset(seed=0)[0]]
    for step in range(8):
        rows.append(env.step(np.array([0.1, -0.2, 0.05, 0]) * (step < 4))[0])
    return np.array(rows), env


def test_randomization_is_off_by_default_and_each_part_does_what_it_says():
    plain, _ = trajectory()
    same, env = trajectory(randomization=pour.Randomization(**QUIET), goal_range=0.05)
    assert np.array_equal(plain, same) and len(env.spheres) == 14

    late, _ = trajectory(randomization=pour.Randomization(**QUIET | dict(action_delay=(0.1, 0.1))))
    late, first = si(late), si(plain)
    assert np.allclose(late[1, :3], first[0, :3], atol=5e-4) and np.allclose(late[2:, :9], first[1:-1, :9], atol=5e-3)

    _, env = trajectory(randomization=pour.Randomization(**QUIET | dict(fill=(0.7, 0.7), friction=(0.2, 0.2))))
    assert len(env.spheres) == 10 and env._coffee()[:, 2].max() < env.position[2] + pour.MUG_DEPTH / 2  # below the brim
    for body, part in ((env.arm, env.mug), (env.spheres[0], -1)):
        assert env.bullet.getDynamicsInfo(body, part)[1] == pytest.approx(0.2)

    noisy, env = trajectory(
        randomization=pour.Randomization(**QUIET | dict(position_noise=0.1, angle_noise=0.2, velocity_noise=0.4))
    )
    rows = np.array([env._observation() for _ in range(400)])
    assert (rows[:, 9:] == plain[0, 9:]).all()
    rows = si(rows)
    assert np.allclose(rows[:, :9].std(0), np.repeat([0.1, 0.2, 0.4], 3), rtol=0.2)
    assert np.allclose(rows[:, :9].mean(0), np.concatenate([env.position, env.angles, env.velocity]), atol=0.1)


def test_randomization_differs_between_episodes_and_not_between_the_same_seeds():
    env = pour.PourCoffee(randomization=pour.Randomization())

    def drawn(seed):
        obs, _ = env.reset(seed=seed)
        obs = np.concatenate([obs, *(env.step(np.full(4, 0.1))[0] for _ in range(3))])
        return obs, env.delay, len(env.spheres), env.bullet.getDynamicsInfo(env.spheres[0], -1)[1]

    draws = [drawn(seed) for seed in range(12)]
    assert all(len({draw[i] for draw in draws}) > 2 for i in (1, 2, 3))
    again = drawn(5)
    assert np.array_equal(again[0], draws[5][0]) and again[1:] == draws[5][1:]
    env.close()


def test_the_latency_of_the_specification_delays_the_motion_and_the_workspace_is_kept():
    late = dataclasses.replace(SPEC, latency=0.1)
    delayed, _ = trajectory(specification=late)
    randomised, _ = trajectory(randomization=pour.Randomization(**QUIET | dict(action_delay=(0.1, 0.1))))
    assert np.array_equal(delayed, randomised)
    env = pour.PourCoffee(specification=late)
    env.reset(seed=0)
    for _ in range(20):
        env.step(np.array([0.5, 0, 0.5, 0]))
        x, _, z = env.position
        assert x < late.workspace_high[0] + 2e-3 and z < late.workspace_high[2] + 2e-3
    assert x > late.workspace_high[0] - 5e-3
    env.close()


def test_kinovas_meshes_change_the_picture_alone(tmp_path):
    with pytest.raises(FileNotFoundError, match="base_link.STL"):
        pour.PourCoffee(mesh_dir=tmp_path)
    corners = np.array([(0, 0, 0), (0.3, 0, 0), (0, 0.3, 0), (0, 0, 0.3)])
    for name, *_ in pour.LINKS:  # a tetrahedron, as a binary STL
        faces = [struct.pack("<12fH", 0, 0, 0, *corners[[a, b, c]].ravel(), 0) for a, b, c in
                 ((0, 2, 1), (0, 1, 3), (0, 3, 2), (1, 2, 3))]  # fmt: skip
        (tmp_path / f"{name}_link.STL").write_bytes(bytes(80) + struct.pack("<I", 4) + b"".join(faces))
    (plain, without), (same, shown) = (trajectory(render_mode="rgb_array", mesh_dir=path) for path in (None, tmp_path))
    assert np.array_equal(plain, same)
    assert (without.render() != shown.render()).any(-1).mean() > 0.01


def test_the_demonstration(tmp_path):
    script = Path(pour.__file__)
    result = subprocess.run([sys.executable, script, "--gif", "pour.gif"], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    row = result.stdout.splitlines()[-2].split()
    assert row[:2] == ["1", "100"] and row[3:7] == ["True", "none", "14", "0"]
    assert (tmp_path / "pour.gif").read_bytes()[:3] == b"GIF"
    for flags in (("--gif", "nowhere/pour.gif"), ("--episodes", "0"), ("--mesh-dir", "nowhere")):
        result = subprocess.run([sys.executable, script, *flags], cwd=tmp_path, capture_output=True, text=True)
        assert result.returncode == 1 and "Traceback" not in result.stderr


@pytest.mark.parametrize("script", ["meta_sac_lag.py", "sac_lag_baselines.py"])
def test_both_scripts_know_the_ids(run_here, monkeypatch, script):
    root = Path(pour.__file__).parent
    monkeypatch.syspath_prepend(str(root))
    flags = "--total-timesteps 12 --learning-starts 10 --initial-states 2 --batch-size 4 --hidden-size 8".split()
    result = run_here("--env-id", "PourCoffeeSim4", *flags, script=root / script)
    assert result.returncode == 0 and "PourCoffeeSim4: observation 15, action 4" in result.stdout + result.stderr


def test_out_of_the_elbows_way():
    """Late or pushed, the mug may find itself a little too near to the elbow: it can go along and away, not nearer."""
    spec, still = SPEC, np.zeros(3)
    away = np.array([0.8, -0.6, 0.05]) / np.linalg.norm([0.8, -0.6, 0.05])
    for depth in (0.0, 1e-9, 0.003):
        position = np.array(spec.elbow) + (spec.elbow_radius - depth) * away
        up = spec.limit(np.array([0, 0, 0.1, 0]), position, still, 0.0, np.zeros(4))
        assert up == pytest.approx([0, 0, 0.1, 0])
        assert spec.limit(np.append(0.2 * away, 0), position, still, 0.0, np.zeros(4))[:3] @ away > 0.19
        assert spec.limit(np.append(-0.2 * away, 0), position, still, 0.0, np.zeros(4))[:3] @ away > -1e-9
