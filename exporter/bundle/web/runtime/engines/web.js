/**
 * Graphs by `onnxruntime-web`: in wasm, or on a graphics processor by WebGPU.
 * @module
 */

import { graphError } from "../vectors.js";
import { decoding, openSession } from "./onnxruntime.js";

/** @import { Engine, Package } from "../package.js" */
/** @import { Ort } from "./onnxruntime.js" */

/** What a graph may be off on an adapter that computes well; one that does not was off by 0.2 to 0.9. */
const MOST_ERROR = 0.05;

/**
 * An engine for packages of onnx, in wasm. It rounds no inputs of products: as `--exact` in Python.
 * @param {Ort} ort `onnxruntime-web/wasm`
 * @param {object} options
 * @param {string} options.files address of the folder that its `.wasm` and `.mjs` lie in
 * @param {number} [options.threads] more than one need a page that is isolated (COOP and COEP)
 * @returns {Engine}
 */
export function wasmEngine(ort, { files, threads = 1 }) {
  const isIsolated = Boolean(globalThis.crossOriginIsolated);
  ort.env.wasm.wasmPaths = files;
  ort.env.wasm.numThreads = isIsolated ? threads : 1;

  return {
    name: `onnxruntime-web, wasm, ${isIsolated ? threads : 1} threads`,
    backend: "onnx",
    open: async (graph, content) => {
      const session = await openSession(ort, graph, content, {
        executionProviders: ["wasm"],
        extra: { session: decoding(graph) },
      });
      return { ...session, run: (inputs) => turn().then(() => session.run(inputs)) };
    },
  };
}

/**
 * An engine for packages of onnx, by WebGPU; null, and why, where there is none. The features named
 * `subgroups` are hidden from the library: its attention by them is wrong on some adapters.
 * @param {() => Promise<any>} load for example `() => import("./ort.webgpu.min.mjs")`
 * @param {{files: string, remark?: (remark: string) => void}} options
 * @returns {Promise<Engine | null>}
 */
export async function webGpuEngine(load, { files, remark = () => {} }) {
  const gpu = /** @type {any} */ (globalThis.navigator)?.gpu;
  const adapter = await gpu?.requestAdapter({ powerPreference: "high-performance" }).catch(() => null);
  if (!adapter) {
    remark("this browser has no WebGPU adapter: graphs run in wasm");
    return null;
  }
  const loaded = await load();
  const ort = /** @type {Ort} */ (loaded.default ?? loaded);
  ort.env.wasm.wasmPaths = files;
  ort.env.wasm.numThreads = 1;
  hideSubgroups();
  return {
    name: `onnxruntime-web, WebGPU, ${adapter.info?.vendor || "an unnamed adapter"}`,
    backend: "onnx",
    open: (graph, content) => openSession(ort, graph, content, { executionProviders: ["webgpu"] }),
  };
}

/** Lets messages in, as one that stops: a graph in wasm holds its thread from beginning to end. */
function turn() {
  return new Promise((resolve) => {
    const { port1, port2 } = new MessageChannel();
    port1.onmessage = () => {
      port1.close();
      resolve(undefined);
    };
    port2.postMessage(undefined);
  });
}

/**
 * The first engine that computes a package's recorded calls: one call of each graph. The last is
 * taken unasked. Packages without golden files have the last.
 * @param {Package} from
 * @param {readonly (Engine | null)[]} engines the best first
 * @param {(remark: string) => void} [remark] is told why one is not taken
 * @returns {Promise<Engine>}
 */
export async function trusted(from, engines, remark = () => {}) {
  const there = engines.filter((engine) => engine !== null);
  for (const engine of there.slice(0, -1)) {
    const problem = await problemOf(from, engine);
    if (!problem) return engine;
    remark(`${engine.name} is not used: ${problem}`);
  }
  return there[there.length - 1];
}

/**
 * @param {Package} from
 * @param {Engine} engine
 * @returns {Promise<string>} what is wrong with its numbers, or nothing
 */
async function problemOf(from, engine) {
  if (from.manifest.golden.pictures.length === 0) return "the package has no golden outputs to try it with";
  try {
    for (const stage of from.manifest.stages) {
      const error = await graphError(from, engine, stage, 1);
      if (!(error <= MOST_ERROR)) return `${stage.graph} is off by ${error.toPrecision(2)}`;
    }
    return "";
  } catch (error) {
    return String(error instanceof Error ? error.message : error).split("\n")[0];
  }
}

/** Let no adapter or device of this page or worker say that it has subgroups. */
function hideSubgroups() {
  for (const kind of ["GPUAdapter", "GPUDevice"]) {
    const prototype = /** @type {any} */ (globalThis)[kind]?.prototype;
    const own = prototype && Object.getOwnPropertyDescriptor(prototype, "features");
    if (!own?.get || own.get.name === "withoutSubgroups") continue;
    const all = own.get;
    Object.defineProperty(prototype, "features", {
      ...own,
      get: function withoutSubgroups() {
        return new Set([...all.call(this)].filter((name) => !String(name).includes("subgroup")));
      },
    });
  }
}
