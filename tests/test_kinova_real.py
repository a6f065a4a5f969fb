"""kinova_real.py against the fake arm: by a virtual clock in this process, and by the real one in processes."""

import dataclasses
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
import types
import unittest.mock

import fake_kortex
import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from helpers import ROOT, SCRIPT, assert_one_line, run, scalars

import kinova_real
import pour_coffee_env as pour

SPEC = kinova_real.SPECIFICATION
HIGH = np.array([SPEC.speed_max] * 3 + [SPEC.roll_rate_max])  # of the actions
RAMP = SPEC.acceleration_max  # m/s^2: an arm whose twists ramp as the twin's
HOME = np.array([0.5767, 0.0014, 0.4337])  # m, the mug's centre: the flange at (0.4567, 0.0014, 0.4337), and 0.12 m


class Direct:
    """What `Guard` is, without a process: the arm's ticks come from the virtual clock, and wait while it is busy."""

    def __init__(self, robot_ip, specification, clock):
        self.arm, self.open, self.busy = kinova_real.Arm(robot_ip, specification, clock), True, False
        clock.every(kinova_real.TICK, self.tick)

    def tick(self):
        if self.open and not self.busy:
            self.busy = True
            self.arm.tick()
            self.busy = False
        return self.open

    def ask(self, *request):
        self.busy = True
        try:
            return self.arm.handle(*request)
        finally:
            self.busy = False

    def close(self):
        self.open, self.busy = False, True
        self.arm.close()


class Person:
    """Confirms everything, and reports a spill when told to."""

    key = True

    def __init__(self):
        self.asked, self.spill = [], None

    def confirm(self, text):
        self.asked.append(text)

    def spilled(self):
        return self.spill


@pytest.fixture
def make(tmp_path, monkeypatch):
    """An environment on a fake arm in this process, and that arm's world, as `env.world`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("KINOVA_SPILL_SCALE", raising=False)
    teach(tmp_path)

    def make(specification=SPEC, scale=None, **settings):
        clock = fake_kortex.VirtualClock()
        world = fake_kortex.install(clock=clock, **settings)
        env = kinova_real.KinovaPourCoffee(
            "fake", specification, scale, operator=Person(), clock=clock, guard=lambda *a: Direct(*a, clock)
        )
        env.world = world
        return env

    yield make
    fake_kortex.uninstall()


def teach(folder, goal=SPEC.goal):
    (folder / "kinova_goal.fake.json").write_text(json.dumps({"goal": goal}))


def si(observation):
    """Position, angles and velocity, (9,) in SI units."""
    return np.concatenate(SPEC.measures(observation)[:3])


def calls(world, *methods):
    return [call for call in world.calls if call.method in methods]


def twists(world):
    """Time (s) and velocity (m/s, m/s, m/s, rad/s) of every twist that was sent."""
    sent = [(c.time, c.payload.get("twist", {})) for c in calls(world, "SendTwistCommand")]
    names = ("linear_x", "linear_y", "linear_z", "angular_z")
    return np.array([[t, *(twist.get(name, 0.0) for name in names)] for t, twist in sent]) * [1, 1, 1, 1, math.pi / 180]


# The same task as the twin's


def test_the_environment_is_the_twins(make):
    twin, env = pour.PourCoffee(goal_range=0), make()
    assert env.action_space == twin.action_space and env.observation_space == twin.observation_space
    (obs, info), (twin_obs, twin_info) = env.reset(seed=1), twin.reset(seed=1)
    assert obs.dtype == twin_obs.dtype and obs.shape == twin_obs.shape
    assert set(info) - set(twin_info) == {"delay", "overrun"} and set(twin_info) <= set(info)
    info, twin_info = env.step(np.zeros(4))[4], twin.step(np.zeros(4))[4]
    assert set(info) - set(twin_info) == {"delay", "overrun"} and set(twin_info) <= set(info)
    assert si(obs)[:3] == pytest.approx(HOME, abs=1e-3)
    assert obs == pytest.approx(twin_obs, abs=0.02)  # the same numbers and units: 2 mm, 5 mm/s
    made = gym.spec("KinovaPourCoffee"), gym.spec("PourCoffee")
    assert made[0].max_episode_steps == made[1].max_episode_steps == SPEC.episode_steps
    twin.close()


def test_check_env(make):
    check_env(make(), skip_render_check=True)
    twin = gym.make("kinova_real:PourCoffeeTwin")
    check_env(twin.unwrapped, skip_render_check=True)
    twin.close()


@pytest.mark.parametrize(
    "speed, ramp, most",
    [
        (0.1, RAMP, 1.0), (0.25, RAMP, 2.0), (None, RAMP, 1.5),
        *(pytest.param(*values, marks=pytest.mark.slow) for values in ((0.2, RAMP, 1.5), (0.1, 5.0, 2.5))),
        *(pytest.param(*values, marks=pytest.mark.slow) for values in ((0.2, 5.0, 4.5), (0.25, 5.0, 2.5))),
    ],
)  # fmt: skip
def test_twin_and_arm_do_the_same(make, speed, ramp, most):
    """A scripted pour (m/s), and a random walk of the velocity. Rougher sideways the twin's motors lag (README).

    ramp (m/s^2): the arm's, which is a guess. One that takes up a twist sooner than the twin is ahead of it, by mm.
    """
    twin = pour.PourCoffee(specification=SPEC, goal_range=0, spill_violates=False)
    env = make(acceleration=ramp, spin_acceleration=1000.0)  # the twin has no ramp on the roll
    (obs, _), (twin_obs, _), rng = env.reset(), twin.reset(seed=1), np.random.default_rng(1)
    lead, clock = SPEC.latency - kinova_real.TICK / 2, env.clock
    tick = math.ceil((clock.now() + lead - env.world.start) / fake_kortex.TICK) * fake_kortex.TICK
    clock.sleep(env.world.start + tick + 0.001 + lead - clock.now())  # observe just after the arm's own tick
    policy, action, worst, way, told = pour.scripted_pour(1.0, speed), np.zeros(4), np.zeros(3), 0.0, []
    for _ in range(100 if speed else 40):
        if speed:
            action = policy(twin_obs)
        else:
            action = np.clip(action + rng.normal(size=4) * [0.02, 0.02, 0.02, 0.3], -0.8, 0.8)
        before = si(obs) - si(twin_obs)
        (obs, *reply), (twin_obs, *twin_reply) = env.step(action), twin.step(action)
        told.append([(r[0], r[3]["acceleration"], r[3]["jerk"]) for r in (reply, twin_reply)])
        apart = si(obs) - si(twin_obs)
        metres = np.linalg.norm([apart[:3], apart[:3] - before[:3]], axis=1)
        worst = np.maximum(worst, [*1000 * metres, np.degrees(np.abs(apart[3:6]).max())])
        way = max(way, np.linalg.norm(si(obs)[:3] - HOME))
    print("apart: {:.2f} mm, within a step {:.2f} mm, {:.3f} degrees; {:.2f} m from home".format(*worst, way))
    assert worst[0] < most and worst[1] < 1.5 and worst[2] < 0.3 and way > 0.05
    told, twin_told = np.array(told).transpose(1, 0, 2)  # each step's reward, acceleration and jerk
    assert told[:, 0] == pytest.approx(twin_told[:, 0], abs=0.005)
    # When a change starts differs by up to a tick: a short one falls into one step or two, with half the jerk
    assert told.mean(0)[:2] == pytest.approx(twin_told.mean(0)[:2], rel=0.2)
    assert told.mean(0)[2] == pytest.approx(twin_told.mean(0)[2], rel=0.5 if speed == 0.1 else 0.2)
    twin.close()


@pytest.mark.parametrize(
    "joints, flange, euler",
    [("Home", (0.4567, 0.0014, 0.4337), (90, 0, 90)), ("Zero", (None, None, 1.1874), None)],
)
def test_kinematics(make, joints, flange, euler):
    """What `read` makes of the robot's joints and angles, at poses whose flange is known (Kinova's URDF)."""
    env = make()
    env.world.place(fake_kortex.POSES[joints])
    state = env.guard.arm.read()
    tool = state.R @ pour.MUG_IN_TOOL.T
    at = state.position - 0.12 * tool[:, 2]
    assert all(abs(a - b) < 1e-3 for a, b in zip(at, flange) if b is not None)
    assert state.disagree < 1e-4 and state.turned < 1e-4
    if euler:
        assert np.abs(tool - kinova_real.rotation(*euler)).max() < 1e-3


# Limits


def test_what_is_promised_in_numbers():
    """By the module's docstring and README. Tests that reckon with a constant do not notice that it has changed."""
    k = kinova_real
    assert (k.WATCHDOG, k.PATIENCE, k.INACTIVITY, k.CONTACT, k.HOME_SPEED) == (0.25, 10.0, 500, 20.0, 10.0)


def adversary(rng, k):
    """Random actions, and what a broken policy may give."""
    kinds = [
        lambda: rng.uniform(-1, 1, 4) * HIGH,
        lambda: rng.choice([-1, 1], 4) * HIGH,
        lambda: rng.normal(size=4) * 1e9,
        lambda: HIGH * rng.choice([-1, 1], 4) if k // 10 % 2 else np.zeros(4),
    ]
    return kinds[k // 40 % 4]()


@pytest.mark.parametrize("steps", [1000, pytest.param(10_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("acceleration", [RAMP, 50.0])
def test_no_bound_is_ever_exceeded(make, steps, acceleration):
    """Whatever is asked: speed, its change, the workspace, the roll; on an arm that follows as the twin, or at once."""
    env, rng, k = make(acceleration=acceleration), np.random.default_rng(0), 0
    low, high = np.array(SPEC.workspace_low), np.array(SPEC.workspace_high)
    nearest, outside = np.inf, 0.0
    while k < steps:
        env.reset()
        since, ended = env.clock.now(), False
        while not ended:
            _, _, terminated, truncated, info = env.step(adversary(rng, k))
            assert not info.get("infra_failure"), info["reason"]
            ended, k = terminated or truncated, k + 1
        sent = twists(env.world)
        sent = sent[sent[:, 0] >= since]
        assert np.linalg.norm(sent[:, 1:4], axis=1).max() <= SPEC.speed_max + 1e-6
        assert np.abs(sent[:, 4]).max() <= SPEC.roll_rate_max + 1e-6
        between = np.minimum(np.diff(sent[:, 0]), 0.05)
        changed = np.linalg.norm(np.diff(sent[:, 1:4], axis=0), axis=1)
        assert (changed <= SPEC.acceleration_max * between + 1e-5).all()
        motion = env.world.samples(since)
        where = np.array([sample.position for sample in motion])
        nearest = min(nearest, (where - low).min(), (high - where).min())
        speeds = np.array([sample.velocity for sample in motion])
        assert np.linalg.norm(speeds, axis=1).max() <= SPEC.speed_max * 1.01
        period = round(SPEC.control_period / fake_kortex.TICK)
        changes = np.linalg.norm(speeds[period:] - speeds[:-period], axis=1) / SPEC.control_period
        outside = max(outside, changes.max())
        env.world.motion.clear()
        env.world.calls.clear()
    print(f"{k} steps: {1000 * nearest:.1f} mm to the nearest wall, acceleration {outside:.2f} m/s^2")
    assert nearest > 0
    assert outside < 1.5 * SPEC.acceleration_max  # of two changes, one half of each, within a period


@pytest.mark.parametrize("action", [[np.nan, 0, 0, 0], [np.inf, 0, 0, 0], [0.1] * 3, [[0.1] * 4], [0.1] * 5])
def test_an_action_that_is_none_stops_the_arm(make, action):
    env = make()
    env.reset()
    env.step(np.array([0.2, 0, 0, 0]))
    with pytest.raises(ValueError, match="four finite numbers"):
        env.step(action)
    assert env.world.speed < 0.01
    with pytest.raises(gym.error.ResetNeeded):
        env.step(np.zeros(4))
    env.reset()  # and it goes on
    env.step(np.zeros(4))


def test_every_motion_has_a_short_timeout_and_follows_a_yes(make, monkeypatch):
    monkeypatch.setitem(fake_kortex.HARD, "twist_linear", 0.45)  # somebody's own soft limit
    before = [0.45, 100.0, *[math.degrees(0.41)] * 7]
    env = make(dataclasses.replace(SPEC, speed_max=0.4))
    assert not calls(env.world, "SendTwistCommand", "ExecuteAction")
    env.reset()
    assert len(env.operator.asked) == 1  # it is at home
    assert not calls(env.world, "SendTwistCommand", "ExecuteAction")
    for _ in range(30):
        env.step(np.array([0.1, -0.2, 0.1, 0.3]))
    env.close()
    moving = calls(env.world, "SendTwistCommand", "ExecuteAction", "Stop", "RefreshFeedback")
    assert len(moving) > 30 and all(call.timeout_ms <= 200 for call in moving)
    last = [call.method for call in env.world.calls if call.method in ("Stop", "CloseSession", "disconnect")]
    assert last[-5:] == ["Stop", "CloseSession", "disconnect", "CloseSession", "disconnect"]
    assert env.world.speed == 0.0
    soft = env.world.soft[2].twist_linear, env.world.soft[2].twist_angular, *env.world.soft[4].joint_speed_limits
    assert soft == pytest.approx(before)  # as they were


# Time


def test_the_rate(make):
    """Observations 0.1 s apart whatever the learner's time, twists 75 ms after; what comes too late is counted."""
    env, rng = make(), np.random.default_rng(0)
    env.reset()
    at, delays = [], []
    for _ in range(40):
        env.clock.sleep(rng.uniform(0, 0.055))  # a gradient step
        *_, info = env.step(np.array([0.05, 0, 0, 0]))
        at.append(env.state["at"])
        delays.append(info["delay"])
        assert info["overrun"] == 0
    assert np.diff(at) == pytest.approx(0.1, abs=0.004)
    assert delays == pytest.approx([SPEC.latency] * 40, abs=0.004)
    env.clock.sleep(0.12)
    *_, info = env.step(np.array([0.05, 0, 0, 0]))
    assert info["overrun"] == 1 and info["delay"] == pytest.approx(0.12 + 0.0125, abs=0.02)
    *_, info = env.step(np.array([0.05, 0, 0, 0]))
    assert info["overrun"] == 0


def test_a_late_learner_finds_the_arm_at_rest(make):
    """A command lasts a period; 0.25 s after it the arm is stopped for good, whatever comes then."""
    env = make()
    env.reset()
    for _ in range(5):
        env.step(np.array([0, -0.3, 0, 0]))
    assert env.world.speed == pytest.approx(SPEC.speed_max, rel=0.01)
    env.clock.sleep(0.12)
    assert env.world.speed < 0.9 * SPEC.speed_max
    env.clock.sleep(0.06)
    assert env.world.speed == 0 and not calls(env.world, "Stop")[1:]
    env.clock.sleep(0.3)
    assert len(calls(env.world, "Stop")) == 2
    *_, truncated, info = env.step(np.array([0, -0.3, 0, 0]))
    assert truncated and info["infra_failure"] and "no fresh command" in info["reason"]
    assert calls(env.world, "SendTwistCommand")[-1].time < calls(env.world, "Stop")[-1].time


# Faults

FAULTS = {
    "a fault": (lambda w: w.fault(0x10), "fault"),
    "emergency stop": (lambda w: w.fault(fake_kortex.E_STOP), "fault"),
    "frozen feedback": (lambda w: w.set("feedback", "frozen"), "same for"),
    "NaN in the feedback": (lambda w: w.set("feedback", "nan"), "finite"),
    "lost feedback": (lambda w: w.fail("RefreshFeedback", "hang", times=50), "RefreshFeedback: no answer"),
    "a jump": (lambda w: w.set("jump", (0.1, 0, 0)), "tool centre"),
    "a hung twist": (lambda w: w.fail("SendTwistCommand", "hang"), "SendTwistCommand: no answer"),
    "a slow twist": (lambda w: w.fail("SendTwistCommand", latency=0.5), "SendTwistCommand: no answer"),
    "a refused twist": (lambda w: w.fail("SendTwistCommand", 75), "SendTwistCommand"),
    "a broken pipe": (lambda w: w.fail("SendTwistCommand", BrokenPipeError(32, "Broken pipe")), "Broken pipe"),
    "another session": (lambda w: w.take_control(), "somebody else"),
    "low-level servoing": (lambda w: w.set("servoing", 3), "state"),
    "Stop fails twice": (lambda w: (w.fail("Stop", "hang", times=2), w.fault(0x10)), "fault"),
    "Stop is refused": (lambda w: (w.fail("Stop", 1, times=2), w.fail("SendTwistCommand", "hang")), "no answer"),
    "an actuator's fault": (lambda w: w.set("actuator_faults", 0x20), "joint"),
}


@pytest.mark.parametrize("moving", [True, False])
@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_stops_the_arm_and_is_no_data(make, capsys, name, moving):
    break_it, word = FAULTS[name]
    env = make()
    env.reset()
    for _ in range(8):
        env.step(np.array([0.1, -0.3, 0.1, 0.3]) * moving)
    capsys.readouterr()
    since = env.clock.now()
    break_it(env.world)
    action = np.array([0.3, 0.1, 0.1, 0.3]) * (moving or "twist" in word)
    for _ in range(5):
        obs, reward, terminated, truncated, info = env.step(action)
        if truncated:
            break
    assert truncated and info["infra_failure"] and word in info["reason"], info.get("reason")
    assert reward == 0 and not terminated and info["cost"] == 0 and np.isfinite(obs).all()
    err = capsys.readouterr().err.strip().splitlines()
    assert len(err) == 1 and word in err[0] and ("is stopped" in err[0]) != ("EMERGENCY STOP" in err[0])
    assert env.world.speed == 0 or name == "a broken pipe"
    env.clock.advance(1.0)
    assert env.world.speed == 0  # where no Stop arrives, by the robot's own
    order = [call.method for call in calls(env.world, "SendTwistCommand", "Stop") if call.time >= since]
    if name != "a broken pipe":
        assert "SendTwistCommand" not in order[order.index("Stop") :]


def test_it_goes_on_after_a_fault_once_that_is_cleared(make, capsys):
    env = make()
    env.reset()
    env.step(np.array([0.1, 0, 0, 0]))
    env.world.fault(0x10)
    while not env.step(np.array([0.1, 0, 0, 0]))[3]:
        pass
    asked = len(env.operator.asked)
    with pytest.raises(gym.error.Error, match="three attempts"):
        env.reset()  # nobody has cleared it, and this program never does
    assert len(env.operator.asked) == asked + 6 and not calls(env.world, "ClearFaults")
    env.world.faults = 0
    env.reset()
    for _ in range(3):
        assert not env.step(np.array([0.1, 0, 0, 0]))[3]


def test_a_lost_connection(make, capsys):
    """No Stop arrives; the robot's own inactivity stop does it, and the operator is told to press the button."""
    env = make()
    env.reset()
    for _ in range(5):
        env.step(np.array([0.1, -0.3, 0.1, 0]))
    env.world.link = "down"
    since = env.clock.now()
    *_, info = env.step(np.array([0.1, -0.3, 0.1, 0]))
    assert info["infra_failure"] and "EMERGENCY STOP" in info["reason"]
    moved = [s.time for s in env.world.samples(since) if np.linalg.norm(s.velocity) > 0.01]
    assert max(moved) - since < 0.7  # it was asked to do so after 0.5 s


def test_a_late_twist_after_the_stop_is_stopped_again(make, capsys):
    env = make()
    env.reset()
    for _ in range(5):
        env.step(np.array([0.0, -0.2, 0.1, 0]))
    env.world.fail("SendTwistCommand", latency=1.0)  # it arrives 0.5 s later, after the Stop
    while not env.step(np.array([0.3, -0.2, 0.1, 0]))[3]:
        pass
    env.clock.advance(1.5)
    assert env.world.speed == 0 and len(calls(env.world, "Stop")) >= 3


def test_what_starts_to_move_a_stopped_arm_is_stopped(make, capsys):
    """A command that takes effect 3 s after the Stop; a person with the gamepad is disturbed three times in 10 s."""
    env = make()
    env.reset()
    for _ in range(5):
        env.step(np.array([0.0, -0.2, 0.1, 0]))
    env.world.fail("SendTwistCommand", latency=6.0)
    while not env.step(np.array([0.3, -0.2, 0.1, 0]))[3]:
        pass
    env.clock.advance(2.0)
    stops = len(calls(env.world, "Stop"))
    env.clock.advance(2.0)
    assert env.world.speed == 0 and len(calls(env.world, "Stop")) == stops + 1
    arm = env.guard.arm
    arm.rpc(arm.base, "SendTwistCommand", slowly(arm, 0.002))  # so slow that no joint's speed shows it
    env.clock.advance(5.0)
    assert env.world.speed == 0
    stops = len(calls(env.world, "Stop"))
    for _ in range(80):
        arm.rpc(arm.base, "SendTwistCommand", slowly(arm, 0.03))
        env.clock.advance(0.1)
    assert 2 <= len(calls(env.world, "Stop")) - stops <= 4 and not calls(env.world, "ApplyEmergencyStop")


def slowly(arm, speed):
    message = arm.pb.TwistCommand()
    message.reference_frame, message.twist.linear_z = arm.pb.CARTESIAN_REFERENCE_FRAME_BASE, speed
    return message


def test_somebody_else_takes_control(make, capsys):
    """By the connection's identifier, without waiting for a refusal; and no emergency stop under their hands."""
    env = make()
    env.reset()
    for _ in range(12):
        assert not env.step(np.array([0.05, -0.1, 0.1, 0]))[3]  # our own first twist changed it, and that is well
    env.world.changer = 999
    *_, truncated, info = env.step(np.array([0.05, -0.1, 0.1, 0]))
    assert truncated and "somebody else" in info["reason"] and not calls(env.world, "ApplyEmergencyStop")


@pytest.mark.parametrize(
    "word, joints",
    [
        ("jumped", fake_kortex.joints_at(HOME + [0, -0.05, 0])),
        ("outside", fake_kortex.joints_at([0.73, -0.1, 0.43])),  # by 3 cm
        ("tilted", [0, 15, 180, -130, 0, 35, 90]),
    ],
)
def test_the_mug_is_where_no_command_has_sent_it(make, capsys, word, joints):
    env = make()
    env.reset()
    env.step(np.zeros(4))
    env.world.place(joints)
    if word != "jumped":
        env.guard.arm.seen = None  # the jump would be noticed before
    *_, truncated, info = env.step(np.zeros(4))
    assert truncated and info["infra_failure"] and word in info["reason"] and env.world.speed == 0


def test_one_lost_packet_is_no_failure(make):
    env = make()
    env.reset()
    for _ in range(10):
        env.world.fail("RefreshFeedback", "hang")
        *_, truncated, info = env.step(np.array([0.05, 0, 0, 0]))
        assert not truncated, info["reason"]


def test_a_stop_that_is_not_seen_to_work_is_a_failure_and_said(make, capsys):
    env = make()
    env.reset()
    env.world.fail("Stop", "hang", times=100)
    env.world.fail("ApplyEmergencyStop", "hang", times=100)
    for _ in range(99):
        env.step(np.array([0.0, 0.02, 0.02, 0]))
    *_, truncated, info = env.step(np.array([0.0, -0.3, 0.1, 0]))
    assert truncated and info["infra_failure"] and "EMERGENCY STOP" in info["reason"]
    err = capsys.readouterr().err
    assert "EMERGENCY STOP" in err and "The arm is stopped" not in err
    env.world.failures.clear()
    stops = len(calls(env.world, "Stop"))
    env.close()
    assert len(calls(env.world, "Stop")) > stops and env.world.speed == 0


def test_an_arm_at_rest_that_refuses_the_stop_is_at_rest(make, capsys):
    """By its feedback, for a second. PRESS THE EMERGENCY STOP, where it is pressed, would not be believed for long."""
    env = make()
    env.reset()
    for _ in range(5):
        env.step(np.array([0.0, -0.2, 0.1, 0]))
    env.world.fault(fake_kortex.E_STOP)
    env.world.fail("Stop", 1, times=100)
    while not (reply := env.step(np.array([0.0, -0.2, 0.1, 0])))[3]:
        pass
    assert "fault" in reply[4]["reason"] and "EMERGENCY STOP" not in capsys.readouterr().err
    assert not calls(env.world, "ApplyEmergencyStop") and env.guard.arm.confirmed
    stops = calls(env.world, "Stop")[-5:]
    assert stops[-1].time - stops[0].time > 0.5  # asked all the while


def test_no_emergency_stop_by_who_has_moved_nothing(make, capsys):
    """A person drives the arm by the gamepad; a fault would take it from them."""
    env = make()
    arm = env.guard.arm
    env.clock.every(0.1, lambda: bool(arm.rpc(arm.base, "SendTwistCommand", slowly(arm, 0.03))) or True)
    env.clock.advance(0.5)
    env.close()
    assert not arm.confirmed and calls(env.world, "Stop") and not calls(env.world, "ApplyEmergencyStop")


@pytest.mark.parametrize("name", ["act", "state"])
def test_what_waits_for_an_arms_process_that_was_frozen_moves_nothing(make, capsys, name):
    env = make()
    env.reset()
    for _ in range(5):
        env.step(np.array([0.0, -0.2, 0.1, 0]))
    env.guard.busy, since = True, env.clock.now()
    env.clock.advance(1.5)
    with pytest.raises(kinova_real.Failure, match="no fresh command for 1.5"):
        env.demand(name, *[np.array([0.3, 0.0, 0.1, 0])] * (name == "act"))
    assert env.world.speed == 0
    assert [call.method for call in calls(env.world, "SendTwistCommand", "Stop") if call.time > since] == ["Stop"]


def test_a_yes_expires(make):
    env = make()
    env.reset()
    env.clock.advance(11.0)
    *_, truncated, info = env.step(np.array([0.3, 0, 0, 0]))
    assert truncated and info["infra_failure"] and not calls(env.world, "SendTwistCommand")


def test_the_arm_is_moved_while_the_mug_is_filled(make, capsys):
    env = make()
    env.operator.confirm = lambda text: env.world.place(fake_kortex.joints_at([0.45, 0.1, 0.3]))
    with pytest.raises(gym.error.Error, match="three attempts"):
        env.reset()
    assert "moved since" in capsys.readouterr().err


@pytest.mark.parametrize("after", ["a violation", "a failure"])
def test_what_ends_a_motion_asks_before_the_arm_goes_home(make, capsys, after):
    """Whether its way is free: somebody may have reached in."""
    env = make()
    env.reset()
    for _ in range(8):
        env.step(np.array([0.1, -0.2, 0.1, 0]))
    if after == "a violation":
        env.operator.spill = "the operator's key"
    else:
        env.world.fault(0x10)
    assert any(env.step(np.zeros(4))[2:4])
    env.world.faults, env.operator.spill, moved = 0, None, []

    def ask(text):
        moved.append(("will rise" in text, len(calls(env.world, "SendTwistCommand", "ExecuteAction"))))

    env.operator.confirm, before = ask, len(calls(env.world, "SendTwistCommand", "ExecuteAction"))
    env.reset()
    assert [number for rises, number in moved if rises] == [before] and moved[-1][1] > before


def test_the_mug_is_lowered_before_the_yes(make):
    """It rises from where it is, not from where it was when the question was asked."""
    env = make()
    env.world.place(fake_kortex.joints_at([0.5, -0.15, 0.45]))

    def lower(text):
        if "will rise" in text:
            env.world.place(fake_kortex.joints_at([0.55, -0.2, 0.25]))

    env.operator.confirm, since = lower, env.clock.now()
    env.reset()
    rising = [s.position for s in env.world.samples(since) if 0.26 < s.position[2] < HOME[2] - 0.006]
    assert len(rising) > 100 and np.ptp([at[:2] for at in rising], axis=0).max() < 0.005


def test_the_long_way_home_is_stopped(make, capsys, monkeypatch):
    """A joint that turns away from home, whatever the firmware thinks of 180 degrees."""
    env = make()
    world, execute = env.world, env.world._ExecuteAction
    world.place(fake_kortex.joints_at([0.5, -0.15, 0.45]))

    def long_way(message):
        execute(message)
        world.goal[2] += 2 * math.pi * (1 if world.goal[2] < world.q[2] else -1)

    monkeypatch.setattr(world, "_ExecuteAction", long_way)
    with pytest.raises(gym.error.Error, match="three attempts"):
        env.reset()
    assert "turns away" in capsys.readouterr().err and world.speed == 0
    assert abs(world.joints[2] - 180) < 60


@pytest.mark.parametrize("acceleration", [RAMP, 5.0])
def test_late_learners_stay_inside(make, acceleration):
    """Commands that come 50 to 150 ms late, at full speed towards the walls: braked by then, and bounded from there.

    Later ones, from 160 ms on, may have to wait for a braking twist, until the watchdog stops the arm.
    """
    env, rng, outside = make(acceleration=acceleration), np.random.default_rng(0), 0.0
    low, high = np.array(SPEC.workspace_low), np.array(SPEC.workspace_high)
    for _ in range(8):
        env.reset()
        since, way = env.clock.now(), rng.choice([-1, 1], 4) * [1, 1, 1, 0] * HIGH
        for _ in range(60):
            env.clock.sleep(rng.uniform(0.05, 0.15))
            *_, terminated, truncated, info = env.step(way)
            assert not (terminated or truncated), info["reason"]
            way = way if rng.uniform() < 0.9 else rng.choice([-1, 1], 4) * [1, 1, 1, 0] * HIGH
        where = np.array([sample.position for sample in env.world.samples(since)])
        outside = max(outside, (low - where).max(), (where - high).max())
    print(f"{1000 * outside:.1f} mm outside")
    assert outside < 0.005


@pytest.mark.parametrize("goal, touched", [(SPEC.goal, "table"), ((0.5767, 0.06, 0.42), "cup")])
def test_contact_is_a_violation_and_no_failure(make, tmp_path, goal, touched):
    """Of the cup where the mug is within 0.2 m of its rim: from home to the second goal's it is 0.11 m."""
    teach(tmp_path, goal)
    env = make()
    env.reset()
    for _ in range(5):
        env.step(np.array([0.1, -0.1, 0, 0]))
    env.world.wrench = (0, 0, 15, 0, 0, 0)
    assert not env.step(np.array([0.1, -0.1, 0, 0]))[2]
    env.world.wrench = (0, 30, 15, 0, 0, 0)
    _, reward, terminated, truncated, info = env.step(np.array([0.1, -0.1, 0, 0]))
    assert terminated and not truncated and info["cost"] == info[f"cost_collision_{touched}"] == 1 and reward < 0
    assert env.world.speed == 0
    env.reset()


@pytest.mark.parametrize("rate, felt", [(240, True), (3, False)])
def test_contact_that_builds_up_is_felt_and_a_drift_is_not(make, capsys, rate, felt):
    """By so many N/s, up to 42 N: contact is a change within half a second, not from one look (25 ms) to the next."""
    env = make()
    env.reset()
    since = env.clock.now()
    env.clock.every(0.025, lambda: env.world.set("wrench", (0, min(42, rate * (env.clock.now() - since)), 0, 0, 0, 0)))
    assert any(env.step(np.zeros(4))[2] for _ in range(99)) == felt


@pytest.mark.parametrize("who", ["operator", "scale"])
def test_a_spill_is_a_violation(make, capsys, who):
    env, zeroed = make(), []
    env.scale = types.SimpleNamespace(zero=lambda: zeroed.append(len(env.operator.asked)), spilled=lambda: None)
    env.reset()
    assert zeroed == [1]  # once the mug has been filled
    getattr(env, who).spilled = lambda: f"the {who}"
    *_, terminated, _, info = env.step(np.array([0.1, -0.1, 0, 0]))
    assert terminated and info["cost"] == info["cost_spill"] == 1 and env.world.speed == 0
    assert f"says the {who}" in capsys.readouterr().err


def test_a_scale_that_is_lost_stops_the_arm(make, capsys):
    env = make()
    env.scale = unittest.mock.Mock()
    env.scale.spilled.side_effect = [None, None, kinova_real.Failure("the scale is silent")]
    env.reset()
    for _ in range(3):
        *_, terminated, truncated, info = env.step(np.array([0.1, -0.1, 0, 0]))
    assert truncated and not terminated and info["infra_failure"] and "silent" in info["reason"]
    assert env.world.speed == 0


def test_a_spill_at_the_very_end_counts(make, capsys):
    """Reported 0.4 s after the last step of the pour, when the arm is already stopped."""
    env = make()
    env.reset()
    for _ in range(SPEC.episode_steps - 1):
        env.step(np.array([0.0, 0.02, 0.02, 0]))
    at = env.clock.now() + 0.6
    env.operator.spilled = lambda: "the operator's key" if env.clock.now() > at else None
    *_, terminated, truncated, info = env.step(np.zeros(4))
    assert terminated and truncated and info["cost"] == info["cost_spill"] == 1


def test_pitch_and_yaw_are_brought_back_to_0(make):
    """The correction's size and sign: a tilt of about 0.1 rad shrinks while the mug moves, rolled or not."""
    for roll in (0.0, 60.0):
        env = make()
        env.reset()
        env.world.place([4, 15, 180, -130, 0, 51, 90 + roll])
        env.guard.arm.seen = None  # or this would be a jump
        env.state = env.demand("state")
        tilt = [env.state["angles"][:2]]
        for _ in range(30):
            env.step(np.array([0.02, 0, 0.02, 0]))
            tilt.append(env.state["angles"][:2])
        assert 0.06 < np.abs(tilt[0]).max() < 0.12 and np.abs(tilt[0]).min() > 0.03
        assert (np.abs(tilt[-1]) < 0.3 * np.abs(tilt[0])).all(), tilt[:: len(tilt) - 1]


def test_reset(make):
    """It rises, turns the mug upright, goes home slowly, and asks once more; with no motion before the first yes."""
    env = make()
    env.reset()
    policy, obs, ended = pour.scripted_pour(), env.observation(), False
    while not ended:
        obs, reward, terminated, ended, info = env.step(policy(obs))
    assert info["is_success"] == 1 and reward > 9.9
    since, asked = env.clock.now(), len(env.operator.asked)
    obs, _ = env.reset()
    assert si(obs)[:3] == pytest.approx(HOME, abs=1e-3) and np.abs(si(obs)[3:]).max() < 1e-3
    assert len(env.operator.asked) == asked + 1
    motion = env.world.samples(since)
    speeds = np.linalg.norm([s.velocity for s in motion], axis=1)
    rising = [s for s in motion if s.position[2] < HOME[2] - 0.006]
    assert np.ptp([s.position[:2] for s in rising], axis=0).max() < 0.005  # straight up
    joints = np.abs(np.diff([s.joints for s in motion], axis=0)).max() / fake_kortex.TICK
    assert math.degrees(joints) < 25 and speeds.max() < 0.2  # 0.4 rad/s of roll at most
    home = calls(env.world, "ExecuteAction")
    assert len(home) == 1 and home[0].time > twists(env.world)[-1, 0]


@pytest.mark.parametrize(
    "word, happens",
    [
        ("no fresh command", lambda w: None),  # the learner hangs
        ("contact", lambda w: w.set("wrench", (0, 30, 0, 0, 0, 0))),
        ("outside", lambda w: w.place(fake_kortex.joints_at([0.5, -0.15, 0.0]))),  # by 20 cm, below
    ],
)
def test_what_stops_the_way_home(make, word, happens):
    env = make()
    env.world.place(fake_kortex.joints_at([0.5, -0.15, 0.4]))
    env.demand("stop", "reset", "")
    env.demand("release")
    env.demand("home")
    env.clock.advance(0.2)
    assert env.world.speed > 0.005
    happens(env.world)
    env.clock.advance(0.6)
    assert env.world.speed == 0 and word in env.guard.arm.reason


# Before anything moves

UNFIT = {
    "joints": (lambda w: w.fail("GetActuatorCount", "hang", times=9), "GetActuatorCount"),
    "operating mode": (lambda w: w.set("operating_mode", 1), "operating mode"),
    "servoing": (lambda w: w.set("servoing", 3), "servoing mode"),
    "a fault": (lambda w: w.fault(0x400), "state"),
    "outside": (lambda w: w.place(fake_kortex.POSES["Retract"]), "outside"),
    "tilted": (lambda w: w.place([0, 15, 180, -130, 0, 35, 90]), "tilted"),
    "another tool": (lambda w: w._SetToolConfiguration(fake_kortex.TYPES["ToolConfiguration"]()), "tool"),
    "feedback": (lambda w: w.set("feedback", "nan"), "finite"),
    "soft limits": (lambda w: w.fail("SetTwistLinearSoftLimit", 3, times=9), "SetTwistLinearSoftLimit"),
}


@pytest.mark.parametrize("name", UNFIT)
def test_an_unfit_robot_is_refused(make, name):
    break_it, word = UNFIT[name]
    clock = fake_kortex.VirtualClock()
    world = fake_kortex.install(clock=clock)
    break_it(world)
    with pytest.raises(gym.error.Error, match="not fit to move.*" + word) as caught:
        kinova_real.KinovaPourCoffee("fake", operator=Person(), clock=clock, guard=lambda *a: Direct(*a, clock))
    assert "\n" not in str(caught.value)
    assert not calls(world, "SendTwistCommand", "ExecuteAction", "ClearFaults")


def test_a_robot_that_is_not_ready_at_once(make, monkeypatch):
    """Manually controlled for 2 s, as after a session's end; for longer than 5 s it is refused."""
    env = make()
    ready = env.clock.now() + 2
    monkeypatch.setattr(env.world, "_arm_state", lambda: 7 if env.clock.now() > ready else 9)
    env.reset()
    assert env.clock.now() > ready
    monkeypatch.setattr(env.world, "_arm_state", lambda: 9)
    with pytest.raises(gym.error.Error, match="three attempts"):
        env.reset()


@pytest.mark.parametrize("limit", ["TwistLinearSoftLimit", "TwistAngularSoftLimit", "JointSpeedSoftLimits"])
def test_soft_limits_are_set_and_read_back(make, monkeypatch, limit):
    env = make(dataclasses.replace(SPEC, speed_max=0.03))
    assert env.world.soft[2].twist_linear == pytest.approx(0.03)
    assert list(env.world.soft[4].joint_speed_limits) == [10.0] * 7
    # It says yes, and does not
    monkeypatch.setattr(fake_kortex.FakeArm, f"_Set{limit}", lambda self, m: None)
    with pytest.raises(gym.error.Error, match="read back"):
        make(dataclasses.replace(SPEC, speed_max=0.05))


def test_the_goal_has_to_be_taught(make, tmp_path):
    (tmp_path / "kinova_goal.fake.json").unlink()
    with pytest.raises(gym.error.Error, match="--teach"):
        make()
    for goal in ([0.1, 0.1, 0.1], [0.5], "here", None):
        teach(tmp_path, goal)
        with pytest.raises(gym.error.Error, match="kinova_goal.fake.json cannot be used"):
            make()
    teach(tmp_path, [0.5, -0.2, 0.35])
    env = make()
    assert SPEC.measures(env.reset()[0])[3] == pytest.approx([0.5, -0.2, 0.35])
    assert env.step(np.zeros(4))[1] == pytest.approx(-2 * 0.2312, abs=0.002)  # from home to there; 0.2860 to the twin's


def test_without_kortex_api_one_line_says_how_to_get_it(tmp_path):
    path = {**os.environ, "PYTHONPATH": str(ROOT)}
    code = "import kinova_real as k\ntry: k.Guard('192.168.1.10', k.SPECIFICATION)\nexcept Exception as e: print(e)"
    out = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=path, capture_output=True, text=True).stdout
    assert all(word in out for word in ("kortex_api", "3.11", "3.20.0", "--no-deps", "2.20.0")) and out.count("\n") == 1


def test_another_package_named_kortex_api_gets_the_same_line(tmp_path):
    """Before anything is sent: nothing listens at that address."""
    (tmp_path / "kortex_api").mkdir()
    (tmp_path / "kortex_api" / "__init__.py").write_text("")
    (tmp_path / "kinova_goal.127.0.0.9.json").write_text(json.dumps({"goal": SPEC.goal}))
    code = (
        "import kinova_real as k, types\nperson = types.SimpleNamespace(key=True)\n"
        "try: k.KinovaPourCoffee('127.0.0.9', operator=person)\nexcept Exception as e: print(type(e).__name__, e)"
    )
    path = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"}
    process = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=path, capture_output=True, text=True)
    out = process.stdout
    assert out.startswith("DependencyNotInstalled --real-robot needs kortex_api") and out.count("\n") == 1, out
    assert all(word in out for word in ("3.20.0", "--no-deps", "No module named 'kortex_api.")) and not process.stderr


@pytest.mark.parametrize(
    "module, name",
    [
        ("kortex_api.autogen.messages.Base_pb2", "RUN_MODE"),
        ("kortex_api.autogen.messages.ControlConfig_pb2", "TwistLinearSoftLimit"),
        ("kortex_api.autogen.client_stubs.BaseClientRpc.BaseClient", "Stop"),
        ("kortex_api.RouterClient", "RouterClientSendOptions"),
    ],
)
def test_an_old_wheel_of_kortex_api_gets_the_same_line(make, monkeypatch, module, name):
    env = make()
    monkeypatch.delattr(f"{module}.{name}")
    with pytest.raises(gym.error.DependencyNotInstalled, match=f"--no-deps kortex_api.*{name}") as caught:
        env.connect()
    assert "\n" not in str(caught.value)


def test_nobody_to_report_a_spill(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "kinova_goal.10.0.0.9.json").write_text(json.dumps({"goal": SPEC.goal}))
    with pytest.raises(gym.error.Error, match="no terminal"):
        kinova_real.KinovaPourCoffee("10.0.0.9")


def test_the_operator_at_a_terminal():
    """A `yes` typed before the question does not count; Enter is a spill; the end of input confirms nothing."""
    master, slave = os.openpty()
    code = (
        "import kinova_real as k, time\no = k.Operator()\nprint(o.key, flush=True); time.sleep(0.5)\n"
        "o.confirm('A?')\nprint('confirmed', flush=True); time.sleep(0.5)\nprint(o.spilled(), o.spilled())\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdin=slave, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "True\n"
    os.write(master, b"yes\n")  # too early
    time.sleep(1.0)
    assert process.poll() is None
    os.write(master, b"y\nno\n")
    time.sleep(0.3)
    assert process.poll() is None
    os.write(master, b"yes\n")
    assert process.stdout.readline() == "confirmed\n"
    os.write(master, b"\n")
    assert process.stdout.readline() == "the operator's key None\n"
    assert process.stderr.read().count("A?") == 3 and process.wait() == 0
    piped = subprocess.run([sys.executable, "-c", code], cwd=ROOT, input="yes\n", capture_output=True, text=True)
    assert piped.stdout == "False\nconfirmed\nNone None\n"
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, input="", capture_output=True, text=True)
    assert "nobody can confirm" in ended.stderr


@pytest.mark.parametrize("given, opened", [({}, ["/dev/ttyUSB1"]), ({"scale": "/dev/ttyUSB0"}, ["/dev/ttyUSB0"])])
def test_the_scale_of_the_environment_variable(make, monkeypatch, given, opened):
    """The argument comes first."""
    ports = []
    monkeypatch.setattr(kinova_real, "Scale", ports.append)
    make()
    assert ports == []  # neither
    monkeypatch.setenv("KINOVA_SPILL_SCALE", "/dev/ttyUSB1")
    make(**given)
    assert ports == opened


def test_a_scale(monkeypatch):
    """Old readings are not the tare; a unit does not matter; a scale that is silent or lost is a failure."""
    grams, lines = [100.0], [b"00.1\n" + b"55.5 g\n" * 2000]

    def read(n):
        if grams[0] is None:
            raise OSError("unplugged")
        lines[0] += b"%.1f g\n" % grams[0] if grams[0] else b""
        data, lines[0] = lines[0][:n], lines[0][n:]
        asked[0] += 1
        return data if asked[0] % 7 else b""

    asked = [0]
    serial = types.SimpleNamespace(Serial=lambda *_, **__: types.SimpleNamespace(read=read), SerialException=OSError)
    monkeypatch.setitem(sys.modules, "serial", serial)
    scale = kinova_real.Scale("/dev/ttyUSB0")
    while lines[0].startswith((b"5", b"0", b"g", b" ", b".")) and asked[0] < 100:
        scale.take()
    scale.zero()
    assert scale.tare == 100.0 and scale.spilled() is None
    grams[0] = 101.9
    assert scale.spilled() is None
    grams[0] = 102.4
    assert "2.4 g" in scale.spilled()
    scale.zero()
    assert scale.spilled() is None
    grams[0] = 0.0
    monkeypatch.setattr(kinova_real.time, "monotonic", lambda then=time.monotonic() + 3: then)
    with pytest.raises(kinova_real.Failure, match="silent"):
        scale.spilled()
    grams[0] = None
    with pytest.raises(kinova_real.Failure, match="lost"):
        scale.spilled()


# Processes, by the real clock


@pytest.fixture
def arm(tmp_path):
    """An arm that outlives those who use it, in a process of its own."""
    teach(tmp_path)
    with fake_kortex.serve(str(tmp_path / "arm")) as server:
        server.world = fake_kortex.RemoteArm(server.address)
        server.flags = ("--real-robot", "--robot-ip", f"fake:{server.address}")
        yield server


LEARNER = """
import signal, sys, time, numpy as np, kinova_real
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # which nohup has children ignore,
signal.signal(signal.SIGINT, signal.default_int_handler)  # and this a shell's background
class Person:
    key = True
    confirm = lambda self, text: None
    spilled = lambda self: None
env = kinova_real.KinovaPourCoffee(sys.argv[1], operator=Person())
env.reset()
for k in range(20):
    env.step(np.array([0.0, -0.3, 0.1, 0.0]) * (1 if k // 5 % 2 == 0 else -1))
    if k == 9:
        print("moving", env.guard.process.pid, flush=True)
        if sys.argv[2] == "hang":
            time.sleep(60)
        if sys.argv[2] == "raise":
            raise RuntimeError("a bug")
        if sys.argv[2] == "gil":
            sum(range(10**10))
time.sleep(60)
"""


def learner(tmp_path, arm, how):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", LEARNER, f"fake:{arm.address}", how]
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    guard = int(process.stdout.readline().split()[1])
    return process, guard


@pytest.mark.parametrize("how", ["hang", "gil", "raise", "SIGKILL", "SIGSTOP", "SIGINT", "SIGTERM", "SIGHUP"])
def test_whatever_becomes_of_the_learner_the_arm_is_at_rest_within_half_a_second(tmp_path, arm, how):
    process, _ = learner(tmp_path, arm, how)
    since = time.monotonic()
    if how.startswith("SIG"):
        assert arm.world.speed > 0.2
        os.kill(process.pid, getattr(signal, how))
    time.sleep(1.5)
    motion = arm.world.samples(since - 0.2)
    assert max(np.linalg.norm(s.velocity) for s in motion) > 0.1  # it did move
    moving = [s.time - since for s in motion if np.linalg.norm(s.velocity) > 1e-3]
    print(f"{how}: at rest after {max(moving):.3f} s")
    assert max(moving) < 0.5 and arm.world.speed == 0
    assert [c.method for c in arm.world.calls if c.method in ("Stop", "SendTwistCommand")][-1] == "Stop"
    process.kill()
    process.wait()
    ended = time.monotonic()
    while len(calls(arm.world, "disconnect")) < 2:  # the arm's process closes its sessions, and goes
        assert time.monotonic() - ended < 10
        time.sleep(0.1)
    assert len(calls(arm.world, "CloseSession")) == 2


@pytest.mark.parametrize("how", ["SIGKILL", "SIGTERM"])
def test_the_arms_own_process_dies(tmp_path, arm, how):
    """Killed: the robot's inactivity stop, after 0.5 s, is what is left. Terminated: it stops the arm itself."""
    process, guard = learner(tmp_path, arm, "go on")
    since = time.monotonic()
    os.kill(guard, getattr(signal, how))
    time.sleep(1.5)
    moving = [s.time - since for s in arm.world.samples(since) if np.linalg.norm(s.velocity) > 1e-3]
    print(f"{how}: at rest after {max(moving):.3f} s")
    assert max(moving) < (0.5 if how == "SIGTERM" else 0.8)
    process.kill()
    _, err = process.communicate()
    assert b"EMERGENCY STOP" in err


def test_the_arms_own_process_is_frozen_and_goes_on(tmp_path, arm):
    """By the command that waits for it the arm would start again, seconds after people saw it stop."""
    process, guard = learner(tmp_path, arm, "go on")
    os.kill(guard, signal.SIGSTOP)
    time.sleep(1.5)
    assert arm.world.speed == 0  # the robot's inactivity stop
    since = time.monotonic()
    os.kill(guard, signal.SIGCONT)
    time.sleep(1.0)
    assert max(np.linalg.norm(s.velocity) for s in arm.world.samples(since)) < 1e-3
    process.kill()
    assert b"no fresh command" in process.communicate()[1]


def test_ctrl_c_and_the_arm_goes_on(tmp_path, arm):
    """That no Stop reaches it is said, whoever ends."""
    command = [sys.executable, str(ROOT / "kinova_real.py"), "--speed", "0.2", "--robot-ip", f"fake:{arm.address}"]
    process = subprocess.Popen(
        command, cwd=tmp_path, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # which a shell's background ignores
    )  # fmt: skip
    process.stdin.write("yes\nyes\n")
    process.stdin.flush()
    while arm.world.speed < 0.05:
        time.sleep(0.05)
    for method in ("Stop", "ApplyEmergencyStop"):
        arm.world.fail(method, "hang", times=1000)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    assert "NOT SEEN AT REST: PRESS THE EMERGENCY STOP" in err and err.strip().endswith("told to stop it"), err


TRAIN = "--env-id PourCoffee --batch-size 32 --hidden-size 16 --learning-starts 50 --no-cuda".split()


def start(tmp_path, *flags, script=SCRIPT):
    confirm = subprocess.Popen(["yes", "yes"], stdout=subprocess.PIPE)
    command = [sys.executable, str(script), *map(str, flags)]
    process = subprocess.Popen(
        command, cwd=tmp_path, stdin=confirm.stdout, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    confirm.stdout.close()
    return process


@pytest.mark.parametrize("steps", [200, pytest.param(1000, marks=pytest.mark.slow)])
def test_training_through_the_fake_killed_and_resumed(tmp_path, arm, steps):
    """The real command line: a fault in between, killed, resumed; the failed step is in no buffer."""
    import torch

    process = start(tmp_path, *TRAIN, *arm.flags, "--total-timesteps", steps, "--checkpoint-every", steps // 4)
    while not list(tmp_path.glob("runs/*/checkpoint.pt")):
        time.sleep(0.2)
        assert process.poll() is None, process.stderr.read()
    (run_dir,) = tmp_path.glob("runs/*")
    assert run_dir.name.startswith("PourCoffee_fake__")
    time.sleep(2)
    process.kill()
    assert "REHEARSAL" in process.communicate()[1]
    killed, home = time.monotonic(), []
    process = start(tmp_path, "--resume", run_dir, *arm.flags)
    while not home or calls(arm.world, "SendTwistCommand")[-1].time < home[-1]:  # until the next episode's first step
        time.sleep(0.2)
        assert process.poll() is None, process.stderr.read()
        home = [call.time for call in calls(arm.world, "ExecuteAction") if call.time > killed]
    arm.world.at(1.0, "fault", 0x10)  # in this episode; then somebody clears it
    arm.world.at(2.0, "set", "faults", 0)
    out, err = process.communicate()
    assert process.returncode == 0, err
    assert f"{steps} steps" in out and "REHEARSAL" in err
    failures = err.count("the step is not stored")
    saved = torch.load(run_dir / "checkpoint.pt", weights_only=True)
    print(f"{steps} steps, {failures} failures, {saved['parts']['D']['added']} transitions in D")
    assert failures >= 1 and saved["parts"]["D"]["added"] == steps - failures
    assert saved["parts"]["D_s"]["added"] == 0 and saved["arm"] == "_fake"
    curves = scalars(run_dir)
    assert np.median([value for _, value in curves["charts/delay"]]) < 0.2 and "charts/overrun" in curves


def test_from_the_twin_to_the_arm(tmp_path, arm):
    """A policy from the twin runs on the arm; --resume goes on there, in a folder of its own, with the twin's data."""
    import torch

    result = run(tmp_path, *TRAIN, "--total-timesteps", 400, "--initial-states", 2, "--learning-starts", 1000)
    assert result.returncode == 0, result.stderr
    (parent,) = tmp_path.glob("runs/*")
    process = start(tmp_path, "--evaluate", parent, "--episodes", 1, *arm.flags)
    out, err = process.communicate()
    assert process.returncode == 0, err
    assert re.search(r"(?m)^episodic_length\D+100\.000\D+0\.000$", out) and "REHEARSAL" in err
    facts = json.loads((parent / "eval_400_fake.json").read_text())
    assert len(facts["episodes"]["delay"]) == 1 and facts["mean"]["delay"] < 0.2
    before = {path: path.read_bytes() for path in parent.glob("*.pt")}
    process = start(tmp_path, "--resume", parent, *arm.flags, "--total-timesteps", 480)
    out, err = process.communicate()
    assert process.returncode == 0, err
    (child,) = set(tmp_path.glob("runs/*")) - {parent}
    assert child.name.startswith("PourCoffee_fake__")
    states = [torch.load(folder / "checkpoint.pt", weights_only=True) for folder in (parent, child)]
    assert states[1]["args"]["resume"] == str(parent) and str(child.relative_to(tmp_path)) in out
    assert states[1]["args"]["learning_starts"] == 500 and states[1]["args"]["checkpoint_every"] == 100
    D = [state["parts"]["D"] for state in states]
    assert states[0]["counters"][2] > 0 and states[1]["counters"][2] == 0  # the violations are the arm's own
    assert D[1]["added"] == D[0]["added"] + 80 and torch.equal(D[1]["obs"][: D[0]["added"]], D[0]["obs"])
    assert before == {path: path.read_bytes() for path in parent.glob("*.pt")}


@pytest.mark.parametrize("script", [SCRIPT, ROOT / "sac_lag_baselines.py"])
@pytest.mark.parametrize(
    "flags, words",
    [
        (("--env-id", "EggManipulate"), ("--real-robot", "--env-id PourCoffee")),
        (("--env-id", "PourCoffeeSim4"), ("--real-robot", "--env-id PourCoffee,")),
        (("--env-id", "PourCoffee", "--capture-video"), ("--real-robot", "without --capture-video")),
        (("--env-id", "PourCoffee", "--eval-every", 10), ("--real-robot", "--eval-every")),
        (("--env-id", "PourCoffee"), ("no goal", "--teach")),
    ],
)  # fmt: skip
def test_bad_input(run_here, script, flags, words):
    assert_one_line(run_here(*flags, "--real-robot", "--robot-ip", "fake", script=script), *words)


@pytest.mark.parametrize("script", [SCRIPT, ROOT / "sac_lag_baselines.py"])
def test_what_was_learned_without_the_arms_latency_stays_off_it(tmp_path, run_here, script):
    """But for a rehearsal; the twin's policies, and those that were learned on the arm, go on to its driver."""
    import torch

    learned = torch.load(ROOT / "experiments" / "policies" / "PourCoffee.pt", weights_only=True)
    twin = {"env_id": "PourCoffeeTwin"}
    cases = ({}, "train one"), ({"arm": "_fake"}, "train one"), ({**twin, "arm": "_fake"}, "train one"), (twin, "--teach")
    cases = *cases, ({"arm": "_10.0.0.9"}, "--teach")
    for changed, words in cases:
        torch.save({**learned, **changed}, tmp_path / "policy_1.pt")
        result = run_here("--evaluate", tmp_path, "--real-robot", "--robot-ip", "10.0.0.9", script=script)
        assert_one_line(result, words)
    torch.save(learned, tmp_path / "policy_1.pt")
    assert_one_line(run_here("--evaluate", tmp_path, "--real-robot", "--robot-ip", "fake", script=script), "--teach")


def test_a_baseline_on_the_arm(tmp_path, arm):
    process = start(tmp_path, *TRAIN, *arm.flags, "--total-timesteps", 60, script=ROOT / "sac_lag_baselines.py")
    out, err = process.communicate()
    assert process.returncode == 0 and "PourCoffee_fake" in out, err


def test_the_operator_quits(tmp_path, arm):
    command = [sys.executable, str(SCRIPT), *TRAIN, *arm.flags]
    result = subprocess.run(command, cwd=tmp_path, input="yes\nquit\n", capture_output=True, text=True)
    assert_one_line(result, "the operator has quit")
    assert "stopped at step" in result.stderr


def test_the_first_motion_and_teaching(tmp_path):
    """kinova_real.py by itself, as README has it."""
    script = str(ROOT / "kinova_real.py")
    command = [sys.executable, script, "--robot-ip", "fake"]
    taught = subprocess.run([*command, "--teach"], cwd=tmp_path, input="yes\nyes\n", capture_output=True, text=True)
    assert taught.returncode == 0, taught.stderr
    goal = json.loads((tmp_path / "kinova_goal.fake.json").read_text())["goal"]
    assert goal == pytest.approx(SPEC.goal, abs=1e-3)
    moved = subprocess.run(
        [*command, "--speed", "0.2"], cwd=tmp_path, input="yes\nyes\n", capture_output=True, text=True
    )
    assert moved.returncode == 0, moved.stderr
    assert "PRESS" not in taught.stderr + moved.stderr
    assert "REHEARSAL" in moved.stdout and "failure: none" in moved.stdout and "overruns: " in moved.stdout
    for speed in ("0", "-1", "9", "nan"):
        refused = subprocess.run([*command, "--speed", speed], cwd=tmp_path, capture_output=True, text=True)
        assert refused.returncode and "Traceback" not in refused.stderr, refused.stderr
