"""What people's environments do: kinds of trouble from public bug reports, a small environment for each, and the script
either trains on what was meant or says in one line what is wrong. What is raised inside an environment keeps its
traceback.

Tested elsewhere: four- and six-tuples, resets without seed or info, missing and nonsensical numbers, NaN, Gymnasium's
Discrete and unbounded actions, an exception inside step() (test_script.py, test_bad_input and below it); PyTorch's
global generator and default type (test_what_an_environment_does_to_torch_...); a missing display, and EGL at the end
(test_videos_of_a_training_without_a_display; test_benchmark_envs.py); the last evaluation of a run comes after its
checkpoint (test_resume.py, test_a_kill_in_the_last_evaluation); Safety-Gymnasium (test_safety_gymnasium.py).
"""

import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
import warnings
from decimal import Decimal
from fractions import Fraction
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
import torch
from helpers import SCRIPT, SHORT, assert_one_line, run, start, wait_for
from my_env import Draws, MyEnv, changed

QUICK = (*SHORT, "--total-timesteps", 130, "--learning-starts", 110)  # updates, too
F32, F64 = np.finfo(np.float32).max, np.finfo(np.float64).max
INF2 = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)


@pytest.fixture
def registered(monkeypatch):
    """Registers an environment for one test -> its id"""
    monkeypatch.setattr("gymnasium.envs.registration.registry", dict(gym.registry))

    def register(entry_point, env_id="Hostile-v0", **more):
        gym.register(env_id, entry_point=entry_point, **more)
        return env_id

    return register


@pytest.fixture
def rows(train_here, registered):
    """Trains on an environment -> the fields of D, as far as it is filled"""

    def train(entry_point, *flags, **more):
        names = train_here(registered(entry_point, **more), *QUICK, *flags)
        return SimpleNamespace(**names | {field: rows[: len(names["D"])] for field, rows in names["D"].rows.items()})

    return train


@pytest.fixture
def refused(run_here, registered):
    """It ends with one line that has these words"""

    def check(entry_point, *words, flags=(), **more):
        assert_one_line(run_here("--env-id", registered(entry_point, **more), *QUICK, *flags), *words)

    return check


def with_space(observation_space=INF2, step=lambda *five: five, reset=lambda obs, info: (obs, info), **spaces):
    """MyEnv with other spaces, and what it returns changed to fit"""

    class Other(changed(step, reset)):
        def __init__(self):
            super().__init__(**spaces)
            self.observation_space = observation_space

    return Other


def sees(see, observation_space=INF2):
    """MyEnv with another observation: see(obs)"""
    return with_space(observation_space, lambda obs, *rest: (see(obs), *rest), lambda obs, info: (see(obs), info))


# What step() gives, in other types: each step's in another


def in_turn(*convert):
    """Converts each number in the next of these ways"""
    ways = itertools.cycle(convert)
    return lambda number: next(ways)(number)


def one(number):
    return np.array([number])


def test_rewards(rows):
    eighths = in_turn(lambda r: Fraction(r, 8), lambda r: Decimal(r) / 8, lambda r: r / 8, lambda r: np.float16(r / 8))
    halves = in_turn(np.float32, np.array, one, lambda r: [r], torch.tensor, lambda r: torch.tensor([[r]]))
    others = in_turn(lambda r: r > 0, lambda r: np.bool_(r > 0))
    huge = in_turn(lambda r: 10**19 * r, np.int64, int)
    ways = in_turn(
        lambda r: eighths(int(r * 8)), lambda r: halves(int(r * 2) / 2), others, lambda r: huge(int(r * 3))
    )
    D = rows(changed(lambda obs, reward, *rest: (obs, ways(reward), *rest)), "--learning-starts", 129)
    position = D.next_obs[:, 0].numpy()
    expected = [np.trunc(position * 8) / 8, np.trunc(position * 2) / 2, position > 0, np.trunc(position * 3)]
    for k in range(3):
        np.testing.assert_array_equal(D.reward[k::4], expected[k][k::4])
    assert set(D.reward[3::12].tolist()) <= {np.float32(1e19 * n) for n in range(-6, 7)} and D.reward[3::12].any()
    np.testing.assert_array_equal(D.reward[7::12], expected[3][7::12])


def test_costs(rows):
    ways = in_turn(bool, np.bool_, int, one, np.array, lambda c: c - 0.5, torch.tensor, Fraction, lambda c: [c])
    box = gym.spaces.Box(-1, 1, (1,))
    D = rows(with_space(step=lambda *five: (*five[:4], {"cost": ways(five[4]["cost"])}), action_space=box))
    assert (D.cost == (D.next_obs[:, 0].abs() > 1)).all() and D.violations_total == D.cost.sum() > 18


def test_ends(rows):
    ways = in_turn(int, np.bool_, one, torch.tensor, lambda end: True if end else None)
    D = rows(with_space(step=lambda obs, r, end, cut, info: (obs, r, ways(end), ways(cut), info), ends_at=7))
    seventh = D.next_obs[:, 1] == np.float32(7 / 20)
    assert (D.terminated == seventh | (D.cost == 1)).all() and seventh.sum() > 9


def test_observations(rows):
    ways = in_turn(list, tuple, torch.tensor, lambda obs: obs[None], lambda obs: obs.astype(np.float16), np.float64)
    D = rows(sees(ways))
    assert (D.obs[1:, 0] == D.next_obs[:-1, 0]).float().mean() > 0.8
    np.testing.assert_allclose(D.next_obs[:, 0] - D.obs[:, 0], 0.4 * D.action[:, 0], atol=2e-3)


@pytest.mark.parametrize(
    "what, value, shown",
    [
        ("reward", np.zeros(2), "the reward"), ("reward", 1j, "1j"), ("reward", 10**400, "1000"),
        ("reward", torch.ones(1, requires_grad=True), "requires_grad"), ("reward", {}, "{}"),
        ('info["cost"]', [0.0, 1.0], "[0.0, 1.0]"), ('info["infra_failure"]', "no", "not no"),
        ("terminated", torch.zeros(2), "more than one value"), ("info", [("cost", 0.0)], "mapping"),
    ],
)  # fmt: skip
def test_what_is_none_of_these(refused, what, value, shown):
    key = what.split('"')[1] if '"' in what else ""

    def step(obs, reward, end, cut, info):
        given = {"reward": reward, "terminated": end, "info": info | {key: value}, what: value}
        return obs, given["reward"], given["terminated"], cut, given["info"]

    refused(changed(step), "Hostile-v0: step() must give", what, shown)


# Interfaces of other years, environments that cannot be made, observations of another shape than declared


def duck():  # no gymnasium.Env
    inner = MyEnv()
    spaces = dict(observation_space=inner.observation_space, action_space=inner.action_space, metadata={})
    return SimpleNamespace(reset=inner.reset, step=inner.step, spec=None, render_mode=None, **spaces)


class OldBox(SimpleNamespace):
    """gym.spaces.Box, of the package before Gymnasium"""

    low, high, dtype, is_np_flattenable = -np.ones(2), np.ones(2), np.dtype(float), True
    shape = (2,)


class NeedsTrack(MyEnv):
    def __init__(self, track):
        super().__init__()


class NoSpaces(MyEnv):
    def __init__(self):
        pass


def vector():
    return gym.vector.SyncVectorEnv([MyEnv, MyEnv])


@pytest.mark.parametrize(
    "entry_point, words",
    [
        (duck, ["Namespace"]), (NeedsTrack, ["track"]), (NoSpaces, ["action_space"]), (vector, []),
        ("nowhere:Env", ["nowhere"]), ("my_env:Nothing", ["Nothing"]),
        (with_space(None), ["not observations None"]),
        (with_space(OldBox()), ["gymnasium.spaces", "observations OldBox"]),
        (with_space(action_space=OldBox()), ["gymnasium.spaces", "actions OldBox"]),
        (with_space(action_space=gym.spaces.Box(-1, 1, (3, 1))), ["(3, 1)"]),
    ],
)  # fmt: skip
def test_it_cannot_be_made(refused, folder, entry_point, words):
    refused(entry_point, "cannot make --env-id Hostile-v0", *words)
    assert not (folder / "runs").exists()


class Raises(MyEnv):
    def __init__(self, raise_here=()):
        assert "init" not in raise_here, "the rail's length has to be positive"
        self.raise_here = raise_here
        super().__init__()

    def reset(self, **kwargs):
        if "reset" in self.raise_here:
            gym.spaces.flatten(self.observation_space, {})
        return super().reset(**kwargs)

    def step(self, action):
        if "step" in self.raise_here:
            self.np_random.choice([])
        return super().step(action)


@pytest.mark.parametrize("where, kind", [("init", AssertionError), ("reset", TypeError), ("step", ValueError)])
def test_what_it_raises_itself_keeps_its_traceback(train_here, registered, where, kind):
    """Be it in a library that it calls, Gymnasium itself among them."""
    env_id = registered(Raises, kwargs={"raise_here": [where]}, max_episode_steps=10)
    with pytest.raises(kind):
        train_here(env_id, *QUICK)


@pytest.mark.parametrize("slip", ["undefined", "len(1)", "{}['gone']"])
def test_a_slip_in_ones_own_contract_keeps_its_traceback(folder, run_here, slip):
    """Whoever copies the file edits it."""
    code = SCRIPT.read_text()
    for line in ("            obs = self.vector(obs)\n", "        self.told = []\n", "        info[\"cost\"] = cost\n"):
        assert code.count(line) == 1
        indent = line[: -len(line.lstrip())]
        (folder / "edited.py").write_text(code.replace(line, f"{indent}{slip}\n{line}"))
        with pytest.raises((NameError, TypeError, KeyError)):
            run_here("--env-id", "my_env:MyEnv-v0", *QUICK, script=folder / "edited.py")


ORDINARY = {"a": gym.spaces.Box(-9, 9, (2,)), "b": gym.spaces.Discrete(3)}


def keyed(obs, b=0, **more):
    return {"b": b, "a": obs} | more


@pytest.mark.parametrize(
    "env, shown",
    [
        (sees(lambda obs: np.append(obs, [0, 0, 0])), "(2,)"),  # the space was not adapted when the observation grew
        (sees(lambda obs: np.append(obs, [0] * int(obs[1] > 0.3))), "step() must give"),  # a list that grows
        (sees(lambda obs: obs[:1]), "(2,)"), (sees(lambda obs: obs[0]), "(2,)"), (sees(lambda obs: None), "None"),
        (sees(lambda obs: [obs[:1], obs]), "(2,)"), (sees(lambda obs: "left"), "left"),
        (with_space(step=lambda obs, r, end, cut, info: (None if end or cut else obs, r, end, cut, info)), "None"),
        (with_space(step=lambda obs, r, end, cut, info: (obs[:1] if end or cut else obs, r, end, cut, info)), "(2,)"),
        (sees(lambda obs: {"a": obs}, gym.spaces.Dict(ORDINARY)), "'b'"),
        (sees(lambda obs: keyed(obs, b=3), gym.spaces.Dict(ORDINARY)), "out of bounds"),
        (sees(lambda obs: obs, gym.spaces.Dict(ORDINARY)), "must give"),
    ],
)  # fmt: skip
def test_an_observation_of_another_shape(refused, env, shown):
    refused(env, "Hostile-v0", shown)


def test_spaces_in_spaces(rows):
    """And keys that the space does not have are not observed."""
    tuples = gym.spaces.Tuple((gym.spaces.MultiBinary(2), gym.spaces.MultiDiscrete([2, 3]), gym.spaces.Box(-9, 9, ())))
    space = gym.spaces.Dict(ORDINARY | {"c": gym.spaces.Dict({"d": tuples})})

    def see(obs):
        return keyed(obs, b=1, c={"d": ([1, 0], [1, 2], obs[0])}, surplus="text")

    names = rows(sees(see, space))
    position = names.obs[:, 0]
    assert names.obs[:, 2:].unique(dim=0).shape[0] == len(position.unique())
    assert (names.obs[:, 2:12] == torch.tensor([0.0, 1, 0, 1, 0, 0, 1, 0, 0, 1])).all()
    assert (names.obs[:, 12] == position).all() and names.obs.shape[1] == 13


# Running statistics, action boxes, magnitudes, lengths


@pytest.mark.parametrize("wrapper", ["NormalizeObservation", "NormalizeReward"])
def test_running_statistics(refused, wrapper):
    def normalised():
        return gym.wrappers.TimeLimit(getattr(gym.wrappers, wrapper)(MyEnv()), 10)

    refused(normalised, wrapper, "running statistics", "by constants")


class Box(gym.Env):
    """Two numbers that nothing can be done to; it keeps the actions that arrive."""

    def __init__(self, low=-1.0, high=1.0, dtype=np.float32, obs=1.0, reward=1.0, length=20, cost=0.0):
        low, high = (np.broadcast_to(np.array(bound, dtype), 2).copy() for bound in (low, high))
        self.action_space = gym.spaces.Box(low, high, dtype=dtype)
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float64)
        self.obs, self.reward, self.length, self.cost, self.seen = obs, reward, length, cost, []

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return self.np_random.uniform(-1, 1, 2) * self.obs, {}

    def step(self, action):
        assert action in self.action_space and action.dtype == self.action_space.dtype, action
        self.seen.append(action.astype(float))
        action.fill(np.nan)  # somebody works in place
        self.steps += 1
        obs = self.np_random.uniform(-1, 1, 2)
        return obs * self.obs, obs[0] * self.reward, False, self.steps >= self.length, {"cost": self.cost}


@pytest.mark.parametrize(
    "low, high, dtype",
    [
        (-1e-6, 1e-6, np.float32), ([0.0, -3.0], [1e4, 0.5], np.float32), ([-1.0, 0.25], [1.0, 0.25], np.float32),
        (-1 / 3, 2 / 3, np.float64), (-2.0, 60000.0, np.float16), (0.0, F32, np.float32), (-1e300, 1e300, np.float64),
        (-1e-45, 1e-45, np.float32),
    ],
)  # fmt: skip
def test_boxes(rows, low, high, dtype):
    """Every action inside, of the box's own type, and spread over it"""
    names = rows(Box, "--learning-starts", 129, kwargs=dict(low=low, high=high, dtype=dtype))
    box, seen = names.env.box, np.array(names.env.unwrapped.seen)
    assert len(seen) == 130 and names.action.abs().max() <= 1
    wide = box.low < box.high
    low, high = box.low[wide].astype(float), box.high[wide].astype(float)
    where = (seen[:, wide] - low) / (high - low)
    assert abs(where.mean() - 0.5) < 0.1 and where.min() < 0.1 and where.max() > 0.9


@pytest.mark.parametrize(
    "low, high, dtype",
    [(-2e38, 2e38, np.float32), (-F32, F32, np.float32), (-F64, F64, np.float64), (-np.inf, 1, np.float32)],
)
def test_boxes_that_overflow(refused, low, high, dtype):
    """high - low is infinite, and every action would be the upper bound."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        refused(Box, "bounded Box", "and actions Box", kwargs=dict(low=low, high=high, dtype=dtype))


def test_a_box_upside_down(refused):
    """clip(low, high) would make high of every action. Newer versions of Gymnasium refuse it themselves."""

    class UpsideDown(Box):
        def __init__(self):
            super().__init__()
            self.action_space.low, self.action_space.high = self.action_space.high, self.action_space.low

    refused(UpsideDown, "bounded Box")


@pytest.mark.parametrize("numbers", [dict(reward=0.0), dict(reward=1e6), dict(reward=1e15), dict(obs=1e6)])
def test_magnitudes(rows, numbers):
    names = rows(Box, kwargs=numbers)
    assert names.reward.abs().max() <= numbers.get("reward", 1) and names.phi.isfinite().all()
    assert names.qr_optimizer.state  # it has learned


@pytest.mark.parametrize("numbers", [dict(reward=1e25), dict(obs=1e20), dict(obs=1e38)])
def test_magnitudes_that_no_network_bears(refused, numbers):
    refused(Box, kwargs=numbers)


@pytest.mark.parametrize("kwargs, d_s", [(dict(length=1), 0), (dict(length=1, cost=1), 130), (dict(length=10**9), 0)])
def test_lengths(folder, rows, kwargs, d_s):
    names = rows(Box, kwargs=kwargs)
    assert len(names.D) == 130 and len(names.D_s) == d_s == names.violations_total
    assert (names.terminated == names.cost).all()


def test_d_stays_empty(run_here, registered):
    env_id = registered(Box, kwargs=dict(cost=1))
    result = run_here("--env-id", env_id, *QUICK, "--no-store-violations-in-d")
    assert result.returncode == 0 and "130 violations; nothing was learned, for D is empty" in result.stdout


def test_buffers_that_fit_nowhere(run_here):
    huge = ("--total-timesteps", 10**12, "--buffer-size", 10**12)
    assert_one_line(run_here("--env-id", "my_env:MyEnv-v0", *QUICK, *huge), "--buffer-size", "too large")


# Evaluations


def test_without_an_end_and_with_ctrl_c_taken(folder):
    """The training's last checkpoint is there before its evaluation, which never ends; the progress bar says what is
    running; and Ctrl-C ends it, whoever took the signal when the environment was made, as ROS does."""
    (folder / "endless.py").write_text(
        "import signal, gymnasium as gym\nfrom my_env import changed\n"
        "def make():\n"
        "    signal.signal(signal.SIGINT, lambda *_: None)\n"
        "    return changed(lambda obs, reward, *_: (obs / 99, reward, False, False, {'cost': 0}))()\n"
        "gym.register('Endless-v0', entry_point=make)\n"
    )
    flags = ("--env-id", "endless:Endless-v0", *QUICK, "--eval-every", 100)
    process, run_dir = start(folder, SCRIPT, *flags, stderr=subprocess.PIPE)
    wait_for((run_dir / "checkpoint.pt").exists)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130 and "evaluation " in stderr and (run_dir / "policy_130.pt").exists()


class Simulator(Draws):
    """One alone can run at a time, as of Unity, CARLA and Gazebo; every `fails`th one fails at its fifth step."""

    running, made = [], 0

    def __init__(self, render_mode=None, fails=10**9):
        assert not self.running, "address already in use"
        super().__init__(render_mode)
        Simulator.made += 1
        self.fails = Simulator.made % fails == 0
        self.running.append(self)

    def step(self, action):
        if self.fails and self.steps == 5:
            raise ConnectionError("the simulator is gone\nand more")
        return super().step(action)

    def close(self):
        self.running.remove(self)


@pytest.fixture
def simulator(registered, monkeypatch):
    monkeypatch.setattr(Simulator, "running", [])
    monkeypatch.setattr(Simulator, "made", 0)
    return registered(Simulator)


def test_a_simulator_of_which_one_can_run(folder, run_here, simulator):
    """Each evaluation fails, and the training goes on: its checkpoints are there. Alone it is evaluated, and filmed."""
    flags = ("--eval-every", 100, "--checkpoint-every", 100)
    result = run_here("--env-id", simulator, *QUICK, *flags)
    assert result.returncode == 0 and not Simulator.running, result.stderr
    failed = re.findall(r"warning: the evaluation at step \d+ failed: address already in use; going on", result.stderr)
    (run_dir,) = folder.glob("runs/*")
    assert len(failed) == 2 and (run_dir / "checkpoint.prev.pt").exists()
    result = run_here("--evaluate", run_dir, "--episodes", 2, "--capture-video")
    said = "2 episodes of Hostile-v0, with the policy of step 130\n"
    assert result.returncode == 0 and result.stdout.startswith(said)
    assert not Simulator.running and len(list(run_dir.glob("videos/*.mp4"))) == 2


def test_an_evaluation_that_fails_once(folder, run_here, registered, monkeypatch):
    """Its environment is closed, so that the next evaluation finds its simulator."""

    class Two(Simulator):
        running, made = [], 0

        def __init__(self, **kwargs):
            others, self.running[:] = self.running[:], self.running[1:]  # two can run
            super().__init__(fails=3, **kwargs)
            self.running[:0] = others[:1]

    Simulator.made = 0
    flags = ("--eval-every", 45, "--episodes", 2, "--capture-video")
    result = run_here("--env-id", registered(Two), *QUICK, *flags)
    assert result.returncode == 0 and not Two.running, result.stderr
    assert result.stderr.count("failed: the simulator is gone; going on") == 1
    assert len(list(folder.glob("runs/*/eval_*.json"))) == 2


# Ends told in the ways of wrappers and of other libraries; tracking


class ResetsItself(gym.Wrapper):
    def __init__(self, env, key):
        super().__init__(env)
        self.key = key

    def step(self, action):
        obs, reward, end, cut, info = self.env.step(action)
        if end or cut:
            info, obs = info | {self.key: obs}, self.env.reset()[0]
        return obs, reward, end, cut, info


@pytest.mark.parametrize("key", ["final_observation", "final_obs"])
def test_an_environment_that_resets_itself(refused, key):
    refused(lambda: ResetsItself(MyEnv(), key), "Hostile-v0", "resets itself", "final_observation")


@pytest.mark.skipif(gym.__version__ >= "1", reason="register() has no autoreset there")
def test_an_environment_that_is_registered_to_reset_itself(refused):
    refused(MyEnv, "Hostile-v0", "resets itself", max_episode_steps=10, autoreset=True)


def test_two_time_limits(rows):
    D = rows(lambda: gym.wrappers.TimeLimit(MyEnv(), 7), max_episode_steps=10)
    assert D.next_obs[:, 1].max() == np.float32(7 / 20) and (D.terminated == D.cost).all()


def test_terminated_and_truncated_at_once(rows):
    D = rows(changed(lambda obs, r, end, cut, info: (obs, r, end or cut, cut, info)))
    assert (D.terminated == (D.next_obs[:, 1] == 1) | (D.cost == 1)).all() and D.terminated.sum() > D.cost.sum()


def test_what_weights_and_biases_is_told(folder, run_here, monkeypatch):
    """A run id has none of the characters that it refuses, and stays what it is; without a key the run ends at once."""
    ids = []
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=lambda **told: ids.append(told["id"])))
    for name in ("nu=10 50% #2?", "meta-sac-lag@0.1,10", "a/b:c;d'e"):
        assert run_here("--env-id", "my_env:MyEnv-v0", *QUICK, "--track", "--exp-name", name).returncode == 0
    run_dir = max(folder.glob("runs/*"), key=os.path.getmtime)
    (run_dir / "my_env.py").write_text((folder / "my_env.py").read_text())
    chdir = monkeypatch.chdir
    monkeypatch.setattr(monkeypatch, "chdir", lambda _: chdir(run_dir))
    assert run_here("--resume", ".", "--total-timesteps", 140).returncode == 0
    monkeypatch.setattr(monkeypatch, "chdir", chdir)
    assert ids[3] == ids[2] == run_dir.name and not any(re.search("[:;,#?/']", one) for one in ids)

    def no_key(**_):
        raise RuntimeError("No API key configured. Use `wandb login` to log in.")

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=no_key))
    before = set(folder.glob("runs/*"))
    assert_one_line(run_here("--env-id", "my_env:MyEnv-v0", *QUICK, "--track"), "No API key configured")
    assert set(folder.glob("runs/*")) == before


# Ten of our own


class Buffered(MyEnv):
    """Returns one array and one dict, always the same, and goes on working in them."""

    def observation(self):
        self.buffer = vars(self).get("buffer", np.zeros(2, np.float32))
        self.buffer[:] = super().observation()
        return self.buffer

    def step(self, action):
        self.told = vars(self).get("shared", {})
        if hasattr(self, "shared"):
            assert "episode" not in self.shared
        self.buffer.fill(77)
        obs, *rest, info = super().step(action)
        self.shared = info
        return obs, *rest, info


def test_one_array_for_all_observations(rows):
    D = rows(Buffered)
    np.testing.assert_allclose(D.next_obs[:, 0] - D.obs[:, 0], 0.4 * D.action[:, 0], atol=1e-6)
    assert D.obs.abs().max() < 2


def test_observations_are_no_integers_whatever_the_box_says(rows):
    """A wrapper scales a camera's bytes to [0, 1] and leaves the space as it was: flatten() makes 0 of them all."""
    D = rows(sees(lambda obs: 0.5 + obs / 10, gym.spaces.Box(0, 255, (2,), np.uint8)))
    assert len(D.obs[:, 0].unique()) > 100
    np.testing.assert_allclose(D.next_obs[:, 0] - D.obs[:, 0], 0.04 * D.action[:, 0], atol=1e-6)


def test_an_environment_that_forgets_its_render_mode(refused):
    def forgets(**_):
        return Draws()

    refused(forgets, "--capture-video", "render_mode", "rgb_array", "None", flags=["--capture-video"])


def test_an_environment_that_changes_the_folder(folder, rows):
    """As those do that look for their meshes: the run folder stays where the script was started."""
    (folder / "meshes").mkdir()

    def moves():
        os.chdir(folder / "meshes")
        return MyEnv()

    rows(moves)
    assert os.getcwd() == str(folder) and len(list(folder.glob("runs/*/policy_130.pt"))) == 1


def test_an_environment_that_switches_gradients_off(rows):
    """As perception modules do when they are imported"""

    def inference():
        torch.set_grad_enabled(False)
        return MyEnv()

    try:
        assert rows(inference, "--eval-every", 100, "--episodes", 1).qr_optimizer.state
    finally:
        torch.set_grad_enabled(True)


def test_an_environment_that_makes_warnings_errors(rows):
    """And NumPy's, too: a number that is 0 in float32 is no error."""

    def tiny(obs, reward, *rest):
        with np.errstate(all="ignore"):
            return obs.astype(float) * 1e-50, reward, *rest

    old = np.seterr(all="raise")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert (rows(changed(tiny)).next_obs == 0).all()
    finally:
        np.seterr(**old)


def test_infos_of_other_wrappers(folder, rows):
    """Gymnasium's own statistics have the key that ours have, and not all keys are words."""

    def make():
        env = gym.wrappers.RecordEpisodeStatistics(MyEnv(infra_failure_at=15))
        return gym.wrappers.TransformReward(env, lambda reward: reward)

    rows(make, "--eval-every", 130, "--episodes", 30)
    (path,) = folder.glob("runs/*/eval_130.json")
    episodes = json.loads(path.read_text())["episodes"]
    assert all(length < 15 for length in episodes.get("episodic_length", []))
    rows(changed(lambda *five: (*five[:4], five[4] | {0: "agent", ("a", 1): None})), env_id="Numbered-v0")


def test_an_environment_that_fails_to_close(folder, registered, train_here):
    """Its own traceback, but all was saved before."""

    class Fails(MyEnv):
        def close(self):
            raise OSError("already closed")

    with pytest.raises(OSError, match="already closed"):
        train_here(registered(Fails), *QUICK)
    assert len(list(folder.glob("runs/*/checkpoint.pt"))) == 1


def test_an_environment_with_a_process_of_its_own(folder):
    """Forked, with a pipe, talking to standard error: it trains, is evaluated and filmed, and ends."""
    (folder / "forks.py").write_text(
        "import multiprocessing, sys, gymnasium as gym, my_env\n"
        "def serve(pipe):\n"
        "    env = my_env.Draws()\n"
        "    while (call := pipe.recv()):\n"
        "        print('serving', call[0], file=sys.stderr)\n"
        "        pipe.send(getattr(env, call[0])(*call[1:-1], **call[-1]))\n"
        "class Forks(my_env.Draws):\n"
        "    def __init__(self, render_mode=None):\n"
        "        super().__init__(render_mode)\n"
        "        self.pipe, other = multiprocessing.Pipe()\n"
        "        self.process = multiprocessing.get_context('fork').Process(target=serve, args=(other,))\n"
        "        self.process.start()\n"
        "    def ask(self, *call, **kwargs):\n"
        "        self.pipe.send((*call, kwargs))\n"
        "        return self.pipe.recv()\n"
        "    def reset(self, **kwargs):\n        return self.ask('reset', **kwargs)\n"
        "    def step(self, action):\n        return self.ask('step', action)\n"
        "    def render(self):\n        return self.ask('render')\n"
        "    def close(self):\n        self.pipe.send(None)\n        self.process.join()\n"
        "gym.register('Forks-v0', entry_point=Forks)\n"
    )
    result = run(folder, "--env-id", "forks:Forks-v0", *QUICK, "--eval-every", 100, "--episodes", 1, "--capture-video")
    assert result.returncode == 0 and "serving step" in result.stderr and "warning" not in result.stderr
    assert "stopped at" not in result.stderr and len(list(folder.glob("runs/*/videos/eval_130-episode-0.mp4"))) == 1
