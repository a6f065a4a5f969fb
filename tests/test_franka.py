"""Tests of FrankaDrawerClose."""

import glob
import os
import subprocess
import sys
import tempfile
import time
import warnings

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from helpers import random_policy, rollout, same

import benchmark_envs

ZERO = np.zeros(12, np.float32)


@pytest.fixture
def franka():
    """Without noise on its start, as the original is."""
    env = gym.make("benchmark_envs:FrankaDrawerClose", render_mode="rgb_array", start_noise=0.0)
    yield env
    env.close()


def random_actions(seed, steps=192):
    """Of the arm; the base moves away from the zone, so that the episode is long."""
    actions = np.random.default_rng(seed).uniform(-1, 1, (steps, 12)).astype(np.float32)
    actions[:, 0] = -abs(actions[:, 0])
    return actions


def close(env, steps=192):
    """What each step of the scripted policy returned."""
    return [env.step(env.unwrapped.scripted_close()) for _ in range(steps)]


def joints(env):
    return np.array([state[0] for state in env.unwrapped.bullet.getJointStates(env.unwrapped.body, env.unwrapped.JOINTS)])


@pytest.mark.filterwarnings("error")
def test_franka_passes_gymnasiums_checker(franka):
    check_env(franka.unwrapped, skip_render_check=True)  # it would open a window for "human"


@pytest.mark.filterwarnings("error")
def test_franka_passes_stable_baselines_checker(franka):
    pytest.importorskip("stable_baselines3.common.env_checker").check_env(franka.unwrapped)


def test_franka_same_actions_same_episode_whatever_came_before(franka):
    actions = random_actions(0)
    first = rollout(franka, 3, actions)
    assert len(first) == 193
    contacts, bullet, rng = 0, franka.unwrapped.bullet, np.random.default_rng(1)
    for _ in range(30):
        franka.reset()
        for _ in range(rng.integers(1, 300)):  # unwrapped: beyond the zone and the time limit, into the cabinet
            franka.unwrapped.step(np.append([1, 1], np.sign(rng.uniform(-1, 1, 10))))
            if bullet.getContactPoints() and rng.random() < 0.5:
                contacts += 1
                break
        assert same(rollout(franka, 3, actions), first)
    assert contacts >= 10
    code = "import sys; sys.path.insert(0, 'tests'); import numpy as np, gymnasium as gym, test_franka as t; " \
        "steps = t.rollout(gym.make('FrankaDrawerClose', start_noise=0.0), 3, t.random_actions(0)); " \
        "print(np.concatenate(steps).tobytes().hex())"
    other_process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert other_process.stdout.strip() == np.concatenate(first).tobytes().hex()


def test_franka_episodes_with_contact_repeat_too(franka):
    """From pushing the drawer (contacts of fingers and handle) straight into a reset, and the same again."""

    def episode(steps):
        franka.reset()
        return [np.append(result[0], result[1]) for result in close(franka, steps)]

    first = episode(192)
    assert franka.unwrapped.bullet.getContactPoints()
    for steps in (192, 100, 80, 60):
        episode(steps)
        assert same(episode(192), first)


def test_franka_robot_touches_the_scene_and_never_itself(franka):
    env, rng, touched = franka.unwrapped, np.random.default_rng(0), set()
    for _ in range(20):
        env.reset()
        for _ in range(100):
            env.step(np.append([1, 1], np.sign(rng.uniform(-1, 1, 10))))
            for contact in env.bullet.getContactPoints():
                links = sorted(contact[3:5])
                assert links[0] < env.CABINET <= links[1]
                touched.add(links[1])
    assert {env.CABINET, env.DRAWER} <= touched


def test_franka_environments_and_rendering_do_not_disturb_each_other(franka):
    actions = random_actions(0)
    alone = rollout(franka, 0, actions)
    other = gym.make("benchmark_envs:FrankaDrawerClose", start_noise=0.1)
    franka.reset(seed=0), other.reset(seed=1)
    together = [alone[0]]
    for action in actions:
        obs, reward, *_ = franka.step(action)
        other.unwrapped.step(-action)
        together.append(np.append(obs, reward))
        if len(together) % 48 == 0:
            frame = franka.render()
            assert np.array_equal(frame, franka.render())
    other.close()
    assert same(together, alone)


def test_franka_start(franka):
    """The notes' numbers without noise, hand at (1.05, 0, 1.23); with it each joint is off by up to 5 cm or 0.05 rad."""
    obs, info = franka.reset(seed=0)
    np.testing.assert_allclose(obs[26:29] / 5 + (0.6, 0, 1.22), (1.05, 0, 1.23), atol=0.005)
    assert info["cost"] == info["cost_zone"] == info["is_success"] == 0.0
    assert info["drawer_opening"] == pytest.approx(0.2) and obs[24:26] == pytest.approx((2, 0))  # dm
    assert np.array_equal(franka.reset(seed=1)[0], obs)
    noisy = gym.make("benchmark_envs:FrankaDrawerClose")
    starts = [noisy.reset(seed=seed)[0] for seed in (0, 1, 0)]
    assert np.array_equal(starts[0], starts[2]) and not np.array_equal(starts[0], starts[1])
    noise = (joints(noisy) - noisy.unwrapped.START)[:10]
    assert 0.01 < np.abs(noise).max() < 0.05 and np.abs(noise).min() > 0
    actions = random_actions(0, 50)
    first = rollout(noisy, 5, actions)
    rollout(noisy, 6, -actions)
    assert same(rollout(noisy, 5, actions), first) and not same(rollout(noisy, 6, actions), first)
    noisy.close()


def test_franka_observation(franka):
    env = franka.unwrapped
    p = env.bullet
    env.reset(seed=0)
    for action in random_actions(2, 40):
        obs, *_ = env.step(action)
    assert obs.shape == (57,) and obs.dtype == np.float32 and env.observation_space.contains(obs)
    q = np.array([state[0] for state in p.getJointStates(env.body, env.JOINTS)])
    np.testing.assert_allclose(env.LOWER + (obs[:12] + 1) / 2 * (env.UPPER - env.LOWER), q, atol=1e-5)
    np.testing.assert_array_equal(obs[39:51], action)
    base = p.getLinkState(env.body, 3, computeForwardKinematics=1)[4]
    np.testing.assert_allclose(base[:2], (0.6 - q[0], -q[1]), atol=1e-5)
    handle = p.getLinkState(env.body, env.DRAWER, computeForwardKinematics=1)[4] + np.array(env.HANDLE)
    np.testing.assert_allclose(obs[51:53] / 5, (base - handle)[:2], atol=1e-5)
    fingers = [p.getLinkState(env.body, joint, computeForwardKinematics=1)[4] for joint in env.JOINTS[10:]]
    tip = handle - obs[54:57] / 5  # 0.13 m along the hand's z axis, and the fingers begin 0.0584 m along it
    hand = obs[26:29] / 5 + (0.6, 0, 1.22)
    axes = np.array(p.getMatrixFromQuaternion(obs[29:33])).reshape(3, 3)
    np.testing.assert_allclose(tip, hand + 0.13 * axes[:, 2], atol=1e-5)
    middle = np.mean(fingers, axis=0)
    assert np.linalg.norm(middle - hand) == pytest.approx(0.0584, abs=0.02) and axes[:, 2] @ (middle - hand) > 0.05


@pytest.mark.parametrize(
    "base, metres",
    [((0.6, 0), 0.3), ((0.31, 0.2), 0.01), ((0.29, 0.2), -0.01), ((0.33, 0.54), 0.05), ((0.1, 0.55), 0.05), ((0, 0), -0.2)],
)
def test_franka_sees_how_far_the_zone_is(franka, base, metres):
    env = franka.unwrapped
    env.reset(seed=0)
    for joint, position in zip(env.JOINTS, (0.6 - base[0], -base[1])):
        env.bullet.resetJointState(env.body, joint, position)
    obs, _, info = env._look()
    assert obs[53] == pytest.approx(20 * metres, abs=1e-4) and info["cost_zone"] == (metres <= 0)


def test_franka_velocities_are_the_derivatives_of_positions(franka):
    env = franka.unwrapped
    p, dt = env.bullet, env.TIMESTEP / env.SUBSTEPS
    env.reset()
    for action in random_actions(3, 20):
        obs, *_ = env.step(0.1 * action)
    before = p.getLinkState(env.body, env.HAND, 1, 1)
    p.stepSimulation()
    after = p.getLinkState(env.body, env.HAND, 1, 1)
    np.testing.assert_allclose(obs[33:36], before[6], atol=1e-5)
    np.testing.assert_allclose((np.array(after[0]) - before[0]) / dt, after[6], atol=0.05)


def test_franka_base_moves_backwards_in_world_coordinates_and_keeps_its_speed_limits(franka):
    env = franka.unwrapped
    env.reset()
    for _ in range(60):
        obs, *_ = env.step(np.eye(12)[1] - np.eye(12)[0])  # x to -1, y to +1
    base = obs[51:54] / 5 + env.HANDLE + (obs[24] / 10, 0, 0)
    assert 1.5 < base[0] <= 1.6 and -0.3 < base[1] < -0.27  # 1 m/s and 0.3 m/s for a second


def test_franka_an_action_moves_the_joints_from_where_they_are(franka):
    """A third of the way in a step, whatever was asked for before; nothing of it survives a reset."""
    start, _ = franka.reset()
    for _ in range(15):  # short of the zone and the cabinet
        franka.step(np.ones(12))
    for _ in range(10):  # within its torques it takes some to stop
        before = joints(franka)
        franka.step(ZERO)
    assert np.abs(joints(franka) - before)[:10].max() < 1e-3
    franka.reset()
    np.testing.assert_allclose(franka.step(ZERO)[0][:12], start[:12], atol=1e-4)
    before = joints(franka)
    franka.step(np.append(np.full(10, 0.1), [0.0, 0.0]))  # 0.01 m or rad: too little for the speed limits
    np.testing.assert_allclose((joints(franka) - before)[:10], 0.01 * (1 - 0.9**4), atol=1e-3)


def test_franka_start_close_begins_half_of_the_episodes_along_the_script():
    envs = (gym.make("benchmark_envs:FrankaDrawerClose", start=start, start_noise=0) for start in ("close", "home"))
    along, home = envs
    at_home, begun = home.reset(seed=0)[0], []
    for seed in range(60):
        obs, info = along.reset(seed=seed)
        assert info["cost"] == 0.0
        begun.append(not np.array_equal(obs, at_home))
    assert 20 <= sum(begun) <= 40
    first = along.reset(seed=begun.index(True))[0]
    home.reset()
    found = [np.array_equal(home.step(home.unwrapped.scripted_close())[0], first) for _ in range(80)]
    assert found.index(True) >= 4 and sum(found) == 1
    along.reset(seed=3), along.step(along.action_space.sample())
    assert np.array_equal(along.reset(seed=begun.index(True))[0], first)
    ends = [close(along)[-1] for seed in (begun.index(True), begun.index(False)) if along.reset(seed=seed)]
    assert all(truncated and info["is_success"] for _, _, _, truncated, info in ends)
    along.close(), home.close()
    with pytest.raises(ValueError, match="start has to be one of home, close, but it is 'x'"):
        benchmark_envs.FrankaDrawerClose(start="x")


def test_franka_standing_still_returns_the_notes_number(franka):
    franka.reset()
    steps = [franka.step(ZERO) for _ in range(192)]
    assert sum(step[1] for step in steps) == pytest.approx(-366, abs=1)
    assert [step[3] for step in steps] == [False] * 191 + [True] and not any(step[2] for step in steps)


def test_franka_reward(franka):
    """Written down again, with the hand turned to the handle at the end of the push: about 2.5 at most."""
    franka.reset()
    for obs, reward, _, _, info in close(franka, 150):
        d = np.linalg.norm(obs[54:57]) / 5
        x, y, z, w = obs[29:33]
        hand_x_on_y, hand_y_on_z = 2 * (x * y + w * z), 2 * (y * z + w * x)
        aligned = 0.5 * (np.sign(hand_y_on_z) * hand_y_on_z**2 - np.sign(hand_x_on_y) * hand_x_on_y**2)
        near = (1 / (1 + d**2)) ** 2 * (2 if d <= 0.1 else 1)
        assert reward == pytest.approx(near + 0.5 * aligned - 10 * info["drawer_opening"], abs=1e-4)
        assert info["handle_distance"] == pytest.approx(d, abs=1e-5)
    assert 2.3 < reward < 2.51


def test_franka_driving_into_the_zone_violates(franka):
    franka.reset()
    for step in range(192):
        obs, _, terminated, _, info = franka.step(np.eye(12)[0])
        base_x = obs[51] / 5 + franka.unwrapped.HANDLE[0] + obs[24] / 10
        assert terminated == (info["cost"] == 1.0) == (base_x <= 0.3) and info["cost"] == info["cost_zone"]
        if terminated:
            break
    assert terminated and 15 <= step <= 25


def test_franka_zone_is_a_matter_of_the_base_alone(franka):
    """Its corners count; what lies just outside does not, although the arm then reaches over it."""
    env = franka.unwrapped
    env.reset()
    for base, cost in [((0.299, 0.499), 1), ((0.301, 0), 0), ((-0.199, -0.499), 1), ((-0.201, 0), 0), ((0, 0.501), 0)]:
        for joint, position in zip(env.JOINTS, (0.6 - base[0], -base[1])):
            env.bullet.resetJointState(env.body, joint, position)
        assert env._look()[2]["cost_zone"] == cost


def test_franka_scripted_policy_closes_the_drawer_safely_and_it_springs_back_when_released(franka):
    """Also with noise on its actions, of standard deviation 0.1, and from noisy starts."""
    franka.reset()
    results = close(franka)
    closed = next(step for step, result in enumerate(results) if result[4]["is_success"])
    print(f"closed at step {closed + 1}, return {sum(result[1] for result in results):.1f}")
    assert results[-1][3] and results[-1][4]["is_success"] == 1.0 and closed < 80
    assert all(result[4]["cost"] == 0.0 and not result[2] for result in results)
    assert sum(result[1] for result in results) == pytest.approx(269, abs=1)
    franka.reset()
    close(franka, closed + 10)
    for _ in range(192 - closed - 10):
        away = np.append((franka.unwrapped.READY - joints(franka)[:10]) * 10, [-1, -1]).clip(-1, 1)
        info = franka.step(away)[4]
    assert info["is_success"] == 0.0 and info["drawer_opening"] > 0.13
    rng = np.random.default_rng(0)
    franka.unwrapped.start_noise = 0.05  # the default
    for seed in range(5):
        franka.reset(seed=seed)
        for _ in range(192):
            noisy = franka.unwrapped.scripted_close() + 0.1 * rng.normal(size=12)
            _, _, terminated, _, info = franka.step(noisy.clip(-1, 1))
            assert not terminated
        assert info["is_success"]


def test_franka_success_is_less_than_1_cm_open(franka):
    env = franka.unwrapped
    for opening in (0.0, 0.009, 0.011):
        env.reset()
        env.bullet.resetJointState(env.body, env.DRAWER, opening)
        assert env._look()[2]["is_success"] == (opening < 0.01)


def test_franka_drawer_spring_and_friction(franka):
    """min(30 (0.2 - q), 4) N less 2 N of friction on 3 kg: from 0 it opens at 2/3 m/s^2, from 0.15 m it stays."""
    env = franka.unwrapped
    for opening, expected in ((0.0, 0.5 * 2 / 3 * 0.25**2), (0.15, 0.15), (0.25, 0.25)):
        env.reset()
        env.bullet.resetJointState(env.body, env.DRAWER, opening)
        for _ in range(15):
            info = env.step(ZERO)[4]
        assert info["drawer_opening"] == pytest.approx(expected, rel=0.05)
    env.reset()
    env.bullet.resetJointState(env.body, env.DRAWER, 0.0)
    openings = [env.step(ZERO)[4]["drawer_opening"] for _ in range(192)]
    print(f"released at 0, the drawer comes to rest at {openings[-1]:.3f} m")
    assert 0.13 < openings[-1] < 0.27 and openings[-1] == pytest.approx(openings[-20], abs=1e-4)


def test_franka_10000_random_steps():
    env, rng = gym.make("benchmark_envs:FrankaDrawerClose"), np.random.default_rng(0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env.reset(seed=0)
        for _ in range(10000):
            obs, reward, terminated, truncated, _ = env.step(rng.uniform(-1, 1, 12).astype(np.float32))
            assert np.isfinite(obs).all() and np.isfinite(reward) and np.abs(obs).max() <= 10
            if terminated or truncated:
                env.reset()
    env.close()


def test_franka_is_stable_under_wild_actions():
    """Bang-bang on every joint: the base keeps its limits, nothing blows up."""
    env, rng = benchmark_envs.FrankaDrawerClose(), np.random.default_rng(0)
    env.reset(seed=0)
    for _ in range(2000):
        env.step(np.sign(rng.uniform(-1, 1, 12)))
        q, qd = np.array([state[:2] for state in env.bullet.getJointStates(env.body, env.JOINTS)]).T
        assert np.abs(qd).max() < 50 and (q > env.LOWER - 0.1).all() and (q < env.UPPER + 0.1).all()
        assert (np.abs(qd[:3]) < 1.5 * np.array(env.MAX_SPEED[:3])).all()
    env.close()


def test_franka_random_policy_violates_often():
    rate, _ = random_policy("FrankaDrawerClose", 40)
    assert 0.1 <= rate <= 0.5


@pytest.mark.slow
def test_franka_random_policy_violation_rate():
    rate, median = random_policy("FrankaDrawerClose", 100)
    print(f"random policy: violation rate {rate:.2f}, median first step {median:.0f}")
    assert 0.2 <= rate <= 0.4 and 90 <= median <= 160


def test_franka_speed():
    env, rng = gym.make("benchmark_envs:FrankaDrawerClose", zone=(9, 9, 9, 9)), np.random.default_rng(0)
    actions, start = rng.uniform(-1, 1, (1920, 12)).astype(np.float32), time.process_time()
    for step, action in enumerate(actions):
        if step % 192 == 0:
            env.reset()
        env.step(action)
    speed, start = len(actions) / (time.process_time() - start), time.process_time()
    for _ in range(100):
        env.reset()
    milliseconds = 10 * (time.process_time() - start)
    env.close()
    print(f"{speed:.0f} steps/s, reset {milliseconds:.3f} ms (CPU time)")
    assert speed > 500 and milliseconds < 5


def test_franka_renders_without_a_display(franka):
    franka.reset(seed=0)
    frame = franka.render()
    assert frame.shape == (480, 480, 3) and frame.dtype == np.uint8 and frame.std() > 20
    red = (frame[..., 0] > 150) & (frame[..., 1] < 60)
    assert 0.01 < red.mean() < 0.2
    for _ in range(10):
        franka.step(np.ones(12))
    assert not np.array_equal(franka.render(), frame)
    assert benchmark_envs.FrankaDrawerClose().render() is None


def test_franka_arguments():
    env = gym.make("benchmark_envs:FrankaDrawerClose", zone=(0.5, 0.7, -0.1, 0.1), start_opening=0.1,
                   start_noise=0.0, action_scale=0.01)  # fmt: skip
    assert env.reset()[1]["cost_zone"] == 1.0
    _, _, terminated, _, info = env.step(ZERO + 1)
    assert terminated and info["drawer_opening"] == pytest.approx(0.1)
    np.testing.assert_allclose((joints(env) - env.unwrapped.START)[:10], 0.01 * (1 - 0.9**4), atol=1e-3)
    env.close()


def test_franka_clips_actions(franka):
    assert same(rollout(franka, 0, [ZERO + 1] * 5), rollout(franka, 0, [ZERO + 7] * 5))


def test_franka_vectorised():
    envs = gym.vector.AsyncVectorEnv([lambda: gym.make("benchmark_envs:FrankaDrawerClose")] * 2)
    obs, _ = envs.reset(seed=[0, 0])
    assert obs.shape == (2, 57) and np.array_equal(obs[0], obs[1])
    envs.step(envs.action_space.sample())
    envs.close()


def test_franka_leaves_nothing_behind(capfd, tmp_path, monkeypatch):
    """No file, no word on stdout; closing twice is fine, and so is a new environment after it."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        env = gym.make("benchmark_envs:FrankaDrawerClose", render_mode="rgb_array")
        env.reset(seed=0), env.step(ZERO), env.render()
        env.close(), env.close(), env.unwrapped.close()
    assert glob.glob(os.path.join(tmp_path, "**"), recursive=True) == [os.path.join(tmp_path, "")]
    assert capfd.readouterr().out == ""


def test_franka_needs_pybullet_only_when_it_is_made():
    code = "import sys, benchmark_envs; assert not any('pybullet' in name for name in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
