"""The simulated benchmark tasks of Meta SAC-Lag (Section 5.1, Appendix C), registered with Gymnasium.

    import gymnasium as gym
    env = gym.make("benchmark_envs:EggManipulate", render_mode="rgb_array")

Every task speaks Gymnasium's five-tuple and puts the paper's constraint indicator c into `info`: `info["cost"]`
is 0.0 or 1.0 at every step, the maximum of one `info["cost_<kind>"]` per kind of violation. Constraints are hard
(Section 5.1): the violating step returns `terminated=True`. Success never terminates; `info["is_success"]` tells it.
"""

import dataclasses
import os
import sys

# Without a display MuJoCo's default renderer (GLFW) fails; EGL needs none. Gymnasium reads this at the first frame.
if sys.platform == "linux" and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
    os.environ.setdefault("MUJOCO_GL", "egl")

import gymnasium as gym
import mujoco
import numpy as np
from gymnasium_robotics.envs.shadow_dexterous_hand.manipulate_egg import MujocoHandEggEnv


def import_safety_gymnasium():
    """Imports safety_gymnasium 1.0.0 on Python 3.11 and returns the module.

    Its dataclasses have arrays as defaults, which Python 3.11 refuses ("mutable default"). While it is imported, such
    a default becomes a `default_factory` that returns the same array, which is what Python 3.10 did with it.
    """
    original = dataclasses.dataclass

    def dataclass_with_array_defaults(cls=None, **options):
        if cls is None:
            return lambda decorated: dataclass_with_array_defaults(decorated, **options)
        for name, default in list(vars(cls).items()):
            if name in cls.__dict__.get("__annotations__", {}) and isinstance(default, np.ndarray):
                setattr(cls, name, dataclasses.field(default_factory=lambda array=default: array))
        return original(cls, **options)

    dataclasses.dataclass = dataclass_with_array_defaults
    try:
        import safety_gymnasium
    finally:
        dataclasses.dataclass = original
    return safety_gymnasium


class EggManipulate(gym.Env):
    """
    ## Description
    A Shadow Dexterous Hand turns an egg to a target orientation "without dropping it or exerting a force of more than
    20 N" (Appendix C). Built on Gymnasium-Robotics' `HandManipulateEggRotateDense-v1`: the target is a random
    orientation, the egg's position is free. The egg weighs 0.151 kg; one step is 0.04 s (20 substeps of 2 ms).

    ## Action Space
    `Box(-1, 1, (20,), float32)`: absolute position targets of the hand's 20 actuators, -1 and 1 being the ends of
    each actuator's range (rad). Zero holds every joint at mid-range, where the egg rests in the palm. Values outside
    are clipped.

    ## Observation Space
    `Box(-inf, inf, (65,), float32)`

    | index | content | unit |
    |---|---|---|
    | 0-23 | hand joint positions | rad |
    | 24-47 | hand joint velocities | rad/s |
    | 48-50 | egg linear velocity | m/s |
    | 51-53 | egg angular velocity | rad/s |
    | 54-56 | egg position | m |
    | 57-60 | egg orientation, unit quaternion (w, x, y, z) | |
    | 61-64 | target orientation, unit quaternion (w, x, y, z) | |

    ## Rewards
    Minus the rotation (rad, in [0, pi]) that is left between the egg and its target, after the step.
    All of it is negative, so that an early violation *raises* the episode's return: dropping the egg at once returns
    about -20, squeezing it at once -2, holding it still for 100 steps -200. Never read the return without the
    violation rate.

    ## Cost
    | info key | 1.0 when |
    |---|---|
    | `cost_force` | in any of the 20 substeps the force of one contact on the egg exceeds `max_force` |
    | `cost_drop` | the egg's centre is below `min_height` after the step |
    | `cost` | either of them |

    Also in `info`: `contact_force` (N, the largest of the step), `rotation_error` (rad), `is_success` (the error is
    below 0.1 rad; a float, 0.0 or 1.0).

    ## Starting State
    Gymnasium-Robotics': a random orientation and about 5 mm of noise on the position, then 10 steps of settling.
    Contact forces stay below 20 N meanwhile (measured there: 12.6 N at most in 60 resets).

    ## Episode End
    Terminates on a violation. Truncates after 100 steps (4 s). Success does not end it.

    ## Arguments
    | argument | default | meaning |
    |---|---|---|
    | `render_mode` | None | "rgb_array" or "human" |
    | `max_force` | 20.0 | N, the paper's bound on the force on the egg |
    | `min_height` | 0.10 | m, the egg counts as dropped below it (none ever came back from there: 0 of 10) |

    ## Differences from the original
    * The original has no cost. The paper does not say which force it means. Here it is the largest single contact: a
      firm, symmetric grip breaks a bound on the *sum* within 8 steps, and the *net* force never reaches 20 N.
    * The original's rotation error runs to 2 pi (it does not use that q and -q are one rotation); here it is wrapped.
    * The observation is flat and holds the target orientation.
    * `reset(seed=s)` gives the same episode bit for bit whatever came before it; the original leaves the solver's warm
      start from the episode before.
    """

    metadata = {"render_modes": ["human", "rgb_array"], "render_fps": 25}

    def __init__(self, render_mode=None, max_force=20.0, min_height=0.10):
        self.hand = MujocoHandEggEnv(
            target_position="ignore", target_rotation="xyz", reward_type="dense", render_mode=render_mode
        )
        self.render_mode, self.max_force, self.min_height = render_mode, max_force, min_height
        self.egg_geom = mujoco.mj_name2id(self.hand.model, mujoco.mjtObj.mjOBJ_GEOM, "object")
        self.action_space = gym.spaces.Box(-1.0, 1.0, (20,), np.float32)
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (65,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.hand.np_random = self.np_random
        mujoco.mj_resetData(self.hand.model, self.hand.data)
        self.hand.reset()
        if self.render_mode == "human":
            self.render()
        return self._observation(), self._info(contact_force=0.0)

    def step(self, action):
        model, data = self.hand.model, self.hand.data
        self.hand._set_action(np.clip(action, -1.0, 1.0))
        contact_force = 0.0
        for _ in range(self.hand.n_substeps):
            mujoco.mj_step(model, data)
            contact_force = max(contact_force, self._largest_contact_force())
        info = self._info(contact_force)
        if self.render_mode == "human":
            self.render()
        return self._observation(), -info["rotation_error"], info["cost"] > 0.0, False, info

    def render(self):
        return self.hand.render()

    def close(self):
        self.hand.close()

    def _largest_contact_force(self):
        """Largest force (N, normal and friction together) of any one contact on the egg."""
        model, data = self.hand.model, self.hand.data
        on_egg = (data.contact.geom1 == self.egg_geom) | (data.contact.geom2 == self.egg_geom)
        largest, wrench = 0.0, np.zeros(6)
        for contact in np.flatnonzero(on_egg):
            mujoco.mj_contactForce(model, data, contact, wrench)
            largest = max(largest, float(np.linalg.norm(wrench[:3])))
        return largest

    def _observation(self):
        hand = self.hand._get_obs()
        return np.concatenate([hand["observation"], hand["desired_goal"][3:]]).astype(np.float32)

    def _info(self, contact_force):
        egg = self.hand._get_achieved_goal()
        # The angle between two orientations is 2 arccos |<q_egg, q_target>|; without |.| it would run to 2 pi.
        rotation_error = float(2.0 * np.arccos(min(1.0, abs(egg[3:] @ self.hand.goal[3:]))))
        cost_force, cost_drop = float(contact_force > self.max_force), float(egg[2] < self.min_height)
        return {
            "cost": max(cost_force, cost_drop),
            "cost_force": cost_force,
            "cost_drop": cost_drop,
            "is_success": float(rotation_error < self.hand.rotation_threshold),
            "contact_force": contact_force,
            "rotation_error": rotation_error,
        }


gym.register("EggManipulate", entry_point="benchmark_envs:EggManipulate", max_episode_steps=100)
