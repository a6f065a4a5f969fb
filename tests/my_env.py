"""An environment of somebody else, for the tests: a point on a line that must not leave [-1, 1].

Observation: position (m), step / 20. Action: velocity in [-0.4, 0.4] m/s, 1 s a step. Reward: the position. Cost beyond
1 m on either side. 20 steps. Its variants break the contract, or use it otherwise, in one way each.
"""

import random

import gymnasium as gym
import numpy as np
import torch


class MyEnv(gym.Env):
    metadata = {"render_modes": []}

    def __init__(self, cost=None, terminates=True, action_space=None, infra_failure_at=None, ends_at=None, told=()):
        self.cost, self.terminates, self.infra_failure_at, self.told = cost, terminates, infra_failure_at, told
        self.ends_at = ends_at  # steps after which it terminates without a violation
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)
        self.action_space = action_space or gym.spaces.Box(-0.4, 0.4, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.position, self.steps = self.np_random.uniform(-0.5, 0.5), 0
        return self.observation(), {}

    def step(self, action):
        assert self.action_space.contains(action), action
        self.position, self.steps = self.position + float(action[0]), self.steps + 1
        assert self.ends_at is None or self.steps <= self.ends_at, "reset() has to come first"
        violated = abs(self.position) > 1
        info = {"is_success": self.position > 0.5, "acceleration": 1.0, "jerk": float(self.steps)}
        info |= {"cost_sum": 3.0, **dict(self.told)}  # no kind of violation: Safety-Gymnasium's sum of them
        if self.cost != "none":
            info["cost"] = float(violated) if self.cost is None else self.cost
        failed = self.steps == self.infra_failure_at
        if failed:
            info["infra_failure"] = True
        terminated = violated and self.terminates or self.steps == self.ends_at
        return self.observation(), self.position, terminated, self.steps == 20, info

    def observation(self):
        return np.array([self.position, self.steps / 20], np.float32)


class TellsWhatHappened(gym.Wrapper):
    """Mentions success and the kind of a violation only where there is one."""

    def step(self, action):
        *rest, info = self.env.step(action)
        told = {"is_success": info.pop("is_success"), "cost_outside": info["cost"]}
        return *rest, info | {key: value for key, value in told.items() if value}


class Weighs(gym.Wrapper):
    """A violation costs 25 on the right and 0.3 on the left."""

    def step(self, action):
        obs, *rest, info = self.env.step(action)
        return obs, *rest, info | {"cost": info["cost"] * (25.0 if obs[0] > 0 else 0.3)}


class GlobalRandom(gym.Wrapper):
    """Somebody's environment that draws from the global generators of Python and NumPy."""

    def step(self, action):
        obs, reward, *rest = self.env.step(action)
        obs[1] += random.random() + np.random.random()
        return obs, reward + random.random(), *rest


class Broken(gym.Wrapper):
    """Gives `value` instead of an observation or a reward at the n-th step, or at the n-th reset."""

    def __init__(self, what, value, n):
        super().__init__(MyEnv())
        self.what, self.value, self.n, self.count = what, value, n, 0

    def reset(self, **kwargs):
        obs, info = self.env.reset(**kwargs)
        self.count += self.what == "reset"
        return obs * self.value if self.what == "reset" and self.count == self.n else obs, info

    def step(self, action):
        obs, reward, *rest = self.env.step(action)
        self.count += self.what != "reset"
        if self.count == self.n and self.what == "reward":
            reward = self.value
        elif self.count == self.n and self.what == "observation":
            obs[1] = self.value
        return obs, reward, *rest


def changed(step=lambda *five: five, reset=lambda obs, info: (obs, info)):
    """MyEnv with what it returns changed"""

    class Changed(MyEnv):
        def reset(self, **kwargs):
            return reset(*super().reset(**kwargs))

        def step(self, action):
            return step(*super().step(action))

    return Changed


class Draws(MyEnv):
    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}

    def __init__(self, render_mode=None):
        super().__init__()
        self.render_mode = render_mode

    def render(self):
        return np.full((64, 64, 3), 12 * self.steps, np.uint8)


class NoSeed(MyEnv):
    def reset(self):
        return super().reset()


class Raises(MyEnv):
    def step(self, action):
        return super().step([{}["gone"]])


class SeedsTorch(MyEnv):
    """Somebody's environment that takes the global generator of PyTorch for its own."""

    def reset(self, **kwargs):
        torch.manual_seed(0)
        return super().reset(**kwargs)


class DictEnv(gym.ObservationWrapper):
    metadata = MyEnv.metadata

    def __init__(self):
        super().__init__(MyEnv())
        self.observation_space = gym.spaces.Dict({"where": self.env.observation_space})

    def observation(self, observation):
        return {"where": observation}


class SequenceEnv(DictEnv):
    def __init__(self):
        super().__init__()
        self.observation_space = gym.spaces.Sequence(self.env.observation_space)


class Free(gym.Wrapper):
    """Any environment without a constraint."""

    def step(self, action):
        obs, reward, terminated, truncated, info = self.env.step(action)
        return obs, reward, terminated, truncated, {**info, "cost": 0.0}


gym.register("MyEnv-v0", entry_point=MyEnv)
gym.register("NoCost-v0", entry_point=MyEnv, kwargs={"cost": "none"})
gym.register("TextCost-v0", entry_point=MyEnv, kwargs={"cost": "much"})
gym.register("NanCost-v0", entry_point=MyEnv, kwargs={"cost": np.nan})
gym.register("NotTerminating-v0", entry_point=MyEnv, kwargs={"terminates": False})
gym.register("Discrete-v0", entry_point=MyEnv, kwargs={"action_space": gym.spaces.Discrete(3)})
gym.register("VectorJerk-v0", entry_point=MyEnv, kwargs={"told": {"jerk": [1.0, 2.0, 3.0]}})
gym.register("NamedCosts-v0", entry_point=MyEnv, kwargs={"told": {"cost_names": ["outside"]}})
gym.register("NoneSuccess-v0", entry_point=MyEnv, kwargs={"told": {"is_success": None}})
gym.register("Integer-v0", entry_point=MyEnv, kwargs={"action_space": gym.spaces.Box(0, 5, (1,), np.int32)})
UNBOUNDED, AWKWARD = gym.spaces.Box(-np.inf, np.inf, (1,)), gym.spaces.Box(-1.5, 0.9, (1,))
gym.register("Unbounded-v0", entry_point=MyEnv, kwargs={"action_space": UNBOUNDED})
gym.register("Awkward-v0", entry_point=MyEnv, kwargs={"action_space": AWKWARD})
gym.register("InfraFailure-v0", entry_point=MyEnv, kwargs={"infra_failure_at": 15})
gym.register("Ends-v0", entry_point=MyEnv, kwargs={"ends_at": 7})
gym.register("Weighs-v0", entry_point=lambda: Weighs(MyEnv()))
gym.register("Dict-v0", entry_point=DictEnv)
gym.register("Sequence-v0", entry_point=SequenceEnv)
gym.register("TellsWhatHappened-v0", entry_point=lambda: TellsWhatHappened(MyEnv()))
gym.register("GlobalRandom-v0", entry_point=lambda: GlobalRandom(MyEnv()))
gym.register("Nan-observation-v0", entry_point=lambda: Broken("observation", np.nan, 230))
gym.register("Nan-reset-v0", entry_point=lambda: Broken("reset", np.nan, 230))
gym.register("Nan-reward-v0", entry_point=lambda: Broken("reward", np.nan, 230))
gym.register("Inf-reward-v0", entry_point=lambda: Broken("reward", -np.inf, 230))
gym.register("Float64-reward-v0", entry_point=lambda: Broken("reward", 1e39, 230))
gym.register("Huge-reward-v0", entry_point=lambda: Broken("reward", 1e30, 230))
gym.register("Draws-v0", entry_point=Draws)
gym.register("NoSeed-v0", entry_point=NoSeed)
gym.register("Raises-v0", entry_point=Raises)
gym.register("SeedsTorch-v0", entry_point=SeedsTorch)
for name, changes in {
    "FourValues": dict(step=lambda obs, reward, end, cut, info: (obs, reward, end or cut, info)),
    "SixValues": dict(step=lambda *five: (*five, 0.0)),
    "ObservationAlone": dict(reset=lambda obs, info: obs),
    "LastShape": dict(step=lambda obs, r, end, cut, info: (np.zeros(3) if end or cut else obs, r, end, cut, info)),
    "VectorEnd": dict(step=lambda obs, reward, end, cut, info: (obs, reward, np.array([end, end]), cut, info)),
    "NoneReward": dict(step=lambda obs, reward, *rest: (obs, None, *rest)),
    "TextReward": dict(step=lambda obs, reward, *rest: (obs, "good", *rest)),
    "NoneInfo": dict(step=lambda *five: (*five[:4], None)),
}.items():
    gym.register(f"{name}-v0", entry_point=changed(**changes))
gym.register("FreePendulum-v0", entry_point=lambda **kwargs: Free(gym.make("Pendulum-v1", **kwargs)))
