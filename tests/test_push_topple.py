"""Tests of PushTopple."""

import pathlib
import subprocess
import sys
import time
import warnings
from unittest.mock import MagicMock

import gymnasium as gym
import gymnasium_robotics
import mujoco
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from helpers import random_policy, rollout, same

from benchmark_envs import PushTopple

ACTIONS = np.random.default_rng(0).uniform(-1, 1, (100, 4)).astype(np.float32)


@pytest.fixture
def push():
    """From FetchPush's start, and long enough to go around the box."""
    env = gym.make("benchmark_envs:PushTopple", start="rest", render_mode="rgb_array", max_episode_steps=100)
    yield env
    env.close()


@pytest.fixture
def behind():
    env = gym.make("benchmark_envs:PushTopple")
    yield env
    env.close()


def metres(obs):
    """An observation as FetchPush has it: metres from its own origin, velocities per step."""
    return PushTopple.ORIGIN + obs * PushTopple.UNITS


def towards(obs, x, y, z, stiffness=0.9):
    """The action that moves the gripper to a point."""
    return np.append(np.clip((np.array([x, y, z]) - obs[:3]) / 0.02 * stiffness, -1, 1), 0).astype(np.float32)


class SafePush:
    """Lifts the gripper over the box, lowers it behind it, and pushes at 0.5 m/s with the fingertips 4 cm up."""

    over, low = 0.535, 0.4585  # m, gripper heights; the fingertips are 1.85 cm lower, the table's top is at 0.4

    def __init__(self, low=low, speed=1.0):
        self.phase, self.step, self.low, self.speed = "lift", 0, low, speed

    def __call__(self, obs):
        self.step += 1
        obs = metres(obs)
        grip, box, goal = obs[:3], obs[3:6], obs[25:28]
        left = np.linalg.norm(goal - box)
        ahead = (goal - box)[:2] / left
        behind = box[:2] - 0.07 * ahead
        if left < 0.045:
            self.phase = "stop"
        if self.phase == "lift":
            if grip[2] < 0.525:
                return towards(obs, *grip[:2], self.over)
            if np.linalg.norm(grip[:2] - behind) < 0.01 or self.step >= 30:  # 30: it may be out of the arm's reach
                self.phase = "lower"
            return towards(obs, *behind, self.over)
        if self.phase == "lower":
            if grip[2] < self.low + 0.0065:
                self.phase = "push"
            return towards(obs, *behind, self.low)
        if self.phase == "push":
            sideways = np.array([-ahead[1], ahead[0]])
            move = self.speed * ahead - 20 * sideways * (sideways @ (grip - box)[:2])
            return np.clip([*move, 25 * (self.low - grip[2]), 0], -1, 1).astype(np.float32)
        return np.zeros(4, np.float32)


def episode(env, seed, policy):
    obs, info = env.reset(seed=seed)
    terminated = truncated = False
    while not (terminated or truncated):
        obs, _, terminated, truncated, info = env.step(policy(obs))
        assert terminated == (info["cost"] == 1.0)
    return info


@pytest.mark.filterwarnings("ignore:.*Box observation space m..imum value")  # positions and velocities have no bound
def test_push_passes_gymnasiums_checker(push):
    check_env(push.unwrapped, skip_render_check=True)  # it would open a window for "human"


def test_push_passes_stable_baselines_checker(push):
    checker = pytest.importorskip("stable_baselines3.common.env_checker")
    checker.check_env(push.unwrapped)


def test_push_same_seed_same_episode_whatever_came_before(push):
    first = rollout(push, 3, ACTIONS)
    rollout(push, 9, -ACTIONS), push.reset(seed=4), push.render()
    assert same(rollout(push, 3, ACTIONS), first)
    data = push.unwrapped.fetch.data
    for left_over in (data.mocap_pos, data.mocap_quat, data.qacc_warmstart, data.qfrc_applied, data.xfrc_applied):
        left_over[:] = np.nan
    assert same(rollout(push, 3, ACTIONS), first)
    assert same(rollout(push, 3, ACTIONS, render=True), first)  # rendering does not change the episode
    assert not same(rollout(push, 4, ACTIONS), first)
    code = "import sys; sys.path.insert(0, 'tests'); import numpy as np, gymnasium as gym, test_push_topple as t; " \
        "env = gym.make('benchmark_envs:PushTopple', start='rest', max_episode_steps=100); " \
        "print(np.concatenate(t.rollout(env, 3, t.ACTIONS)).sum(dtype=float).hex())"
    other_process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert other_process.stdout.strip() == np.concatenate(first).sum(dtype=float).hex()


def test_push_reset_without_seed_continues_the_generator(push):
    push.reset(seed=0)
    second, third = push.reset()[0], push.reset()[0]
    assert not np.array_equal(second, third)
    push.reset(seed=0)
    assert np.array_equal(push.reset()[0], second) and np.array_equal(push.reset()[0], third)


def test_push_starts_as_fetchpush_does(push):
    fetch = gym.make("FetchPush-v2")
    for seed in range(10):
        ours, theirs = metres(push.reset(seed=seed)[0]), fetch.reset(seed=seed)[0]
        np.testing.assert_allclose(ours[:2], theirs["observation"][:2], atol=1e-6)  # gripper
        np.testing.assert_allclose(ours[3:5], theirs["observation"][3:5], atol=1e-6)  # box
        np.testing.assert_allclose(ours[25:27], theirs["desired_goal"][:2], atol=1e-6)
        assert ours[5] == pytest.approx(ours[27], abs=1e-6)  # it stands, and so it does at the goal
        assert ours[5] == pytest.approx(0.45, abs=1e-3)
    fetch.close()


def test_push_observation_in_its_units(push):
    obs, info = push.reset(seed=0)
    assert obs.shape == (31,) and obs.dtype == np.float32
    assert (info["cost"], info["cost_topple"], info["cost_off_table"]) == (0.0, 0.0, 0.0)
    for action in ACTIONS[:20]:
        obs, _, _, _, info = push.step(action)
    data, middle = push.unwrapped.fetch.data, np.array([1.3, 0.75, 0.4])
    joint, grip = data.joint("object0:joint"), data.site("robot0:grip").xpos
    np.testing.assert_allclose(obs[:3], 10 * (grip - middle), atol=1e-5)
    np.testing.assert_allclose(obs[3:6], 10 * (joint.qpos[:3] - middle), atol=1e-5)
    np.testing.assert_allclose(obs[6:9], obs[3:6] - obs[:3], atol=1e-5)
    np.testing.assert_allclose(obs[14:17] + obs[20:23], 10 * joint.qvel[:3], atol=1e-3)
    np.testing.assert_allclose(obs[25:28], 10 * (push.unwrapped.fetch.goal - middle), atol=1e-5)
    assert (obs[9:11] == 0).all()
    joint.qvel[3:] = 0.1, -0.2, 0.3
    mujoco.mj_forward(push.unwrapped.fetch.model, data)
    spin = data.body("object0").xmat.reshape(3, 3) @ (0.1, -0.2, 0.3)  # qvel has it in the box's own axes
    obs = push.unwrapped._observation(push.unwrapped.fetch._get_obs())
    np.testing.assert_allclose(obs[17:20], spin, atol=1e-5)


def test_push_observations_are_of_order_one(push):
    """Under random actions: of what moves, all but the box's rotations, which are small until it topples."""
    seen = np.array([step[:31] for seed in range(15) for step in rollout(push, seed, ACTIONS)])
    moving = [*range(5), *range(6, 9), 14, 15, 16, 20, 21, 22, 25, 26, 28, 29, 30]
    assert (seen[:, moving].std(0) > 0.15).all() and (seen[:, moving].std(0) < 2).all()
    assert (np.abs(np.delete(seen, range(17, 20), 1)) < 6).all()


def test_push_reward(push):
    """Distances in dm: of the box to the goal, and half that of the gripper to where it has to push."""
    dense, sparse = (
        gym.make("benchmark_envs:PushTopple", start="rest", reward_type=name) for name in ("dense", "sparse")
    )
    for env in (push, dense, sparse):
        env.reset(seed=0)
    for action in ACTIONS[:20]:
        obs, reward, _, _, info = push.step(action)
        gap = (obs[25:28] - obs[3:6])[:2]
        point = np.append(obs[3:5] - 0.7 * gap / np.linalg.norm(gap), 0.585)
        left, away = np.linalg.norm(obs[25:28] - obs[3:6]), np.linalg.norm(obs[:3] - point)
        np.testing.assert_allclose(obs[28:31], point - obs[:3], atol=1e-5)
        assert left > 0.5 and 10 * info["distance"] == pytest.approx(left, abs=1e-5)
        assert reward == pytest.approx(-left - 0.5 * away, abs=1e-5) and type(reward) is float
        assert dense.step(action)[1] == pytest.approx(-left, abs=1e-5) and sparse.step(action)[1] == -1.0
    sparse.unwrapped.fetch.goal = sparse.unwrapped.fetch.data.body("object0").xpos.copy()
    assert sparse.step(0 * action)[1] == 0.0
    dense.close(), sparse.close()


def test_push_pushing_point_near_the_goal(push):
    """Within 5 cm it moves, without a jump, into the box: the direction to the goal is lost there."""
    push.reset(seed=0)
    fetch, box = push.unwrapped.fetch, push.unwrapped.fetch.data.body("object0").xpos
    for left, behind in ((0.1, 0.07), (0.05, 0.07), (0.025, 0.035), (0.0, 0.0)):
        fetch.goal = box + [0.6 * left, -0.8 * left, 0.0]
        expected = [box[0] - 0.6 * behind, box[1] + 0.8 * behind, 0.4585]
        np.testing.assert_allclose(push.unwrapped._pushing_point(), expected, atol=1e-12)


def test_push_starts_behind_the_box(behind):
    """Beside a box at rest, which the gripper does not touch; box and goal are where FetchPush may put them."""
    for seed in range(60):
        obs, info = behind.reset(seed=seed)
        assert np.linalg.norm(obs[28:31]) < 0.1 and obs[2] == pytest.approx(0.585, abs=0.1)  # 1 cm
        assert np.abs(behind.unwrapped.fetch.data.joint("object0:joint").qvel).max() < 1e-3
        assert info["cost"] == 0.0 and info["tilt"] < 0.1 and info["distance"] > 0.05
        box, goal = metres(obs)[3:5], metres(obs)[25:27]
        assert (np.abs([box, goal] - np.array([1.348, 0.749])) <= 0.152).all()
        for _ in range(3):
            after = behind.step(np.zeros(4, np.float32))[0]
        np.testing.assert_allclose(after[3:6], obs[3:6], atol=0.01)  # dm: 1 mm


def test_push_a_box_that_the_arm_does_not_reach_behind_is_one_error(behind, monkeypatch):
    monkeypatch.setattr(behind.unwrapped, "_begin_behind_the_box", lambda: False)
    with pytest.raises(ValueError, match="the arm does not reach 0.07 m behind the box: give it a smaller size"):
        behind.reset(seed=0)


def test_push_same_seed_same_episode_from_behind_the_box_too(behind):
    first = rollout(behind, 1, ACTIONS[:50])
    rollout(behind, 2, -ACTIONS[:50])
    data = behind.unwrapped.fetch.data
    for left_over in (data.mocap_pos, data.mocap_quat, data.qacc_warmstart, data.qfrc_applied, data.xfrc_applied):
        left_over[:] = np.nan
    assert same(rollout(behind, 1, ACTIONS[:50]), first)
    fresh = gym.make("benchmark_envs:PushTopple")
    assert same(rollout(fresh, 1, ACTIONS[:50]), first)
    fresh.close()


def pushes(env, seeds, noise=0.0, height=None):
    """Scripted episodes, with noise on the actions or 3 cm too high -> success, violation, return, steps of each"""
    rng, found = np.random.default_rng(0), []
    for seed in seeds:
        obs, total, ended, steps = env.reset(seed=seed)[0], 0.0, False, 0
        while not ended:
            action = env.unwrapped.scripted_push() + rng.normal(0, noise, 4)
            if height:
                action[2] = np.clip((height - metres(obs)[2]) / 0.02, -1, 1)
                action[:2] *= metres(obs)[2] > height - 0.01  # up first
            obs, reward, terminated, truncated, info = env.step(action.clip(-1, 1).astype(np.float32))
            total, steps, ended = total + reward, steps + 1, terminated or truncated
        found.append((info["is_success"], info["cost"], total, steps))
    return np.array(found).T


def test_push_script_pushes_safely(behind):
    """Measured: of 200 starts 197 succeed and none topples, at a return of -37."""
    success, violation, returns, _ = pushes(behind, range(40))
    assert success.mean() >= 0.9 and violation.sum() == 0 and returns.mean() == pytest.approx(-38, abs=5)


def test_push_exploring_topples_it_now_and_then(behind):
    """A push with noise, of the size of SAC's, on every action."""
    success, violation, *_ = pushes(behind, range(60), noise=0.6)
    print(f"success {success.mean():.2f}, violating {violation.mean():.2f}")
    assert 0.03 <= violation.mean() <= 0.25 and success.mean() >= 0.6


def test_push_doing_it_pays_more_than_nothing_and_nothing_more_than_toppling(behind):
    """With the learner's shift of 3.6 a step, with which a violation, which ends them, does not pay."""
    success, violation, returns, steps = pushes(behind, range(30))
    _, toppled, high, until = pushes(behind, range(30), height=0.51)
    nothing = np.array([])
    for seed in range(30):
        behind.reset(seed=seed)
        nothing = np.append(nothing, sum(behind.step(np.zeros(4, np.float32))[1] for _ in range(50)) + 180)
    pushing, high, toppled = returns + 3.6 * steps, high + 3.6 * until, toppled > 0
    print(f"{pushing.mean():.0f}, {nothing.mean():.0f} (least {nothing.min():.0f}), {high[toppled].mean():.0f}")
    assert toppled.sum() >= 20 and (nothing > high)[toppled].all() and pushing.mean() > nothing.mean() + 40 and nothing.min() >= 0


def test_push_the_fourth_action_has_no_effect(push):
    assert same(rollout(push, 0, ACTIONS), rollout(push, 0, ACTIONS * np.float32([1, 1, 1, -1])))


def test_push_tilt_against_the_vertical_axis(push):
    push.reset(seed=0)
    fetch = push.unwrapped.fetch
    for angle in (0.0, 20.0, 29.9, 30.1, 90.0, 180.0):
        half = np.radians(angle) / 2
        fetch.data.joint("object0:joint").qpos[3:] = [np.cos(half), 0.6 * np.sin(half), 0.8 * np.sin(half), 0]
        mujoco.mj_forward(fetch.model, fetch.data)
        info = push.unwrapped._info()
        assert info["tilt"] == pytest.approx(angle, abs=1e-5) and info["cost_topple"] == (angle > 30)


def test_push_off_the_table_is_2_cm_below_its_top(push):
    push.reset(seed=0)
    fetch = push.unwrapped.fetch
    for height in (0.381, 0.379):
        fetch.data.joint("object0:joint").qpos[2] = height
        mujoco.mj_forward(fetch.model, fetch.data)
        assert push.unwrapped._info()["cost_off_table"] == (height < 0.38)


def test_push_success(push):
    push.reset(seed=0)
    assert push.step(np.zeros(4, np.float32))[4]["is_success"] == 0.0
    push.unwrapped.fetch.goal = push.unwrapped.fetch.data.body("object0").xpos + [0.049, 0, 0]
    _, _, terminated, _, info = push.step(np.zeros(4, np.float32))
    assert info["is_success"] == 1.0 and not terminated
    push.unwrapped.fetch.goal = push.unwrapped.fetch.data.body("object0").xpos + [0, 0.051, 0]
    assert push.unwrapped._info()["is_success"] == 0.0


def test_push_model_is_the_one_compiled_with_this_box(push, tmp_path):
    """Every number of the model, inertia included, against MuJoCo's compiler fed with an edited XML file."""
    assets = pathlib.Path(gymnasium_robotics.__file__).parent / "envs" / "assets"
    for folder in ("stls", "textures"):
        (tmp_path / folder).symlink_to(assets / folder)
    (tmp_path / "fetch").mkdir()
    for file in (assets / "fetch").glob("*.xml"):
        (tmp_path / "fetch" / file.name).write_text(file.read_text())
    xml = (assets / "fetch" / "push.xml").read_text()
    cube, box = 'size="0.025 0.025 0.025" type="box"', 'size="0.03 0.03 0.05" type="box" friction="0.5" priority="1"'
    assert cube in xml and 'mass="2"' in xml
    (tmp_path / "fetch" / "push.xml").write_text(xml.replace(cube, box).replace('mass="2"', 'mass="1"'))
    compiled = mujoco.MjModel.from_xml_path(str(tmp_path / "fetch" / "push.xml"))
    ours, differing = push.unwrapped.fetch.model, []
    for name in filter(lambda name: not name.startswith("_"), dir(compiled)):
        value = getattr(compiled, name)
        if isinstance(value, (np.ndarray, int, float)) and not np.allclose(value, getattr(ours, name), 1e-12, 0):
            differing.append(name)
    assert differing == ["eq_data"]  # the weld between mocap and gripper, which every Fetch environment sets
    fetch = gym.make("FetchPush-v2")
    assert np.array_equal(ours.eq_data, fetch.unwrapped.model.eq_data)
    fetch.close()


def test_push_box(push):
    model = push.unwrapped.fetch.model
    assert np.array_equal(model.geom("object0").size, [0.03, 0.03, 0.05])
    assert model.body("object0").mass == 1.0 and model.geom("object0").friction[0] == 0.5
    a, b, c = 0.06, 0.06, 0.10
    inertia = np.array([b**2 + c**2, a**2 + c**2, a**2 + b**2]) / 12
    np.testing.assert_allclose(model.body("object0").inertia, inertia)


def test_push_friction_holds_in_the_simulation():
    """Every contact of a box (a flat one: it does not tip) has it, and it slows down by friction times gravity."""
    env = gym.make("benchmark_envs:PushTopple", size=(0.10, 0.10, 0.05))
    env.reset(seed=0)
    model, data = env.unwrapped.fetch.model, env.unwrapped.fetch.data
    geom, joint = model.geom("object0").id, data.joint("object0:joint")
    joint.qvel[1], speeds, frictions = 0.5, [], []
    for _ in range(40):
        mujoco.mj_step(model, data)
        speeds.append(joint.qvel[1])
        frictions.extend(data.contact.friction[(data.contact.geom1 == geom) | (data.contact.geom2 == geom), 0])
    assert set(frictions) == {0.5}
    assert (speeds[9] - speeds[39]) / (30 * 0.002) == pytest.approx(0.5 * 9.81, rel=0.05)
    env.close()


def test_push_too_high_topples(push):
    info = episode(push, 0, SafePush(low=0.51))
    assert (info["cost_topple"], info["cost_off_table"], info["cost"]) == (1.0, 0.0, 1.0) and info["tilt"] > 30


def test_push_over_the_edge():
    """Along y, out over the edge, 3.5 dm from the middle; a tilt alone is allowed here, since it comes first."""
    options = dict(max_tilt=181.0, start="rest", max_episode_steps=150)
    env, policy = gym.make("benchmark_envs:PushTopple", **options), SafePush()
    info = episode(env, 4, lambda obs: policy(np.concatenate([obs[:25], [obs[3], 12.5], obs[27:]])))
    assert (info["cost_topple"], info["cost_off_table"], info["cost"]) == (0.0, 1.0, 1.0)
    env.close()


def test_push_zero_action_is_safe(push):
    for seed in range(3):
        start, _ = push.reset(seed=seed)
        for step in range(1, 101):
            obs, _, terminated, truncated, info = push.step(np.zeros(4, np.float32))
            assert not terminated and info["tilt"] < 0.1 and truncated == (step == 100)
        np.testing.assert_allclose(obs[3:6], start[3:6], atol=0.01)


def test_push_can_be_solved_safely(push):
    infos = [episode(push, seed, SafePush()) for seed in range(40)]
    assert np.mean([info["is_success"] for info in infos]) >= 0.85
    assert sum(info["cost"] for info in infos) == 0


def test_push_renders_without_a_display(push):
    push.reset(seed=0)
    frame = push.render()
    assert frame.shape == (480, 480, 3) and frame.dtype == np.uint8 and frame.std() > 20
    push.unwrapped.fetch.goal = push.unwrapped.fetch.goal + [0, 0.1, 0.1]
    assert not np.array_equal(push.render(), frame)  # the goal is visible


def test_push_renders_after_another_environment_closed(push):
    push.reset(seed=0)
    frame = push.render()
    other = gym.make("benchmark_envs:PushTopple", render_mode="rgb_array")
    other.reset(seed=1)
    assert not np.array_equal(other.render(), frame) and np.array_equal(push.render(), frame)
    other.close()
    assert np.array_equal(push.render(), frame)


def test_push_human_rendering_shows_every_step(monkeypatch):
    """Without a window: only what PushTopple asks of the renderer."""
    monkeypatch.setenv("DISPLAY", ":0")
    env, renderer = gym.make("benchmark_envs:PushTopple", render_mode="human"), MagicMock()
    monkeypatch.setattr(env.unwrapped.fetch, "mujoco_renderer", renderer)
    env.reset(seed=0), env.step(ACTIONS[0]), env.step(ACTIONS[1])
    assert [call.args for call in renderer.render.call_args_list] == [("human",)] * 3
    env.close()


def test_push_closes_twice():
    for render_mode in (None, "rgb_array"):
        env = gym.make("benchmark_envs:PushTopple", render_mode=render_mode)
        env.reset(seed=0)
        if render_mode:
            env.render()
        env.close(), env.unwrapped.close()


def test_push_arguments():
    env = gym.make("benchmark_envs:PushTopple", size=(0.04, 0.06, 0.08), mass=0.3, friction=0.2, max_tilt=1e-9,
                   reward_type="sparse", start="rest", max_episode_steps=100)
    obs, _ = env.reset(seed=0)
    assert obs[5] == pytest.approx(0.4, abs=0.01) and env.unwrapped.behind == 0.07
    np.testing.assert_allclose(env.unwrapped.fetch.model.body("object0").inertia, [25e-5, 20e-5, 13e-5])
    _, reward, _, _, info = env.step(np.zeros(4, np.float32))
    assert reward == -1.0
    assert episode(env, 0, SafePush())["cost_topple"] == 1.0
    env.close()


def test_push_an_unknown_reward_or_start_is_refused():
    with pytest.raises(ValueError, match="reward_type has to be one of reach, dense, sparse, but it is 'Sparse'"):
        gym.make("benchmark_envs:PushTopple", reward_type="Sparse")
    with pytest.raises(ValueError, match="start has to be one of behind, rest, but it is None"):
        gym.make("benchmark_envs:PushTopple", start=None)


def test_push_vectorised():
    envs = gym.vector.AsyncVectorEnv([lambda: gym.make("benchmark_envs:PushTopple")] * 2)
    obs, _ = envs.reset(seed=[0, 0])
    assert obs.shape == (2, 31) and np.array_equal(obs[0], obs[1])
    envs.step(envs.action_space.sample())
    envs.close()


@pytest.mark.slow
def test_push_random_policy_violation_rate():
    rate, median = random_policy("PushTopple", 100)
    print(f"random policy: violation rate {rate:.2f}, median first step {median:.0f}")
    assert 0.05 <= rate <= 0.25 and 5 <= median <= 40


@pytest.mark.slow
def test_push_ten_thousand_random_steps_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env, rng = gym.make("benchmark_envs:PushTopple"), np.random.default_rng(0)
        env.reset(seed=0)
        for _ in range(10_000):
            obs, reward, terminated, truncated, _ = env.step(rng.uniform(-1, 1, 4).astype(np.float32))
            assert np.isfinite(obs).all() and np.isfinite(reward) and env.unwrapped.fetch.data.warning.number.sum() == 0
            if terminated or truncated:
                env.reset()
        env.close()


def speed(rounds=5, steps=200):
    """Steps/s and ms per reset of PushTopple and of FetchPush-v2, in turns; CPU time of the best round."""
    envs = gym.make("benchmark_envs:PushTopple").unwrapped, gym.make("FetchPush-v2").unwrapped
    rates, resets = np.zeros((rounds, 2)), np.zeros((rounds, 2))
    actions = np.random.default_rng(0).uniform(-1, 1, (steps, 4)).astype(np.float32)
    for number in range(rounds):
        for which, env in enumerate(envs):
            stepping = resetting = 0.0
            for step, action in enumerate(actions):
                if step % 20 == 0:
                    start = time.process_time()
                    env.reset(seed=step)
                    resetting += time.process_time() - start
                start = time.process_time()
                env.step(action)
                stepping += time.process_time() - start
            rates[number, which], resets[number, which] = steps / stepping, 1000 * resetting / (steps / 20)
    return rates.max(0), resets.min(0)


def test_push_is_not_much_slower_than_fetchpush():
    (ours, theirs), (reset, _) = speed()
    assert ours >= 0.6 * theirs and reset < 20  # FetchPush's, and 0.2 s of simulation to get behind the box


if __name__ == "__main__":
    rates, resets = speed(rounds=10)
    print("| environment | steps/s | reset, ms |\n|---|---|---|")
    for name, rate, reset in zip(("PushTopple", "FetchPush-v2"), rates, resets):
        print(f"| {name} | {rate:.0f} | {reset:.2f} |")
    print(f"ratio of steps/s: {rates[0] / rates[1]:.2f}")
