"""pour_coffee_env.py: kinematics, Eq. 17, what spills and what does not, the contract."""

import dataclasses
import math

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import pour_coffee_env as pour

IDS = ["PourCoffee", *(f"PourCoffeeSim{i}" for i in (1, 2, 3, 4))]


@pytest.fixture(scope="module")
def env():
    env = gym.make("pour_coffee_env:PourCoffee")
    yield env
    env.close()


def play(env, seed, policy):
    """Until the episode ends; policy(obs, step) -> action. Returns steps, return and the last info."""
    obs, _ = env.reset(seed=seed)
    total = 0.0
    for step in range(1, 101):
        obs, reward, terminated, truncated, info = env.step(np.asarray(policy(obs, step), np.float32))
        total += reward
        if terminated or truncated:
            break
    return step, total, info


def scripted(acceleration=1.0, speed=0.4):
    """Straight to the goal within these limits, then roll at full rate."""
    velocity = np.zeros(3)

    def policy(obs, step):
        nonlocal velocity
        way = obs[9:12] - obs[:3]
        change = way * min(2.0, speed / max(np.linalg.norm(way), 1e-9)) - velocity
        velocity = velocity + change * min(1.0, 0.1 * acceleration / max(np.linalg.norm(change), 1e-9))
        pouring = np.linalg.norm(way) < 0.01 or obs[5] > 0.2
        return np.append(velocity, np.clip(2 * (2.2 - obs[5]), -0.8, 0.8) if pouring else 0.0)

    return policy


@pytest.mark.filterwarnings("error::UserWarning")
@pytest.mark.parametrize("env_id", IDS)
def test_gymnasiums_checker(env_id):
    env = gym.make(f"pour_coffee_env:{env_id}").unwrapped
    check_env(env, skip_render_check=True)
    env.close()


def test_kinematics_at_kinovas_poses(env):
    """Home and Zero of the real arm, with the tool 12 cm before the flange; roll of joint 7 is roll of the mug alone."""
    home = np.radians(pour.SPECIFICATION.home)
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


def test_the_same_seed_is_the_same_episode_whatever_came_before(env):
    def trajectory(seed):
        obs, _ = env.reset(seed=seed)
        rng, found = np.random.default_rng(seed), [obs]
        for _ in range(10):
            obs, *_, info = env.step(rng.uniform(-0.5, 0.5, 4).astype(np.float32))
            found += [obs, env.unwrapped._coffee().ravel()]
        return np.concatenate(found)

    first = trajectory(3)
    for seed in (4, 5):
        trajectory(seed)
    assert np.array_equal(first, trajectory(3))
    assert not np.array_equal(first, trajectory(4))


def test_standing_still_keeps_the_mug_full_and_in_its_place(env):
    start, _ = env.reset(seed=0)
    for _ in range(30):
        obs, reward, terminated, _, info = env.step(np.zeros(4, np.float32))
    assert info["spilled"] == 0 and not terminated
    assert np.linalg.norm(obs[:3] - start[:3]) < 1e-3 and np.abs(obs[3:6]).max() < 2e-3


def test_velocity_acceleration_and_jerk_are_those_of_the_motion(env):
    """0.2 m/s is reached within a step, then it is 2 cm a step; the rest is differences of the velocity."""
    before, _ = env.reset(seed=0)
    acceleration = np.zeros(3)
    for step in range(6):
        obs, *_, info = env.step(np.array([0, -0.2, 0, 0], np.float32))
        last, acceleration = acceleration, (obs[6:9] - before[6:9]).astype(float) / 0.1
        if step:
            assert info["acceleration"] == pytest.approx(np.linalg.norm(acceleration), abs=1e-4)
        if step > 1:
            assert info["jerk"] == pytest.approx(np.linalg.norm(acceleration - last) / 0.1, abs=1e-3)
            assert np.allclose(obs[:3] - before[:3], (0, -0.02, 0), atol=1e-3)
            assert np.allclose(obs[6:9], (0, -0.2, 0), atol=1e-2)
        before = obs


@pytest.mark.parametrize("episodes", [3, pytest.param(100, marks=pytest.mark.slow)])
def test_a_smooth_pour_succeeds(env, episodes):
    ends = [play(env, seed, scripted()) for seed in range(episodes)]
    assert sum(info["is_success"] and not info["cost"] for _, _, info in ends) >= 0.95 * episodes
    assert all(total > 500 for _, total, info in ends if info["is_success"])  # 10 - |phi - phi_goal| a step at the goal


@pytest.mark.parametrize("episodes", [4, pytest.param(40, marks=pytest.mark.slow)])
def test_an_early_tilt_spills_each_time(env, episodes):
    for seed in range(episodes):
        _, _, info = play(env, seed, lambda obs, step: (0, 0, 0, 0.8))
        assert info["cost_spill"] == 1 and info["cost"] == 1 and info["spilled"] > 0 and info["is_success"] == 0


@pytest.mark.parametrize("episodes", [10, pytest.param(100, marks=pytest.mark.slow)])
def test_the_random_policy_spills_but_not_at_once(env, episodes):
    high = env.action_space.high
    firsts = []
    for seed in range(episodes):
        rng = np.random.default_rng(seed)
        steps, _, info = play(env, seed, lambda obs, step: rng.uniform(-high, high))
        firsts.append(steps if info["cost"] else np.inf)
    assert np.isfinite(firsts).mean() > 0.8 and np.median(firsts) >= 10


@pytest.mark.parametrize("env_id, spills", [("PourCoffeeSim1", 0), ("PourCoffeeSim3", 0), ("PourCoffeeSim4", 1)])
def test_equation_17(env_id, spills):
    env = gym.make(f"pour_coffee_env:{env_id}").unwrapped
    env.reset(seed=0)
    while True:
        obs, reward, terminated, _, info = env.step(np.array([0.2, 0, 0, 0.8], np.float32))
        distance = np.linalg.norm(obs[:3].astype(float) - obs[9:12])
        expected = -2 * distance - (0 if env_id == "PourCoffeeSim1" else 0.05 * info["acceleration"])
        assert reward == pytest.approx(expected - spills * (info["spilled"] > 0), abs=1e-5)
        if terminated:
            break
    env.goal = env.position + (0.049, 0, 0)
    _, reward, *_ = env.step(np.zeros(4, np.float32))
    assert reward == pytest.approx(10 - abs(env.angles[2] - 2.2), abs=1e-6)
    env.close()


def test_where_a_spill_is_no_violation_it_is_told_all_the_same():
    env = gym.make("pour_coffee_env:PourCoffeeSim2")
    steps, _, info = play(env, 0, lambda obs, step: (0, 0, 0, 0.8))
    assert steps == 100 and info["spilled"] > 0 and info["cost"] == info["cost_spill"] == 0
    env.close()


@pytest.mark.parametrize(
    "name, to", [("cup", (0.0, -0.06, -0.14)), ("stand", (0.0, 0.05, -0.22)), ("table", (0.1, 0.25, -0.4))]
)
def test_a_collision_is_caught_by_name(name, to):
    """On the way to a place that the specification's workspace would not allow, a spill being no violation."""
    wide = dataclasses.replace(pour.SPECIFICATION, workspace_low=(0.2, -0.6, -0.2))
    env = gym.make("pour_coffee_env:PourCoffeeSim2", specification=wide, goal_range=0.0)
    way = lambda obs, step: np.append(3 * (obs[9:12] + to - obs[:3]), 0)  # noqa: E731
    _, _, info = play(env, 0, way)
    assert info["cost"] == info[f"cost_collision_{name}"] == 1
    env.close()


def test_limits_hold_and_the_mug_stays_in_the_workspace(env):
    spec, rng = pour.SPECIFICATION, np.random.default_rng(0)
    position, roll, last = np.array([0.5, 0.0, 0.4]), 0.0, np.zeros(4)
    for _ in range(5000):
        now = spec.limit(rng.uniform(-1, 1, 4) * 10 ** rng.uniform(-2, 9), position, roll, last)
        assert np.linalg.norm(now[:3]) <= spec.speed_max + 1e-9 and abs(now[3]) <= spec.roll_rate_max
        position, roll, last = position + spec.control_period * now[:3], roll + spec.control_period * now[3], now
        assert (position >= np.array(spec.workspace_low) - 1e-9).all()
        assert (position <= np.array(spec.workspace_high) + 1e-9).all() and abs(roll) <= spec.roll_max + 1e-9


@pytest.mark.parametrize("action", [(math.nan, 0, 0, 0), (0, math.inf, 0, 0), (0, 0, 0)])
def test_an_action_that_is_none_is_refused_and_nothing_moves(env, action):
    env.reset(seed=0)
    before = env.unwrapped._observation()
    with pytest.raises(ValueError, match="four finite numbers"):
        env.unwrapped.step(np.array(action))
    assert np.array_equal(before, env.unwrapped._observation())


def test_an_action_outside_the_box_is_clipped(env):
    runs = []
    for action in ((9, 0, 0, 9), (0.5, 0, 0, 0.8)):
        env.reset(seed=0)
        runs.append(env.unwrapped.step(np.array(action))[0])
    assert np.array_equal(*runs)


def test_the_picture_shows_the_coffee():
    env = gym.make("pour_coffee_env:PourCoffee", render_mode="rgb_array")
    env.reset(seed=0)
    picture = env.render()
    assert picture.shape == (480, 480, 3) and picture.dtype == np.uint8
    r, g, b = picture.reshape(-1, 3).astype(int).T
    assert ((r < 80) & (g < 50) & (b < 30) & (r > b + 10)).sum() > 100
    env.close()
