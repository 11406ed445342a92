/**
 * Tensors, and safetensors files that hold them.
 * @module
 */

import { CheckFailed } from "./errors.js";

/**
 * Values in the order of the shape's last axis first.
 * @typedef {{data: Float32Array | Int32Array | Uint8Array, shape: readonly number[]}} Tensor
 */

const MOST_HEADER_BYTES = 1 << 26;
/** @type {Record<string, {bytes: number, make: (buffer: ArrayBuffer) => Tensor["data"]}>} */
const KINDS = {
  F32: { bytes: 4, make: (buffer) => new Float32Array(buffer) },
  I32: { bytes: 4, make: (buffer) => new Int32Array(buffer) },
  U8: { bytes: 1, make: (buffer) => new Uint8Array(buffer) },
};

/**
 * The tensors of a safetensors file by name; throws CheckFailed naming the file when it is none.
 * @param {Uint8Array} content
 * @param {string} file
 * @returns {Map<string, Tensor>}
 */
export function parseTensors(content, file) {
  const wrong = (/** @type {string} */ why) => new CheckFailed(`${file}: not a safetensors file: ${why}`);
  if (content.length < 8) throw wrong("too short");
  const view = new DataView(content.buffer, content.byteOffset, content.byteLength);
  const length = view.getBigUint64(0, true);
  if (length > BigInt(Math.min(MOST_HEADER_BYTES, content.length - 8))) throw wrong("its header's size is wrong");
  const body = 8 + Number(length);
  const found = new Map();
  for (const [name, entry] of Object.entries(headerOf(content.subarray(8, body), wrong))) {
    if (name === "__metadata__") continue;
    const kind = Object.hasOwn(KINDS, entry?.dtype) ? KINDS[entry.dtype] : undefined;
    const { shape, data_offsets: offsets } = entry ?? {};
    const isWhole = (/** @type {unknown} */ n) => Number.isSafeInteger(n) && Number(n) >= 0;
    if (!Array.isArray(shape) || !shape.every(isWhole) || !Array.isArray(offsets) || !offsets.every(isWhole)) {
      throw wrong(`tensor '${name}' has no shape or place`);
    }
    if (!kind) throw wrong(`tensor '${name}' is of the type ${entry.dtype}`);
    const [start, end] = offsets;
    const bytes = shape.reduce((a, b) => a * b, kind.bytes);
    if (end - start !== bytes || body + end > content.length) throw wrong(`tensor '${name}' does not fit its place`);
    found.set(name, { data: kind.make(content.slice(body + start, body + end).buffer), shape });
  }
  return found;
}

/**
 * @param {Uint8Array} bytes
 * @param {(why: string) => Error} wrong
 * @returns {Record<string, any>}
 */
function headerOf(bytes, wrong) {
  try {
    const header = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(bytes));
    if (header !== null && typeof header === "object") return header;
  } catch {
    throw wrong("its header cannot be read");
  }
  throw wrong("its header is no object");
}

/**
 * Relative L2 error of values against expected ones; infinite where they are none.
 * @param {ArrayLike<number>} found
 * @param {ArrayLike<number>} expected
 */
export function relativeError(found, expected) {
  if (found.length !== expected.length) return Infinity;
  let error = 0, norm = 0;
  for (let i = 0; i < expected.length; i++) {
    error += (found[i] - expected[i]) ** 2;
    norm += expected[i] ** 2;
  }
  const relative = Math.sqrt(error / Math.max(norm, Number.MIN_VALUE));
  return Number.isNaN(relative) ? Infinity : relative;
}
