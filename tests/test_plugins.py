"""ComfyUI's nodes beside stand-ins for ComfyUI; ``make interop`` runs them in its own code."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from exporter.plugins.comfyui import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS
from exporter.plugins.comfyui.nodes import DrawPictures, LoadPackage
from exporter.runtime import Image, InputError, Request, generate, open_package
from tests.conftest import ROOT, SIGMAS

WORKFLOW = ROOT / "exporter" / "plugins" / "comfyui" / "workflow.json"
Shown = list[tuple[int, int, Any]]


class Interrupted(Exception):
    """What ComfyUI raises when a run is cancelled."""


@pytest.fixture
def comfy(monkeypatch: pytest.MonkeyPatch) -> tuple[Shown, Callable[[int], None]]:
    """What was shown in the queue, and what cancels a run once so much is shown."""
    shown: Shown = []
    limits: list[int] = []

    class ProgressBar:
        def __init__(self, total: int) -> None:
            self.total = total

        def update_absolute(self, value: int, total: int, preview: Any) -> None:
            shown.append((value, total, preview))

    def check() -> None:
        if limits and len(shown) >= limits[0]:
            raise Interrupted

    stubs: dict[str, dict[str, Any]] = {
        "comfy": {},
        "comfy.utils": {"ProgressBar": ProgressBar},
        "comfy.model_management": {"throw_exception_if_processing_interrupted": check},
    }
    for name, members in stubs.items():
        module = ModuleType(name)
        module.__dict__.update(members)
        monkeypatch.setitem(sys.modules, name, module)
    return shown, limits.append


def drawn(package: Path, *requests: Request) -> list[np.ndarray]:
    with open_package(package).player() as player:
        return [e.pixels for e in generate(player, list(requests)) if isinstance(e, Image)]


def test_a_batch_is_what_the_loop_draws(
    tiny_package: Path, comfy: tuple[Shown, Callable[[int], None]]
) -> None:
    shown, _ = comfy
    loaded, sigmas, about = LoadPackage().load(str(tiny_package), keep_open=False)
    assert sigmas.tolist() == pytest.approx(SIGMAS) and "0.9, 0.75" in about
    (pictures,) = DrawPictures().draw(loaded, "a red circle", 5, 2, 1.0)
    assert pictures.dtype == torch.float32 and pictures.shape == (2, 48, 64, 3)
    saved = np.clip(255.0 * pictures.numpy(), 0, 255).astype(np.uint8)  # as ComfyUI saves
    right = drawn(tiny_package, *(Request("a red circle", seed) for seed in (5, 6)))
    assert np.array_equal(saved, np.stack(right))
    assert [value for value, _, _ in shown] == list(range(1, 9))
    kind, picture, _ = shown[0][2]
    assert kind == "JPEG" and picture.size == (8, 6)

    shown.clear()
    (started,) = DrawPictures().draw(loaded, "a red circle", 5, 1, 0.5, pictures)
    given = Request("a red circle", 5, saved[0], 0.5)
    assert np.array_equal(np.round(started[0].numpy() * 255), drawn(tiny_package, given)[0])


def test_a_run_stops_between_steps(
    tiny_package: Path, comfy: tuple[Shown, Callable[[int], None]]
) -> None:
    shown, stop_after = comfy
    loaded, *_ = LoadPackage().load(str(tiny_package), keep_open=True)
    stop_after(2)
    with loaded.player, pytest.raises(Interrupted):
        DrawPictures().draw(loaded, "a red circle", 5, 1, 1.0)
    assert len(shown) == 2


def test_what_is_no_package_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a package"):
        LoadPackage().load(str(tmp_path), keep_open=True)


def test_the_workflow_is_of_these_nodes() -> None:
    """Its links join outputs and inputs of one kind; its widgets have as many values as inputs."""
    flow = json.loads(WORKFLOW.read_text())
    nodes = {node["id"]: node for node in flow["nodes"]}
    for number, start, slot, end, place, kind in flow["links"]:
        assert number in nodes[start]["outputs"][slot]["links"]
        assert nodes[end]["inputs"][place]["link"] == number
        assert nodes[start]["outputs"][slot]["type"] == nodes[end]["inputs"][place]["type"] == kind
    assert set(NODE_CLASS_MAPPINGS) == set(NODE_DISPLAY_NAME_MAPPINGS)
    for node in nodes.values():
        if node["type"] in NODE_CLASS_MAPPINGS:
            made: Any = NODE_CLASS_MAPPINGS[node["type"]]
            linked = {entry["name"] for entry in node["inputs"]}
            widgets = [n for n in made.INPUT_TYPES()["required"] if n not in linked]
            assert len(widgets) == len([v for v in node["widgets_values"] if v != "fixed"])
            assert tuple(o["type"] for o in node["outputs"]) == made.RETURN_TYPES
