"""``fourstep mark``, and the detector as an ONNX graph."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from exporter.cli import main
from exporter.marking.read import read_mark
from tests.test_marking import KEY, PAYLOAD, cropped, marked, photographs, shapes


def fourstep(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture
def key(tmp_path: Path) -> Path:
    file = tmp_path / "mark.key"
    file.write_text(KEY.secret.hex() + "\n")
    file.chmod(0o600)
    return file


def saved(picture: np.ndarray, file: Path) -> Path:
    Image.fromarray(picture).save(file)
    return file


def test_a_key_is_made(tmp_path: Path) -> None:
    file = tmp_path / "new.key"
    told = json.loads(fourstep("mark", "key", file, "--json").stdout)
    assert told["path"] == str(file) and len(told["key_id"]) == 16
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    again = fourstep("mark", "key", file)
    assert again.exit_code == 2 and "is there already" in again.stderr


def test_marks_are_read(tmp_path: Path, key: Path) -> None:
    yes, no = saved(marked(shapes()[0]), tmp_path / "y.png"), saved(shapes()[0], tmp_path / "n.png")
    found = fourstep("mark", "read", yes, "--key", key)
    assert found.exit_code == 0
    assert "y.png  payload 1a2b3c4d, a chance below 1 in 10^" in found.stdout
    both = fourstep("mark", "read", yes, no, "--key", key, "--size", "128x128", "--json")
    assert both.exit_code == 1
    first, second = json.loads(both.stdout)
    assert (first["found"], first["payload"], first["key_id"]) == (True, "1a2b3c4d", KEY.id)
    assert first["false_positive_log10"] < -6 < second["false_positive_log10"]
    assert (second["found"], second["payload"]) == (False, None)


def test_a_key_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MARK_KEY", KEY.secret.hex())
    picture = saved(cropped(marked(shapes()[0])), tmp_path / "y.png")
    found = fourstep("mark", "read", picture, "--key-env", "MARK_KEY")
    assert "payload 1a2b3c4d" in found.stdout and "cut 9 px from the left and 17" in found.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["y.png"], "one of --key FILE and --key-env NAME"),
        (["y.png", "--key", "no.key"], "no.key: no such key"),
        (["y.png", "--key", "y.png"], "y.png: not "),
        (["no.png", "--key", "mark.key"], "no.png: no such file"),
        (["mark.key", "--key", "mark.key"], "mark.key: not a picture"),
        (["y.png", "--key", "mark.key", "--size", "128"], "--size '128': width and height"),
        (["y.png", "--key", "mark.key", "--key", "mark.key"], "--key is given 2 times"),
        (["y.png", "--key-env", "NO_SUCH"], "no variable NO_SUCH"),
        ([], "Missing argument"),
    ],
)
def test_bad_input_is_one_line(
    tmp_path: Path, key: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    saved(shapes()[0], tmp_path / "y.png")
    found = fourstep("mark", "read", *arguments)
    assert found.exit_code == 2
    assert said in found.stderr and found.stderr.count("\n") == 1


def test_the_detector_gives_the_same_statistic(tmp_path: Path, key: Path) -> None:
    file = tmp_path / "detector.onnx"
    assert fourstep("mark", "detector", "--key", key, "-o", file).exit_code == 0
    assert fourstep("mark", "detector", "--key", key, "-o", file).exit_code == 2
    assert file.stat().st_size < 1 << 20
    session = onnxruntime.InferenceSession(file)
    pictures = (marked(shapes()[0]), marked(photographs(256)[0])[:200], shapes()[1])
    for picture in pictures:
        levels = picture.astype(np.float32).transpose(2, 0, 1)[None]
        statistic, chance, payload = session.run(None, {"picture": levels})
        height, width = picture.shape[:2]
        expected = read_mark(picture, KEY, (height, width))
        assert expected is not None
        assert expected.found == (picture is not pictures[2])
        assert expected.payload == PAYLOAD or not expected.found
        assert float(statistic) == pytest.approx(expected.statistic, rel=5e-3)
        assert float(chance) == pytest.approx(expected.false_positive_log10, rel=1e-2, abs=0.2)
        assert int(payload) == PAYLOAD or not expected.found
