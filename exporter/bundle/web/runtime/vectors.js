/**
 * A package's conformance vectors: what this module does, compared with what Python did.
 * @module
 */

import { CheckFailed } from "./errors.js";
import { advance, drawsPerStep, guided, textsOf } from "./loop.js";
import { giving, latentShape } from "./manifest.js";
import { TorchNoise } from "./noise.js";
import { previewOf, toPicture } from "./pixels.js";
import { relativeError } from "./tensors.js";

/** @import { Golden, Result, Stage } from "./manifest.js" */
/** @import { Player, Ports } from "./loop.js" */
/** @import { Engine, Package, PackagePlayer } from "./package.js" */
/** @import { Tensor } from "./tensors.js" */

/** @typedef {{what: string, same: boolean}} Vector a comparison, in words that fit a failure */

const IN_A_ROW = 40; // sizes of successive draws from one stream
const ULPS = 1; // how far a machine's logarithm and cosine may move a value
const PREVIEW_LEVELS = 1; // how far another order of sums may move a preview

/**
 * All vectors but those of graphs: ids, noise, steps, pixels, previews.
 * @param {Package} from
 * @param {PackagePlayer} player
 * @returns {AsyncGenerator<Vector>}
 */
export async function* compare(from, player) {
  const { golden } = from.manifest;
  if (golden.tokens) yield* tokens(from, player);
  if (golden.noise) yield* noise(await from.tensors(golden.noise));
  for (const picture of golden.pictures) yield* pictureVectors(player, picture, await goldenTensors(from, picture));
}

/**
 * Everything that is recorded of a golden picture: what a further size leaves out is as it is in
 * another file, or as another tensor of its own.
 * @param {Package} from
 * @param {Golden} golden
 * @returns {Promise<Map<string, Tensor>>}
 */
export async function goldenTensors(from, { tensors, like, same }) {
  const own = await from.tensors(tensors);
  if (!like) return own;
  const copies = Array.from(same, ([name, other]) => /** @type {const} */ ([name, { data: recorded(own, other, tensors), shape: own.get(other)?.shape ?? [] }]));
  return new Map([...(await from.tensors(like)), ...own, ...copies]);
}

/**
 * The largest relative error of a graph's outputs over its recorded calls.
 * @param {Package} from
 * @param {Engine} engine
 * @param {Stage} stage
 * @param {number} [mostCalls]
 * @returns {Promise<number>}
 */
export async function graphError(from, engine, stage, mostCalls = Infinity) {
  /** @type {{inputs: Ports, outputs: Ports}[]} */
  const calls = [];
  for (const picture of from.manifest.golden.pictures) calls.push(...callsOf(await goldenTensors(from, picture), stage));
  let found = calls.slice(0, mostCalls).map(({ inputs }) => inputs);
  for (const part of stage.parts) {
    const session = await from.session(part, engine);
    try {
      const outputs = [];
      for (const inputs of found) outputs.push(await session.run(inputs));
      found = outputs;
    } finally {
      await session.close();
    }
  }
  const errors = found.flatMap((outputs, i) =>
    Object.entries(calls[i].outputs).map(([port, { data }]) => relativeError(outputs[port]?.data ?? [], data)));
  return errors.reduce((a, b) => Math.max(a, b), 0);
}

/**
 * @param {ReadonlyMap<string, Tensor>} tensors
 * @param {Stage} stage
 * @returns {{inputs: Ports, outputs: Ports}[]}
 */
function callsOf(tensors, stage) {
  /** @type {{inputs: Ports, outputs: Ports}[]} */
  const calls = [];
  for (const [name, tensor] of tensors) {
    const parts = /^(.+)\/(\d{1,6})\/(in|out)\/(.+)$/.exec(name);
    if (!parts || parts[1] !== stage.graph) continue;
    const call = (calls[Number(parts[2])] ??= { inputs: {}, outputs: {} });
    (parts[3] === "in" ? call.inputs : call.outputs)[parts[4]] = tensor;
  }
  return calls;
}

/**
 * @param {Package} from
 * @param {PackagePlayer} player
 * @returns {AsyncGenerator<Vector>}
 */
async function* tokens(from, player) {
  const path = from.manifest.golden.tokens;
  const { prompts, ids } = JSON.parse(new TextDecoder().decode(await from.read(path)));
  for (const [name, entry] of from.manifest.text.tokenizers) {
    const encode = /** @type {(prompt: string) => Int32Array} */ (player.tokenizers.get(name));
    const rows = /** @type {number[][]} */ (ids[name] ?? []);
    const differing = /** @type {string[]} */ (prompts).filter((prompt, i) => {
      const found = Array.from(encode(prompt));
      while (found.length > 0 && found[found.length - 1] === entry.padId) found.pop();
      return found.join() !== rows[i]?.join();
    });
    const first = differing.length ? `; the first is ${JSON.stringify(differing[0].slice(0, 60))}` : "";
    yield { what: `${path}: ${name}: ids of ${differing.length} of ${prompts.length} prompts differ${first}`, same: differing.length === 0 };
  }
}

/**
 * @param {ReadonlyMap<string, Tensor>} expected
 * @returns {Generator<Vector>}
 */
function* noise(expected) {
  for (const [name, { data }] of expected) {
    const [seed, how] = name.split("/");
    if (!/^[0-9]+$/.test(seed)) continue; // of a later format
    const stream = new TorchNoise(seed);
    const sizes = how === "in a row" ? Array.from({ length: IN_A_ROW }, (_, i) => i + 1) : [data.length];
    const found = sizes.flatMap((size) => Array.from(stream.randn(size)));
    yield { what: `noise of seed ${seed}, ${how}: differs`, same: isSameNoise(found, data) };
  }
}

/**
 * @param {Player} player
 * @param {Golden} golden
 * @param {ReadonlyMap<string, Tensor>} tensors
 * @returns {Generator<Vector>}
 */
function* pictureVectors(player, golden, tensors) {
  const { schedule, stages, picture } = player.manifest;
  const where = `image '${golden.prompt.slice(0, 60)}'`;
  const get = (/** @type {string} */ name) => recorded(tensors, name, golden.tensors);
  const texts = [...new Set(textsOf(schedule, [{ prompt: golden.prompt, seed: golden.seed }]))];
  for (const { graph, inputs } of stages) {
    for (const [port, { kind, name }] of inputs) {
      if (kind !== "tokens") continue;
      const encode = /** @type {(prompt: string) => Int32Array} */ (player.tokenizers.get(name));
      for (const [call, text] of texts.entries()) {
        yield { what: `${where}: ids of ${name} differ`, same: isSame(encode(text), get(`${graph}/${call}/in/${port}`)) };
      }
    }
  }
  const stream = new TorchNoise(golden.seed), size = latentShape(picture).reduce((a, b) => a * b);
  for (let k = 0; k <= drawsPerStep(schedule) * (schedule.sigmas.length - 1); k++) {
    yield { what: `${where}: noise ${k} differs`, same: isSameNoise(stream.randn(size), get(`noise/${k}`)) };
  }
  yield* steps(player, where, get);
  const image = /** @type {Float32Array} */ (get(recordedName(stages, "image", 0)));
  const shown = toPicture(image, picture.widthPx, picture.heightPx, picture.pixels, `${where}: the recorded image`);
  yield { what: `${where}: pixels of the decoder's output differ`, same: isSame(shown.levels, get("pixels")) };
}

/**
 * Each step from the latent before it and the recorded velocity, without a graph.
 * @param {Player} player
 * @param {string} where
 * @param {(name: string) => Tensor["data"]} get
 * @returns {Generator<Vector>}
 */
function* steps({ manifest: { schedule, stages, picture } }, where, get) {
  const floats = (/** @type {string} */ name) => /** @type {Float32Array} */ (get(name));
  const { guidance } = schedule, [, , height, width] = latentShape(picture);
  const velocityOf = (/** @type {number} */ call) => floats(recordedName(stages, "velocity", call));
  let latent = floats("noise/0");
  for (let step = 0; step + 1 < schedule.sigmas.length; step++) {
    const velocity = guidance ? guided(guidance, velocityOf(2 * step), velocityOf(2 * step + 1)) : velocityOf(step);
    const found = advance(schedule, step, latent, velocity, () => floats(`noise/${step + 1}`));
    latent = floats(`latent/${step + 1}`);
    yield { what: `${where}: step ${step + 1} differs`, same: isSame(found, latent) };
    if (!picture.preview) continue;
    const shown = previewOf(latent, width, height, picture.preview, picture.pixels).levels;
    const expected = get(`preview/${step + 1}`);
    const same = shown.length === expected.length && shown.every((level, i) => Math.abs(level - expected[i]) <= PREVIEW_LEVELS);
    yield { what: `${where}: preview ${step + 1} differs`, same };
  }
}

/**
 * @param {readonly Stage[]} stages
 * @param {Result} result
 * @param {number} call
 */
function recordedName(stages, result, call) {
  const { stage, port } = /** @type {{stage: Stage, port: string}} */ (giving(stages, result));
  return `${stage.graph}/${call}/out/${port}`;
}

/**
 * @param {ReadonlyMap<string, Tensor>} tensors
 * @param {string} name
 * @param {string} file
 */
function recorded(tensors, name, file) {
  const tensor = tensors.get(name);
  if (!tensor) throw new CheckFailed(`${file}: tensor '${name}' is missing; build the package again`);
  return tensor.data;
}

/**
 * @param {ArrayLike<number>} found
 * @param {ArrayLike<number>} expected
 */
function isSame(found, expected) {
  if (found.length !== expected.length) return false;
  for (let i = 0; i < found.length; i++) if (found[i] !== expected[i]) return false;
  return true;
}

/**
 * Whether values are the same but for `ULPS` units in the last place of float32.
 * @param {ArrayLike<number>} found
 * @param {ArrayLike<number>} expected
 */
function isSameNoise(found, expected) {
  const bits = (/** @type {ArrayLike<number>} */ values) => new Int32Array(Float32Array.from(values).buffer);
  const a = bits(found), b = bits(expected);
  return a.length === b.length && a.every((value, i) => Math.abs(value - b[i]) <= ULPS);
}
