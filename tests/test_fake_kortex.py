"""fake_kortex.py: what tests of the real arm's environment rely on."""

import concurrent.futures
import importlib
import math
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import fake_kortex

HERE = Path(__file__).parent
MIXED, TOOL, BASE = 1, 2, 3


def connect(world, inactivity=2000, password="admin"):
    def name(path):
        return getattr(importlib.import_module(f"kortex_api.{path}"), path.split(".")[-1].removesuffix("Rpc"))

    a = SimpleNamespace(world=world, clock=world.clock)
    a.pb = importlib.import_module("kortex_api.autogen.messages.Base_pb2")
    a.control = importlib.import_module("kortex_api.autogen.messages.ControlConfig_pb2")
    session = importlib.import_module("kortex_api.autogen.messages.Session_pb2")
    router_module = importlib.import_module("kortex_api.RouterClient")
    a.transport = name("TCPTransport")()
    router = router_module.RouterClient(a.transport, router_module.RouterClient.basicErrorCallback)
    a.transport.connect("192.168.1.10", 10000)
    info = session.CreateSessionInfo(username="admin", password=password)
    info.session_inactivity_timeout, info.connection_inactivity_timeout = 60000, inactivity
    a.lost = []
    a.session = name("SessionManager")(router, lambda: a.lost.append(world.clock.now()))
    a.session.CreateSession(info)
    a.base = name("autogen.client_stubs.BaseClientRpc")(router)
    a.cyclic = name("autogen.client_stubs.BaseCyclicClientRpc")(router)
    a.config = name("autogen.client_stubs.ControlConfigClientRpc")(router)
    a.options = router_module.RouterClientSendOptions()
    a.options.timeout_ms = 100

    def twist(linear=(0, 0, 0), angular=(0, 0, 0), frame=MIXED):
        command = a.pb.TwistCommand(reference_frame=frame)
        for axis, v, w in zip("xyz", linear, angular):
            setattr(command.twist, f"linear_{axis}", v)
            setattr(command.twist, f"angular_{axis}", w)
        a.base.SendTwistCommand(command, options=a.options)

    a.twist = twist
    return a


@pytest.fixture
def arm():
    yield connect(fake_kortex.install(clock=fake_kortex.VirtualClock()))
    fake_kortex.uninstall()


class refused:
    """A KServerException with this sub-code has to come."""

    def __init__(self, sub_code):
        self.sub_code = sub_code

    def __enter__(self):
        pass

    def __exit__(self, kind, error, _):
        assert kind is fake_kortex.KServerException, kind
        assert error.get_error_sub_code() == self.sub_code
        return True


def accelerations(world, since=-math.inf):
    return np.linalg.norm(np.diff([s.velocity for s in world.samples(since)], axis=0), axis=1) / fake_kortex.TICK


def test_install_and_uninstall():
    world = fake_kortex.install(clock=fake_kortex.VirtualClock(), latency=0.01)
    from kortex_api.Exceptions.KException import KException
    from kortex_api.Exceptions.KServerException import KServerException

    assert issubclass(KServerException, KException) and world.latency == 0.01
    fake_kortex.uninstall()
    with pytest.raises(ModuleNotFoundError):
        import kortex_api  # noqa: F401


def test_pose_at_home_and_zero(arm):
    pose = arm.base.GetMeasuredCartesianPose()
    assert (pose.x, pose.y, pose.z) == pytest.approx((0.4567 + 0.12, 0.0014, 0.4337), abs=1e-4)
    assert (pose.theta_x, pose.theta_y, pose.theta_z) == pytest.approx((90, 0, 90), abs=1e-4)
    fb = arm.cyclic.RefreshFeedback().base
    assert (fb.tool_pose_x, fb.tool_pose_theta_z) == (pose.x, pose.theta_z)
    arm.config.SetToolConfiguration(arm.control.ToolConfiguration())  # the bare flange
    assert arm.base.GetMeasuredCartesianPose().x == pytest.approx(0.4567, abs=1e-4)
    arm.world.place([0] * 7)
    assert arm.base.GetMeasuredCartesianPose().z == pytest.approx(1.1874, abs=1e-4)
    angles = arm.pb.JointAngles(joint_angles=[dict(joint_identifier=i) for i in range(7)])
    assert arm.base.ComputeForwardKinematics(angles).z == pytest.approx(1.1874, abs=1e-4)


def test_joints_are_reported_from_0_to_360(arm):
    expected = (0, 15, 180, 230, 0, 55, 90)
    fb = arm.cyclic.RefreshFeedback()
    assert [a.position for a in fb.actuators] == pytest.approx(expected, abs=1e-4)
    assert [a.value for a in arm.base.GetMeasuredJointAngles().joint_angles] == pytest.approx(expected, abs=1e-4)


def test_a_twist_lasts_until_stop(arm):
    start = arm.world.position
    arm.twist((0, -0.1, 0))
    arm.clock.advance(2.0)
    assert arm.world.position - start == pytest.approx([0, -0.2, 0], abs=0.003)
    assert arm.world.velocity == pytest.approx([0, -0.1, 0], abs=1e-4)
    fb = arm.cyclic.RefreshFeedback().base
    assert fb.tool_twist_linear_y == pytest.approx(-0.1, abs=1e-3)
    arm.base.Stop(options=arm.options)
    arm.clock.advance(0.1)
    assert arm.world.speed == 0
    arm.twist((0.1, 0, 0))
    arm.clock.advance(0.5)
    assert arm.world.speed == pytest.approx(0.1)
    arm.twist()
    arm.clock.advance(0.1)
    assert arm.world.speed == 0


def test_frames(arm):
    """At Home the tool's z is forward, its x the base's y, its y the base's z."""
    for frame, linear, expected in ((BASE, (0, 0, 0.1), 2), (MIXED, (0, 0, 0.1), 2), (TOOL, (0, 0, 0.1), 0)):
        arm.world.place(fake_kortex.POSES["Home"])
        arm.twist(linear, frame=frame)
        arm.clock.advance(0.5)
        assert arm.world.velocity == pytest.approx(0.1 * np.eye(3)[expected], abs=1e-4), frame
    for frame, axis in ((BASE, 2), (MIXED, 0), (TOOL, 0)):
        arm.world.place(fake_kortex.POSES["Home"])
        arm.twist(angular=(0, 0, 30), frame=frame)
        arm.clock.advance(0.5)
        assert np.degrees(arm.world.twist[3:]) == pytest.approx(30 * np.eye(3)[axis], abs=0.01), frame
        assert arm.world.speed < 1e-6


def test_rolling_turns_the_last_joint_only(arm):
    before, position = arm.world.joints, arm.world.position
    arm.twist(angular=(0, 0, 40))
    arm.clock.advance(1.5)
    turned = arm.world.joints - before
    assert np.abs(turned[:6]).max() < 1e-6 and turned[6] == pytest.approx(-60, abs=2)
    assert arm.world.position == pytest.approx(position, abs=1e-6)
    assert arm.cyclic.RefreshFeedback().actuators[6].velocity == pytest.approx(-40, abs=0.01)


def test_limits(arm):
    """Those of the twist, and below them the joints': at Home they allow less than 0.5 m/s to the side."""
    arm.twist((-3, -4, 0), (0, 300, 400))
    assert arm.world.wanted[:3] == pytest.approx([-0.3, -0.4, 0], abs=1e-6)
    assert np.degrees(arm.world.wanted[3:]) == pytest.approx([0, 60, 80], abs=1e-4)
    arm.twist((-3, -4, 0))
    arm.clock.advance(0.3)
    assert arm.world.velocity / arm.world.speed == pytest.approx([-0.6, -0.8, 0], abs=1e-3)
    assert 0.2 < arm.world.speed < 0.45
    assert (np.abs(arm.world.qd) / fake_kortex.pour.JOINT_SPEED).max() == pytest.approx(1, abs=1e-6)
    soft = arm.control.TwistLinearSoftLimit(control_mode=arm.control.CARTESIAN_JOYSTICK, twist_linear_soft_limit=0.1)
    arm.config.SetTwistLinearSoftLimit(soft)
    arm.twist((0, -3, 0))
    arm.clock.advance(0.3)
    assert arm.world.velocity == pytest.approx([0, -0.1, 0], abs=1e-3)
    mode = arm.control.ControlModeInformation(control_mode=arm.control.CARTESIAN_JOYSTICK)
    assert arm.config.GetKinematicSoftLimits(mode).twist_linear == pytest.approx(0.1)
    assert arm.config.GetKinematicHardLimits().twist_linear == 0.5
    assert arm.config.ResetTwistLinearSoftLimit(mode).twist_linear_soft_limit == 0.5
    soft.twist_linear_soft_limit = 0.6
    with refused(3):
        arm.config.SetTwistLinearSoftLimit(soft)
    with refused(3):
        arm.twist((math.nan, 0, 0))
    arm.world.place(fake_kortex.POSES["Home"])
    angular = arm.control.TwistAngularSoftLimit(control_mode=2, twist_angular_soft_limit=20)
    arm.config.SetTwistAngularSoftLimit(angular)
    arm.twist(angular=(0, 0, 90))
    arm.clock.advance(0.5)
    assert np.linalg.norm(np.degrees(arm.world.twist[3:])) == pytest.approx(20)


def test_ramps():
    world = fake_kortex.install(clock=fake_kortex.VirtualClock(), acceleration=0.4)
    arm = connect(world)
    arm.twist((0, 0.2, 0))
    arm.clock.advance(1.0)
    arm.base.Stop()
    arm.clock.advance(1.0)
    assert accelerations(world).max() == pytest.approx(0.4)
    assert max(np.linalg.norm(s.velocity) for s in world.samples()) == pytest.approx(0.2)
    assert world.speed == 0
    since = world.clock.now() - 0.5
    assert [s.time > since for s in world.samples(since)] == [True] * 20
    fake_kortex.uninstall()


def test_joint_limits(arm):
    """Towards the body until the elbow is folded; away from there the arm moves again."""
    arm.twist((0, 0, -0.3))
    arm.clock.advance(8)
    q = np.array([s.joints for s in arm.world.samples()])
    assert (np.abs(q) <= fake_kortex.pour.JOINT_LIMIT).all()
    assert (np.abs(np.diff(q, axis=0)) <= fake_kortex.pour.JOINT_SPEED * fake_kortex.TICK + 1e-9).all()
    assert arm.world.speed < 0.01
    arm.twist((0, 0, 0.1))
    arm.clock.advance(0.5)
    assert arm.world.speed > 0.05
    arm.world.place(fake_kortex.POSES["Home"])
    speeds = arm.pb.JointSpeeds()
    for i in range(7):
        speeds.joint_speeds.add(joint_identifier=i, value=200 * (i == 5))
    arm.base.SendJointSpeedsCommand(speeds)
    arm.clock.advance(0.3)
    assert arm.world.qd[5] == pytest.approx(math.radians(70), abs=1e-3)
    arm.clock.advance(5)
    assert arm.world.joints[5] == pytest.approx(math.degrees(2.09), abs=0.1)


def test_emergency_stop_and_faults(arm):
    arm.twist((0, 0.1, 0))
    arm.clock.advance(0.5)
    arm.base.ApplyEmergencyStop()
    arm.clock.advance(0.2)
    fb = arm.cyclic.RefreshFeedback().base
    assert (fb.active_state, fb.fault_bank_a, arm.world.speed) == (arm.pb.ARMSTATE_IN_FAULT, 0x800000, 0)
    with refused(22):
        arm.twist((0, 0.1, 0))
    arm.base.ClearFaults()
    assert arm.base.GetArmState().active_state == arm.pb.ARMSTATE_SERVOING_READY
    arm.twist((0, 0.1, 0))
    arm.world.at(0.3, "fault", 0x10)
    arm.clock.advance(1)
    assert arm.world.speed == 0 and arm.cyclic.RefreshFeedback().base.fault_bank_a == 0x10


def test_servoing_mode_and_control(arm):
    mode = arm.pb.ServoingModeInformation(servoing_mode=arm.pb.LOW_LEVEL_SERVOING)
    arm.base.SetServoingMode(mode)
    with refused(75):
        arm.twist((0, 0.1, 0))
    mode.servoing_mode = arm.pb.SINGLE_LEVEL_SERVOING
    arm.base.SetServoingMode(mode)
    arm.twist((0, 0.1, 0))
    arm.world.take_control()
    with refused(130):
        arm.twist((0, 0.1, 0))
    arm.clock.advance(7.5)
    arm.twist((0, 0.1, 0))


def home(arm, angles=None):
    events = []
    handle = arm.base.OnNotificationActionTopic(events.append, arm.pb.NotificationOptions())
    if angles is None:
        wanted = arm.pb.RequestedActionType(action_type=arm.pb.REACH_JOINT_ANGLES)
        (action,) = [a for a in arm.base.ReadAllActions(wanted).action_list if a.name == "Home"]
        arm.base.ExecuteActionFromReference(action.handle)
    else:
        action = arm.pb.Action(name="mine")
        for i, angle in enumerate(angles):
            joint = action.reach_joint_angles.joint_angles.joint_angles.add()
            joint.joint_identifier, joint.value = i, angle
        arm.base.ExecuteAction(action)
    return events, handle


def test_actions(arm):
    goal = (10, 20, 170, 230, 350, 60, 100)
    events, handle = home(arm, goal)
    with refused(18):
        arm.twist((0, 0.1, 0))
    arm.clock.advance(5)
    assert [e.action_event for e in events] == [arm.pb.ACTION_START, arm.pb.ACTION_END]
    assert arm.world.joints % 360 == pytest.approx(goal, abs=1e-4)
    speeds = np.abs(np.diff([s.joints for s in arm.world.samples()], axis=0)).max() / fake_kortex.TICK
    assert math.radians(10) < speeds <= 0.41 + 1e-6
    arm.base.Unsubscribe(handle)
    arm.twist((0.1, 0, 0))
    arm.clock.advance(0.3)
    again, _ = home(arm)  # out of the twist, without a jump
    arm.clock.advance(0.2)
    assert accelerations(arm.world).max() < 6
    assert len(events) == 2
    arm.clock.advance(5)
    assert (arm.world.joints + 1) % 360 == pytest.approx((np.array(fake_kortex.POSES["Home"]) + 1) % 360, abs=1e-4)
    assert again[-1].action_event == arm.pb.ACTION_END and again[-1].handle.identifier == 1


def test_stop_aborts_an_action(arm):
    events, _ = home(arm, (90, 15, 180, 230, 0, 55, 90))
    arm.clock.advance(1)
    arm.base.Stop()
    arm.clock.advance(1)
    assert [e.action_event for e in events] == [arm.pb.ACTION_START, arm.pb.ACTION_ABORT]
    assert arm.pb.ActionEvent.Name(events[1].action_event) == "ACTION_ABORT" and events[1].abort_details == 55
    assert arm.world.speed == 0 and 1 < arm.world.joints[0] < 89
    beyond, _ = home(arm, (0, 140, 180, 230, 0, 55, 90))
    arm.clock.advance(0.1)
    assert beyond[-1].action_event == arm.pb.ACTION_ABORT and beyond[-1].abort_details == 65
    arm.world.fail("Notification", times=2)
    silent, _ = home(arm)
    events.clear()
    arm.clock.advance(10)
    assert [e.action_event for e in silent + events + beyond[2:]].count(arm.pb.ACTION_END) == 3


def test_reach_pose(arm):
    pose, action = arm.base.GetMeasuredCartesianPose(), arm.pb.Action()
    pose.z += 0.1
    action.reach_pose.target_pose.CopyFrom(pose)
    arm.base.ExecuteAction(action)
    arm.clock.advance(8)
    assert arm.world.position == pytest.approx([pose.x, pose.y, pose.z], abs=1e-4)


def test_a_callback_cannot_wait_for_a_reply(arm):
    errors = []

    def callback(_):
        try:
            arm.base.Stop(options=arm.options)
        except concurrent.futures.TimeoutError as error:
            errors.append(error)

    arm.base.OnNotificationActionTopic(callback, arm.pb.NotificationOptions())
    home(arm, (90, 15, 180, 230, 0, 55, 90))
    arm.clock.advance(1)
    assert errors and arm.world.speed == 0


def test_zone(arm):
    zone = arm.pb.ProtectionZone(name="wall", is_enabled=True)
    zone.shape.shape_type = arm.pb.RECTANGULAR_PRISM
    zone.shape.origin.x, zone.shape.origin.y, zone.shape.origin.z = 0.55, -0.4, 0.4
    zone.shape.dimensions.extend([1, 0.4, 1])
    for i in (1, 2, 3):
        setattr(getattr(zone.shape.orientation, f"row{i}"), f"column{i}", 1)
    handle = arm.base.CreateProtectionZone(zone)
    arm.twist((0, -0.3, 0))
    arm.clock.advance(3)
    assert arm.world.speed == 0 and -0.2 < arm.world.position[1] < -0.15
    (stored,) = arm.base.ReadAllProtectionZones().protection_zones
    assert stored.name == "wall" and stored.handle == handle
    arm.base.DeleteProtectionZone(handle)
    assert len(arm.base.ReadAllProtectionZones().protection_zones) == 0


def test_gripper(arm):
    command = arm.pb.GripperCommand(mode=arm.pb.GRIPPER_POSITION)
    command.gripper.finger.add(finger_identifier=1, value=0.5)
    arm.base.SendGripperCommand(command)
    arm.clock.advance(1)
    request = arm.pb.GripperRequest(mode=arm.pb.GRIPPER_POSITION)
    assert arm.base.GetMeasuredGripperMovement(request).finger[0].value == 0.5
    assert arm.cyclic.RefreshFeedback().interconnect.gripper_feedback.motor[0].position == 50


def test_messages_are_strict(arm):
    pb = arm.pb
    command = pb.TwistCommand()
    with pytest.raises(AttributeError):
        command.duration = 0
    with pytest.raises(AttributeError):
        command.twist = pb.Twist()
    with pytest.raises(AttributeError):
        command.twist.linear
    with pytest.raises(TypeError):
        command.twist.linear_x = "1"
    with pytest.raises(TypeError):
        command.twist.linear_x = None
    with pytest.raises(TypeError):
        command.reference_frame = 1.0
    assert not command.HasField("twist")
    command.twist.linear_x = 0.1
    assert command.HasField("twist") and command.twist.linear_x == np.float32(0.1) != 0.1
    command.twist.linear_y = np.float32(0.5)
    other = pb.TwistCommand()
    other.CopyFrom(command)
    command.twist.linear_x = 0.2
    assert other.twist.linear_x == np.float32(0.1) and other != command
    with pytest.raises(TypeError):
        other.CopyFrom(pb.Twist())
    with pytest.raises(ValueError):
        pb.ActionHandle().identifier = -1
    with pytest.raises(TypeError):
        arm.base.SendTwistCommand(command.twist)
    angles = pb.JointAngles()
    first = angles.joint_angles.add()
    first.value = 3
    angles.joint_angles.extend([pb.JointAngle(value=4), pb.JointAngle(value=5)])
    angles.joint_angles.append(first)
    assert [a.value for a in angles.joint_angles] == [3, 4, 5, 3] and angles.joint_angles[1].value == 4
    del angles.joint_angles[:2]
    assert len(angles.joint_angles) == 2
    with pytest.raises(AttributeError):
        angles.joint_angles = []
    with pytest.raises(TypeError):
        angles.joint_angles[0] = first
    shape = pb.ZoneShape()
    shape.dimensions.append(1)
    with pytest.raises(TypeError):
        shape.dimensions.append("1")
    with pytest.raises(AttributeError):
        shape.dimensions.add()
    action = pb.Action()
    action.reach_joint_angles.joint_angles.joint_angles.add()
    assert action.HasField("reach_joint_angles") and not action.HasField("reach_pose")
    assert pb.CARTESIAN_REFERENCE_FRAME_MIXED == 1 and pb.ArmState.Value("ARMSTATE_IN_FAULT") == 4
    with pytest.raises(ValueError):
        pb.ActionEvent.Value("ACTION")


def test_what_calls_cost_and_the_record(arm):
    start, before = arm.clock.now(), len(arm.world.calls)
    arm.twist((0.1, 0, 0))
    assert arm.clock.now() - start == pytest.approx(0.025)
    call = arm.world.calls[before]
    assert (call.method, call.timeout_ms, call.thread) == ("SendTwistCommand", 100, threading.current_thread().name)
    assert call.time == start and call.payload["twist"]["linear_x"] == np.float32(0.1)
    transport = sys.modules["kortex_api.UDPTransport"].UDPTransport()
    router = sys.modules["kortex_api.RouterClient"].RouterClient(transport)
    transport.connect("192.168.1.10", 10001)
    cyclic = type(arm.cyclic)(router)
    with refused(12):
        cyclic.RefreshFeedback()
    type(arm.session)(router).CreateSession(arm.session.info)
    start = arm.clock.now()
    cyclic.RefreshFeedback()
    assert arm.clock.now() - start == pytest.approx(0.002)


def test_failures_on_demand(arm):
    world = arm.world
    world.fail("SendTwistCommand", "hang", after=1)
    arm.twist((0.1, 0, 0))
    start = arm.clock.now()
    with pytest.raises(concurrent.futures.TimeoutError):
        arm.twist((0, 0.1, 0))
    assert arm.clock.now() - start == pytest.approx(0.1)
    world.fail("Stop", 1, times=2)
    for _ in range(2):
        with refused(1):
            arm.base.Stop()
    assert world.speed == pytest.approx(0.1)
    arm.base.Stop()
    world.fail("SendTwistCommand", BrokenPipeError)
    with pytest.raises(BrokenPipeError):
        arm.twist((0.1, 0, 0))
    with pytest.raises(OSError, match="endpoint"):
        arm.transport.disconnect()


def test_a_late_twist_and_a_lost_reply(arm):
    arm.world.fail("SendTwistCommand", latency=0.6)
    with pytest.raises(concurrent.futures.TimeoutError):
        arm.twist((0, 0.1, 0))
    arm.base.Stop()
    assert arm.world.speed == 0
    arm.clock.advance(0.5)
    assert arm.world.speed == pytest.approx(0.1)  # it came after the Stop
    arm.world.fail("Stop", "hang", executed=True)
    with pytest.raises(concurrent.futures.TimeoutError):
        arm.base.Stop(options=arm.options)
    assert arm.world.speed == 0


def test_feedback_on_demand(arm):
    arm.twist((0, 0.1, 0))
    arm.world.feedback = "frozen"
    first = arm.cyclic.RefreshFeedback()
    arm.clock.advance(0.5)
    assert arm.cyclic.RefreshFeedback() == first
    arm.world.feedback = "nan"
    fb = arm.cyclic.RefreshFeedback()
    assert math.isnan(fb.base.tool_pose_x) and math.isnan(fb.actuators[0].position)
    arm.world.feedback, arm.world.jump = "live", (0.2, 0, 0)
    assert arm.cyclic.RefreshFeedback().base.tool_pose_x == pytest.approx(arm.world.position[0] + 0.2, abs=1e-3)


def test_inactivity(arm):
    """A caller that hangs is kept alive by the session's thread; a dead one is not."""
    arm.twist((0, 0.02, 0))
    arm.clock.advance(5)
    assert arm.world.speed == pytest.approx(0.02) and arm.world.keep_alives > 20
    arm.world.process = "killed"
    arm.clock.advance(1.8)
    assert arm.world.speed == pytest.approx(0.02)
    arm.clock.advance(0.5)
    assert arm.world.speed == 0


@pytest.mark.parametrize("link", ["cable out", "down"])
def test_lost_link(arm, link):
    arm.twist((0, 0.02, 0))
    arm.world.link = link
    with pytest.raises(concurrent.futures.TimeoutError if link == "cable out" else BrokenPipeError):
        arm.base.Stop(options=arm.options)
    with pytest.raises(OSError) as error:
        arm.transport.disconnect()
    assert error.value.errno == 107
    arm.clock.advance(3)
    assert arm.world.speed == 0
    with pytest.raises(OSError):
        type(arm.transport)().connect("192.168.1.10", 10000)


def test_inactivity_may_stop_nothing():
    world = fake_kortex.install(clock=fake_kortex.VirtualClock(), inactivity_stops=False)
    arm = connect(world)
    arm.twist((0, 0.02, 0))
    arm.session.CloseSession()
    arm.transport.disconnect()
    arm.clock.advance(5)
    assert world.speed == pytest.approx(0.02)
    fake_kortex.uninstall()


def test_the_keep_alive_dies_silently_and_the_timeout_calls_back(arm):
    arm.world.fail("KeepAlive", 12)
    arm.twist((0, 0.02, 0))
    arm.clock.advance(3)
    assert arm.world.speed == 0 and not arm.lost
    other = connect(arm.world)
    arm.world.link = "cable out"
    arm.clock.advance(61)
    assert len(other.lost) == 1


def test_sessions(arm):
    with refused(15):
        connect(arm.world, password="wrong")
    arm.session.CloseSession(arm.options)
    with refused(12):
        arm.base.GetArmState()
    arm.transport.disconnect()
    with pytest.raises(BrokenPipeError):
        arm.base.GetArmState()


def test_real_clock():
    world = fake_kortex.install(latency=0.005)
    arm = connect(world)
    threads, done = [], threading.Event()

    def callback(n):
        threads.append(threading.current_thread())
        if n.action_event == arm.pb.ACTION_END:
            done.set()

    arm.base.OnNotificationActionTopic(callback, arm.pb.NotificationOptions())
    home(arm, (1, 15, 180, 230, 0, 55, 90))
    assert done.wait(5) and threading.current_thread() not in threads
    start = world.position
    arm.twist((0, 0.1, 0))
    time.sleep(0.5)
    arm.base.Stop()
    time.sleep(0.15)
    assert world.speed == 0 and 0.03 < (world.position - start)[1] < 0.3 and world.keep_alives
    arm.session.CloseSession()
    arm.transport.disconnect()
    fake_kortex.uninstall()


CLIENT = """
import sys, time
sys.path[:0] = sys.argv[2:4]
import fake_kortex, test_fake_kortex
arm = test_fake_kortex.connect(fake_kortex.install(address=sys.argv[1]), inactivity=800)
arm.twist((0, 0.02, 0))
print("moving", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGSTOP])
def test_a_served_arm_outlives_its_client(tmp_path, end):
    with fake_kortex.serve(tmp_path / "arm", latency=0.005) as server:
        world = fake_kortex.install(address=server.address)
        command = [sys.executable, "-c", CLIENT, server.address, str(HERE), str(HERE.parent)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as client:
            try:
                assert client.stdout.readline() == b"moving\n"
                time.sleep(1.0)  # longer than the connection may be silent
                assert world.speed == pytest.approx(0.02)
                client.send_signal(end)
                ended = time.monotonic()
                while world.speed and time.monotonic() < ended + 5:
                    time.sleep(0.02)
            finally:
                client.kill()
        moved = [s.time for s in world.samples() if np.linalg.norm(s.velocity)]
        assert not world.speed and 0.3 < moved[-1] - ended < 2.5
        assert [c.method for c in world.calls] == ["connect", "CreateSession", "SendTwistCommand"]
    fake_kortex.uninstall()


def test_a_served_arm_answers_as_one_in_this_process(tmp_path):
    with fake_kortex.serve(tmp_path / "arm", latency=0.005) as server:
        world = fake_kortex.install(address=server.address)
        arm = connect(world)
        world.fail("GetArmState", 22)
        world.fail("Stop", "hang")
        world.fail("GetOperatingMode", fake_kortex.KServerException(21))
        world.fail("GetActuatorCount", OSError(5, "input"))
        with refused(22):
            arm.base.GetArmState()
        with refused(21):
            arm.base.GetOperatingMode()
        with pytest.raises(OSError, match="input"):
            arm.base.GetActuatorCount()
        with pytest.raises(concurrent.futures.TimeoutError):
            arm.base.Stop(options=arm.options)
        events, _ = home(arm, (1, 15, 180, 230, 0, 55, 90))
        deadline = time.monotonic() + 5
        while len(events) < 2 and time.monotonic() < deadline:
            time.sleep(0.02)
        assert [e.action_event for e in events] == [arm.pb.ACTION_START, arm.pb.ACTION_END]
        world.jump = (0.1, 0, 0)
        assert arm.base.GetMeasuredCartesianPose().x == pytest.approx(world.position[0] + 0.1, abs=1e-6)
    with pytest.raises(BrokenPipeError):
        arm.base.GetArmState()
    fake_kortex.uninstall()


def test_an_interrupted_request_leaves_the_next_one_its_own_answer(tmp_path):
    """Ctrl-C in a twist, and then a Stop from the handler of the exception."""

    def interrupt(*_):
        raise KeyboardInterrupt

    with fake_kortex.serve(tmp_path / "arm", latency=0.3) as server:
        world = fake_kortex.install(address=server.address)
        arm = connect(world)
        before = signal.signal(signal.SIGALRM, interrupt)
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        try:
            with pytest.raises(KeyboardInterrupt):
                arm.cyclic.RefreshFeedback()
        finally:
            signal.signal(signal.SIGALRM, before)
        assert arm.base.GetActuatorCount().count == 7
    fake_kortex.uninstall()
