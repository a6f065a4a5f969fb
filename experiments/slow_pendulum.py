"""Somebody's environment: README's example, and its answer to "does it work?"."""

import gymnasium as gym


class SlowPendulum(gym.Wrapper):
    """Pendulum-v1 that must not spin faster than 6 rad/s. The reward is shifted so that ending early never pays."""

    def step(self, action):
        obs, reward, terminated, truncated, info = self.env.step(action)
        info["cost"] = float(abs(obs[2]) > 6.0)
        return obs, reward + 16.3, terminated or info["cost"] > 0, truncated, info


gym.register("SlowPendulum-v0", entry_point=lambda **kwargs: SlowPendulum(gym.make("Pendulum-v1", **kwargs)))
