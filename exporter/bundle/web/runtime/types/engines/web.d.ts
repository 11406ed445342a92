/**
 * An engine for packages of onnx, in wasm. It rounds no inputs of products: as `--exact` in Python.
 * @param {Ort} ort `onnxruntime-web/wasm`
 * @param {object} options
 * @param {string} options.files address of the folder that its `.wasm` and `.mjs` lie in
 * @param {number} [options.threads] more than one need a page that is isolated (COOP and COEP)
 * @returns {Engine}
 */
export function wasmEngine(ort: Ort, { files, threads }: {
    files: string;
    threads?: number | undefined;
}): Engine;
/**
 * An engine for packages of onnx, by WebGPU; null, and why, where there is none. The features named
 * `subgroups` are hidden from the library: its attention by them is wrong on some adapters.
 * @param {() => Promise<any>} load for example `() => import("./ort.webgpu.min.mjs")`
 * @param {{files: string, remark?: (remark: string) => void}} options
 * @returns {Promise<Engine | null>}
 */
export function webGpuEngine(load: () => Promise<any>, { files, remark }: {
    files: string;
    remark?: (remark: string) => void;
}): Promise<Engine | null>;
/**
 * The first engine that computes a package's recorded calls: one call of each graph. The last is
 * taken unasked. Packages without golden files have the last.
 * @param {Package} from
 * @param {readonly (Engine | null)[]} engines the best first
 * @param {(remark: string) => void} [remark] is told why one is not taken
 * @returns {Promise<Engine>}
 */
export function trusted(from: Package, engines: readonly (Engine | null)[], remark?: (remark: string) => void): Promise<Engine>;
import type { Ort } from "./onnxruntime.js";
import type { Engine } from "../package.js";
import type { Package } from "../package.js";
