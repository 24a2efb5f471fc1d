"""The benchmark of the control loop with a policy that sees: real cameras beside it, and figures that add up."""

from __future__ import annotations

import json

import pytest

from tests.hardware.test_deploy import start

pytest.importorskip("torch")
pytest.importorskip("cv2")


@pytest.mark.slow
def test_a_policy_that_sees_is_measured_with_its_cameras(domain: int) -> None:
    process = start("bench", "loop", "--cameras", 2, "--rate", 20, "--seconds", 4, "--cores", 2, "--loops", "ours",
                    "--bus", "dds", "--json")
    out, err = process.communicate(timeout=250)
    assert process.returncode == 0, err
    told = json.loads(out.splitlines()[-1])
    assert told["cores"] <= 2 and 0 < told["ticks"] <= 80
    assert told["ticks"] + told["missed"] >= 75
    assert set(told["cameras"]) == {"front", "wrist"}
    for seen in told["cameras"].values():
        assert 0 < seen["new_share"] <= 1 and seen["age_ms_p50"] > 0
    assert set(told["cpu_share_of"]) == {"robot", "camera front", "camera wrist"}
    assert all(share > 0 for share in told["cpu_share_of"].values())


def test_more_cameras_than_the_robot_has_are_refused() -> None:
    process = start("bench", "loop", "--cameras", 3)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 2 and "--cameras 3: so101-cube has 2" in err
