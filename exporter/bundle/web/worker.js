/**
 * Draws beside the page, so that the page answers while a graph runs. It takes a `Call` and gives
 * `Answer`s; of previews the newest prompt wins.
 * @module
 */

import { browserStore, download } from "./runtime/download.js";
import { trusted, wasmEngine, webGpuEngine } from "./runtime/engines/web.js";
import { generate, openPackage } from "./runtime/index.js";

/** @import { Request } from "./runtime/loop.js" */
/** @import { PackagePlayer } from "./runtime/package.js" */
/** @import { Picture } from "./runtime/pixels.js" */

/**
 * @typedef {{kind: "open", engine: string, threads: number}} Open `engine`: "wasm", or "" for the best
 * @typedef {{kind: "draw", id: number, requests: Request[], size: string, isPreview: boolean}} Draw a preview is over after its first step: a small picture, then a draft
 * @typedef {{kind: "stop"}} Stop
 * @typedef {Open | Draw | Stop} Call
 */
/**
 * @typedef {{kind: "opened", name: string, scheme: string, engine: string, sizes: string[], negative: boolean, image: boolean}} Opened
 * @typedef {{kind: "progress", bytes: number, of: number}} Loading
 * @typedef {{kind: "shown", id: number, index: number, step: number, steps: number, picture: Picture}} Shown a preview
 * @typedef {{kind: "drawn", id: number, index: number, picture: Picture}} DrawnPicture
 * @typedef {{kind: "done", id: number}} Done
 * @typedef {{kind: "stopped", id: number}} Stopped
 * @typedef {{kind: "failed", id: number, message: string}} Failed
 * @typedef {{kind: "remark", message: string}} Remark
 * @typedef {Opened | Loading | Shown | DrawnPicture | Done | Stopped | Failed | Remark} Answer
 */

const ENGINE = new URL("./engine/1.30.0/", import.meta.url).href;
const KEPT_BYTES = 256 * 2 ** 20; // graphs up to so much in all stay open: nothing is opened twice

const PAUSE_MS = 150; // in typing, before what takes longest of a preview

/** @type {PackagePlayer | null} */
let player = null;
let stopping = new AbortController();
/** @type {Promise<void>} what runs now, and everything before it */
let running = Promise.resolve();

/** @param {Answer} answer */
const say = (answer) => postMessage(answer);
const remark = (/** @type {string} */ message) => say({ kind: "remark", message });

addEventListener("message", ({ data }) => {
  const call = /** @type {Call} */ (data);
  stopping.abort();
  if (call.kind === "stop") return;
  const mine = (stopping = new AbortController());
  running = running.then(() => answered(call, mine.signal));
});

/**
 * @param {Open | Draw} call
 * @param {AbortSignal} signal
 */
async function answered(call, signal) {
  const id = call.kind === "draw" ? call.id : 0;
  try {
    signal.throwIfAborted();
    if (call.kind === "open") await open(call, signal);
    else await draw(call, signal);
  } catch (error) {
    const message = error instanceof Error ? error.message : String(error);
    say(signal.aborted ? { kind: "stopped", id } : { kind: "failed", id, message });
  }
}

/**
 * @param {Open} call
 * @param {AbortSignal} signal
 */
async function open(call, signal) {
  await player?.close();
  const store = await browserStore();
  if (!store) remark("this browser keeps no files for this page: it downloads them every time");
  const sizes = new Map();
  let total = 0;
  const source = download(new URL("./package/", import.meta.url), {
    store,
    signal,
    progress: ({ path, bytes }) => {
      sizes.set(path, bytes);
      say({ kind: "progress", bytes: Math.min(total, [...sizes.values()].reduce((a, b) => a + b, 0)), of: total });
    },
  });
  const from = await openPackage(source);
  const { manifest } = from;
  const firsts = new Map(manifest.graphs.flatMap(({ files }) => files.map((file) => [file.path, file])));
  const further = from.sizes.slice(1).flatMap((size) => from.at(size).manifest.graphs.flatMap(({ files }) => files));
  const others = new Map(further.filter(({ path }) => !firsts.has(path)).map((file) => [file.path, file]));
  total = [...firsts.values(), ...others.values()].reduce((sum, { bytes }) => sum + bytes, 0);
  const engines = [];
  if (call.engine !== "wasm") engines.push(await webGpuEngine(() => import(`${ENGINE}ort.webgpu.min.mjs`), { files: ENGINE, remark }));
  engines.push(wasmEngine(await import(`${ENGINE}ort.wasm.min.mjs`), { files: ENGINE, threads: call.threads }));
  const engine = await trusted(from, engines, remark);
  player = await from.player(engine, { keep: total <= KEPT_BYTES, remark });
  for (const { graph, parts, runs, imageToImageOnly } of manifest.stages) {
    const isLater = imageToImageOnly || runs === "for previews";
    if (total <= KEPT_BYTES && !isLater) for (const part of parts) await player.open(part);
    else for (const { path, ...entry } of graphFiles(graph)) await source.read(path, { path, ...entry });
  }
  if (store) for (const [path, entry] of others) await source.read(path, entry); // to be there without a network
  const { schedule, stages } = manifest;
  say({
    kind: "opened",
    name: manifest.name,
    scheme: manifest.scheme,
    engine: engine.name,
    sizes: from.sizes,
    negative: schedule.guidance !== null && schedule.guidance.negativePrompt === null,
    image: stages.some((stage) => stage.imageToImageOnly),
  });

  /** @param {string} graph */
  function graphFiles(graph) {
    const { parts } = /** @type {{parts: readonly string[]}} */ (manifest.stages.find((each) => each.graph === graph));
    return manifest.graphs.filter(({ name }) => parts.includes(name)).flatMap((each) => each.files);
  }
}

/**
 * @param {Draw} call
 * @param {AbortSignal} signal
 */
async function draw({ id, requests, size, isPreview }, signal) {
  if (!player) throw new Error("the package is not open yet");
  for await (const event of generate(player.at(size), requests, { signal })) {
    if (event.kind === "step") {
      const { index, step, steps, preview, clean, draft } = event;
      const show = (/** @type {Picture} */ picture) => say({ kind: "shown", id, index, step, steps, picture });
      if (preview) show(await preview(clean()));
      if (preview && isPreview) await pause(signal);
      if (isPreview || !preview) show(await draft());
      if (isPreview) break;
    }
    if (event.kind === "picture") say({ kind: "drawn", id, index: event.index, picture: event.picture });
  }
  say({ kind: "done", id });
}

/**
 * Waits for a pause in typing: a graph that runs cannot be ended, so the preview of what is typed next
 * would come after the whole of this one's draft.
 * @param {AbortSignal} signal
 * @returns {Promise<void>}
 */
function pause(signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, PAUSE_MS);
    const ended = () => (clearTimeout(timer), reject(signal.reason));
    if (signal.aborted) ended();
    else signal.addEventListener("abort", ended, { once: true });
  });
}
