"""The templates for a CI: read by actionlint, and expanded as a runner does."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from exporter.cli import main
from tests.conftest import ROOT

GITHUB, GITLAB = ROOT / "docs/ci/github.yml", ROOT / "docs/ci/gitlab.yml"
MATRIX = "recipes/matrices/shapes.toml"
NAMES = [
    f"shapes-flash/{size}/{backend}-{scheme}"
    for size, backends in (
        ("128x128", ("onnx", "openvino", "coreml")), ("96x96", ("onnx", "openvino")),
    )
    for scheme in ("int8", "int4")
    for backend in backends
]  # fmt: skip


def printed(capsys: pytest.CaptureFixture[str], line: list[str]) -> str:
    with pytest.raises(SystemExit) as ended:
        main(line)
    assert not ended.value.code
    return capsys.readouterr().out


def expanded(text: str, values: dict[str, Any]) -> str:
    """Text with its ``${{ a.b }}`` as a runner puts them in; KeyError for one it does not know."""
    return re.sub(r"\$\{\{ ([\w.]+) \}\}", lambda found: str(values[found[1]]), text)


def test_actionlint_finds_nothing(tmp_path: Path) -> None:
    found = subprocess.run(
        [Path(sys.executable).parent / "actionlint", "-no-color", GITHUB],
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0, found.stdout + found.stderr


def test_githubs_matrix_is_expanded_to_every_job(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As act does: the first job's output is the second's matrix, a row of it a runner."""
    monkeypatch.chdir(ROOT)
    workflow = yaml.safe_load(GITHUB.read_text())
    assert workflow["env"]["MATRIX"] == MATRIX
    (step,) = (s for s in workflow["jobs"]["list"]["steps"] if s.get("id") == "list")
    line = re.fullmatch(r'echo "matrix=\$\((fourstep .*)\)" >> "\$GITHUB_OUTPUT"', step["run"])
    assert line is not None
    words = line[1].replace('"$MATRIX"', MATRIX).split()
    output = printed(capsys, words[1:])
    assert output.count("\n") == 1  # an output of a step is one line
    job = workflow["jobs"]["package"]
    assert job["needs"] == "list"
    assert job["strategy"]["matrix"] == "${{ fromJSON(needs.list.outputs.matrix) }}"
    rows = json.loads(output)["include"]
    assert [row["job"] for row in rows] == [*NAMES, "shapes-flash/onnx-fp16"]
    (build,) = (s for s in job["steps"] if "--job" in s.get("run", ""))
    artifacts = set()
    for row in rows:
        values = {f"matrix.{name}": value for name, value in row.items()}
        name = expanded(build["env"]["JOB"], values)
        listed = printed(capsys, ["matrix", MATRIX, "--job", name, "--list", "github"])
        assert [found["job"] for found in json.loads(listed)["include"]] == [name]
        (upload,) = (s for s in job["steps"] if "upload-artifact" in s.get("uses", ""))
        artifacts.add(expanded(upload["with"]["name"], values))
    assert len(artifacts) == len(rows) and not any(set(n) & set('":<>|*?\\/') for n in artifacts)


def test_gitlabs_child_pipeline_has_every_job(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    parent = yaml.safe_load(GITLAB.read_text())
    words = parent["list"]["script"][1].replace('"$MATRIX"', MATRIX).split()
    child = yaml.safe_load(printed(capsys, words[1 : words.index(">")]))
    (included,) = parent["packages"]["trigger"]["include"]
    assert included["artifact"] in parent["list"]["artifacts"]["paths"]
    template = child.pop(".package")
    assert template["script"][1].startswith("fourstep matrix ")
    assert [job["variables"]["JOB"] for job in child.values()] == [
        *NAMES,
        "shapes-flash/onnx-fp16",
    ]
    assert all(job["extends"] == ".package" for job in child.values())
    assert {job["variables"]["MATRIX"] for job in child.values()} == {MATRIX}


def test_no_template_has_a_secret_in_a_command() -> None:
    workflow = yaml.safe_load(GITHUB.read_text())
    steps = itertools.chain(*(job["steps"] for job in workflow["jobs"].values()))
    runs = [step["run"] for step in steps if "run" in step]
    assert runs and not any("secrets." in run or "AWS" in run for run in runs)
