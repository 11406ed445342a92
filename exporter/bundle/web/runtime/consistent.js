/**
 * A manifest's fields against each other: what a record's own types cannot say.
 * @module
 */

import { manifestAt, sizesOf } from "./sizes.js";

/** @import { GraphEntry, Manifest, Port, Source, Stage } from "./manifest.js" */

const MOST_PORT_BYTES = 2 ** 30; // the largest input or output that a manifest may ask memory for
/** How many stages have to give it, of one at most. */
const RESULTS = /** @type {const} */ ([["velocity", 1], ["image", 1], ["start", 0], ["preview", 0]]);

/**
 * Throw a RangeError that names the field which contradicts the others.
 * @param {Manifest} manifest
 */
export function check(manifest) {
  for (const problem of problems(manifest)) throw new RangeError(problem);
  for (const problem of sizes(manifest)) throw new RangeError(problem);
}

/**
 * Further sizes, each as a manifest of its own.
 * @param {Manifest} manifest
 * @returns {Generator<string>}
 */
function* sizes(manifest) {
  const all = sizesOf(manifest), graphs = new Set(manifest.graphs.map(({ name }) => name));
  const listed = new Set([...manifest.files, ...manifest.graphs.flatMap(({ files }) => files)].map(({ path }) => path));
  for (const [i, entry] of manifest.sizes.entries()) {
    const size = all[i + 1], names = entry.graphs.map(({ name }) => name);
    if (all.indexOf(size) <= i) yield `sizes: ${size} is there twice`;
    if (new Set(names).size !== names.length || !names.every((name) => graphs.has(name))) {
      yield `sizes: ${size}: its graphs are not among the others, each once`;
    }
    for (const path of entry.graphs.flatMap(({ files }) => files)) {
      if (!listed.has(path)) yield `sizes: ${size}: '${path}' is named and not listed`;
    }
    for (const problem of problems(manifestAt(manifest, size))) yield `sizes: ${size}: ${problem}`;
  }
}

/**
 * @param {Manifest} manifest
 * @returns {Generator<string>}
 */
function* problems(manifest) {
  yield* schedule(manifest);
  yield* picture(manifest);
  for (const [name, entry] of manifest.text.tokenizers) {
    for (const id of [entry.padId, entry.closingId]) {
      if (id !== null && id >= entry.vocabularySize) {
        yield `text.tokenizers.${name}: the id ${id} is not in the vocabulary of ${entry.vocabularySize}`;
      }
    }
  }
  yield* files(manifest);
  for (const graph of manifest.graphs) yield* ports(graph);
  yield* stages(manifest);
}

/** @param {Manifest} manifest */
function* schedule({ schedule: { sigmas, guidance }, stages: all }) {
  const falls = sigmas.every((sigma, i) => i === 0 || sigmas[i - 1] > sigma);
  if (!falls || sigmas[0] > 1 || sigmas[sigmas.length - 1] !== 0) {
    yield `schedule.sigmas: ${sigmas.join(", ")} do not fall from at most 1 to 0`;
  }
  const wrong = guidance === null ? "twice each step" : "each step";
  for (const { graph, runs } of all) {
    if (runs === wrong) yield `stages: ${graph} runs '${runs}', which does not go with schedule.guidance`;
  }
  const kinds = all.flatMap((s) => [...s.inputs.values(), ...s.negativeInputs.values()].map((x) => x.kind));
  const ofRequest = guidance !== null && guidance.negativePrompt === null;
  if (ofRequest !== kinds.includes("negative output")) {
    yield "schedule.guidance.negative_prompt: does not go with the sources of the stages";
  }
}

/** @param {Manifest} manifest */
function* picture({ picture: entry }) {
  const { widthPx, heightPx, latentScalePx, latentChannels, preview } = entry;
  if (widthPx % latentScalePx || heightPx % latentScalePx) {
    yield `picture: ${widthPx} x ${heightPx} px are no multiples of ${latentScalePx}`;
  }
  if (preview && preview.factors.length !== latentChannels) {
    yield `picture.preview.factors: ${preview.factors.length} rows for ${latentChannels} channels`;
  }
}

/** @param {Manifest} manifest */
function* files(manifest) {
  const listed = new Set();
  for (const { path } of [...manifest.files, ...manifest.graphs.flatMap((g) => g.files)]) {
    if (listed.has(path)) yield `files: '${path}' is listed twice`;
    listed.add(path);
  }
  const beside = new Set(manifest.files.map(({ path }) => path));
  const { pictures, tokens, noise } = manifest.golden;
  const named = [
    ...[...manifest.text.tokenizers.values()].map(({ path }) => path),
    ...pictures.flatMap((p) => [p.image, p.unquantized, p.tensors, p.like]),
    ...[tokens, noise, manifest.origin.licence],
  ].filter((path) => path !== "");
  for (const path of named) if (!beside.has(path)) yield `files: '${path}' is named and not listed`;
  for (const { name, entry, files: own } of manifest.graphs) {
    if (!own.some(({ path }) => path === entry || path.startsWith(`${entry}/`))) {
      yield `graphs: '${entry}' is not among the files of ${name}`;
    }
  }
}

/** @param {GraphEntry} graph */
function* ports({ name, inputs, outputs }) {
  for (const side of [inputs, outputs]) {
    if (side.length === 0 || new Set(side.map((p) => p.name)).size !== side.length) {
      yield `graphs: ${name} has no ports, or two of a name`;
    }
    for (const { name: port, shape } of side) {
      if (shape.reduce((a, b) => a * b, 4) > MOST_PORT_BYTES) {
        yield `graphs: ${name}.${port}: ${shape.join(" x ")} takes more than 1 GiB`;
      }
    }
  }
}

/** @param {Manifest} manifest */
function* stages(manifest) {
  const graphs = new Map(manifest.graphs.map((graph) => [graph.name, graph]));
  const used = manifest.stages.flatMap((stage) => stage.parts);
  const isOnce = new Set(used).size === used.length && graphs.size === manifest.graphs.length;
  if (!isOnce || used.length !== graphs.size || !used.every((part) => graphs.has(part))) {
    yield "stages: their parts are not the graphs, each once";
    return;
  }
  /** @type {Map<string, Stage>} */
  const before = new Map();
  for (const stage of manifest.stages) {
    const parts = stage.parts.map((part) => /** @type {GraphEntry} */ (graphs.get(part)));
    if (before.has(stage.graph) || parts.length === 0) {
      yield `stages: ${stage.graph} has no parts, or a turn already`;
      return;
    }
    for (let i = 1; i < parts.length; i++) {
      if (!isSame(parts[i - 1].outputs, parts[i].inputs)) {
        yield `stages: ${parts[i].name} does not take what ${parts[i - 1].name} gives`;
      }
    }
    yield* sources(manifest, stage, parts[0].inputs, before, graphs);
    yield* results(manifest, stage, parts[parts.length - 1].outputs);
    before.set(stage.graph, stage);
  }
  for (const [result, least] of RESULTS) {
    const count = manifest.stages.filter((s) => [...s.results.values()].includes(result)).length;
    if (count < least || count > 1) yield `stages: ${count} of them give the ${result}; one has to`;
  }
  yield* previews(manifest);
}

/**
 * @param {Manifest} manifest
 * @param {Stage} stage
 * @param {readonly Port[]} inputs of its first part
 * @param {Map<string, Stage>} before
 * @param {Map<string, GraphEntry>} graphs
 */
function* sources(manifest, stage, inputs, before, graphs) {
  const isTwice = stage.runs === "twice each step";
  if (!isTwice && stage.negativeInputs.size > 0) {
    yield `stages: ${stage.graph} has negative_inputs, and runs '${stage.runs}'`;
  }
  for (const fed of isTwice ? [stage.inputs, stage.negativeInputs] : [stage.inputs]) {
    if (fed.size !== inputs.length || !inputs.every(({ name }) => fed.has(name))) {
      yield `stages: the inputs of ${stage.graph} are not those of its graph`;
      return;
    }
    for (const port of inputs) {
      const source = /** @type {Source} */ (fed.get(port.name));
      const given = givenBy(manifest, stage, source, before, graphs);
      const problem = typeof given === "string" ? given : isSamePort(given, port) ? "" : "of another shape or type";
      if (problem) yield `stages: ${stage.graph}.${port.name} from ${source.kind}: ${problem}`;
    }
  }
}

/**
 * The shape and type that a source gives, or what is wrong with it.
 * @param {Manifest} manifest
 * @param {Stage} stage
 * @param {Source} source
 * @param {Map<string, Stage>} before
 * @param {Map<string, GraphEntry>} graphs
 * @returns {Omit<Port, "name"> | string}
 */
function givenBy({ picture: entry, text, schedule: { sigmas } }, stage, source, before, graphs) {
  const isInSteps = stage.runs === "each step" || stage.runs === "twice each step";
  const { widthPx, heightPx, latentChannels, latentScalePx: scale } = entry;
  if (source.kind === "tokens") {
    const tokenizer = text.tokenizers.get(source.name);
    if (!tokenizer || stage.runs !== "once per prompt") return `no tokenizer '${source.name}' here`;
    return { shape: [1, tokenizer.tokens], dtype: "int32" };
  }
  if (source.kind === "latent") {
    if (stage.runs === "once per prompt") return "there is no latent yet";
    return { shape: [1, latentChannels, heightPx / scale, widthPx / scale], dtype: "float32" };
  }
  if (source.kind === "image") {
    if (!stage.imageToImageOnly || stage.runs !== "once") return "only image to image has one";
    return { shape: [1, 3, heightPx, widthPx], dtype: "float32" };
  }
  if (source.kind === "negative output" && stage.runs !== "twice each step") return "nothing is negative here";
  const giver = before.get(source.name);
  const last = giver && graphs.get(giver.parts[giver.parts.length - 1]);
  const port = last?.outputs.find(({ name }) => name === source.port);
  if (!port || giver?.runs !== "once per prompt") return `no output '${source.port}' of '${source.name}' is kept`;
  if (!source.rowOfStep) return port;
  if (!isInSteps || port.shape[0] !== sigmas.length - 1) return "has no row for each step";
  return { shape: [1, ...port.shape.slice(1)], dtype: port.dtype };
}

/**
 * @param {Manifest} manifest
 * @param {Stage} stage
 * @param {readonly Port[]} outputs
 */
function* results({ picture: entry }, stage, outputs) {
  const { widthPx, heightPx, latentChannels, latentScalePx: scale } = entry;
  const latent = [1, latentChannels, heightPx / scale, widthPx / scale];
  if (stage.runs !== "once per prompt" && stage.results.size !== 1) {
    yield `stages: ${stage.graph} runs '${stage.runs}' and gives the loop ${stage.results.size} results, not one`;
  }
  const isInSteps = stage.runs === "each step" || stage.runs === "twice each step";
  for (const [name, result] of stage.results) {
    const shape = result === "velocity" || result === "start" ? latent : [1, 3, heightPx, widthPx];
    const port = outputs.find((p) => p.name === name);
    if (!port || !isSamePort(port, { shape, dtype: "float32" })) {
      yield `stages: ${stage.graph} has no output '${name}' of the shape of the ${result}`;
    }
    if ((result === "velocity") !== isInSteps || (result === "preview") !== (stage.runs === "for previews")) {
      yield `stages: ${stage.graph} runs '${stage.runs}', which does not give the ${result}`;
    }
    if ((result === "start") !== stage.imageToImageOnly) {
      yield `stages: image_to_image_only of ${stage.graph} does not go with the ${result}`;
    }
  }
}

/** @param {Manifest} manifest */
function* previews({ picture: { previewGraph: name }, stages: all }) {
  const stage = all.find(({ graph }) => graph === name);
  const shows = all.find((s) => [...s.results.values()].includes("preview"));
  if (shows && shows.graph !== name) yield `picture.preview_graph: '${name}', and '${shows.graph}' gives the preview`;
  if (name && !stage) yield `picture.preview_graph: there is no stage of '${name}'`;
  if (!stage) return;
  const gives = [...stage.results.values()];
  if (!gives.includes("preview") && !gives.includes("image")) yield `picture.preview_graph: '${name}' gives no picture`;
  if ([...stage.inputs.values()].some(({ kind }) => kind !== "latent")) {
    yield `picture.preview_graph: '${name}' takes more than a latent`;
  }
}

/**
 * @param {readonly Port[]} a
 * @param {readonly Port[]} b
 */
function isSame(a, b) {
  return a.length === b.length && a.every((p) => b.some((q) => p.name === q.name && isSamePort(p, q)));
}

/**
 * @param {Omit<Port, "name">} a
 * @param {Omit<Port, "name">} b
 */
function isSamePort(a, b) {
  return a.dtype === b.dtype && a.shape.length === b.shape.length && a.shape.every((n, i) => n === b.shape[i]);
}
