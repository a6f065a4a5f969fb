"""Tests of the benchmark environments, and of the installation that they stand on."""

import gc
import os
import subprocess
import sys

import gymnasium as gym
import mujoco
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from helpers import random_policy, rollout, same

import benchmark_envs


@pytest.fixture
def egg():
    env = gym.make("benchmark_envs:EggManipulate", render_mode="rgb_array")
    yield env
    env.close()


@pytest.mark.filterwarnings("ignore:.*Box observation space m..imum value")  # joint velocities have no bound
def test_egg_passes_gymnasiums_checker(egg):
    check_env(egg.unwrapped, skip_render_check=True)  # it would open a window for "human"


def test_egg_same_seed_same_episode_whatever_came_before(egg):
    actions = np.random.default_rng(0).uniform(-0.5, 0.5, (60, 20)).astype(np.float32)
    first = rollout(egg, 3, actions)
    rollout(egg, 9, -actions), egg.reset(seed=4), egg.render()
    assert same(rollout(egg, 3, actions), first)
    assert not same(rollout(egg, 4, actions), first)
    code = "import sys; sys.path.insert(0, 'tests'); import numpy as np, gymnasium as gym, test_benchmark_envs as t; " \
        "a = np.random.default_rng(0).uniform(-0.5, 0.5, (60, 20)).astype(np.float32); " \
        "print(np.concatenate(t.rollout(gym.make('benchmark_envs:EggManipulate'), 3, a)).sum(dtype=float).hex())"
    other_process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert other_process.stdout.strip() == np.concatenate(first).sum(dtype=float).hex()


def test_egg_renders_after_another_environment_closed(egg):
    egg.reset(seed=0)
    before = egg.render()
    other = gym.make("benchmark_envs:EggManipulate", render_mode="rgb_array")
    other.reset(seed=1), other.render(), other.close()
    assert (egg.render() == before).all() and before.std() > 10


@pytest.mark.slow
@pytest.mark.filterwarnings("error")
def test_egg_ten_thousand_random_steps():
    env, rng = gym.make("benchmark_envs:EggManipulate"), np.random.default_rng(0)
    env.reset(seed=0)
    for _ in range(10_000):
        obs, reward, terminated, truncated, _ = env.step(rng.uniform(-1, 1, 20).astype(np.float32))
        assert np.isfinite(obs).all() and np.isfinite(reward)
        if terminated or truncated:
            env.reset()


def test_egg_observation(egg):
    obs, _ = egg.reset(seed=0)
    hand = egg.unwrapped.hand
    assert obs.shape == (85,) and obs.dtype == np.float32
    actions, targets = np.random.default_rng(0).uniform(-1, 1, (5, 20)), np.zeros(20)
    for action in actions:
        obs = egg.step(action)[0]
        targets = np.clip(action, targets - 0.2, targets + 0.2)
    np.testing.assert_allclose(obs[64:84], targets, atol=1e-6)
    assert np.abs(targets - action).max() > 0.1
    joint, theirs = hand.data.joint("object:joint"), hand._get_obs()["observation"]
    np.testing.assert_allclose(obs[:24], theirs[:24], rtol=1e-6)
    np.testing.assert_allclose(2 * obs[24:48], theirs[24:48], rtol=1e-6)  # from 2 rad/s
    np.testing.assert_allclose(obs[51:54], joint.qvel[3:], rtol=1e-6)
    assert obs[84] * 0.02 + 0.10 == pytest.approx(joint.qpos[2], rel=1e-6)
    egg_now = joint.qpos[3:] * np.sign(joint.qpos[3])
    np.testing.assert_allclose(obs[57:61], egg_now, rtol=1e-6)
    turn, turned = np.zeros(4), np.zeros(4)
    for sign in (1, -1):  # the turn, then the egg's orientation: the target
        hand.goal[3:] *= sign
        left = egg.unwrapped._observation()[61:64].astype(float)
        mujoco.mju_axisAngle2Quat(turn, left / np.linalg.norm(left), np.linalg.norm(left))
        mujoco.mju_mulQuat(turned, turn, egg_now)
        assert abs(turned @ hand.goal[3:]) == pytest.approx(1, abs=1e-6) and 0 < np.linalg.norm(left) <= np.pi
    np.testing.assert_allclose(obs[61:64], left, rtol=1e-5)
    assert egg.unwrapped._info(0.0)["rotation_error"] == pytest.approx(np.linalg.norm(left), rel=1e-6)


def test_egg_on_the_palm(egg):
    """Turned out of the palm's axes, its position is where the egg is; and its velocity is that position's derivative,
    though the wrist moves."""
    palm, body = (egg.unwrapped.hand.data.body(name) for name in ("robot0:palm", "object"))
    rests, moves = np.array([0.01, -0.043, 0.067]), np.repeat([[-1, 1], [1, -1]], 12, 0)
    egg.reset(seed=0)
    way = [egg.step(np.r_[move, np.zeros(18)])[0][48:57] for move in moves]
    place = palm.xpos + palm.xmat.reshape(3, 3) @ (way[-1][6:] / 100 + rests)
    np.testing.assert_allclose(place, body.xpos, atol=1e-6)
    velocity, position = np.split(np.array(way)[:, [0, 1, 2, 6, 7, 8]], 2, axis=1)
    went, would = np.diff(position, axis=0) / 100, 0.05 * (velocity[1:] + velocity[:-1]) / 2 * 0.04  # m, by trapezoids
    assert np.abs(went).max() > 5e-4 and np.abs(went - would).mean() < 0.2 * np.abs(went).mean()


def test_egg_observations_are_of_order_one(egg):
    rng, seen = np.random.default_rng(0), []
    for seed in range(4):
        actions = rng.uniform(-1, 1, (100, 20)).astype(np.float32)
        seen += [step[:85] for step in rollout(egg, seed, actions)]
    spread = np.std(seen, axis=0)
    assert (spread > 0.03).all() and (spread[24:57] > 0.1).all() and np.abs(seen).max() < 10


def test_egg_rotation_error_against_rotation_matrices(egg):
    """The angle of R_egg R_target^T from its trace: in [0, pi], and the same for q and -q."""
    for seed in range(20):
        egg.reset(seed=seed)
        hand = egg.unwrapped.hand
        _, reward, _, _, info = egg.step(np.zeros(20, np.float32))
        matrices = []
        for quaternion in (hand.data.joint("object:joint").qpos[3:], hand.goal[3:]):
            matrix = np.zeros(9)
            mujoco.mju_quat2Mat(matrix, quaternion / np.linalg.norm(quaternion))
            matrices.append(matrix.reshape(3, 3))
        angle = np.arccos(np.clip((np.trace(matrices[0] @ matrices[1].T) - 1) / 2, -1, 1))
        assert info["rotation_error"] == pytest.approx(angle, abs=1e-5) and reward == -info["rotation_error"]
        hand.goal[3:] *= -1
        assert egg.unwrapped._info(0.0)["rotation_error"] == pytest.approx(info["rotation_error"], rel=1e-12)


def test_egg_success(egg):
    egg.reset(seed=0)
    hand = egg.unwrapped.hand
    assert egg.step(np.zeros(20, np.float32))[4]["is_success"] == 0.0
    hand.goal[3:] = hand.data.joint("object:joint").qpos[3:]
    _, _, terminated, _, info = egg.step(np.zeros(20, np.float32))
    assert info["is_success"] == 1.0 and info["rotation_error"] < 0.1 and not terminated
    for angle in (0.099, 0.101):
        turn = np.array([np.cos(angle / 2), 0.6 * np.sin(angle / 2), 0.8 * np.sin(angle / 2), 0])
        mujoco.mju_mulQuat(hand.goal[3:], turn, hand.data.joint("object:joint").qpos[3:])
        info = egg.unwrapped._info(0.0)
        assert info["rotation_error"] == pytest.approx(angle, abs=1e-5) and info["is_success"] == (angle < 0.1)


def test_egg_open_hand_drops_it(egg):
    egg.reset(seed=0)
    for step in range(100):
        obs, _, terminated, _, info = egg.step(-np.ones(20, np.float32))
        assert terminated == (info["cost"] == 1.0) == (obs[84] < 0)
        if terminated:
            break
    assert (info["cost_drop"], info["cost_force"], info["cost"]) == (1.0, 0.0, 1.0) and 5 < step < 30


def test_egg_full_grip_crushes_it(egg):
    egg.reset(seed=0)
    for step in range(6):
        _, _, terminated, _, info = egg.step(np.ones(20, np.float32))
        if terminated:
            break
    assert terminated and (info["cost_force"], info["cost_drop"], info["cost"]) == (1.0, 0.0, 1.0)
    assert info["contact_force"] > 20


def test_egg_force_is_the_largest_contact_over_the_substeps(egg):
    """Against MuJoCo's force of each contact; where there is but one, also against the external forces on the egg."""
    egg.reset(seed=1)
    env, rng, wrench, substeps = egg.unwrapped, np.random.default_rng(0), np.zeros(6), []
    model, data, largest_contact_force = env.hand.model, env.hand.data, env._largest_contact_force
    body = model.geom("object").bodyid[0]

    def recorded():
        contacts, force = [], largest_contact_force()
        for contact in np.flatnonzero((data.contact.geom1 == env.egg_geom) | (data.contact.geom2 == env.egg_geom)):
            mujoco.mj_contactForce(model, data, contact, wrench)
            contacts.append(np.linalg.norm(wrench[:3]))
        assert force == pytest.approx(max(contacts, default=0.0), rel=1e-9)
        if len(contacts) == 1:
            mujoco.mj_rnePostConstraint(model, data)
            assert force == pytest.approx(np.linalg.norm(data.cfrc_ext[body, 3:]), rel=1e-6)
        substeps.append((force, len(contacts)))
        return force

    env._largest_contact_force = recorded
    for step in range(1, 21):
        info = env.step(rng.uniform(-1, 1, 20))[4]
        assert len(substeps) == 20 * step and info["contact_force"] == max(substeps[-20:])[0]
        assert info["cost_force"] == (info["contact_force"] > 20)
    counts = [count for _, count in substeps]
    assert counts.count(1) > 5 and counts.count(2) > 5 and max(counts) > 2
    assert [env._info(force)["cost_force"] for force in (19.9, 20.1)] == [0.0, 1.0]


def test_egg_zero_action_is_safe(egg):
    for seed in range(3):
        egg.reset(seed=seed)
        for step in range(1, 101):
            _, _, terminated, truncated, info = egg.step(np.zeros(20, np.float32))
            assert not terminated and info["contact_force"] < 5 and truncated == (step == 100)


def test_egg_careless_policy_violates(egg):
    """Targets at the ends of their ranges, others every ten steps. Uniform actions hardly move the joints."""
    rng, costs = np.random.default_rng(0), []
    for seed in range(20):
        actions = rng.choice([-1.0, 1.0], (10, 20)).repeat(10, axis=0)
        egg.reset(seed=seed)
        costs.append(any(egg.step(action)[4]["cost"] for action in actions))  # up to the first
    assert 0.3 <= np.mean(costs) <= 0.8


@pytest.mark.slow
def test_egg_random_policy_violation_rate():
    rate, _ = random_policy("EggManipulate", 100)
    assert rate <= 0.05


def test_egg_renders_without_a_display(egg):
    egg.reset(seed=0)
    frame = egg.render()
    assert frame.shape == (480, 480, 3) and frame.dtype == np.uint8 and frame.std() > 20


def test_frames_need_no_display_that_works():
    """DISPLAY may name one that is gone, and MUJOCO_GL may be empty."""
    code = (
        "import gymnasium as gym\n"
        "for env_id in ('EggManipulate', 'SafetyHopperVelocity-v1'):\n"
        "    env = gym.make(f'benchmark_envs:{env_id}', render_mode='rgb_array')\n"
        "    env.reset(seed=0), print(env.render().std() > 20), env.close()"
    )
    without = {name: value for name, value in os.environ.items() if name not in ("WAYLAND_DISPLAY", "MUJOCO_GL")}
    for more in ({"DISPLAY": ":4077"}, {"DISPLAY": "", "MUJOCO_GL": ""}):
        result = subprocess.run([sys.executable, "-c", code], env={**without, **more}, capture_output=True, text=True)
        assert result.stdout.split()[-2:] == ["True"] * 2 and "Traceback" not in result.stderr, result.stderr


def test_egg_arguments():
    env = gym.make("benchmark_envs:EggManipulate", max_force=1e-6)
    env.reset(seed=0)
    assert env.step(np.zeros(20, np.float32))[4]["cost_force"] == 1.0


def test_egg_vectorised():
    envs = gym.vector.AsyncVectorEnv([lambda: gym.make("benchmark_envs:EggManipulate")] * 2)
    obs, _ = envs.reset(seed=[0, 0])
    assert obs.shape == (2, 85) and np.array_equal(obs[0], obs[1])
    envs.step(envs.action_space.sample())
    envs.close()


STEPS = {"HumanoidVelocity": 1000, "FrankaDrawerClose": 192, "CarCircle2": 500, "PushTopple": 50, "EggManipulate": 100}
IDS = list(STEPS)


def test_time_limits():
    assert {env_id: gym.spec(env_id).max_episode_steps for env_id in IDS} == STEPS


@pytest.mark.parametrize("env_id", IDS)
def test_an_action_that_is_none_is_refused_and_changes_nothing(env_id):
    env = gym.make(f"benchmark_envs:{env_id}").unwrapped
    actions = np.random.default_rng(0).uniform(-1, 1, (5, *env.action_space.shape)).astype(np.float32)
    first = rollout(env, 3, actions)
    for action in (np.full_like(actions[0], np.nan), np.append(actions[0][1:], np.inf), actions[0][:1], actions[:1]):
        with pytest.raises(ValueError, match=f"an action is {actions.shape[1]} finite numbers, but this is "):
            env.step(action)
    assert same(rollout(env, 3, actions), first)
    env.close()


@pytest.mark.parametrize("env_id", IDS)
def test_what_cannot_be_shown_is_refused_at_once(env_id, monkeypatch):
    for display in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(display, raising=False)
    with pytest.raises(ValueError, match="render_mode has to be None, human or rgb_array, but it is 'ansi'"):
        getattr(benchmark_envs, env_id)(render_mode="ansi")
    with pytest.raises(RuntimeError, match="no display"):  # else GLFW and PyBullet end the process
        getattr(benchmark_envs, env_id)(render_mode="human")


@pytest.mark.parametrize("env_id", IDS[:1] + IDS[2:])
def test_it_renders_after_it_was_closed(env_id):
    env = getattr(benchmark_envs, env_id)(render_mode="rgb_array")
    for _ in range(2):
        env.reset(seed=0)
        assert env.render().std() > 10
        env.close()


@pytest.mark.parametrize("env_id", ["benchmark_envs:FrankaDrawerClose", "pour_coffee_env:PourCoffee"])
def test_a_simulation_ends_with_its_environment(env_id):
    """PyBullet would keep 25 to 80 MB for each."""
    import pybullet

    env = gym.make(env_id)
    client = env.unwrapped.bullet.disconnect.keywords["physicsClientId"]
    assert pybullet.isConnected(client)
    del env
    gc.collect()
    assert not pybullet.isConnected(client)


@pytest.mark.filterwarnings("ignore")
def test_what_is_installed_runs_together():
    for env_id in ("SafetyCarCircle2-v0", "SafetyHumanoidVelocity-v1"):
        env = benchmark_envs.import_safety_gymnasium().make(env_id)
        env.reset(seed=0)
        assert len(env.step(env.action_space.sample())) == 6
        env.close()
    # TensorBoard's command needs a setuptools that still has pkg_resources
    subprocess.run([sys.executable, "-m", "tensorboard.main", "--version"], check=True, capture_output=True)
    import pybullet

    client = pybullet.connect(pybullet.DIRECT)
    pybullet.stepSimulation(client)
    pybullet.disconnect(client)
