"""What stands before the compiler (benches/profile/rustc): a release gets the profile where it holds, all else nothing."""

import subprocess

import pytest
from stage import ROOT

WRAPPER = ROOT / "benches" / "profile" / "rustc"
RELEASE = ["--crate-name", "a b", "--out-dir", "/x y/target/release/deps", "-C", "opt-level=3"]
USED = [f"-Cprofile-use={ROOT}/benches/profile/release.profdata", "-Cllvm-args=-no-pgo-warn-mismatch"]


def compiled(tmp_path, arguments, version=None, environment=None):
    """What a compiler of this version is asked for."""
    version = version or (ROOT / "benches" / "profile" / "compiler").read_text().strip()
    compiler = tmp_path / "rustc"
    compiler.write_text(f'#!/bin/sh\n[ "$1" = --version ] && echo "{version}" || printf "%s\\n" "$@"\n')
    compiler.chmod(0o755)
    told = subprocess.run([WRAPPER, compiler, *arguments], capture_output=True, text=True, check=True, env=environment)
    return told.stdout.splitlines()


def test_a_release_is_built_with_the_profile(tmp_path):
    assert compiled(tmp_path, RELEASE) == RELEASE + USED


@pytest.mark.parametrize(
    "arguments",
    [
        ["--version"],
        ["--crate-name", "a", "--out-dir", "/target/debug/deps", "-C", "opt-level=3"],
        ["--crate-name", "build_script_build", "--out-dir", "/target/release/build/a", "-C", "opt-level=0"],
        ["--crate-name", "macros", "--out-dir", "/target/release/deps", "-C", "opt-level=0"],
        ["--crate-name", "a", "--out-dir", "/target/counted/deps", "-C", "opt-level=3"],
        [*RELEASE, "-C", "instrument-coverage"],
        [*RELEASE, "-Cprofile-use=/another"],
    ],
)
def test_nothing_else_is_touched(tmp_path, arguments):
    assert compiled(tmp_path, arguments, "another") == (["another"] if arguments == ["--version"] else arguments)
    if arguments != ["--version"]:
        assert compiled(tmp_path, arguments) == arguments


def test_another_compiler_builds_without_it(tmp_path):
    assert compiled(tmp_path, RELEASE, "rustc 1.94.0 (another)") == RELEASE


def test_a_profile_is_taken_of_releases_alone(tmp_path):
    watched = {"PORTCULLIS_WATCH": "/a place"}
    assert compiled(tmp_path, RELEASE, environment=watched) == [*RELEASE, "-Cprofile-generate=/a place"]
    debug = ["--crate-name", "a", "--out-dir", "/target/debug/deps", "-C", "opt-level=0"]
    assert compiled(tmp_path, debug, environment=watched) == debug
