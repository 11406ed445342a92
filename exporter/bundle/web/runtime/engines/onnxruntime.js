/**
 * What the adapters of onnxruntime share: a graph and its weights, opened from memory.
 * @module
 */

/** @import { Session } from "../loop.js" */
/** @import { GraphEntry } from "../manifest.js" */
/** @import { Tensor } from "../tensors.js" */

/** @typedef {{readonly type: string, readonly data: unknown, readonly dims: readonly number[]}} OrtTensor */
/**
 * As much of `onnxruntime-web` and `onnxruntime-node` as is used here.
 * @typedef {object} Ort
 * @property {{create: (model: Uint8Array, options: any) => Promise<OrtSession>}} InferenceSession
 * @property {new (type: any, data: any, dims: readonly number[]) => any} Tensor
 * @property {any} env
 */
/** @typedef {{run: (feeds: any) => Promise<Record<string, any>>, release: () => Promise<void>}} OrtSession */

/**
 * Open a graph; weights are found by the base names of their files.
 * @param {Ort} ort
 * @param {GraphEntry} graph
 * @param {ReadonlyMap<string, Uint8Array>} files
 * @param {Record<string, unknown>} options of the session
 * @returns {Promise<Session>}
 */
export async function openSession(ort, graph, files, options) {
  const weights = [...files].filter(([path]) => path !== graph.entry);
  const session = await ort.InferenceSession.create(/** @type {Uint8Array} */ (files.get(graph.entry)), {
    logSeverityLevel: 3,
    enableCpuMemArena: false,
    externalData: weights.map(([path, data]) => ({ path: path.slice(path.lastIndexOf("/") + 1), data })),
    ...options,
  });
  return {
    run: async (inputs) => {
      const feeds = Object.entries(inputs).map(([name, { data, shape }]) => [name, new ort.Tensor(typeOf(data), data, shape)]);
      const outputs = await session.run(Object.fromEntries(feeds));
      return Object.fromEntries(
        Object.entries(outputs).map(([name, { data, dims }]) => [name, { data, shape: dims }]));
    },
    close: () => session.release(),
  };
}

/**
 * Settings of a session on a processor: whether weights are decoded now, and not whenever it runs.
 * @param {GraphEntry} graph
 * @returns {Record<string, string>}
 */
export function decoding(graph) {
  return graph.session.has("widened") ? { disable_quant_qdq: "1" } : {};
}

/** @param {Tensor["data"]} data */
function typeOf(data) {
  return data instanceof Float32Array ? "float32" : data instanceof Int32Array ? "int32" : "uint8";
}
