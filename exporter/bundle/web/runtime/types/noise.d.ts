/**
 * A seed as torch takes it; throws InputError for one that it does not take. A number that does not
 * fit a double is given as a BigInt or in digits.
 * @param {unknown} seed
 * @returns {bigint}
 */
export function checkSeed(seed: unknown): bigint;
/** A stream of standard normals; successive draws continue it as torch's do. */
export class TorchNoise {
    /** @param {bigint | number | string} seed of which the low 32 bits are used */
    constructor(seed: bigint | number | string);
    _state: Uint32Array<ArrayBuffer>;
    _place: number;
    /** @type {number | null} */
    _spare: number | null;
    /**
     * So many standard normals.
     * @param {number} size
     * @returns {Float32Array}
     */
    randn(size: number): Float32Array;
    /** @param {number} size */
    _fill(size: number): Float32Array<ArrayBuffer>;
    /** One of a pair; the second of a pair waits for the next call. */
    _one(): number;
    _uniform24(): number;
    /** The low 53 bits of two words, the high one first. */
    _uniform53(): number;
    /** The generator's next 32 bits. */
    _word(): number;
    _turn(): void;
}
