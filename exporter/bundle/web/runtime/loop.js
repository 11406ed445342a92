/**
 * Prompts to pictures in a fixed number of steps, as an asynchronous generator. No graph is known by
 * its name: which runs when, and what its inputs are, is in the manifest.
 *
 *     x_0 = noise
 *     v   = denoiser(x, what the prompt gave)
 *     guidance: n = denoiser(x, what the negative prompt gave), v' = n + scale (v - n)
 *     euler:   x' = x + (s' - s) v
 *     renoise: x' = (1 - s') (x - s v) + s' noise
 * @module
 */

import { CheckFailed, InputError } from "./errors.js";
import { giving, latentShape } from "./manifest.js";
import { TorchNoise, checkSeed } from "./noise.js";
import { NOT_FINITE, fromPicture, isFinite, previewOf, toPicture } from "./pixels.js";
import { startPicture } from "./start.js";
import { checkPrompt } from "./tokenizer.js";

/** @import { Guidance, Manifest, Schedule, Source, Stage } from "./manifest.js" */
/** @import { Picture } from "./pixels.js" */
/** @import { Fit, Given } from "./start.js" */
/** @import { Tensor } from "./tensors.js" */

/** @typedef {Record<string, Tensor>} Ports named tensors that a graph takes or gives */
/** @typedef {{run: (inputs: Ports) => Promise<Ports>, close: () => Promise<void> | void}} Session an open graph */
/**
 * What the loop needs of a package. `open` opens a graph, or a part of one, by its name; a session is
 * closed when its turn is over, which a player that keeps graphs open does not heed.
 * @typedef {object} Player
 * @property {Manifest} manifest
 * @property {ReadonlyMap<string, (prompt: string) => Int32Array>} tokenizers
 * @property {(graph: string) => Promise<Session>} open
 */
/**
 * One picture to draw.
 * @typedef {object} Request
 * @property {string} prompt
 * @property {bigint | number | string} [seed] of the noise, 0 unless given; text or a BigInt where it
 *   does not fit a double
 * @property {Given} [image] to start from: RGB or RGBA, of any size
 * @property {number} [strength] how much of the schedule an `image` goes through, in (0, 1]
 * @property {Fit} [fit] of an `image` of another size
 * @property {string} [background] below an `image` and around it: a colour `#rrggbb`
 * @property {string} [negative] what not to draw, in packages whose guidance takes it of a request
 */
/** @typedef {{kind: "conditioned", prompts: number}} Conditioned all prompts are encoded */
/**
 * A step of request `index` is done. `latent` is (1, channels, h, w). `clean()` is what the latent
 * would be at the end if the velocity stayed as it is: it shows early what will be there.
 * `preview()` shows the latent, or the one that it is given; it is null where the package has none.
 * `draft()` is the picture of `clean()`, by the graph that draws the last one.
 * @typedef {object} Step
 * @property {"step"} kind
 * @property {number} index
 * @property {number} step
 * @property {number} steps
 * @property {number} sigma
 * @property {Float32Array} latent
 * @property {() => Float32Array} clean
 * @property {((latent?: Float32Array) => Promise<Picture>) | null} preview
 * @property {() => Promise<Picture>} draft
 */
/** @typedef {{kind: "picture", index: number, request: Request, picture: Picture, latent: Float32Array}} Drawn a picture is done */
/** @typedef {Conditioned | Step | Drawn} Event */
/** @typedef {Map<string, Tensor>} Values what graphs gave for a prompt, by graph and port */
/** @typedef {{values: Values, prompt: string, negative: Values, latent: Float32Array | null, image: Float32Array | null, step: number}} Feed */

/**
 * Draw pictures; every graph is opened once for all of them.
 *
 * It can be stopped at any moment: by leaving the loop over it, or by a signal, which throws what the
 * signal was aborted with as soon as the graph that runs is done. It throws InputError for a request
 * that cannot be drawn, before any graph is opened; CheckFailed for a graph that gives no numbers.
 * @param {Player} player
 * @param {readonly Request[]} requests
 * @param {{signal?: AbortSignal}} [options]
 * @returns {AsyncGenerator<Event, void>}
 */
export async function* generate(player, requests, { signal } = {}) {
  const starts = requests.map((request) => checkRequest(player, request));
  const images = startPictures(player, requests);
  const drawing = new Drawing(player, signal);
  try {
    const values = await drawing.condition(textsOf(player.manifest.schedule, requests));
    yield { kind: "conditioned", prompts: values.size };
    const encoded = await drawing.encode(images);
    /** @type {Float32Array[]} */
    const latents = [];
    for (const [index, request] of requests.entries()) {
      latents.push(yield* drawing.walk(index, request, starts[index], values, encoded.get(index)));
    }
    await drawing.release();
    yield* drawing.decode(requests, values, latents);
  } finally {
    await drawing.release();
  }
}

/**
 * The latent of a picture that enters the schedule at a step, in float32.
 * @param {Schedule} schedule
 * @param {number} step
 * @param {Float32Array} encoded
 * @param {Float32Array} noise
 * @returns {Float32Array}
 */
export function begin({ sigmas }, step, encoded, noise) {
  const sigma = Math.fround(sigmas[step]), rest = Math.fround(1 - sigma);
  return noise.map((n, i) => Math.fround(sigma * n) + Math.fround(rest * encoded[i]));
}

/**
 * The velocity away from that of a negative prompt, in float32.
 * @param {Guidance} guidance
 * @param {Float32Array} velocity
 * @param {Float32Array} negative
 * @returns {Float32Array}
 */
export function guided(guidance, velocity, negative) {
  const scale = Math.fround(guidance.scale);
  return velocity.map((v, i) => negative[i] + Math.fround(scale * Math.fround(v - negative[i])));
}

/**
 * One step of the schedule, in float32, operation by operation.
 * @param {Schedule} schedule
 * @param {number} step
 * @param {Float32Array} latent
 * @param {Float32Array} velocity
 * @param {() => Float32Array} noise draws as much as the latent has, where the mode takes some
 * @returns {Float32Array}
 */
export function advance({ mode, sigmas }, step, latent, velocity, noise) {
  const sigma = Math.fround(sigmas[step]), following = Math.fround(sigmas[step + 1]);
  if (mode === "euler") {
    const change = Math.fround(following - sigma);
    return latent.map((x, i) => x + Math.fround(change * velocity[i]));
  }
  const drawn = noise(), rest = Math.fround(1 - following);
  return cleaned(sigma, latent, velocity).map(
    (clean, i) => Math.fround(rest * clean) + Math.fround(following * drawn[i]));
}

/**
 * How many times a step draws noise.
 * @param {Schedule} schedule
 */
export function drawsPerStep({ mode }) {
  return mode === "renoise" ? 1 : 0;
}

/**
 * What has to be encoded: all prompts, then all negative prompts.
 * @param {Schedule} schedule
 * @param {readonly Request[]} requests
 * @returns {string[]}
 */
export function textsOf(schedule, requests) {
  const negatives = requests.map((request) => negativeOf(schedule, request));
  return [...requests.map(({ prompt }) => prompt), ...negatives.filter((text) => text !== null)];
}

/**
 * @param {Schedule} schedule
 * @param {Request} request
 * @returns {string | null}
 */
function negativeOf({ guidance }, request) {
  if (guidance === null || guidance.negativePrompt !== null) return null;
  return request.negative ?? "";
}

/**
 * @param {number} sigma
 * @param {Float32Array} latent
 * @param {Float32Array} velocity
 * @returns {Float32Array}
 */
function cleaned(sigma, latent, velocity) {
  return latent.map((x, i) => x - Math.fround(sigma * velocity[i]));
}

/** The graphs of one call of the loop: opened in turn, let go of at its end. */
class Drawing {
  /**
   * @param {Player} player
   * @param {AbortSignal | undefined} signal
   */
  constructor(player, signal) {
    this._player = player;
    this._signal = signal;
    /** @type {Map<string, Session>} that stay open from step to step */
    this._held = new Map();
  }

  get _manifest() {
    return this._player.manifest;
  }

  /** Let go of the graphs that are open. */
  async release() {
    const sessions = [...this._held.values()];
    this._held.clear();
    for (const session of sessions) await session.close();
  }

  /**
   * What the stages of once per prompt give for each text, as far as it is used.
   * @param {readonly string[]} texts
   * @returns {Promise<Map<string, Values>>}
   */
  async condition(texts) {
    const found = new Map(texts.map((text) => [text, /** @type {Values} */ (new Map())]));
    const { stages } = this._manifest;
    for (const [place, stage] of stages.entries()) {
      if (stage.runs !== "once per prompt") continue;
      const calls = Array.from(found, ([text, values]) => this._inputs(stage.inputs, feed(values, text)));
      const ends = Array.from(found.keys(), (text) => `prompt '${text.slice(0, 60)}'`);
      const outputs = await this._runAll(stage, calls, ends);
      const used = usedAfter(stages.slice(place + 1));
      [...found.values()].forEach((values, i) => {
        for (const [port, tensor] of Object.entries(outputs[i])) values.set(key(stage.graph, port), tensor);
        for (const name of [...values.keys()]) if (!used.has(name)) values.delete(name);
      });
    }
    return found;
  }

  /**
   * The latents that requests start from; each picture is encoded once.
   * @param {ReadonlyMap<number, Float32Array>} images by a request's index
   * @returns {Promise<Map<number, Float32Array>>}
   */
  async encode(images) {
    const start = giving(this._manifest.stages, "start");
    if (!start || images.size === 0) return new Map();
    const distinct = [...new Set(images.values())];
    const calls = distinct.map((image) => this._inputs(start.stage.inputs, { ...feed(new Map(), ""), image }));
    const outputs = await this._runAll(start.stage, calls, distinct.map((_, i) => `picture ${i + 1}`));
    const latents = new Map(distinct.map((image, i) => [image, floats(outputs[i][start.port])]));
    return new Map(Array.from(images, ([index, image]) => [index, /** @type {Float32Array} */ (latents.get(image))]));
  }

  /**
   * All steps of a picture; returns its final latent.
   * @param {number} index
   * @param {Request} request
   * @param {number} start
   * @param {ReadonlyMap<string, Values>} values
   * @param {Float32Array | undefined} encoded
   * @returns {AsyncGenerator<Step, Float32Array>}
   */
  async *walk(index, request, start, values, encoded) {
    const { schedule, picture } = this._manifest;
    const { stage, port } = /** @type {{stage: Stage, port: string}} */ (giving(this._manifest.stages, "velocity"));
    const size = latentShape(picture).reduce((a, b) => a * b);
    const noise = new TorchNoise(request.seed ?? 0);
    const drawn = noise.randn(size);
    let latent = encoded ? begin(schedule, start, encoded, drawn) : drawn;
    const negative = negativeOf(schedule, request);
    const steps = schedule.sigmas.length - 1;
    for (let step = start; step < steps; step++) {
      const fed = {
        ...feed(/** @type {Values} */ (values.get(request.prompt)), request.prompt),
        negative: negative === null ? new Map() : /** @type {Values} */ (values.get(negative)),
        latent,
        step,
      };
      const velocity = await this._velocity(stage, port, fed);
      const before = latent, where = `step ${step + 1} of ${steps}`;
      latent = advance(schedule, step, before, velocity, () => noise.randn(size));
      if (!isFinite(latent)) throw new CheckFailed(`${stage.graph}, ${where}: the latent after it ${NOT_FINITE}`);
      const after = latent;
      const clean = () => cleaned(Math.fround(schedule.sigmas[step]), before, velocity);
      yield {
        kind: "step",
        index,
        step: step + 1,
        steps,
        sigma: schedule.sigmas[step + 1],
        latent: after,
        clean,
        preview: this._hasPreview ? (shown = after) => this._preview(shown, `preview of ${where}`) : null,
        draft: () => this._draft({ ...fed, latent: clean() }, `draft of ${where}`),
      };
    }
    return latent;
  }

  /**
   * Latents to pictures.
   * @param {readonly Request[]} requests
   * @param {ReadonlyMap<string, Values>} values
   * @param {readonly Float32Array[]} latents
   * @returns {AsyncGenerator<Drawn, void>}
   */
  async *decode(requests, values, latents) {
    const { picture } = this._manifest;
    const { stage, port } = /** @type {{stage: Stage, port: string}} */ (giving(this._manifest.stages, "image"));
    const calls = requests.map(({ prompt }, i) =>
      this._inputs(stage.inputs, { ...feed(/** @type {Values} */ (values.get(prompt)), prompt), latent: latents[i] }));
    const ends = requests.map((_, i) => `picture ${i + 1}`);
    let index = 0;
    for await (const outputs of this._run(stage, calls, ends)) {
      const shown = toPicture(floats(outputs[port]), picture.widthPx, picture.heightPx, picture.pixels, stage.graph);
      yield { kind: "picture", index, request: requests[index], picture: shown, latent: latents[index] };
      index++;
    }
  }

  get _hasPreview() {
    return this._manifest.picture.previewGraph !== "" || this._manifest.picture.preview !== null;
  }

  /**
   * @param {Float32Array} latent
   * @param {string} end
   * @returns {Promise<Picture>}
   */
  async _preview(latent, end) {
    const { picture, stages } = this._manifest;
    const stage = stages.find(({ graph }) => graph === picture.previewGraph);
    const [, channels, height, width] = latentShape(picture);
    if (!stage) {
      const entry = /** @type {NonNullable<typeof picture.preview>} */ (picture.preview);
      return previewOf(latent, width, height, entry, picture.pixels);
    }
    const tensor = { data: latent, shape: [1, channels, height, width] };
    let outputs = Object.fromEntries(Array.from(stage.inputs.keys(), (port) => [port, /** @type {Tensor} */ (tensor)]));
    for (const part of stage.parts) outputs = await this._call(part, await this._hold(part), outputs, end);
    const [port] = stage.results.keys();
    return toPicture(floats(outputs[port]), picture.widthPx, picture.heightPx, picture.pixels, stage.graph);
  }

  /**
   * @param {Feed} fed
   * @param {string} end
   * @returns {Promise<Picture>}
   */
  async _draft(fed, end) {
    const { picture, stages } = this._manifest;
    const { stage, port } = /** @type {{stage: Stage, port: string}} */ (giving(stages, "image"));
    let outputs = this._inputs(stage.inputs, fed);
    for (const part of stage.parts) outputs = await this._call(part, await this._hold(part), outputs, end);
    return toPicture(floats(outputs[port]), picture.widthPx, picture.heightPx, picture.pixels, stage.graph);
  }

  /**
   * What the stage of each step gives for one step: with guidance, of both its calls.
   * @param {Stage} stage
   * @param {string} port
   * @param {Feed} fed
   * @returns {Promise<Float32Array>}
   */
  async _velocity(stage, port, fed) {
    const { guidance, sigmas } = this._manifest.schedule;
    const where = `step ${fed.step + 1} of ${sigmas.length - 1}`;
    let calls = [this._inputs(stage.inputs, fed)];
    if (guidance !== null) calls.push(this._inputs(stage.negativeInputs, fed));
    for (const part of stage.parts) {
      const isWhole = stage.parts.length === 1;
      const session = isWhole ? await this._hold(part) : await this._open(part);
      try {
        const found = [];
        for (const [i, inputs] of calls.entries()) {
          found.push(await this._call(part, session, inputs, i ? `${where}, negative prompt` : where));
        }
        calls = found;
      } finally {
        if (!isWhole) await session.close();
      }
    }
    const velocities = calls.map((outputs) => floats(outputs[port]));
    return guidance === null ? velocities[0] : guided(guidance, velocities[0], velocities[1]);
  }

  /**
   * A graph's outputs for several inputs, one by one from its last part. Each part is opened once and
   * closed before the next is opened.
   * @param {Stage} stage
   * @param {readonly Ports[]} calls
   * @param {readonly string[]} ends what each call is for, in an error
   * @returns {AsyncGenerator<Ports, void>}
   */
  async *_run(stage, calls, ends) {
    let found = [...calls];
    for (const [place, part] of stage.parts.entries()) {
      const session = await this._open(part);
      try {
        /** @type {Ports[]} */
        const outputs = [];
        for (const [i, inputs] of found.entries()) {
          const given = await this._call(part, session, inputs, ends[i]);
          if (place + 1 === stage.parts.length) yield given;
          else outputs.push(given);
        }
        found = outputs;
      } finally {
        await session.close();
      }
    }
  }

  /**
   * @param {Stage} stage
   * @param {readonly Ports[]} calls
   * @param {readonly string[]} ends
   */
  async _runAll(stage, calls, ends) {
    const found = [];
    for await (const outputs of this._run(stage, calls, ends)) found.push(outputs);
    return found;
  }

  /** @param {string} part */
  async _open(part) {
    this._signal?.throwIfAborted();
    const session = await this._player.open(part);
    if (this._signal?.aborted) await session.close();
    this._signal?.throwIfAborted();
    return session;
  }

  /** @param {string} part */
  async _hold(part) {
    const session = this._held.get(part) ?? (await this._open(part));
    this._held.set(part, session);
    return session;
  }

  /**
   * @param {string} part
   * @param {Session} session
   * @param {Ports} inputs
   * @param {string} end
   * @returns {Promise<Ports>}
   */
  async _call(part, session, inputs, end) {
    this._signal?.throwIfAborted();
    const outputs = await session.run(inputs);
    this._signal?.throwIfAborted();
    for (const [port, { data }] of Object.entries(outputs)) {
      if (!isFinite(data)) throw new CheckFailed(`${part}, ${end}: its output '${port}' ${NOT_FINITE}`);
    }
    return outputs;
  }

  /**
   * @param {ReadonlyMap<string, Source>} sources
   * @param {Feed} fed
   * @returns {Ports}
   */
  _inputs(sources, fed) {
    return Object.fromEntries(Array.from(sources, ([port, source]) => [port, this._value(source, fed)]));
  }

  /**
   * @param {Source} source
   * @param {Feed} fed
   * @returns {Tensor}
   */
  _value(source, fed) {
    const { picture } = this._manifest;
    if (source.kind === "tokens") {
      const encode = /** @type {(prompt: string) => Int32Array} */ (this._player.tokenizers.get(source.name));
      const data = encode(fed.prompt);
      return { data, shape: [1, data.length] };
    }
    if (source.kind === "latent") return { data: floats(fed.latent), shape: latentShape(picture) };
    if (source.kind === "image") return { data: floats(fed.image), shape: [1, 3, picture.heightPx, picture.widthPx] };
    const values = source.kind === "output" ? fed.values : fed.negative;
    const tensor = /** @type {Tensor} */ (values.get(key(source.name, source.port)));
    if (!source.rowOfStep) return tensor;
    const [rows, ...rest] = tensor.shape, size = tensor.data.length / rows;
    return { data: tensor.data.slice(fed.step * size, (fed.step + 1) * size), shape: [1, ...rest] };
  }
}

/**
 * @param {Values} values
 * @param {string} prompt
 * @returns {Feed}
 */
function feed(values, prompt) {
  return { values, prompt, negative: new Map(), latent: null, image: null, step: 0 };
}

/**
 * @param {string} graph
 * @param {string} port
 */
function key(graph, port) {
  return `${graph}/${port}`;
}

/**
 * The outputs that stages take.
 * @param {readonly Stage[]} stages
 * @returns {Set<string>}
 */
function usedAfter(stages) {
  const sources = stages.flatMap((s) => [...s.inputs.values(), ...s.negativeInputs.values()]);
  const taken = sources.filter(({ kind }) => kind === "output" || kind === "negative output");
  return new Set(taken.map(({ name, port }) => key(name, port)));
}

/**
 * @param {Tensor | Float32Array | null} tensor
 * @returns {Float32Array}
 */
function floats(tensor) {
  const data = tensor instanceof Float32Array ? tensor : tensor?.data;
  if (data instanceof Float32Array) return data;
  throw new CheckFailed("a graph gave no float32 where the manifest says so; build the package again");
}

/**
 * The step at which a request enters the schedule; throws InputError for what is no request.
 * @param {Player} player
 * @param {Request} request
 */
function checkRequest({ manifest: { schedule, stages } }, request) {
  checkPrompt(request.prompt);
  checkNegative(schedule, request.negative);
  checkSeed(request.seed ?? 0);
  const { strength = 1 } = request, steps = schedule.sigmas.length - 1;
  if (typeof strength !== "number" || !(strength > 0 && strength <= 1)) {
    throw new InputError(`must be above 0 and at most 1, not ${strength}`, "strength");
  }
  if (!request.image) {
    const alone = /** @type {const} */ (["strength", "fit", "background"]).find((name) => request[name] !== undefined && (name !== "strength" || strength !== 1));
    if (alone) throw new InputError("applies only with a picture to start from (image)", alone);
    return 0;
  }
  if (!giving(stages, "start")) {
    throw new InputError(
      "this package has no graph to start from a picture with; build with image_to_image = true in [image]", "image");
  }
  return Math.min(Math.trunc(steps - Math.min(steps * strength, steps)), steps - 1);
}

/**
 * @param {Schedule} schedule
 * @param {string | undefined} negative
 */
function checkNegative({ guidance }, negative) {
  if (negative === undefined) return;
  if (guidance === null) {
    throw new InputError("this package draws without guidance, and nothing else uses a negative prompt", "negative");
  }
  if (guidance.negativePrompt !== null) {
    throw new InputError(`the negative prompt of this package is fixed: '${guidance.negativePrompt}'`, "negative");
  }
  checkPrompt(negative, "negative prompt");
}

/**
 * The tensors that requests start from, by the request's index; each picture is read once.
 * @param {Player} player
 * @param {readonly Request[]} requests
 * @returns {Map<number, Float32Array>}
 */
function startPictures({ manifest: { picture } }, requests) {
  /** @type {Map<Given, Map<string, Float32Array>>} */
  const read = new Map();
  const found = new Map();
  for (const [index, { image, fit, background }] of requests.entries()) {
    if (!image) continue;
    const forms = read.get(image) ?? new Map();
    read.set(image, forms);
    const form = `${fit} ${background}`;
    if (!forms.has(form)) {
      const shown = startPicture(image, picture.widthPx, picture.heightPx, fit, background);
      forms.set(form, fromPicture(shown, picture.pixels));
    }
    found.set(index, forms.get(form));
  }
  return found;
}
