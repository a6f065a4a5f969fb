"""Tests of HumanoidVelocity and CarCircle2. `pytest -m slow -s -k speed` prints the table of speeds."""

import subprocess
import sys
import time
import warnings

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from benchmark_envs import import_safety_gymnasium

BASE = {"HumanoidVelocity": "SafetyHumanoidVelocity-v1", "CarCircle2": "SafetyCarCircle2-v0"}

# Three whole-body postures that throw the humanoid forward, at 1.7 m/s before it falls (found by random search).
LEAP = 0.4 * np.array(
    [
        [-1, -1, 1, 0, 0, 1, 1, 1, 1, 1, 0, 1, -1, -1, -1, 1, 0],
        [1, -1, 1, 0, 0, 1, 1, 1, 1, -1, 1, -1, 0, 0, -1, -1, 0],
    ],
    np.float32,
)


@pytest.fixture(scope="module", params=BASE)
def env_id(request):
    return request.param


@pytest.fixture(scope="module")
def env(env_id):
    env = gym.make(f"benchmark_envs:{env_id}", render_mode="rgb_array")
    yield env
    env.close()


@pytest.fixture(scope="module")
def humanoid():
    env = gym.make("benchmark_envs:HumanoidVelocity")
    yield env
    env.close()


@pytest.fixture(scope="module")
def car():
    env = gym.make("benchmark_envs:CarCircle2")
    yield env
    env.close()


def make_base(env_id):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        options = {"healthy_reward": 0.0} if env_id == "HumanoidVelocity" else {}
        return import_safety_gymnasium().make(BASE[env_id], **options)


def random_actions(space, count, seed=0):
    return np.random.default_rng(seed).uniform(space.low, space.high, (count, *space.shape)).astype(np.float32)


def rollout(env, seed, actions, render=False):
    """One row per step: observation, reward, cost. Goes on after a violation, as the bare environments can."""
    env, rows = env.unwrapped, [np.append(env.reset(seed=seed)[0], [0.0, 0.0])]
    for action in actions:
        obs, reward, _, _, info = env.step(action)
        rows.append(np.append(obs, [reward, info["cost"]]))
        if render:
            env.render()
    return np.array(rows)


@pytest.mark.filterwarnings("error", "ignore:.*Box observation space m..imum value")  # most entries have no bound
def test_gymnasiums_checker(env):
    check_env(env.unwrapped, skip_render_check=True)  # it would open a window for "human"


@pytest.mark.filterwarnings("error", "ignore:.*symmetric and normalized Box action space")  # torques within +-0.4
def test_stable_baselines3_checker(env):
    pytest.importorskip("stable_baselines3.common.env_checker").check_env(env)


def test_same_seed_same_episode_whatever_came_before(env, env_id):
    actions = random_actions(env.action_space, 60)
    first = rollout(env, 3, actions)
    rollout(env, 9, -actions, render=True), env.reset(seed=4), env.step(actions[0])
    assert np.array_equal(rollout(env, 3, actions), first)
    assert np.array_equal(rollout(env, 3, actions, render=True), first)  # rendering changes nothing
    assert not np.array_equal(rollout(env, 4, actions), first)
    code = "import sys; sys.path.insert(0, 'tests'); import gymnasium as gym, test_humanoid_and_car as t; " \
        f"env = gym.make('benchmark_envs:{env_id}'); env.reset(seed=1); " \
        "print(t.rollout(env, 3, t.random_actions(env.action_space, 60)).tobytes().hex())"
    other_process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert other_process.stdout.strip().split("\n")[-1] == first.tobytes().hex()


def test_without_a_seed_the_generator_goes_on(env):
    starts = [env.reset(seed=3)[0], env.reset()[0], env.reset()[0]]
    assert not np.array_equal(starts[0], starts[1]) and not np.array_equal(starts[1], starts[2])
    again = [env.reset(seed=3)[0], env.reset()[0], env.reset()[0]]
    assert np.array_equal(starts, again)


@pytest.mark.filterwarnings("error")
def test_ten_thousand_random_steps(env_id):
    env = gym.make(f"benchmark_envs:{env_id}")
    env.reset(seed=0)
    kinds = None
    for action in random_actions(env.action_space, 10_000):
        obs, reward, terminated, truncated, info = env.step(action)
        kinds = kinds or [key for key in info if key.startswith("cost_")]
        assert obs.dtype == np.float32 and np.isfinite(obs).all() and np.isfinite(reward)
        assert info["cost"] == max(info[kind] for kind in kinds) and info["cost"] in (0.0, 1.0)
        assert all(type(value) is float for value in info.values()) and type(reward) is float
        assert terminated is (info["cost"] > 0)
        if terminated or truncated:
            env.reset()
    env.close()


@pytest.mark.filterwarnings("error")
def test_vectorised(env_id):
    envs = gym.vector.AsyncVectorEnv([lambda: gym.make(f"benchmark_envs:{env_id}")] * 2)
    obs, info = envs.reset(seed=[0, 0])
    assert obs.dtype == np.float32 and np.array_equal(obs[0], obs[1]) and np.array_equal(info["cost"], [0.0, 0.0])
    action = random_actions(envs.single_action_space, 1)
    obs, _, _, _, info = envs.step(np.concatenate([action, action]))
    assert np.array_equal(obs[0], obs[1]) and np.array_equal(info["cost"], [0.0, 0.0])
    envs.close()


@pytest.mark.filterwarnings("error")
def test_renders_without_a_display(env, env_id):
    env.reset(seed=0)
    frame = env.render()
    assert frame.shape == (480, 480, 3) and frame.dtype == np.uint8 and frame.std() > 20
    other = gym.make(f"benchmark_envs:{'CarCircle2' if env_id == 'HumanoidVelocity' else 'HumanoidVelocity'}",
                     render_mode="rgb_array")  # fmt: skip
    other.reset(seed=0), other.render()
    assert np.array_equal(env.render(), frame)  # the other's frames do not get in the way
    other.close(), other.close()
    assert np.array_equal(env.render(), frame)
    for action in random_actions(env.action_space, 300):
        if env.step(action)[2]:
            break
    assert not np.array_equal(env.render(), frame)
    env.reset(seed=0)
    assert np.array_equal(env.render(), frame)  # no trace of the episode before
    env.close(), env.close()


def test_out_of_box_actions_are_clipped(env):
    outside = 3 * random_actions(env.action_space, 20)
    inside = np.clip(outside, env.action_space.low, env.action_space.high)
    assert np.array_equal(rollout(env, 0, outside), rollout(env, 0, inside))


def test_humanoid_is_the_original_without_its_bonus(humanoid):
    """The same seed starts the same episode in both; within the box, all but the end is the original's."""
    base, actions = make_base("HumanoidVelocity").unwrapped, random_actions(humanoid.action_space, 100)
    for seed in range(3):
        rows, expected = rollout(humanoid, seed, actions), [base.reset(seed=seed)[0]]
        for action, row in zip(actions, rows[1:]):
            obs, reward, cost, terminated, _, info = base.step(action)
            expected.append(obs)
            assert row[-2] == reward and row[-1] == max(cost, float(terminated))
            assert reward == pytest.approx(1.25 * info["x_velocity"] - 0.1 * (action.astype(float) ** 2).sum())
        expected = np.array(expected)
        units = (0, 28, 1), (28, 45, 10), (45, 185, 1), (185, 269, 5), (269, 292, 100), (292, 376, 413)
        for first, end, unit in units:
            scaled = np.clip(expected[:, first:end] / unit, -10, 10)
            assert np.array_equal(rows[:, first:end], scaled.astype(np.float32))


def test_observations_are_of_order_one(env):
    """Whole episodes under random actions, of Humanoid some 20 steps long."""
    rng, obs, seen = np.random.default_rng(0), env.reset(seed=0)[0], []
    for _ in range(1500):
        obs, _, terminated, truncated, _ = env.step(rng.uniform(env.action_space.low, env.action_space.high))
        seen.append(obs)
        if terminated or truncated:
            env.reset()
    assert 0.4 < np.sqrt(np.square(seen).mean()) < 1.5 and np.abs(seen).max() < 10 and np.std(seen, axis=0).max() < 2


def test_humanoid_observations_are_clipped(humanoid):
    """As it lies on the ground after a fall of 3 m, more than ten times its weight is on one of its bodies."""
    humanoid.reset(seed=0)
    inner, largest = humanoid.unwrapped, 0.0
    inner.humanoid.data.qpos[2] = 4.0
    for _ in range(80):
        obs = inner.step(np.zeros(17, np.float32))[0]
        assert humanoid.observation_space.contains(obs)
        largest = max(largest, np.abs(inner.humanoid.data.cfrc_ext).max())
    assert largest > 10 * 413


def test_humanoid_falls(humanoid):
    humanoid.reset(seed=0)
    for step in range(100):
        obs, _, terminated, _, info = humanoid.step(np.zeros(17, np.float32))
        assert terminated == (info["cost_fall"] == 1.0) == (not 1.0 < obs[0] < 2.0)
        if terminated:
            break
    assert (info["cost_fall"], info["cost_velocity"], info["cost"]) == (1.0, 0.0, 1.0) and 20 < step < 60


def test_humanoid_too_fast(humanoid):
    humanoid.reset(seed=0)
    for step in range(40):
        _, _, terminated, _, info = humanoid.step(LEAP[int(step >= 4)])
        assert terminated == (info["speed"] > 1.4149)
        if terminated:
            break
    assert (info["cost_velocity"], info["cost_fall"], info["cost"]) == (1.0, 0.0, 1.0)


def test_humanoid_speed_is_the_centre_of_masss(humanoid):
    """Against MuJoCo's own centre of mass, within 0.05 m/s: the original reads positions of the last substep."""
    humanoid.reset(seed=0)
    data, before = humanoid.unwrapped.humanoid.data, None
    for action in random_actions(humanoid.action_space, 15):
        before = data.subtree_com[1, :2].copy()
        info = humanoid.step(action)[4]
        assert info["speed"] == pytest.approx(np.linalg.norm(data.subtree_com[1, :2] - before) / 0.015, abs=0.05)


@pytest.mark.parametrize("velocity", [(-2, 0), (0, 2), (0, -2), (1.1, 1.1)])
def test_humanoid_too_fast_in_any_direction(humanoid, velocity):
    humanoid.reset(seed=0)
    humanoid.unwrapped.humanoid.data.qvel[:2] = velocity
    info = humanoid.step(np.zeros(17, np.float32))[4]
    assert info["cost_velocity"] == 1.0 and info["speed"] == pytest.approx(np.linalg.norm(velocity), abs=0.1)


def test_humanoid_max_speed():
    env = gym.make("benchmark_envs:HumanoidVelocity", max_speed=0.0)
    env.reset(seed=0)
    assert env.step(np.zeros(17, np.float32))[4]["cost_velocity"] == 1.0
    env.close()


def test_car_fast_reset_against_the_originals_physics(car):
    """The same start and actions in the original, which compiles a new model for each episode, and here."""
    base, ours, worst = make_base("CarCircle2").unwrapped, car.unwrapped, 0.0
    for seed in range(3):
        expected, _ = base.reset(seed=seed)
        start = base.task.data.qpos.copy()
        ours.reset(seed=99)
        ours.step(np.ones(2, np.float32))
        ours._place(*start[:2], start[3:7])
        assert np.array_equal(ours.car.task.data.qpos, start)
        np.testing.assert_allclose(ours.car.task.obs(), expected, rtol=0, atol=1e-10)
        for action in np.repeat(random_actions(car.action_space, 30, seed), 10, axis=0):
            expected, expected_reward, expected_cost, _, _, _ = base.step(action)
            obs, reward, _, _, info = ours.step(action)
            for state in ("qpos", "qvel"):
                worst = max(worst, np.abs(getattr(ours.car.task.data, state) - getattr(base.task.data, state)).max())
            assert reward == pytest.approx(expected_reward, abs=1e-10) and info["cost"] == expected_cost
            obs[:3] *= 9.81
            np.testing.assert_allclose(obs[:40], expected, rtol=1e-6, atol=1e-5)
    print(f"largest difference: {worst:.1e}")
    assert worst <= 1e-10


def test_car_sees_the_walls(car):
    """By walking along each of the four directions until one is crossed, here in steps of 1 mm."""
    inner, rng = car.unwrapped, np.random.default_rng(0)
    for x, y, yaw in rng.uniform((-1, -1, -4), (1, 1, 4), (20, 3)):
        inner._place(x, y, [np.cos(yaw / 2), 0, 0, np.sin(yaw / 2)])
        obs = inner._observation(inner.car.task.obs())
        for seen, turn in zip(obs[40:], (0, 1, 2, 3)):  # to its left, behind, to its right, ahead
            angle, steps = yaw + turn * np.pi / 2, np.arange(0.0, 0.6, 0.001)
            ray = np.abs([x, y] + steps[:, None] * [np.cos(angle), np.sin(angle)]).max(1)
            free = np.flatnonzero(ray > 1.125)
            assert seen / 5 == pytest.approx(steps[free[0]] if len(free) else 0.6, abs=0.0011)
    inner._place(1.2, 0.0, [1, 0, 0, 0])
    assert inner._observation(inner.car.task.obs())[40] == pytest.approx(5 * -0.075, abs=1e-5)


def test_car_starts_everywhere(car):
    starts = []
    for seed in range(400):
        _, info = car.reset(seed=seed)
        w, z = car.unwrapped.car.task.data.qpos[[3, 6]]
        starts.append([info["x"] / 0.8, info["y"] / 0.8, (2 * np.arctan2(z, w)) % (2 * np.pi) / np.pi - 1])
    starts = np.sort(starts, axis=0)  # each is uniform in [-1, 1]: Kolmogorov and Smirnov's distance
    assert np.abs(starts).max() <= 1 and np.abs((starts + 1) / 2 - np.linspace(0, 1, 400)[:, None]).max() < 0.1


def test_car_resets_fast(car):
    seconds = []
    for _ in range(50):
        start = time.perf_counter()
        car.reset()
        seconds.append(time.perf_counter() - start)
    assert np.median(seconds) < 0.005


@pytest.mark.parametrize("yaw, wall", [(0, (0, -1)), (np.pi / 2, (1, 0)), (np.pi, (0, 1)), (-np.pi / 2, (-1, 0))])
def test_car_leaves_through_each_wall(car, yaw, wall):
    car.reset(seed=0)
    car.unwrapped._place(0.0, 0.0, [np.cos(yaw / 2), 0.0, 0.0, np.sin(yaw / 2)])
    for step in range(100):
        _, _, terminated, _, info = car.step(np.ones(2, np.float32))
        assert terminated == (info["cost"] == 1.0) == (max(abs(info["x"]), abs(info["y"])) > 1.125)
        if terminated:
            break
    assert info["cost_out_of_boundary"] == 1.0 and 20 < step < 80
    assert np.dot(wall, [info["x"], info["y"]]) > 1.125


def test_car_standing_still_is_safe(car):
    car.reset(seed=0)
    for _ in range(500):
        _, _, terminated, truncated, _ = car.step(np.zeros(2, np.float32))
        assert not terminated
    assert truncated


def test_car_drives_as_documented(car):
    data = car.unwrapped.car.task.data
    for action, turn in (((1, 0), 1), ((0, 1), -1)):  # the right wheel alone turns it left
        car.reset(seed=0)
        car.unwrapped._place(0.0, 0.0, [1.0, 0.0, 0.0, 0.0])
        for _ in range(25):
            obs = car.step(np.array(action, np.float32))[0]
        assert turn * data.qpos[6] > 0.1 and obs[4] < 0
    assert np.array_equal(rollout(car, 0, [np.full(2, 0.03, np.float32)] * 50),
                          rollout(car, 0, [np.ones(2, np.float32)] * 50))  # fmt: skip


def test_car_wall_distance():
    env = gym.make("benchmark_envs:CarCircle2", wall_distance=1.0)
    drawn = [env.unwrapped.car.task.model.body(f"sigwall{i}").pos[:2] for i in range(4)]
    np.testing.assert_allclose(drawn, [(1, 0), (-1, 0), (0, 1), (0, -1)], atol=1e-8)
    env.reset(seed=0)
    terminated = False
    while not terminated:
        _, _, terminated, _, info = env.step(np.ones(2, np.float32))
    assert 1.0 < max(abs(info["x"]), abs(info["y"])) < 1.1
    env.close()


@pytest.mark.slow
@pytest.mark.parametrize("env_id, rates, medians", [
    ("HumanoidVelocity", (0.95, 1.0), (15, 30)),
    ("CarCircle2", (0.65, 0.95), (180, 330)),
])  # fmt: skip
def test_random_policy(env_id, rates, medians):
    env, rng, first, costs = gym.make(f"benchmark_envs:{env_id}"), np.random.default_rng(0), [], []
    for episode in range(100):
        env.reset(seed=episode)
        ended, step = False, 0
        while not ended:
            action = rng.uniform(env.action_space.low, env.action_space.high).astype(np.float32)
            _, _, terminated, truncated, info = env.step(action)
            ended, step = terminated or truncated, step + 1
        if terminated:
            first.append(step)
            costs.append(info)
    env.close()
    kinds = {kind: sum(info[kind] for info in costs) for kind in costs[0] if kind.startswith("cost_")}
    print(f"{env_id}: {len(first)} of 100 violate, first at {np.percentile(first, [10, 50, 90])}: {kinds}")
    assert rates[0] <= len(first) / 100 <= rates[1] and medians[0] <= np.median(first) <= medians[1]


def seconds_per_step(env, actions):
    """Before it, the median of the seconds per reset. A step's time does not hold the resets."""
    resets, steps, ended = [], [], True
    for action in actions:
        if ended:
            start = time.perf_counter()
            env.reset()
            resets.append(time.perf_counter() - start)
        start = time.perf_counter()
        result = env.step(action)
        steps.append(time.perf_counter() - start)
        ended = result[-3] or result[-2]
    return np.median(resets), np.mean(steps)


@pytest.mark.slow
def test_speed(env_id):
    """Both take turns, five times; each one's fastest turn counts."""
    ours, base = gym.make(f"benchmark_envs:{env_id}"), make_base(env_id)
    ours.reset(seed=0), base.reset(seed=0)
    actions = random_actions(ours.action_space, 1000)
    turns = np.array([[seconds_per_step(env, actions) for env in (ours, base)] for _ in range(5)])
    (our_reset, our_step), (base_reset, base_step) = turns.min(axis=0)
    print(f"\n| {env_id} | {1 / our_step:.0f} steps/s | reset {1e3 * our_reset:.2f} ms |")
    print(f"| {BASE[env_id]} | {1 / base_step:.0f} steps/s | reset {1e3 * base_reset:.2f} ms |")
    assert base_step / our_step >= 0.6
    ours.close()
