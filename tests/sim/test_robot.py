"""The simulated robot: what it refuses, that it repeats itself, and that every part of the gap shows."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import threading
from pathlib import Path

import msgspec
import mujoco
import numpy as np
import pytest

from robot_rl.spec import RobotSpec, SpecError, Vision, load_robot, mjcf_file
from sim.offscreen import RenderError, backend
from sim.randomize import NO_LAGS, Gap, History, Lags, add_mass
from sim.robot import SimRobot
from sim.wiring import compile_model

POSE = np.array([0.3, -0.2, 0.4, 0.5, 0.2, 0.1])

SLED = """<mujoco>
  <worldbody>
    <light pos="0 0 2"/>
    <camera name="side" pos="0 -2 0.5" xyaxes="1 0 0 0 0.2 1"/>
    <body name="base_link" pos="1 2 0.5" euler="0 0 90">
      <geom type="box" size="0.1 0.1 0.1"/>
      <body name="sled">
        <joint name="rail" type="slide" axis="1 0 0" range="-1 1"/>
        <geom name="sled" type="box" size="0.05 0.05 0.05" mass="2" contype="0" conaffinity="0"/>
        <site name="tip" pos="0.1 0 0"/>
      </body>
    </body>
  </worldbody>
  <actuator>{actuator}</actuator>
</mujoco>"""


def robot(name: str = "so101", gap: str = "") -> SimRobot:
    return SimRobot(load_robot(name), mjcf_file(name), Gap.parse(gap))


def sled_spec(interface: str, **joint: float) -> RobotSpec:
    values = {"name": "rail", "lower": -0.9, "upper": 0.9, "velocity": 2.0, "effort": 50.0} | joint
    return msgspec.convert({
        "robot": "sled", "mjcf": "sled.xml", "joints": [values],
        "command": {"interface": interface, "topic": "commands"},
        "sensors": [
            {"name": "joints", "topic": "j", "type": "sensor_msgs/msg/JointState", "rate_hz": 100, "stale_after_s": 1},
            {"name": "tip", "topic": "t", "type": "geometry_msgs/msg/PoseStamped", "rate_hz": 100, "stale_after_s": 1,
             "site": "tip"}],
        "cameras": [{"name": "side", "topic": "c", "width": 64, "height": 48, "rate_hz": 10, "frame": "side"}],
        "stop": "hold" if interface == "position" else "zero"}, RobotSpec)


def sled(tmp_path: Path, interface: str, actuator: str, **joint: float) -> SimRobot:
    file = tmp_path / "sled.xml"
    file.write_text(SLED.format(actuator=actuator))
    return SimRobot(sled_spec(interface, **joint), file)


def settle(sim: SimRobot, command: np.ndarray, seconds: float = 2.0) -> dict[str, np.ndarray]:
    sim.apply(command)
    sim.step(seconds)
    return sim.readings()


def drive(sim: SimRobot, seed: int, steps: int = 20) -> np.ndarray:
    """(T, n) everything that the sensors said under random commands."""
    rng = np.random.default_rng(seed)
    sim.reset(rng, 0.1)
    rows = []
    for _ in range(steps):
        sim.apply(rng.uniform(-0.4, 0.4, len(sim.spec.actuated)))
        sim.step(0.05)
        rows.append(np.concatenate(list(sim.readings().values())))
    return np.array(rows)


# what it says

@pytest.mark.parametrize("name", ["so101", "furuta"])
def test_readings_have_the_shapes_of_the_contract(name: str) -> None:
    sim = robot(name)
    joints, readings = len(sim.spec.joints), sim.readings()
    shapes = {f"joints.{key}": (joints,) for key in ("position", "velocity", "effort")}
    if name == "so101":
        shapes |= {"tip.position": (3,), "tip.orientation": (4,)}
    assert {key: value.shape for key, value in readings.items()} == shapes
    np.testing.assert_allclose(readings["joints.position"], [j.default for j in sim.spec.joints])


def test_pose_is_of_the_newest_state_and_xyzw() -> None:
    sim = robot()
    readings = settle(sim, POSE, 0.3)
    fresh = mujoco.MjData(sim.model)
    fresh.qpos[:] = readings["joints.position"]
    mujoco.mj_kinematics(sim.model, fresh)
    np.testing.assert_allclose(readings["tip.position"], fresh.site("tip").xpos, atol=1e-12)
    quaternion = np.empty(4)
    mujoco.mju_mat2Quat(quaternion, fresh.site("tip").xmat)
    np.testing.assert_allclose(readings["tip.orientation"], quaternion[[1, 2, 3, 0]], atol=1e-12)


def test_pose_is_in_the_frame_of_the_sensor(tmp_path: Path) -> None:
    sim = sled(tmp_path, "effort", '<motor joint="rail"/>')
    np.testing.assert_allclose(sim.readings()["tip.position"], [0.1, 0, 0], atol=1e-12)
    np.testing.assert_allclose(sim.readings()["tip.orientation"], [0, 0, 0, 1], atol=1e-12)


def test_effort_carries_gravity() -> None:
    sim = robot()
    efforts = settle(sim, POSE)["joints.effort"]
    assert np.abs(efforts - sim.data.qfrc_bias).max() < 0.0521  # up to dry friction
    assert np.abs(efforts).max() > 0.2


def test_a_seed_determines_everything_and_another_differs() -> None:
    gap = "noise=0.01,pose_noise=0.002,dropout=0.2,sensor_delay=0.03,command_delay=0.02,encoder_bias=0.02,payload=0.1"
    for text in ("", gap):
        sim, other = robot(gap=text), robot(gap=text)
        first = drive(sim, 1)
        drive(sim, 2)  # what came before must not matter
        np.testing.assert_array_equal(drive(sim, 1), first)
        np.testing.assert_array_equal(drive(other, 1), first)
        assert np.abs(drive(sim, 2) - first).max() > 0.01


def test_steps_shorter_than_physics_add_up() -> None:
    coarse, fine = robot(), robot()
    coarse.step(0.1)
    for _ in range(300):
        fine.step(0.1 / 300)
    assert coarse.time == pytest.approx(0.1)
    assert fine.time == pytest.approx(0.1)


def test_commands_that_make_no_sense_are_refused() -> None:
    sim = robot()
    with pytest.raises(ValueError, match=r"shape \(3,\).*\(6,\)"):
        sim.apply(np.zeros(3))
    with pytest.raises(ValueError, match="not finite"):
        sim.apply(np.array([0, np.nan, 0, 0, 0, 0]))
    with pytest.raises(ValueError, match="needs rng"):
        sim.reset(joint_noise=0.1)


def test_the_caller_may_reuse_its_command_array() -> None:
    sim = robot(gap="command_delay=0.05")
    command = POSE.copy()
    sim.apply(command)
    command[:] = 99
    sim.step(2.0)
    assert np.abs(sim.readings()["joints.position"] - POSE).max() < 0.06


# robots from elsewhere

@pytest.mark.parametrize(("interface", "actuator", "gains"), [
    ("position", '<position joint="rail" kp="400" kv="60"/>', {}),
    ("position", '<position joint="rail" kp="100" kv="15" gear="2"/>', {"kp": 400.0, "kd": 60.0}),
    ("position", '<motor joint="rail" gear="3" ctrlrange="-9 9"/>', {"kp": 400.0, "kd": 60.0, "effort": 27.0}),
])
def test_position_robots_go_where_they_are_told(tmp_path: Path, interface: str, actuator: str, gains: dict) -> None:
    readings = settle(sled(tmp_path, interface, actuator, **gains), np.array([0.5]))
    assert readings["joints.position"][0] == pytest.approx(0.5, abs=1e-3)


@pytest.mark.parametrize(("actuator", "gains"), [
    ('<velocity joint="rail" kv="300"/>', {}), ('<velocity joint="rail" kv="75" gear="2"/>', {"kd": 300.0}),
    ('<motor joint="rail"/>', {"kd": 300.0})])
def test_velocity_robots_go_as_fast_as_they_are_told(tmp_path: Path, actuator: str, gains: dict) -> None:
    readings = settle(sled(tmp_path, "velocity", actuator, **gains), np.array([0.3]))
    assert readings["joints.velocity"][0] == pytest.approx(0.3, abs=2e-3)
    assert readings["joints.position"][0] == pytest.approx(0.6, abs=0.02)


@pytest.mark.parametrize("actuator", ['<motor joint="rail"/>', '<motor joint="rail" gear="-4"/>',
                                      '<general joint="rail" gainprm="0.5"/>'])
def test_effort_robots_push_as_hard_as_they_are_told(tmp_path: Path, actuator: str) -> None:
    readings = settle(sled(tmp_path, "effort", actuator), np.array([1.0]), 1.0)
    assert readings["joints.effort"][0] == pytest.approx(1.0)
    assert readings["joints.position"][0] == pytest.approx(0.25, rel=0.01)  # F t² / 2 m


def test_an_actuator_without_limits_gets_the_robots_own(tmp_path: Path) -> None:
    readings = settle(sled(tmp_path, "effort", '<motor joint="rail"/>', effort=2.0), np.array([9.0]), 0.5)
    assert readings["joints.effort"][0] == pytest.approx(2.0)


@pytest.mark.parametrize(("interface", "actuator", "joint", "said"), [
    ("position", '<position joint="rail"/>', {"name": "slide"}, "joint 'slide': the MJCF has rail"),
    ("position", '<position joint="rail"/>', {"upper": 1.5}, "'rail' upper: the robot file says 1.5, the MJCF 1"),
    ("position", '<position joint="rail"/>', {"lower": -3.0}, "'rail' lower: the robot file says -3.0, the MJCF -1"),
    ("position", '<position joint="rail"/>', {"lower": None, "upper": None}, "gives none, the MJCF -1, 1"),
    ("position", '<velocity joint="rail"/>', {}, "interface=position needs a position or motor .* has velocity"),
    ("velocity", '<position joint="rail"/>', {}, "interface=velocity needs a velocity or motor .* has position"),
    ("effort", '<position joint="rail"/>', {}, "interface=effort needs a motor .* has position"),
    ("effort", "", {}, "interface=effort needs a motor .* has none"),
    ("position", '<motor joint="rail"/>', {}, "'rail' kp: the robot file says 0.0, but the MJCF has a bare motor"),
    ("position", '<position joint="rail" kp="7"/>', {"kp": 8.0}, "'rail' kp: the robot file says 8.0, the MJCF 7"),
    ("velocity", '<velocity joint="rail" kv="7"/>', {"kd": 8.0}, "'rail' kd: the robot file says 8.0, the MJCF 7"),
    ("effort", '<motor joint="rail" ctrlrange="-3 3" gear="2"/>', {}, "effort: the robot file says 50.0, the MJCF 6"),
])
def test_what_does_not_fit_is_named_with_both_values(tmp_path: Path, interface: str, actuator: str, joint: dict,
                                                     said: str) -> None:
    with pytest.raises(SpecError, match=said) as error:
        sled(tmp_path, interface, actuator, **joint)
    assert "sled.xml" in str(error.value)


def test_missing_site_frame_and_camera_are_named_together(tmp_path: Path) -> None:
    file = tmp_path / "sled.xml"
    text = SLED.format(actuator='<motor joint="rail"/>')
    file.write_text(text.replace('"tip"', '"nose"').replace('"base_link"', '"ground"').replace('"side"', '"top"'))
    with pytest.raises(SpecError) as error:
        SimRobot(sled_spec("effort"), file)
    for part in ("site: the robot file says tip, the MJCF has nose", "frame: the robot file says base_link",
                 "camera 'side': the MJCF has top"):
        assert part in str(error.value)


def test_a_broken_mjcf_is_named(tmp_path: Path) -> None:
    (tmp_path / "sled.xml").write_text("<mujoco><worldbody></mujoco>")
    with pytest.raises(SpecError, match=r"sled\.xml"):
        SimRobot(sled_spec("effort"), tmp_path / "sled.xml")


# the gap

def test_gap_reads_its_own_writing_and_refuses_the_rest() -> None:
    text = "payload=0.1,motor_strength=0.8,seed=3"
    assert Gap.parse(text) == Gap(payload=0.1, motor_strength=0.8, seed=3)
    assert str(Gap.parse(text)) == text
    assert Gap.parse("") == Gap()
    assert str(Gap()) == ""
    with pytest.raises(ValueError, match=r"'weight=1' is not one of payload=NUMBER, friction=NUMBER.*seed=NUMBER"):
        Gap.parse("payload=0.1,weight=1")
    for wrong, said in (("payload=heavy", "not a number"), ("payload=-1", "at least 0"), ("dropout=2", "at most 1"),
                        ("noise", "not one of"), ("noise=1,noise=2", "twice"), ("friction=nan", "finite")):
        with pytest.raises(ValueError, match=said):
            Gap.parse(wrong)


def test_no_gap_changes_nothing() -> None:
    plain = SimRobot(load_robot("so101"), mjcf_file("so101"))
    np.testing.assert_array_equal(drive(plain, 0), drive(robot(), 0))


def test_payload_equals_a_model_with_a_ball_at_the_tip(tmp_path: Path) -> None:
    plain = mjcf_file("so101").read_text()
    ball = '<inertial mass="0.15" pos="0 0 0" diaginertia="1e-12 1e-12 1e-12"/>'
    tip = '<body name="ball" pos="0.0981274 -0.000218121 -0.0079">' + ball + "</body>\n<body name=\"jaw\""
    (tmp_path / "loaded.xml").write_text(plain.replace('<body name="jaw"', tip))
    ours, theirs = compile_model(mjcf_file("so101")), compile_model(tmp_path / "loaded.xml")
    add_mass(ours, "tip", 0.15)
    states = []
    for model in (ours, theirs):
        data = mujoco.MjData(model)
        data.ctrl[:] = POSE
        mujoco.mj_step(model, data, 200)
        states.append(np.concatenate([data.qpos, data.qvel, data.qfrc_bias]))
    np.testing.assert_allclose(*states, atol=1e-6)


def test_payload_lowers_the_tip() -> None:
    plain, loaded = (settle(robot(gap=g), POSE)["tip.position"][2] for g in ("", "payload=0.15"))
    assert 0.003 < plain - loaded < 0.04
    with pytest.raises(ValueError, match="no site 'tip'"):
        add_mass(mujoco.MjModel.from_xml_string("<mujoco/>"), "tip", 1.0)


def test_weak_motors_droop_more_and_pull_less() -> None:
    normal, weak = robot(), robot(gap="motor_strength=0.6")
    droop = [np.abs(settle(sim, POSE)["joints.position"] - POSE).max() for sim in (normal, weak)]
    assert droop[1] > 1.3 * droop[0]
    np.testing.assert_allclose(weak.model.actuator_forcerange, 0.6 * normal.model.actuator_forcerange)
    torque = [settle(robot("furuta", gap), np.array([0.02]), 0.01)["joints.effort"][0]
              for gap in ("", "motor_strength=0.6")]
    assert torque == pytest.approx([0.02, 0.012])


def test_friction_keeps_small_changes_of_the_target_from_moving_the_arm() -> None:
    moved = []
    for gap in ("", "friction=0.3"):
        sim = robot(gap=gap)
        before = settle(sim, np.zeros(6))["joints.position"][0]
        moved.append(abs(settle(sim, np.array([0.015, 0, 0, 0, 0, 0]))["joints.position"][0] - before))
    assert moved[0] > 0.01
    assert moved[1] < 0.002
    hung = robot("furuta", "friction=0.01")
    assert hung.model.dof_frictionloss.tolist() == [0.01, 0.0]  # a joint without a motor has no gearbox


def test_encoder_bias_shifts_the_arm_but_not_what_it_reads() -> None:
    plain, biased = robot(), robot(gap="encoder_bias=0.05")
    a, b = settle(plain, POSE), settle(biased, POSE)
    truth = biased.truth()["joints.position"] - plain.truth()["joints.position"]
    np.testing.assert_allclose(np.abs(truth), 0.05, atol=0.012)
    np.testing.assert_allclose(b["joints.position"], a["joints.position"], atol=0.012)
    assert np.linalg.norm(b["tip.position"] - a["tip.position"]) > 0.005
    assert set(np.sign(Gap(encoder_bias=0.1).biases(6))) == {-1.0, 1.0}
    assert (Gap(encoder_bias=0.1, seed=1).biases(6) != Gap(encoder_bias=0.1).biases(6)).any()


def test_command_delay_holds_a_command_back() -> None:
    sim = robot("furuta", "command_delay=0.02")
    sim.apply(np.array([0.03]))
    sim.step(0.02)
    assert sim.readings()["joints.effort"][0] == 0
    sim.apply(np.array([0.01]))
    sim.step(0.01)
    assert sim.readings()["joints.effort"][0] == pytest.approx(0.03)
    sim.step(0.02)
    assert sim.readings()["joints.effort"][0] == pytest.approx(0.01)


def test_sensor_delay_shows_the_past_whole() -> None:
    plain, late = robot(), robot(gap="sensor_delay=0.1")
    seen, told = [], []
    for sim, rows in ((plain, seen), (late, told)):
        sim.apply(POSE)
        for _ in range(10):
            sim.step(0.05)
            rows.append(np.concatenate(list(sim.readings().values())))
    np.testing.assert_allclose(told[2:], seen[:-2], atol=1e-12)
    assert np.abs(np.array(told) - np.array(seen)).max() > 0.05


def test_measured_delays_are_drawn_for_every_message_and_command() -> None:
    lags = Lags(np.array([0.0, 0.03]), {"joints": np.array([0.02, 0.06]), "tip": np.array([0.1])})
    spec, file = load_robot("so101"), mjcf_file("so101")

    def run(seed: int) -> tuple[list[np.ndarray], list[dict[str, float]], list[np.ndarray]]:
        """What the joints told, how old it was, and where the joints were at every 10 ms."""
        sim = SimRobot(spec, file, lags=lags)
        sim.reset(np.random.default_rng(seed))
        told, ages, true = [], [], [sim.truth()["joints.position"]]
        for i in range(40):
            sim.apply(POSE if i % 2 else 0 * POSE)
            sim.step(0.01)
            true.append(sim.truth()["joints.position"])
            told.append(sim.readings()["joints.position"])
            ages.append(dict(sim.lags))
        return told, ages, true
    told, ages, true = run(0)
    for i, (seen, age) in enumerate(zip(told, ages, strict=True), 1):
        np.testing.assert_allclose(seen, true[max(0, i - round(age["joints"] / 0.01))], atol=1e-12)
        assert age["tip"] == pytest.approx(0.1)
    drawn = {round(age["joints"], 6) for age in ages}
    assert {0.02, 0.06} <= drawn <= {0.02, 0.03, 0.04, 0.05, 0.06}  # between: never older than what was told before
    assert all(later["joints"] <= sooner["joints"] + 0.01 + 1e-9 for sooner, later in itertools.pairwise(ages))
    again, other = run(0), run(1)
    np.testing.assert_array_equal(again[0], told)
    np.testing.assert_array_equal(again[2], true)
    assert ages != other[1] and (np.array(other[2]) != np.array(true)).any()  # commands were drawn otherwise too


def test_noise_has_the_size_that_was_asked_for() -> None:
    sim = robot(gap="noise=0.01,pose_noise=0.002")
    truth = sim.truth()
    rows = [sim.readings() for _ in range(500)]
    spread = {key: np.mean([(row[key] - truth[key]) ** 2 for row in rows]) ** 0.5 for key in truth}
    assert spread["joints.position"] == pytest.approx(0.01, rel=0.1)
    assert spread["tip.position"] == pytest.approx(0.002, rel=0.1)
    assert spread["joints.velocity"] == pytest.approx(0.2, rel=0.1)
    assert spread["joints.effort"] == spread["tip.orientation"] == 0


def test_dropout_repeats_the_message_before() -> None:
    sim = robot(gap="dropout=0.5")
    sim.apply(POSE)
    before, kept = sim.readings(), 0
    for _ in range(400):
        sim.step(0.002)
        now = sim.readings()
        kept += bool((now["joints.position"] == before["joints.position"]).all())
        before = now
    assert 150 < kept < 250
    lost = [sim.measure("tip") is None for _ in range(400)]
    assert 150 < sum(lost) < 250
    assert robot().measure("tip") is not None


def test_history_gives_the_newest_that_had_come_about() -> None:
    line: History[str] = History("a")
    line.push(0.5, "b")
    line.push(0.8, "c")
    line.push(0.7, "d")  # comes about with the one before it, not earlier
    assert [line.at(t) for t in (-1.0, 0.4, 0.5, 0.79, 0.8, 9.0)] == ["a", "a", "b", "b", "d", "d"]
    line.forget(0.79)
    assert [line.at(t) for t in (0.0, 0.79, 0.8)] == ["b", "b", "d"]


# pictures

@pytest.fixture(scope="module")
def eyes() -> SimRobot:
    try:
        backend()
    except RenderError as error:
        pytest.skip(str(error))
    return robot()


def goal_pixels(picture: np.ndarray) -> int:
    red, green, blue = (picture[..., i].astype(int) for i in range(3))
    return int(((green > 150) & (green > red + 60) & (green > blue + 30)).sum())


def test_cameras_see_the_robot_and_the_goal(eyes: SimRobot) -> None:
    eyes.show_goal(np.array([0.25, 0.0, 0.12]))
    for camera in eyes.spec.cameras:
        picture = eyes.render(camera.name)
        assert picture.shape == (camera.height, camera.width, 3)
        assert picture.dtype == np.uint8
        assert ((picture[..., 0] > 120) & (picture[..., 2] < 60)).mean() > 0.01, "orange parts"
        assert goal_pixels(picture) > 20
    eyes.show_goal(None)
    assert goal_pixels(eyes.render("front")) == 0
    assert 0.4 < eyes.fovy("front") < 1.2


def test_a_late_camera_shows_the_past(eyes: SimRobot) -> None:
    vision = Vision(cameras=("front",), height=24, width=32)
    lags = Lags(np.zeros(1), {"front": np.array([0.15])})
    plain, late, measured = (SimRobot(eyes.spec, mjcf_file("so101"), Gap.parse(gap), vision, drawn) for gap, drawn in (
        ("", NO_LAGS), ("camera_delay=0.2", NO_LAGS), ("camera_delay=0.05", lags)))
    seen: list[list[np.ndarray]] = []
    for sim in (plain, late, measured):
        rows = []
        sim.apply(POSE)
        for _ in range(5):
            sim.step(0.1)
            rows.append(sim.readings()["front.image"])
        seen.append(rows)
        assert sim.ages()["front"] == pytest.approx(0.0 if sim is plain else 0.2)
        sim.close()
    np.testing.assert_array_equal(seen[1][2:], seen[0][:-2])
    np.testing.assert_array_equal(seen[2], seen[1])
    assert (seen[0][-1] != seen[0][0]).any()


def test_a_snapshot_keeps_its_moment(eyes: SimRobot) -> None:
    eyes.reset()
    still = eyes.render("front")
    eyes.snapshot("front")
    settle(eyes, POSE, 0.5)
    np.testing.assert_array_equal(eyes.render_snapshot("front"), still)
    assert (eyes.render("front") != still).any()


def test_pictures_do_not_disturb_physics(eyes: SimRobot) -> None:
    watched = robot()
    watched.apply(POSE)
    for _ in range(5):
        watched.step(0.02)
        eyes_on = watched.render("front")
    blind = robot()
    settle(blind, POSE, 0.1)
    assert eyes_on.any()
    np.testing.assert_array_equal(watched.data.qpos, blind.data.qpos)
    watched.close()


def test_a_camera_may_change_its_thread_and_be_closed_by_another(eyes: SimRobot) -> None:
    eyes.snapshot("wrist")
    pictures = [eyes.render_snapshot("wrist")]
    thread = threading.Thread(target=lambda: pictures.append(eyes.render_snapshot("wrist")))
    thread.start()
    thread.join()
    np.testing.assert_array_equal(*pictures)
    thread = threading.Thread(target=eyes.close)
    thread.start()
    thread.join()
    assert eyes.render("wrist").any(), "opened again"


def test_portraits_come_in_any_size(eyes: SimRobot) -> None:
    assert eyes.portrait("front", 200, 120).shape == (120, 200, 3)


def test_without_opengl_state_works_and_pictures_say_what_is_missing() -> None:
    code = ("from robot_rl.spec import load_robot, mjcf_file\nfrom sim.robot import SimRobot\n"
            "import sim.offscreen as o\no.find_library = lambda name: None\n"
            "r = SimRobot(load_robot('so101'), mjcf_file('so101')); r.step(0.1); r.readings()\n"
            "try: r.render('front')\nexcept o.RenderError as e: print(e)\n")
    env = {k: v for k, v in os.environ.items() if k != "MUJOCO_GL"}
    said = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True).stdout
    assert "libEGL" in said
    assert "libOSMesa" in said
    assert "apt-get install libegl1 libgl1" in said
