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
export function openSession(ort: Ort, graph: GraphEntry, files: ReadonlyMap<string, Uint8Array>, options: Record<string, unknown>): Promise<Session>;
/**
 * Settings of a session on a processor: whether weights are decoded now, and not whenever it runs.
 * @param {GraphEntry} graph
 * @returns {Record<string, string>}
 */
export function decoding(graph: GraphEntry): Record<string, string>;
export type OrtTensor = {
    readonly type: string;
    readonly data: unknown;
    readonly dims: readonly number[];
};
/**
 * As much of `onnxruntime-web` and `onnxruntime-node` as is used here.
 */
export type Ort = {
    InferenceSession: {
        create: (model: Uint8Array, options: any) => Promise<OrtSession>;
    };
    Tensor: new (type: any, data: any, dims: readonly number[]) => any;
    env: any;
};
export type OrtSession = {
    run: (feeds: any) => Promise<Record<string, any>>;
    release: () => Promise<void>;
};
import type { GraphEntry } from "../manifest.js";
import type { Session } from "../loop.js";
