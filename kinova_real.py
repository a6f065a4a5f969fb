"""Pour Coffee on a real Kinova Gen3 (7 joints): Meta SAC-Lag's hardware experiment (Section 5.3, Table 2, row "Real").

    python kinova_real.py --teach               # once: where the mug has to be to pour, shown by a person
    python kinova_real.py --speed 0.03          # the first motion: checks, a slow scripted pour, what was measured
    python meta_sac_lag.py --evaluate runs/FOLDER --real-robot

The robot's address is --robot-ip (192.168.1.10). `--robot-ip fake` rehearses all of this, in a checkout, on a simulated
arm (tests/fake_kortex.py). Read docs/real_arm.md first: NOTHING HERE HAS MOVED A REAL ARM YET.

A twist lasts until the next one, or Stop: the robot has no timeout for it. And its only watchdog, on the connection, is
kept content by a thread of kortex_api, whatever the program is busy with. So the session belongs to a process of its
own, `guard`, and nothing that the learner does or fails to do can keep the arm moving. What protects, outermost first:

 1. A person with the emergency stop (in the power line) in hand; the gamepad, which should override everything.
 2. The robot: soft limits, which `Arm.check` sets and reads back; its hard limits; the inactivity of a connection
    stops what it moves (500 ms; for when guard itself dies). `ApplyEmergencyStop` is a message: no emergency stop.
 3. guard's end: the learner dead or gone, SIGTERM, an exception here: Stop, confirmed by feedback.
 4. `Arm.tick`, every 25 ms: no fresh command for 0.25 s (10 s after the `yes`, for the first), feedback that is lost,
    old, not finite or that contradicts itself, a fault, another arm state, another's command, contact, a tilted mug,
    the mug outside its box: Stop. It latches: until the next reset no twist is sent, and what moves is stopped again.
 5. A command lasts one control period; where the next is late the arm comes to rest meanwhile.
 6. `Arm.send`: the mug's velocity changes by no more than `acceleration_max` (its roll at once, as in the twin).
 7. `Specification.limit`: finite, norm, change, and the workspace, on the position predicted for when it takes effect.
 8. `Arm.check` before every episode, which fails closed; and a `yes`, typed: before every episode, and before the arm
    goes home at first, after a violation and after a failure.
"""

import dataclasses
import json
import math
import multiprocessing.connection
import os
import re
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import gymnasium as gym
import numpy as np

import pour_coffee_env as pour

# From the observation to the motion that answers it: the learner's time for a gradient step, and half an RPC. The
# limits reckon with it, and so can the twin (`PourCoffeeTwin`, below).
SPECIFICATION = dataclasses.replace(pour.SPECIFICATION, latency=0.075)
TICK = 0.025  # s, between two looks at the arm: the robot's command period
SEND = 0.05  # s, between two twists while the velocity still changes: one costs about 25 ms over TCP
WATCHDOG = 0.25  # s without a fresh command, then Stop
RPC_TIMEOUT, FEEDBACK_TIMEOUT, SETTING_TIMEOUT = 150, 40, 1000  # ms; kortex_api's own is 10 s
INACTIVITY, SESSION = 500, 10_000  # ms of silence: the robot stops what the connection moves; closes the session
STALE = 0.2  # s for which two readings are the same to the last bit
HOME_SPEED = 10.0  # deg/s, each joint on the way home
RESET_SPEED, RESET_TURN = 0.1, 0.4  # m/s and rad/s, of retreating and of putting the mug upright
AT_REST, DRIFT = 0.3, 0.003  # deg/s of any joint, m: below these the arm is at rest
CONTACT = 20.0  # N, the change of the force at the tool, which the robot estimates from its torques, within some 0.5 s
MARGIN, TILT = 0.02, 0.25  # m outside the box, and rad of pitch or yaw, that stop the arm
DISAGREE = 0.005  # m, between the robot's tool centre and the one computed from its joints
PATIENCE = 10.0  # s from the `yes` to the first command
LEVEL_RATE = 0.1  # rad/s, at most, to hold pitch and yaw at 0

WHEEL = (
    "--real-robot needs kortex_api, which Kinova itself gives out (not PyPI): the wheel for the arm's firmware, 2.8.0 "
    "for 2.8. On Python 3.11: pip install protobuf==3.20.0 deprecated==1.2.7 && pip install --no-deps kortex_api-*.whl "
    "(2.6 to 2.8 alike). TensorBoard 2.20.0, which requirements.txt pins, works with that protobuf; 2.21 does not"
)


def kortex():
    """What is used of kortex_api, by name.

    gym.error.DependencyNotInstalled, one line with the remedy, where it is missing, is another package of that name or
    an old wheel, or fits neither this Python nor its protobuf: at once, not at the first call that needs it.
    """
    try:
        from kortex_api.autogen.client_stubs.BaseClientRpc import BaseClient
        from kortex_api.autogen.client_stubs.BaseCyclicClientRpc import BaseCyclicClient
        from kortex_api.autogen.client_stubs.ControlConfigClientRpc import ControlConfigClient
        from kortex_api.autogen.client_stubs.DeviceConfigClientRpc import DeviceConfigClient
        from kortex_api.autogen.messages import Base_pb2, BaseCyclic_pb2, ControlConfig_pb2, Session_pb2
        from kortex_api.RouterClient import RouterClient, RouterClientSendOptions
        from kortex_api.SessionManager import SessionManager
        from kortex_api.TCPTransport import TCPTransport
        from kortex_api.UDPTransport import UDPTransport

        k = SimpleNamespace(**locals())
        needed = (
            (BaseClient, "ApplyEmergencyStop ExecuteAction GetActuatorCount GetArmState GetOperatingMode"),
            (BaseClient, "GetServoingMode SendTwistCommand Stop"),
            (BaseCyclicClient, "RefreshFeedback"),
            (ControlConfigClient, "GetKinematicSoftLimits SetTwistLinearSoftLimit SetTwistAngularSoftLimit"),
            (ControlConfigClient, "SetJointSpeedSoftLimits"),
            (DeviceConfigClient, "GetFirmwareVersion"),
            (RouterClient, "basicErrorCallback"),
            (SessionManager, "CreateSession CloseSession"),
            (Base_pb2, "Action TwistCommand ARMSTATE_SERVOING_READY RUN_MODE SINGLE_LEVEL_SERVOING"),
            (Base_pb2, "CARTESIAN_REFERENCE_FRAME_MIXED"),
            (BaseCyclic_pb2.BaseFeedback(), "active_state active_state_connection_identifier fault_bank_a"),
            (BaseCyclic_pb2.BaseFeedback(), "tool_pose_x tool_pose_theta_x tool_external_wrench_force_x"),
            (ControlConfig_pb2, "ANGULAR_TRAJECTORY CARTESIAN_JOYSTICK ControlModeInformation JointSpeedSoftLimits"),
            (ControlConfig_pb2, "TwistAngularSoftLimit TwistLinearSoftLimit"),
            (Session_pb2.CreateSessionInfo(), "session_inactivity_timeout connection_inactivity_timeout"),
        )
        for where, names in needed:
            for name in names.split():
                getattr(where, name)
    except Exception as error:
        why = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise gym.error.DependencyNotInstalled(f"{WHEEL}. Here: {why}") from None
    return k


class Failure(Exception):
    """The robot, or the way to it, did not do what was asked. `code`: the robot's sub-code, where it gave one."""

    def __init__(self, reason, code=None):
        super().__init__(reason)
        self.code = code


def rotation(x, y, z):
    """Kortex' angles, degrees about the fixed x, then y, then z -> rotation (3, 3)."""
    cx, cy, cz = np.cos(np.radians([x, y, z]))
    sx, sy, sz = np.sin(np.radians([x, y, z]))
    Rz, Ry = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]]), np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    return Rz @ Ry @ np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])


class Arm:
    """The session, and all that can move the arm. Lives in guard's process; SI units, but for what Kortex is told.

    mode: "stopped" (latched: `kind` and `reason` say why), "following" (commands), "homing".
    """

    def __init__(self, ip, specification, clock):
        self.spec, self.clock = specification, clock
        self.mode, self.kind, self.reason = "stopped", "not released", "the arm has not been released yet"
        self.command, self.going = np.zeros(4), np.zeros(4)  # what limit made of the last action; what was last sent
        self.commanded_at = self.heard_at = None
        self.sent_at = self.changed_at = -math.inf
        self.seen = self.observed = self.mark = self.baseline = self.owner = self.limits = None
        self.confirmed, self.rested_at = True, None  # whether the last stop was seen to work, and where
        self.again = []  # when another had to be sent
        self.moved = False  # whether anything of ours has
        self.closing = []
        self.connect(ip)

    def connect(self, ip):
        k = kortex()
        self.pb, self.config_pb, self.Options = k.Base_pb2, k.ControlConfig_pb2, k.RouterClientSendOptions
        routers = []
        try:
            for transport, port in ((k.TCPTransport(), 10000), (k.UDPTransport(), 10001)):  # UDP: feedback alone
                router = k.RouterClient(transport, k.RouterClient.basicErrorCallback)
                transport.connect(ip, port)
                self.closing.append(transport.disconnect)
                session, info = k.SessionManager(router), k.Session_pb2.CreateSessionInfo()
                info.username, info.password = "admin", "admin"
                info.session_inactivity_timeout, info.connection_inactivity_timeout = SESSION, INACTIVITY
                session.CreateSession(info)
                self.closing.append(lambda session=session: session.CloseSession(options=self.within(1000)))
                routers.append(router)
        except Exception as error:
            raise Failure(f"no session with the robot at {ip}: {type(error).__name__}: {error}") from None
        self.base, self.config = k.BaseClient(routers[0]), k.ControlConfigClient(routers[0])
        self.device, self.cyclic = k.DeviceConfigClient(routers[0]), k.BaseCyclicClient(routers[1])

    def within(self, milliseconds):
        options = self.Options()  # never the default one: that is shared, and waits 10 s
        options.timeout_ms = milliseconds
        return options

    def rpc(self, client, method, *message, timeout=RPC_TIMEOUT):
        try:
            return getattr(client, method)(*message, options=self.within(timeout))
        except Exception as error:  # kortex_api's own, sockets' and protobuf's
            code = getattr(getattr(error, "error", None), "error_sub_code", None)
            silent = isinstance(error, TimeoutError)
            words = " ".join(str(error).split())
            what = f"no answer within {timeout} ms" if silent else f"{type(error).__name__}: {words}"
            raise Failure(f"{method}: {what}", code) from None

    # What the arm says

    def read(self):
        """The robot's state, in our units and frames; Failure where there is none."""
        asked = self.clock.now()
        try:
            fb = self.rpc(self.cyclic, "RefreshFeedback", timeout=FEEDBACK_TIMEOUT)
        except Failure:  # UDP loses packets
            asked = self.clock.now()
            fb = self.rpc(self.cyclic, "RefreshFeedback", timeout=FEEDBACK_TIMEOUT)
        at, b, wrist = (asked + self.clock.now()) / 2, fb.base, fb.interconnect
        joints = np.array([(joint.position, joint.velocity, joint.torque) for joint in fb.actuators], float)
        tool = np.array([b.tool_pose_x, b.tool_pose_y, b.tool_pose_z])
        turned = np.array([b.tool_pose_theta_x, b.tool_pose_theta_y, b.tool_pose_theta_z])
        force = [b.tool_external_wrench_force_x, b.tool_external_wrench_force_y, b.tool_external_wrench_force_z]
        shake = [wrist.imu_acceleration_x, wrist.imu_acceleration_y, wrist.imu_acceleration_z]
        if joints.shape != (7, 3) or not np.isfinite([*joints.flat, *tool, *turned, *force]).all():
            raise Failure("the feedback is not seven joints and finite numbers")
        mark = (fb.frame_id, *joints.flat, *shake)  # sensors are never the same twice
        if mark != self.mark:
            self.mark, self.changed_at = mark, at
        q = (np.radians(joints[:, 0]) + math.pi) % (2 * math.pi) - math.pi  # 0 to 360 degrees there
        position, R, J = pour.kinematics(q)
        faults = [(b.fault_bank_a, b.fault_bank_b), (wrist.fault_bank_a, wrist.fault_bank_b)]
        faults += [(joint.fault_bank_a, joint.fault_bank_b) for joint in fb.actuators]
        return SimpleNamespace(
            at=at, q=q, position=position, R=R, angles=pour.tait_bryan(R), velocity=(J @ np.radians(joints[:, 1]))[:3],
            force=np.array(force), speed=np.abs(joints[:, 1]).max(), faults=faults, arm_state=b.active_state,
            disagree=float(np.linalg.norm(position - tool)), owner=b.active_state_connection_identifier,
            turned=float(np.linalg.norm(R - rotation(*turned) @ pour.MUG_IN_TOOL)),
        )  # fmt: skip

    def look(self):
        """`read`, and Failure where the arm is not to be trusted any more; contact stops it, and is no failure."""
        state, before = self.read(), self.seen
        if state.at - self.changed_at > STALE:
            raise Failure(f"the feedback has been the same for {state.at - self.changed_at:.2f} s")
        if any(bits for banks in state.faults for bits in banks):
            names = ["base", "wrist", *(f"joint {i}" for i in range(1, 8))]
            shown = (f"{name} {a:#x} {b:#x}" for name, (a, b) in zip(names, state.faults) if a or b)
            raise Failure(f"the robot reports a fault ({', '.join(shown)}): mend what caused it, then clear it there")
        # Ready; or playing or controlled, since it is not documented what an arm that follows twists reports
        if state.arm_state not in (7, 8, 9):
            raise Failure(f"the robot is in the state {state.arm_state}, not ready")
        if state.disagree > DISAGREE or state.turned > 0.05:
            raise Failure(
                f"the robot's tool centre is {state.disagree:.3f} m and {state.turned:.2f} rad from the mug's as its "
                f"joints have it: on the robot, tool_transform has to be z = {pour.TOOL} m and no more"
            )
        if before is not None and self.mode == "following":
            way, while_ = np.linalg.norm(state.position - before.position), state.at - before.at
            if way > 2 * self.spec.speed_max * while_ + 0.01:
                raise Failure(f"the mug seems to have jumped {way:.3f} m within {while_:.3f} s")
            # The last whose command changed the arm's state: by Kinova's text our first twist makes that us
            if self.first_sent is None or state.at - self.first_sent < 0.5:
                self.owner = state.owner
            elif state.owner != self.owner:
                raise Failure("somebody else has taken the control of the arm")
        self.seen = state
        if self.baseline is None or self.mode == "stopped":
            self.baseline = state.force
        felt = float(np.linalg.norm(state.force - self.baseline))
        self.baseline = self.baseline + 0.05 * (state.force - self.baseline)
        if felt > CONTACT and self.mode != "stopped":
            self.stop("contact", f"contact: the force at the tool changed by {felt:.0f} N")
        return state

    # What ends motion

    def stop(self, kind, reason):
        """Latches, then stops the arm until its joints are seen at rest; says so in `reason` where they are not."""
        if self.mode == "stopped" and self.kind != "not released" and self.confirmed:
            if kind == "failure":
                self.kind, self.reason = kind, reason
            return
        self.mode, self.kind, self.reason, self.confirmed = "stopped", kind, reason, False
        self.command, self.going, self.commanded_at = np.zeros(4), np.zeros(4), None
        began, problem = self.clock.now(), ""
        asked, rest_since, theirs, answered = -math.inf, None, False, False
        while (now := self.clock.now()) - began < 3.0:
            try:
                if now - asked > 0.3:
                    asked = now
                    answered = self.send_stop() or answered
                state = self.read()
                theirs = self.owner is not None and state.owner != self.owner
                fresh = state.at - self.changed_at < STALE
                problem = "it still moves" if fresh else "its feedback does not change"
                problem += "" if answered else ", and no Stop is answered"
                resting = state.speed < AT_REST and fresh
                rest_since = (rest_since or state.at) if resting else None
                # A robot in a fault may refuse a Stop. But of what a Stop did not reach something may still come
                if rest_since and state.at - rest_since >= (0.15 if answered else 1.0):
                    self.confirmed, self.rested_at = True, state.position
                    return
            except Failure as failure:
                problem, rest_since = str(failure), None
            self.clock.sleep(TICK)
        if self.moved and not theirs:  # who frees somebody by the gamepad needs an arm without a fault
            try:
                self.rpc(self.base, "ApplyEmergencyStop")
            except Failure:
                pass
        self.kind = "failure"
        self.reason += f". THE ARM IS NOT SEEN AT REST ({problem}): PRESS THE EMERGENCY STOP"

    def send_stop(self):
        """Whether the robot took it."""
        try:
            self.rpc(self.base, "Stop")
        except Failure as failure:
            return failure.code == 19  # ROBOT_NOT_MOVING
        return True

    def tick(self):
        """Every 25 ms: layers 4 to 6."""
        now = self.clock.now()
        try:
            if self.mode == "stopped":
                return self.watch(now)
            self.in_time()
            state = self.look()
            self.stay_inside(state)
            if self.mode == "following":
                expired = self.commanded_at is not None and now - self.commanded_at > self.spec.control_period + TICK
                target = np.zeros(4) if expired else self.command
                if (target != self.going).any() and (expired or now - self.sent_at > SEND - 0.001):
                    self.send(target)
            elif self.mode == "homing":
                away = np.abs(self.from_home(state))
                self.nearest = np.minimum(self.nearest, away)
                if (away > self.nearest + math.radians(3.0)).any():
                    raise Failure("a joint turns away from home")
                if state.speed > AT_REST:
                    self.homing_since = now
                elif now - self.homing_since > 0.5 and away.max() < math.radians(0.5):
                    self.stop("at home", "the arm is at home")
                elif now - self.homing_since > 2.0:
                    raise Failure("the arm came to rest before it was at home")
        except Failure as failure:
            if self.mode != "stopped":
                self.stop("failure", str(failure))

    def in_time(self):
        """Failure where who commands has been silent for too long."""
        since, most = self.heard_at if self.mode == "homing" else self.commanded_at, WATCHDOG
        if since is None:
            since, most = self.released_at, PATIENCE
        if self.clock.now() - since > most:
            raise Failure(f"no fresh command for {self.clock.now() - since:.2f} s")

    def watch(self, now):
        """What moves a stopped arm is stopped: a command may arrive seconds late (seen on a Gen3), after the Stop.

        At most three times in 10 s: what goes on in spite of that is a person with the gamepad, who comes first.
        """
        self.again = [at for at in self.again if now - at < 10.0]
        if self.kind == "not released" or len(self.again) == 3 or self.again and now - self.again[-1] < 0.3:
            return
        try:
            state = self.read()
            moved = self.confirmed and np.linalg.norm(state.position - self.rested_at) > DRIFT
            if not moved and state.speed < 2 * AT_REST:
                return
            self.rested_at = state.position
        except Failure:
            if self.confirmed:
                return
        self.again.append(now)
        self.send_stop()

    def stay_inside(self, state):
        homing = self.mode == "homing"  # between joint angles the mug goes in arcs, which tilt it, and mostly upwards
        below, above = (0.15, (0.15, 0.15, 0.4)) if homing else (MARGIN, MARGIN)
        low, high = np.array(self.spec.workspace_low) - below, np.array(self.spec.workspace_high) + above
        if (state.position < low).any() or (state.position > high).any():
            raise Failure(f"the mug is at {np.round(state.position, 3).tolist()} m, outside its workspace")
        if np.abs(state.angles[:2]).max() > TILT and not homing:
            raise Failure(f"the mug is tilted: yaw and pitch are {np.round(state.angles[:2], 2).tolist()} rad")

    def from_home(self, state):
        return (state.q - np.radians(self.spec.home) + math.pi) % (2 * math.pi) - math.pi

    def send(self, target):
        """One twist on the way from what goes to the target, (4,) in m/s and rad/s; when it was sent (s)."""
        now, R, a_max = self.clock.now(), self.seen.R, self.spec.acceleration_max
        change = target[:3] - self.going[:3]
        step = a_max * min(now - self.sent_at, SEND)
        self.going = np.append(self.going[:3] + change * min(1.0, step / max(np.linalg.norm(change), 1e-9)), target[3])
        # Pitch and yaw are held at 0, as in the twin. The mug's x is the tool's z, so its roll's rate is the twist's
        # angular z in the tool's frame: no Euler angle of the tool, which are singular in the pour, is needed.
        tilt = 0.5 * np.cross(R.T, pour.rotation_x(self.seen.angles[2]).T).sum(0)
        level = np.clip((R @ pour.MUG_IN_TOOL.T).T @ tilt, -LEVEL_RATE, LEVEL_RATE) * self.going.any()
        message = self.pb.TwistCommand()
        message.reference_frame = self.pb.CARTESIAN_REFERENCE_FRAME_MIXED  # linear: the base's; angular: the tool's
        twist = message.twist
        twist.linear_x, twist.linear_y, twist.linear_z = map(float, self.going[:3])
        twist.angular_x, twist.angular_y, twist.angular_z = map(math.degrees, (level[0], level[1], self.going[3]))
        self.sent_at, self.first_sent, self.moved = now, self.first_sent or now, True
        self.rpc(self.base, "SendTwistCommand", message)
        return (now + self.clock.now()) / 2

    # What guard is asked for; each may raise Failure

    def check(self):
        """Layer 8 -> what was found, a list of lines. Sets the soft limits. Moves nothing."""
        pb = self.pb
        firmware = self.rpc(self.device, "GetFirmwareVersion").firmware_version
        found = [f"firmware {firmware:#x}"]
        for what, wanted, given in (
            ("number of joints", 7, self.rpc(self.base, "GetActuatorCount").count),
            ("operating mode", pb.RUN_MODE, self.rpc(self.base, "GetOperatingMode").operating_mode),
            ("servoing mode", pb.SINGLE_LEVEL_SERVOING, self.rpc(self.base, "GetServoingMode").servoing_mode),
            ("arm state", pb.ARMSTATE_SERVOING_READY, self.settled_state()),
        ):
            if given != wanted:
                raise Failure(f"the robot's {what} is {given}, but it has to be {wanted}")
            found.append(f"{what} {given}")
        state = self.look()
        if state.speed > AT_REST:
            raise Failure(f"the arm moves ({state.speed:.1f} deg/s)")
        self.stay_inside(state)
        found.append(f"the mug is at {np.round(state.position, 3).tolist()} m")

        most = math.degrees(math.hypot(self.spec.roll_rate_max, LEVEL_RATE, LEVEL_RATE))
        self.limits = self.limits or self.soft_limits()  # for `close`
        self.set_soft_limits(self.spec.speed_max, most, [HOME_SPEED] * 7)
        given, wanted = self.soft_limits(), (self.spec.speed_max, most, [HOME_SPEED] * 7)
        given, wanted = ([linear, angular, *speeds] for linear, angular, speeds in (given, wanted))
        if len(given) != 9 or not np.allclose(given, wanted, rtol=1e-3):
            raise Failure(f"the soft limits were set to {np.round(wanted, 2)}, but read back as {np.round(given, 2)}")
        found.append(f"soft limits {wanted[0]} m/s, {wanted[1]:.0f} deg/s, way home {HOME_SPEED} deg/s, read back")
        return found

    def settled_state(self):
        """The arm's state, once it is ready, or after 5 s: after a session's end it is in another for a while."""
        for _ in range(50):
            state = self.rpc(self.base, "GetArmState").active_state
            if state == self.pb.ARMSTATE_SERVOING_READY:
                break
            self.clock.sleep(0.1)
        return state

    # What limits twists, and the way home, on the robot: m/s, deg/s, and deg/s of each joint

    def soft_limits(self):
        read = []
        for control_mode in (self.config_pb.CARTESIAN_JOYSTICK, self.config_pb.ANGULAR_TRAJECTORY):
            which = self.config_pb.ControlModeInformation()
            which.control_mode = control_mode
            read.append(self.rpc(self.config, "GetKinematicSoftLimits", which, timeout=SETTING_TIMEOUT))
        return read[0].twist_linear, read[0].twist_angular, list(read[1].joint_speed_limits)

    def set_soft_limits(self, linear, angular, speeds):
        pb = self.config_pb
        messages = pb.TwistLinearSoftLimit(), pb.TwistAngularSoftLimit(), pb.JointSpeedSoftLimits()
        messages[0].control_mode, messages[0].twist_linear_soft_limit = pb.CARTESIAN_JOYSTICK, linear
        messages[1].control_mode, messages[1].twist_angular_soft_limit = pb.CARTESIAN_JOYSTICK, angular
        messages[2].control_mode = pb.ANGULAR_TRAJECTORY
        messages[2].joint_speed_soft_limits.extend(speeds)
        for message in messages:  # SetTwistLinearSoftLimit takes a TwistLinearSoftLimit, and so on
            self.rpc(self.config, f"Set{type(message).__name__}", message, timeout=SETTING_TIMEOUT)

    def state(self):
        """What the environment sees: the arm's state, or why it is stopped. What limit will reckon with."""
        if self.mode != "stopped" or self.kind == "not released":
            self.observed = self.look()
        elif self.kind != "failure":  # nothing moves: what can still be read is enough
            self.observed = self.read()
        else:
            return None
        s = self.observed
        return dict(
            at=s.at, position=s.position, angles=s.angles, velocity=s.velocity,
            home=bool(np.abs(self.from_home(s)).max() < math.radians(1.0)),
        )  # fmt: skip

    def release(self):
        """Ends the latch: from here on commands move the arm."""
        found = self.check()
        self.observed = self.look()
        self.mode, self.kind, self.reason, self.released_at = "following", "", "", self.clock.now()
        self.commanded_at = self.first_sent = None
        return found

    def act(self, action):
        """Layer 7 -> when the twist was sent (s)."""
        action = np.asarray(action, float)
        if action.shape != (4,) or not np.isfinite(action).all():
            raise Failure(f"an action is four finite numbers, but this is {action.tolist()}")
        if self.mode == "following":
            s, last = self.observed, self.command
            if self.commanded_at and self.clock.now() - self.commanded_at > self.spec.control_period + TICK:
                s, last = self.seen, self.going  # too late: it has been braking since
            self.command = self.spec.limit(action, s.position, s.velocity, s.angles[2], last)
            self.commanded_at = self.clock.now()
            return self.send(self.command)
        return self.clock.now()

    def home(self):
        """Starts the way home, by joint angles, which nothing but layers 1 to 4 guards: the way has to be free."""
        if self.mode != "following":
            raise Failure(f"the arm is stopped ({self.reason})")
        action = self.pb.Action()
        action.name = "pour coffee: home"
        for i, angle in enumerate(self.spec.home):
            joint = action.reach_joint_angles.joint_angles.joint_angles.add()
            joint.joint_identifier, joint.value = i, angle
        self.mode, self.homing_since, self.nearest = "homing", self.clock.now(), np.abs(self.from_home(self.seen))
        self.moved = True
        self.rpc(self.base, "ExecuteAction", action)

    def handle(self, name, *arguments):
        """A request -> (what it gives, the mode, kind of stop, reason). What fails stops the arm."""
        gives = None
        try:
            if self.mode != "stopped":  # after a freeze of this process a request comes before the tick
                self.in_time()
            self.heard_at = self.clock.now()
            gives = getattr(self, name)(*arguments)
        except Failure as failure:
            if self.mode == "stopped" and name in ("check", "release"):  # it may be put right, and asked again
                return None, "stopped", "failure", str(failure)
            self.stop("failure", str(failure))
        return gives, self.mode, self.kind, self.reason

    def close(self):
        """Stop, confirmed; then the soft limits as they were made; then the sessions. Each whatever the others did."""
        self.stop("closed", "the session ends")
        restore = (lambda: self.set_soft_limits(*self.limits),) if self.limits else ()
        for last in (*restore, *reversed(self.closing)):
            try:
                last()
            except Exception:  # a broken connection raises here again
                pass


# The same in all processes of a machine; on Linux it counts the time for which the machine was suspended, too
CLOCK = SimpleNamespace(
    now=lambda: time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)), sleep=time.sleep
)


def guard(pipe, parent, ip, fake, specification):
    """The process that has the arm, until its pipe ends -> whether the arm was seen at rest then.

    It is in a session of its own, so that Ctrl-C spares it.
    """
    ending = []
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(signum, lambda *_: ending.append(True))
    if fake:
        sys.path.insert(0, str(Path(__file__).resolve().parent / "tests"))
        import fake_kortex

        fake_kortex.install(address=fake)
    arm, due = None, 0.0
    try:
        try:
            kortex()
            if not fake:
                socket.create_connection((ip, 10000), 3).close()  # kortex_api would wait for minutes
            arm = Arm(ip, specification, CLOCK)
            pipe.send((None, arm.mode, arm.kind, arm.reason))
        except Exception as error:
            kind = "not installed" if isinstance(error, gym.error.DependencyNotInstalled) else "failure"
            known = kind == "not installed" or isinstance(error, Failure)
            pipe.send((None, "stopped", kind, str(error) if known else f"{type(error).__name__}: {error}"))
            return True
        while not ending and os.getppid() == parent:
            if pipe.poll(max(0.0, due - time.monotonic())):
                pipe.send(arm.handle(*pipe.recv()))
            if time.monotonic() >= due:
                arm.tick()
                due = time.monotonic() + TICK
    except (EOFError, OSError):
        pass  # the learner has gone
    finally:
        if arm:
            arm.close()
    return arm.confirmed


class Guard:
    """The environment's end of the pipe to guard."""

    def __init__(self, robot_ip, specification):
        self.server, fake = None, ""
        if robot_ip.startswith("fake"):
            fake = robot_ip.partition(":")[2]
            if not fake:
                self.server = fake_arm()
                fake = self.server.address
        ours, theirs = socket.socketpair()
        job = dict(parent=os.getpid(), ip=robot_ip, fake=fake, specification=dataclasses.asdict(specification))
        command = [sys.executable, os.path.abspath(__file__), "--guard", str(theirs.fileno()), json.dumps(job)]
        with open("kinova_guard.log", "w") as log:  # kortex_api prints; and a full pipe must not hold up a Stop
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=[theirs.fileno()],
                start_new_session=True,
            )  # fmt: skip
        theirs.close()
        self.pipe = multiprocessing.connection.Connection(ours.detach())
        try:
            _, _, kind, reason = self.ask()
            if kind == "not installed":
                raise gym.error.DependencyNotInstalled(reason)
            if kind == "failure":
                raise Failure(reason)
        except (Failure, gym.error.Error):
            self.close()
            raise

    def ask(self, *request):
        """A request -> (what it gives, mode, kind, reason), as `Arm.handle`; Failure where guard does not answer."""
        try:
            if request:
                self.pipe.send(request)
            if self.pipe.poll(10):
                return self.pipe.recv()
        except (EOFError, OSError):
            raise Failure(
                "the process that has the arm is gone (kinova_guard.log): PRESS THE EMERGENCY STOP IF THE ARM MOVES (it"
                f" should have stopped by itself after {INACTIVITY} ms)"
            ) from None
        except BaseException:  # Ctrl-C in between: the answer would be taken for that to the next request
            self.pipe.close()
            raise
        raise Failure("the process that has the arm has not answered for 10 s: PRESS THE EMERGENCY STOP")

    def close(self):
        self.pipe.close()  # this is what makes it stop the arm and end
        try:
            if self.process.wait(10):
                print("kinova: THE ARM WAS NOT SEEN AT REST: PRESS THE EMERGENCY STOP IF IT MOVES", file=sys.stderr)
        except subprocess.TimeoutExpired:
            self.process.kill()
            print("kinova: the arm's process did not end: PRESS THE EMERGENCY STOP IF IT MOVES", file=sys.stderr)
        if self.server:
            self.server.close()


def fake_arm(position=None):
    """Starts the rehearsal's arm in a process of its own: at home, or with the mug at a position (m)."""
    folder = Path(__file__).resolve().parent / "tests"
    if not (folder / "fake_kortex.py").exists():
        raise gym.error.DependencyNotInstalled(f"--robot-ip fake needs {folder / 'fake_kortex.py'}, of the checkout")
    sys.path.insert(0, str(folder))
    import fake_kortex

    settings = {} if position is None else {"joints": fake_kortex.joints_at(position)}
    address = f"fake_kortex_{os.getpid()}_{time.monotonic_ns()}"
    return fake_kortex.serve(os.path.join(tempfile.gettempdir(), address), **settings)


class Operator:
    """The person at the terminal: a typed `yes` confirms, Enter during an episode says that coffee was spilled."""

    def __init__(self):
        self.lines, self.rest = [], b""
        self.key = os.isatty(0)  # what is piped in can confirm (a rehearsal), but it sees no coffee

    def confirm(self, text):
        """Returns once `yes` was typed after the question, however long that takes; gym.error.Error where it cannot."""
        if self.key:  # what was typed before has not seen what it confirms
            import termios

            termios.tcflush(0, termios.TCIFLUSH)
            self.lines, self.rest = [], b""
        while True:
            print(f"\nkinova: {text}\nkinova: type yes, or quit: ", end="", file=sys.stderr, flush=True)
            while not self.lines:
                data = os.read(0, 4096)
                if not data:
                    raise gym.error.Error("standard input has ended, so nobody can confirm that the arm may move")
                self.take(data)
            answer = self.lines.pop(0).strip().lower()
            if answer == "yes":
                return
            if answer == "quit":
                raise gym.error.Error("the operator has quit")

    def spilled(self):
        """What says that coffee was spilled since the last time, or None."""
        while self.key and select.select([0], [], [], 0)[0]:
            data = os.read(0, 4096)
            if not data:
                break
            self.take(data)
        pressed, self.lines = self.key and any(not line.strip() for line in self.lines), self.lines * (not self.key)
        return "the operator's key" if pressed else None

    def take(self, data):
        *lines, self.rest = (self.rest + data).split(b"\n")
        self.lines += [line.decode(errors="replace") for line in lines]


class Scale:
    """A scale under the tray that writes its reading (g) to a serial port, a line each: 2 g more than at first.

    A line is a number, and perhaps more after it. Failure where none has come for 2 s.
    """

    def __init__(self, port):
        try:
            import serial
        except ImportError:
            raise gym.error.DependencyNotInstalled("a scale needs pyserial: pip install pyserial") from None
        try:
            self.port = serial.Serial(port, timeout=0)
        except serial.SerialException as error:
            raise gym.error.Error(f"there is no scale at {port}: {error}") from None
        self.rest, self.tare, self.reading, self.heard = b"", 0.0, None, -math.inf

    def zero(self):
        """What lies on it now is 0."""
        self.take()
        asked = time.monotonic()
        while self.heard <= asked:
            if time.monotonic() - asked > 2.0:
                raise Failure("the scale is silent")
            time.sleep(0.02)
            self.take()
        self.tare = self.reading

    def spilled(self):
        self.take()
        if time.monotonic() - self.heard > 2.0:
            raise Failure("the scale is silent")
        gained = self.reading - self.tare
        return f"the scale ({gained:.1f} g)" if gained > 2.0 else None

    def take(self):
        try:
            while data := self.port.read(4096):
                *lines, self.rest = (self.rest + data).split(b"\n")
                for line in lines:
                    if number := re.match(rb"\s*([+-]?\d+(\.\d*)?)", line):
                        self.reading, self.heard = float(number[1]), time.monotonic()
        except OSError as error:
            raise Failure(f"the scale is lost: {error}") from None


def goal_file(robot_ip):
    """Where a robot's taught goal is kept, in the current folder."""
    return f"kinova_goal.{robot_ip.partition(':')[0]}.json"


def taught(robot_ip, specification):
    """The specification with the goal that was taught, or gym.error.Error."""
    path = goal_file(robot_ip)
    try:
        with open(path) as file:
            x, y, z = (float(number) for number in json.load(file)["goal"])
        return dataclasses.replace(specification, goal=(x, y, z))
    except FileNotFoundError:
        how = f"python kinova_real.py --teach --robot-ip {robot_ip}"
        raise gym.error.Error(f"no goal has been taught, there is no {path} here. Show it once: {how}") from None
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise gym.error.Error(f"the goal in {path} cannot be used: {error}") from None


class KinovaPourCoffee(gym.Env):
    """
    ## Description
    `pour_coffee_env.PourCoffee` on a Kinova Gen3 with seven joints: the same observations, actions, reward, info keys
    and episode length, from the same `Specification`. See the module's docstring for what keeps it safe, and
    docs/real_arm.md, before anything else.

    ## Action Space, Observation Space
    `Box((4,), float32)` and `Box((15,), float32)`, as PourCoffee's. Position, angles and velocity come from the joints,
    by the twin's kinematics. A wrong shape or a number that is not finite stops the arm, then raises ValueError.

    ## Rewards
    Table 2, row "Real": by distance and roll alone.

    ## Cost
    Contact (the force at the tool changes by 20 N) is a violation: `cost_collision_cup` where the mug is within 0.2 m
    of the cup's rim, else `cost_collision_table` (the force does not say what was touched; `cost_collision_stand` and
    `cost_self_collision` stay 0). So is a spill, `cost_spill`, which operator or scale report. Both stop the arm. Where
    contact is found while the learner thinks, the step that tells of it has an action that was not carried out.

    ## Info
    As PourCoffee's: `spilled` is 0 or 1, `poured` is NaN, and `is_success` says that the mug is at the goal and within
    0.2 rad of goal_roll: nobody weighs the cup. Besides: `delay` (s, from the observation to the twist that answers the
    action), `overrun` (1.0 where the action came too late for its time).

    Where robot or connection fail, the arm is stopped and the step returns `truncated` and `infra_failure`: True in its
    info, with nothing to learn from; one line on standard error says why.

    ## Time
    Observations are `control_period` apart, by absolute deadlines; an action takes effect `latency` after the
    observation that it answers, however early it is given. One that comes too late shifts all that follow, and the arm
    comes to rest meanwhile.

    ## Starting State
    The arm rises, turns the mug upright, goes home by joint angles at 10 deg/s (at first, and after a violation or a
    failure, once a person has said yes), and waits for the mug to be filled, for as long as it takes. `seed` has no
    effect.

    ## Episode End
    Terminates on a violation, truncates after `episode_steps`; both stop the arm.

    ## Arguments
    * `robot_ip`: its address; "fake" for a rehearsal, or "fake:PATH" with tests/fake_kortex.py serving at PATH.
    * `specification`: a `Specification`, whose goal the taught one replaces. `goal_range` is 0.
    * `scale`: a serial port with a scale under the tray (`Scale`), beside the operator's key; None: the one that the
      environment variable KINOVA_SPILL_SCALE names, if any.
    * `operator`: an `Operator`. `guard`: a `Guard`'s class. `clock`: now() and sleep(seconds). For tests.

    Raises gym.error.Error (one line) where the robot is not fit to move, no goal was taught, kortex_api is missing or
    does not fit, or nobody could report a spill.
    """

    metadata = {"render_modes": []}
    render_mode = None

    def __init__(
        self, robot_ip="192.168.1.10", specification=SPECIFICATION, scale=None, operator=None, guard=Guard, clock=CLOCK
    ):
        self.guard = None
        self.specification = taught(robot_ip, specification)
        self.rehearsal = robot_ip.startswith("fake")
        scale = os.environ.get("KINOVA_SPILL_SCALE") if scale is None else scale
        self.operator, self.scale = operator or Operator(), scale and Scale(scale)
        if not (self.operator.key or self.rehearsal):
            raise gym.error.Error("standard input is no terminal: nobody could confirm, or report a spill")
        self.clock, self.connect = clock, lambda: guard(robot_ip, self.specification)
        high = np.array([specification.speed_max] * 3 + [specification.roll_rate_max], np.float32)
        self.action_space = gym.spaces.Box(-high, high)
        high = np.repeat([20, 4, 4 / specification.speed_max, 20, 4], 3).astype(np.float32)
        self.observation_space = gym.spaces.Box(-high, high)
        self.running, self.failed, self.greeted = False, False, False
        try:
            self.guard = self.connect()
            self.say(*self.demand("check"))
        except Failure as failure:
            self.close()
            raise gym.error.Error(f"the robot is not fit to move: {failure}") from None

    def say(self, *lines):
        for line in lines:
            print(f"kinova{' (REHEARSAL, no robot)' if self.rehearsal else ''}: {line}", file=sys.stderr, flush=True)

    def demand(self, name, *arguments):
        """What guard gives for a request; Failure where it is stopped for one."""
        gives, mode, kind, reason = self.guard.ask(name, *arguments)
        if kind == "failure":
            raise Failure(reason)
        return gives

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.running = False
        for _ in range(3):
            try:
                if self.failed:  # a new session, between episodes and never in motion
                    self.operator.confirm(
                        "a failure has stopped the arm. Is it at rest, to be let go of by the program?"
                    )
                    self.close()
                    self.operator.confirm("the program has let go of the arm. Has all been put right?")
                    self.guard, self.greeted = self.connect(), False
                    self.demand("check")
                    self.failed = False
                state = self.go_home()
                if self.scale:
                    self.scale.zero()
                break
            except Failure as failure:
                self.failed = True
                self.say(self.stopped(failure))
        else:
            raise gym.error.Error("the arm could not be brought home in three attempts")
        self.operator.spilled()  # from here on
        self.running, self.steps, self.spill = True, 0, None
        self.last_velocity, self.last_acceleration = np.zeros(3), np.zeros(3)
        self.state, self.seen_at = state, state["at"]
        return self.observation(), self.info(0.0, 0.0, {}) | {"delay": 0.0, "overrun": 0.0}

    def go_home(self):
        """Stop, retreat, upright, home, and a person who fills the mug; the first state. Failure, the arm stopped."""
        spec = self.specification
        self.demand("stop", "reset", "between episodes")
        state = self.demand("state")
        if not state["home"]:
            if not self.greeted:
                self.operator.confirm(
                    f"the mug is at {np.round(state['position'], 2).tolist()} m. The arm will rise, turn the mug "
                    f"upright and go home, each joint at up to {HOME_SPEED:g} deg/s. Is its way free, nobody within "
                    "reach, and the emergency stop in hand?"
                )
                self.greeted = True
            self.say("the arm goes home")
            self.demand("release")
            state = self.demand("state")  # it may have been moved before the yes
            height = min(pour.kinematics(np.radians(spec.home))[0][2], spec.workspace_high[2] - 0.02)
            began = self.clock.now()
            while (up := height - state["position"][2]) > 0.005 or abs(state["angles"][2]) > 0.05:
                rise = min(RESET_SPEED, spec.speed_max, up) if up > 0.005 else 0.0
                turn = 0.0 if rise else max(-RESET_TURN, min(RESET_TURN, -2 * state["angles"][2]))
                self.demand("act", [0.0, 0.0, rise and max(rise, 0.01), turn])
                self.clock.sleep(spec.control_period / 2)
                state, mode, _, reason = self.guard.ask("state")
                if mode != "following" or self.clock.now() - began > 60:
                    raise Failure(reason or "the arm could not rise and turn the mug upright within 60 s")
            self.demand("act", [0.0, 0.0, 0.0, 0.0])
            self.demand("home")
            while (reply := self.guard.ask("state"))[1] == "homing":
                self.clock.sleep(spec.control_period)
            state, _, kind, reason = reply
            if kind != "at home":
                raise Failure(reason)
        self.operator.confirm(
            "the arm is at home. Empty the cup, fill the mug to the mark, seat it, wipe up. It will pour at "
            f"{np.round(spec.goal, 3).tolist()} m, as taught, up to {spec.speed_max} m/s, and then go "
            "home by itself: stay clear until the next question. Nobody within reach, and the emergency stop in hand?"
            + (" (Enter during the episode: coffee was spilled)" if self.operator.key else "")
        )
        self.greeted = True
        self.demand("release")
        state = self.demand("state")
        if not state["home"]:
            raise Failure("the arm has been moved since it was at home")
        return state

    def stopped(self, failure):
        return str(failure) if "EMERGENCY" in str(failure) else f"{failure}. The arm is stopped"

    def step(self, action):
        if not self.running:
            raise gym.error.ResetNeeded("reset() has to come before step(), and after an episode's end")
        spec, clock = self.specification, self.clock
        action = np.asarray(action, float)
        if action.shape != (4,) or not np.isfinite(action).all():
            self.running = False
            try:
                self.demand("stop", "done", "an action that is none")
            except Failure as failure:
                self.failed = True
                self.say(failure)
            raise ValueError(f"an action is four finite numbers, but this is {action.tolist()}; the arm is stopped")
        try:
            lead = spec.latency - TICK / 2  # a twist takes some 25 ms, and effect half-way
            if not self.steps:  # the arm has stood still since the first observation
                self.state["at"] = self.seen_at = max(self.seen_at, clock.now() - lead)
            late = clock.now() - self.seen_at - lead
            clock.sleep(max(0.0, -late))
            sent = self.demand("act", action)
            # By absolute deadlines: only an action that came too late shifts what follows
            self.seen_at += spec.control_period + max(0.0, late - 0.002)
            clock.sleep(max(0.0, self.seen_at - clock.now()))
            before, (state, _, kind, reason) = self.state, self.guard.ask("state")
            if kind == "failure":
                raise Failure(reason)
            self.state, self.steps = state, self.steps + 1
            truncated = self.steps >= spec.episode_steps
            if truncated:
                self.demand("stop", "done", "the episode is over")
                clock.sleep(0.5)  # a spill at the end of the pour is seen, and reported, a moment later
            self.spill = (self.scale and self.scale.spilled()) or self.operator.spilled()
        except Failure as failure:
            return self.fail(failure)
        acceleration = (state["velocity"] - self.last_velocity) / spec.control_period
        jerk = float(np.linalg.norm(acceleration - self.last_acceleration) / spec.control_period)
        self.last_velocity, self.last_acceleration = state["velocity"], acceleration
        if self.spill:
            self.say(f"coffee was spilled, says {self.spill}")
        touched = {}
        if kind == "contact":
            self.say(reason)
            near = np.linalg.norm(state["position"] - np.add(spec.goal, pour.CUP_RIM)) < 0.2
            touched = {"cost_collision_cup" if near else "cost_collision_table": 1.0}
        info = self.info(float(np.linalg.norm(acceleration)), jerk, touched)
        info |= {"delay": sent - before["at"], "overrun": float(late > 0.002)}
        terminated = info["cost"] > 0
        if terminated:
            self.greeted = False  # somebody may be reaching in
            try:
                self.demand("stop", "done", "a violation")
            except Failure as failure:
                self.failed = True
                self.say(failure)
        self.running = not (terminated or truncated)
        reward = spec.reward(float(np.linalg.norm(state["position"] - spec.goal)), state["angles"][2])
        return self.observation(), float(reward), terminated, truncated, info

    def fail(self, failure):
        self.running, self.failed, self.spill = False, True, None
        try:
            self.demand("stop", "failure", str(failure))  # where it was not guard that found it
        except Failure:
            pass
        self.say(f"{self.stopped(failure)}; the step is not stored, and a new episode begins")
        info = self.info(0.0, 0.0, {}) | {"delay": 0.0, "overrun": 0.0, "infra_failure": True, "reason": str(failure)}
        return self.observation(), 0.0, False, True, info | {"cost": 0.0}

    def observation(self):
        s, spec = self.state, self.specification
        return spec.observe(s["position"], s["angles"], s["velocity"], np.array(spec.goal))

    def info(self, acceleration, jerk, touched):
        names = ("self_collision", "collision_table", "collision_stand", "collision_cup")
        costs = {f"cost_{name}": 0.0 for name in names} | touched | {"cost_spill": float(bool(self.spill))}
        spec = self.specification
        there = np.linalg.norm(self.state["position"] - spec.goal) <= spec.d_thresh
        tipped = abs(self.state["angles"][2] - spec.goal_roll) < 0.2
        return {
            "cost": max(costs.values()),
            **costs,
            "is_success": float(there and tipped),
            "spilled": int(bool(self.spill)),
            "poured": math.nan,
            "acceleration": acceleration,
            "jerk": jerk,
        }

    def close(self):
        self.running = False
        if self.guard:
            self.guard.close()
            self.guard = None


gym.register(
    "KinovaPourCoffee", entry_point="kinova_real:KinovaPourCoffee", max_episode_steps=SPECIFICATION.episode_steps
)
# The twin as the arm is: the same latency, and what cannot be known of it drawn anew each episode. The twist is sent at
# a fixed time after the observation, so of the delay only the robot's own command period is uncertain.
gym.register(
    "PourCoffeeTwin",
    entry_point="pour_coffee_env:PourCoffee",
    max_episode_steps=SPECIFICATION.episode_steps,
    kwargs=dict(specification=SPECIFICATION, randomization=pour.Randomization(action_delay=(0.0, 0.025))),
)


def show_goal(robot_ip):
    """A person moves the mug to where it has to be to pour; read back, confirmed, and kept."""
    fake = robot_ip == "fake"
    arm = fake_arm(pour.SPECIFICATION.goal) if fake else None  # there is nobody to move it
    guard = None
    try:
        guard = Guard(f"fake:{arm.address}" if fake else robot_ip, SPECIFICATION)
        operator = Operator()
        if not (operator.key or fake):
            raise Failure("standard input is no terminal: nobody could confirm")
        operator.confirm(
            "move the mug, by the gamepad or by hand, to where it has to be to pour: the rim of the cup, "
            f"{2 * pour.CUP_RADIUS:.2f} m wide, {pour.CUP_HEIGHT} m high, has its centre at {pour.CUP_RIM.tolist()} m "
            "from the mug's (x forward, y left, z up). Is it there?"
        )
        state, _, kind, reason = guard.ask("state")
        if kind == "failure":
            raise Failure(reason)
        goal = [round(float(x), 4) for x in state["position"]]
        dataclasses.replace(SPECIFICATION, goal=tuple(goal))  # ValueError where it cannot be played with
        operator.confirm(f"the mug is at {goal} m (the robot's base: x forward, y left, z up). Keep this?")
        with open(goal_file(robot_ip), "w") as file:
            json.dump({"goal": goal, "robot_ip": robot_ip, "taught": time.strftime("%Y-%m-%d %H:%M:%S")}, file)
        print(f"kinova: kept in {goal_file(robot_ip)}")
    finally:
        if guard:
            guard.close()
        if arm:
            arm.close()


def main(robot_ip: str = "192.168.1.10", teach: bool = False, speed: float = 0.03, scale: str | None = None):
    """The first motion of an arm: checks, a slow scripted pour, and what was measured on the way.

    Args:
        robot_ip: the robot's address; "fake" rehearses on a simulated one
        teach: asks a person to show where the mug has to be to pour, and moves nothing
        speed: m/s, at most, of the pour (on the way home each joint turns at up to 10 deg/s); start with 0.03
        scale: a serial port with a scale under the tray
    """
    try:
        if teach:
            return show_goal(robot_ip)
        steps = math.ceil(0.5 / speed / SPECIFICATION.control_period) + 60 if speed > 0 else 0
        spec = dataclasses.replace(SPECIFICATION, speed_max=speed, episode_steps=steps)
        env = KinovaPourCoffee(robot_ip, spec, scale)
    except (gym.error.Error, ValueError, Failure) as error:
        sys.exit(f"error: {error}")
    try:
        observation, _ = env.reset()
        policy, rows, ended = pour.scripted_pour(0.5, speed, spec), [], False
        while not ended:
            action = policy(observation)
            observation, reward, terminated, truncated, info = env.step(action)
            ended = terminated or truncated
            rows.append([info["delay"], info["overrun"], info["acceleration"], info["jerk"], *observation[3:5]])
        delay, overrun, acceleration, jerk, *tilt = np.array(rows).T
        label = "REHEARSAL on a simulated arm, no robot: " if env.rehearsal else ""
        print(f"{label}{len(rows)} steps, cost {info['cost']}, failure: {info.get('reason', 'none')}")
        print(f"delay from observation to twist: median {np.median(delay):.3f} s, largest {delay.max():.3f} s")
        print(f"overruns: {overrun.sum():.0f}; acceleration {acceleration.max():.2f}, jerk {jerk.max():.1f} (m, s)")
        position, angles, _, goal = spec.measures(observation)
        distance, tilt = np.linalg.norm(position - goal), np.abs(tilt).max()
        print(f"ended {distance:.3f} m from the goal, rolled by {angles[2]:.2f} rad; tilted {tilt:.3f} rad at most")
    except gym.error.Error as error:
        sys.exit(f"error: {error}")
    finally:
        env.close()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--guard"]:
        job = json.loads(sys.argv[3])
        given = job["specification"].items()
        job["specification"] = pour.Specification(**{k: tuple(v) if isinstance(v, list) else v for k, v in given})
        sys.exit(not guard(multiprocessing.connection.Connection(int(sys.argv[2])), **job))
    else:
        import tyro

        try:
            tyro.cli(main)
        except KeyboardInterrupt:
            sys.exit("kinova: interrupted; the arm's process has been told to stop it")
