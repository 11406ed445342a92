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
export function nodeEngine(load: () => Promise<any>, { exact, threads }?: {
    exact?: boolean | undefined;
    threads?: number | undefined;
}): Promise<Engine>;
import type { Engine } from "../package.js";
