/**
 * Graphs by `onnxruntime-node`: the bytes that Python draws.
 * @module
 */

import { decoding, openSession } from "./onnxruntime.js";

/** @import { Engine } from "../package.js" */
/** @import { Ort } from "./onnxruntime.js" */

/**
 * An engine for packages of onnx. The library's telemetry is off before it is loaded; in a worker
 * thread, whose environment is a copy, set `ORT_DISABLE_TELEMETRY=1` for the process.
 * @param {() => Promise<any>} load for example `() => import("onnxruntime-node")`
 * @param {object} [options]
 * @param {boolean} [options.exact] inputs of products are never rounded to 8 bits
 * @param {number} [options.threads] of a graph; the library's own choice unless given
 * @returns {Promise<Engine>}
 */
export async function nodeEngine(load, { exact = false, threads } = {}) {
  process.env.ORT_DISABLE_TELEMETRY = "1";
  const loaded = await load();
  const ort = /** @type {Ort} */ (loaded.default ?? loaded);
  return {
    name: "onnxruntime-node",
    backend: "onnx",
    open: (graph, files) => {
      const level = exact ? "0" : (graph.session.get("accuracy_level") ?? "0");
      return openSession(ort, graph, files, {
        executionProviders: ["cpu"],
        extra: { session: { qdq_matmulnbits_accuracy_level: level, ...decoding(graph) } },
        ...(threads ? { intraOpNumThreads: threads } : {}),
      });
    },
  };
}
