/**
 * The tensors of a safetensors file by name; throws CheckFailed naming the file when it is none.
 * @param {Uint8Array} content
 * @param {string} file
 * @returns {Map<string, Tensor>}
 */
export function parseTensors(content: Uint8Array, file: string): Map<string, Tensor>;
/**
 * Relative L2 error of values against expected ones; infinite where they are none.
 * @param {ArrayLike<number>} found
 * @param {ArrayLike<number>} expected
 */
export function relativeError(found: ArrayLike<number>, expected: ArrayLike<number>): number;
/**
 * Values in the order of the shape's last axis first.
 */
export type Tensor = {
    data: Float32Array | Int32Array | Uint8Array;
    shape: readonly number[];
};
