"""A manifest's fields against each other: what a record's own types cannot say."""

from __future__ import annotations

import math
import posixpath
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise

from exporter.package.manifest import BASE, GraphEntry, Manifest, Port, SizeEntry, Source, Stage
from exporter.package.sizes import context_files, first_size, manifest_at, size_of, sized_files

MOST_SIZES = 32  # of a package
MOST_PORT_BYTES = 1 << 30  # the largest input or output that a manifest may ask memory for
MOST_BESIDE_BYTES = 2 << 30  # of files that are no graph's: all are read before anything is drawn
WEIGHTS = "weights"  # a setting that names what lies beside a graph's entry
# How many stages have to give it, of one at most.
RESULTS = {"velocity": 1, "image": 1, "start": 0, "preview": 0, "scores": 0}


def check(manifest: Manifest) -> None:
    """Raise ValueError that names the field which contradicts the others."""
    for problem in _problems(manifest):
        raise ValueError(problem)


def _problems(manifest: Manifest) -> Iterator[str]:
    yield from _schedule(manifest)
    yield from _picture(manifest)
    yield from _tokenizers(manifest)
    yield from _files(manifest)
    beside = {file.path for file in manifest.files}
    for i, graph in enumerate(manifest.graphs):
        yield from _ports(graph, f"graphs[{i}]")
        yield from _contexts(graph, beside, f"graphs[{i}]")
    yield from _stages(manifest)
    yield from _sizes(manifest)


def _sizes(manifest: Manifest) -> Iterator[str]:
    """Each further size is another, and with what it has of its own the manifest holds as well."""
    if len(manifest.sizes) >= MOST_SIZES:
        yield f"sizes: {len(manifest.sizes)} of them; at most {MOST_SIZES - 1}"
        return
    seen = {first_size(manifest)}
    for i, entry in enumerate(manifest.sizes):
        where = f"sizes[{i}]"
        if size_of(entry) in seen:
            yield f"{where}: {size_of(entry)} is there already"
        seen.add(size_of(entry))
        problem = next(_sized(manifest, entry), "")
        if problem:
            yield f"{where}.{problem}"
            return
        problem = next(_problems(manifest_at(manifest, size_of(entry))), "")
        if problem:
            yield f"{where}: {problem}"


def _sized(manifest: Manifest, entry: SizeEntry) -> Iterator[str]:
    """The graphs of a further size stand in for graphs, and their files are known."""
    own = sized_files(manifest)
    for j, graph in enumerate(entry.graphs):
        first = manifest.graph(graph.name)
        if first is None:
            yield f"graphs[{j}].name: there is no graph '{graph.name}'"
            return
        if [g.name for g in entry.graphs].count(graph.name) > 1:
            yield f"graphs[{j}].name: '{graph.name}' is there twice"
        able = own | {file.path for file in first.files}
        for path in graph.files:
            if path not in able:
                yield f"graphs[{j}].files: '{path}' is no file of '{graph.name}'"
        if len({*graph.files}) < len(graph.files):
            yield f"graphs[{j}].files: one is listed twice"
    beside = {file.path for file in manifest.files} - own
    for j, picture in enumerate(entry.pictures):
        for name in ("image", "unquantized", "tensors", "like"):
            path = getattr(picture, name)
            if path and path not in beside:
                yield f"pictures[{j}].{name}: '{path}' is not among files"


def _schedule(manifest: Manifest) -> Iterator[str]:
    sigmas = manifest.schedule.sigmas
    if not all(a > b for a, b in pairwise(sigmas)) or sigmas[0] > 1 or sigmas[-1] != 0:
        yield f"schedule.sigmas: {list(sigmas)} do not fall from at most 1 to 0"
    guidance = manifest.schedule.guidance
    for i, stage in enumerate(manifest.stages):
        runs = "each step" if guidance is None else "twice each step"
        if stage.in_steps and stage.runs != runs:
            yield f"stages[{i}].runs: '{stage.runs}' does not go with schedule.guidance"
    kinds = {source.kind for stage in manifest.stages for source in stage.sources}
    of_request = guidance is not None and guidance.negative_prompt is None
    if of_request != ("negative output" in kinds):
        yield "schedule.guidance.negative_prompt: does not go with the sources of the stages"


def _picture(manifest: Manifest) -> Iterator[str]:
    picture = manifest.picture
    for name, size in (("width_px", picture.width_px), ("height_px", picture.height_px)):
        if size % picture.latent_scale_px:
            yield f"picture.{name}: {size} is no multiple of {picture.latent_scale_px}"
    preview = picture.preview
    if preview is not None and len(preview.factors) != picture.latent_channels:
        yield (
            f"picture.preview.factors: {len(preview.factors)} rows for "
            f"{picture.latent_channels} channels"
        )


def _tokenizers(manifest: Manifest) -> Iterator[str]:
    for name, entry in manifest.text.tokenizers.items():
        for field, value in (("pad_id", entry.pad_id), ("closing_id", entry.closing_id)):
            if value is not None and value >= entry.vocabulary_size:
                yield (
                    f"text.tokenizers.{name}.{field}: {value} is not in the vocabulary of "
                    f"{entry.vocabulary_size}"
                )


def _files(manifest: Manifest) -> Iterator[str]:
    """Every path is among the digests, and none of them twice."""
    for path, times in Counter(f.path for f in manifest.all_files).items():
        if times > 1:
            yield f"files: '{path}' is listed {times} times"
    apart = sized_files(manifest) | context_files(manifest)
    if sum(f.bytes for f in manifest.files if f.path not in apart) > MOST_BESIDE_BYTES:
        yield f"files: more than {MOST_BESIDE_BYTES >> 30} GiB beside the graphs"
    beside = {f.path for f in manifest.files}
    named = {f"text.tokenizers.{n}.path": t.path for n, t in manifest.text.tokenizers.items()}
    golden = manifest.golden
    for i, picture in enumerate(golden.pictures):
        for field in ("image", "unquantized", "tensors"):
            named[f"golden.pictures[{i}].{field}"] = getattr(picture, field)
    optional = {
        "golden.tokens": golden.tokens,
        "golden.noise": golden.noise,
        "origin.licence": manifest.origin.licence,
        "origin.notice": manifest.origin.notice,
        "origin.recipe": manifest.origin.recipe,
        "bom": manifest.bom,
    }
    named |= {field: path for field, path in optional.items() if path}
    for field, path in named.items():
        if path not in beside:
            yield f"{field}: '{path}' is not among files"
    for i, graph in enumerate(manifest.graphs):
        own = [f.path for f in graph.files]
        if graph.entry not in own and not any(p.startswith(f"{graph.entry}/") for p in own):
            yield f"graphs[{i}].entry: '{graph.entry}' is not among the graph's files"
        for setting in (WEIGHTS, BASE):
            place = posixpath.join(posixpath.dirname(graph.entry), graph.session.get(setting, ""))
            if setting in graph.session and not any(f"{p}/".startswith(f"{place}/") for p in own):
                yield f"graphs[{i}].session.{setting}: '{place}' is not among the graph's files"


def _contexts(graph: GraphEntry, beside: set[str], where: str) -> Iterator[str]:
    """What was compiled is of one chip each, and its files are known."""
    contexts = graph.npu.contexts if graph.npu else ()
    known = beside | {file.path for file in graph.files}
    if graph.npu and graph.npu.alone and graph.entry not in {c.entry for c in contexts[:1]}:
        yield f"{where}.npu.alone: '{graph.entry}' is not its first context"
    for i, context in enumerate(contexts):
        place = f"{where}.npu.contexts[{i}]"
        if context.soc in {c.soc for c in contexts[:i]}:
            yield f"{place}.soc: '{context.soc}' is there already"
        if context.entry not in context.files:
            yield f"{place}.entry: '{context.entry}' is not among its files"
        for path in context.files:
            if path not in known:
                yield f"{place}.files: '{path}' is not among files"


def _ports(graph: GraphEntry, where: str) -> Iterator[str]:
    for side, ports in (("inputs", graph.inputs), ("outputs", graph.outputs)):
        if not ports or len({p.name for p in ports}) != len(ports):
            yield f"{where}.{side}: none, or two of a name"
        for i, port in enumerate(ports):
            if math.prod(port.shape) * 4 > MOST_PORT_BYTES:
                yield f"{where}.{side}[{i}].shape: {list(port.shape)} takes more than 1 GiB"


def _stages(manifest: Manifest) -> Iterator[str]:
    used = [part for stage in manifest.stages for part in stage.parts]
    names = [graph.name for graph in manifest.graphs]
    if sorted(used) != sorted(names) or len({*names}) != len(names):
        yield f"stages: their parts {used} are not the graphs {names}, each once"
        return
    given: dict[str, Stage] = {}
    for i, stage in enumerate(manifest.stages):
        where = f"stages[{i}]"
        if stage.graph in given:
            yield f"{where}.graph: '{stage.graph}' has a turn already"
        parts = manifest.parts(stage.graph)
        if not parts:
            yield f"{where}.parts: there are none"
            return
        for before, after in pairwise(parts):
            if _kinds(before.outputs) != _kinds(after.inputs):
                yield f"{where}.parts: {after.name} does not take what {before.name} gives"
        fed = {"inputs": stage.inputs}
        if stage.runs == "twice each step":
            fed["negative_inputs"] = stage.negative_inputs
        elif stage.negative_inputs:
            yield f"{where}.negative_inputs: there are some, and it runs {stage.runs}"
        for side, sources in fed.items():
            if {*sources} != {p.name for p in parts[0].inputs}:
                yield f"{where}.{side}: {sorted(sources)} are not those of {parts[0].name}"
                return
            for port in parts[0].inputs:
                problem = _source(manifest, stage, sources[port.name], port, given)
                if problem:
                    yield f"{where}.{side}.{port.name}: {problem}"
        yield from _results(manifest, stage, parts[-1].outputs, where)
        given[stage.graph] = stage
    for result, least in RESULTS.items():
        found = [s for s in manifest.stages if result in s.results.values()]
        if not least <= len(found) <= 1:
            yield f"stages: {len(found)} of them give the {result}; one has to"
    yield from _preview_graph(manifest)
    yield from _filter(manifest)


def _filter(manifest: Manifest) -> Iterator[str]:
    """A filter has a stage behind all others, which gives the score that it names."""
    found = [s for s in manifest.stages if s.runs == "for the filter"]
    filter_ = manifest.filter
    if (filter_ is not None) != bool(found):
        yield f"filter: does not go with {len(found)} stages that run for it"
    if filter_ is None or not found:
        return
    (stage,) = found[:1]
    if stage is not manifest.stages[-1]:
        yield f"filter: '{stage.graph}' does not run last"
    ports = {p.name: p for p in manifest.parts(stage.graph)[-1].outputs}
    for name in stage.results:
        if name in ports and filter_.index >= math.prod(ports[name].shape):
            yield f"filter.index: {filter_.index} is not in {list(ports[name].shape)}"
    if not math.isfinite(filter_.threshold):
        yield "filter.threshold: does not divide numbers"


def _preview_graph(manifest: Manifest) -> Iterator[str]:
    """The graph of previews has a stage that needs nothing but a latent, and nothing else shows."""
    name = manifest.picture.preview_graph
    for stage in manifest.stages:
        shown = "preview" in stage.results.values()
        if shown and stage.graph != name:
            yield f"picture.preview_graph: '{name}', and '{stage.graph}' gives the preview"
        if stage.graph != name:
            continue
        if not shown and "image" not in stage.results.values():
            yield f"picture.preview_graph: '{name}' gives no picture"
        if any(source.kind != "latent" for source in stage.inputs.values()):
            yield f"picture.preview_graph: '{name}' takes more than a latent"
    if name and manifest.stage(name) is None:
        yield f"picture.preview_graph: there is no stage of '{name}'"


def _source(
    manifest: Manifest, stage: Stage, source: Source, port: Port, given: dict[str, Stage]
) -> str:
    """What is wrong with what an input is fed from, or nothing."""
    picture = manifest.picture
    if source.kind == "tokens":
        entry = manifest.text.tokenizers.get(source.name)
        if entry is None or stage.runs != "once per prompt":
            return f"no tokenizer '{source.name}' for what runs {stage.runs}"
        fed = Port("", (1, entry.tokens), "int32")
    elif source.kind == "latent":
        if stage.runs == "once per prompt":
            return "there is no latent yet"
        fed = Port("", picture.latent)
    elif source.kind == "image":
        if not stage.image_to_image_only or stage.runs != "once":
            return "only a stage of image to image that runs once has an image"
        fed = Port("", (1, 3, picture.height_px, picture.width_px))
    elif source.kind == "picture":
        if stage.runs != "for the filter" or manifest.filter is None:
            return "only the filter's stage takes a finished picture"
        fed = Port("", manifest.filter.shape)
    else:
        if source.kind == "negative output" and stage.runs != "twice each step":
            return "only what runs twice each step takes something of the negative prompt"
        before = given.get(source.name)
        outputs = manifest.parts(source.name)[-1].outputs if before else ()
        found = [p for p in outputs if p.name == source.port]
        if before is None or not found:
            return f"no output '{source.port}' of a graph '{source.name}' before it"
        if before.runs != "once per prompt":
            return f"'{source.name}' runs {before.runs}; outputs of once per prompt alone are kept"
        shape = found[0].shape
        if source.row_of_step:
            if not stage.in_steps or shape[:1] != (manifest.schedule.steps,):
                return f"{list(shape)} has no row for each step"
            shape = (1, *shape[1:])
        fed = Port("", shape, found[0].dtype)
    if (fed.shape, fed.dtype) != (port.shape, port.dtype):
        return (
            f"takes {port.dtype} {list(port.shape)} and gets {fed.dtype} {list(fed.shape)} "
            f"from {source.kind}"
        )
    return ""


def _results(
    manifest: Manifest, stage: Stage, outputs: tuple[Port, ...], where: str
) -> Iterator[str]:
    picture = manifest.picture
    shapes = {
        "velocity": picture.latent,
        "start": picture.latent,
        "image": (1, 3, picture.height_px, picture.width_px),
        "preview": (1, 3, picture.height_px, picture.width_px),
    }
    ports = {p.name: p for p in outputs}
    if stage.runs != "once per prompt" and len(stage.results) != 1:
        yield f"{where}.results: what runs '{stage.runs}' gives the loop one"
    for name, result in stage.results.items():
        found = ports.get(name)
        shape = found.shape if found and result == "scores" else shapes.get(result)
        if found is None or (found.shape, found.dtype) != (shape, "float32"):
            yield f"{where}.results.{name}: no output of the shape of the {result}"
        if (result == "velocity") != stage.in_steps:
            yield f"{where}.runs: '{stage.runs}' does not give the {result}"
        if (result == "start") != stage.image_to_image_only:
            yield f"{where}.image_to_image_only: does not go with the {result}"
        if (result == "scores") != (stage.runs == "for the filter"):
            yield f"{where}.runs: '{stage.runs}' does not give the {result}"
        if (result == "preview") != (stage.runs == "for previews"):
            yield f"{where}.runs: '{stage.runs}' does not give the {result}"


def _kinds(ports: tuple[Port, ...]) -> dict[str, tuple[tuple[int, ...], str]]:
    return {p.name: (p.shape, p.dtype) for p in ports}
