"""The scripts in tpu/: short, clean, and what they would run."""

import os
import pathlib
import shlex
import shutil
import subprocess
import sys

import pytest

TPU = pathlib.Path(__file__).parent.parent / "tpu"
SCRIPTS = sorted(TPU.glob("*.sh"))
SLICE = {"TPU_NAME": "my slice", "TPU_ZONE": "us-west4-a", "TPU_TYPE": "v6e-8"}


def dry_run(script, *arguments, **settings):
    """The commands that a script would run, each as its words."""
    env = {"PATH": os.environ["PATH"], **SLICE, "DRY_RUN": "1", **settings}
    done = subprocess.run(
        ["bash", TPU / script, *arguments], env=env, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return [shlex.split(line.replace("$'", "'")) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_short_and_clean(script):
    assert len(script.read_text().splitlines()) <= 40
    here = os.pathsep.join([str(pathlib.Path(sys.executable).parent), os.environ["PATH"]])
    shellcheck = shutil.which("shellcheck", path=here)
    assert shellcheck, "the extra `dev` brings it"
    done = subprocess.run(
        [shellcheck, "--external-sources", f"--source-path={TPU}", script],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout


def test_a_slice_is_queued_with_its_runtime():
    [create] = dry_run("create.sh")
    assert create[:6] == ["gcloud", "compute", "tpus", "queued-resources", "create", "my slice"]
    assert {"--accelerator-type=v6e-8", "--runtime-version=v2-alpha-tpuv6e"} <= set(create)
    [spot] = dry_run("create.sh", TPU_SPOT="1", TPU_TYPE="v5litepod-16")
    assert {"--spot", "--runtime-version=v2-alpha-tpuv5-lite"} <= set(spot)


def test_all_workers_install_and_launch_the_same():
    _, copy, install, mount = dry_run("install.sh", TPU_NFS="10.0.0.2:/disk")
    assert "scp" in copy and "--worker=all" in copy and "--worker=all" in install
    assert "mount -t nfs 10.0.0.2:/disk cartridges/shared" in mount[-1]
    launch, follow = dry_run("launch.sh", "train", "--corpus=a b", "--out=shared/run")
    assert "--worker=all" in launch and "--worker=0" in follow
    assert "train" in launch[-1] and "--distributed" in launch[-1]


def test_a_slice_that_is_gone_is_made_anew_before_the_job_goes_on():
    there = dry_run("resume.sh", "train", "--out=shared/run")
    assert not any("create" in words for words in there)
    gone = dry_run("resume.sh", "train", "--out=shared/run", DRY_RUN_STATE="SUSPENDED")
    kinds = ("delete", "create", "archive", "scp", "ssh")
    found = [next(kind for kind in kinds if kind in words) for words in gone]
    assert found == [*kinds, "ssh", "ssh"]  # installed, launched, followed


def test_what_is_missing_is_said():
    env = {"PATH": os.environ["PATH"], "TPU_NAME": "a"}
    done = subprocess.run(["bash", TPU / "create.sh"], env=env, capture_output=True, text=True)
    assert done.returncode != 0 and "TPU_ZONE: such as us-west4-a" in done.stderr
