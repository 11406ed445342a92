/**
 * The noise that `torch.randn` draws with a CPU generator: MT19937 (Matsumoto and Nishimura 1998)
 * and the transform of Box and Muller (1958), in the two layouts that torch switches between.
 * @module
 */

import { InputError } from "./errors.js";

const FILL_FROM = 16; // torch fills in blocks of 16 from this many values on
const WORDS = 624, MIDDLE = 397; // of the generator's state
const LEAST_SEED = -(2n ** 63n), MOST_SEED = 2n ** 64n - 1n;

/**
 * A seed as torch takes it; throws InputError for one that it does not take. A number that does not
 * fit a double is given as a BigInt or in digits.
 * @param {unknown} seed
 * @returns {bigint}
 */
export function checkSeed(seed) {
  const isWhole = typeof seed === "bigint" || (typeof seed === "number" && Number.isSafeInteger(seed));
  if (isWhole || (typeof seed === "string" && /^[+-]?[0-9]{1,40}$/.test(seed))) {
    const found = BigInt(String(seed).replace("+", ""));
    if (found >= LEAST_SEED && found <= MOST_SEED) return found;
  }
  throw new InputError(`a whole number from -2^63 to 2^64 - 1 is expected, not ${String(seed)}`, "seed");
}

/** A stream of standard normals; successive draws continue it as torch's do. */
export class TorchNoise {
  /** @param {bigint | number | string} seed of which the low 32 bits are used */
  constructor(seed) {
    this._state = new Uint32Array(WORDS);
    this._place = WORDS;
    /** @type {number | null} */
    this._spare = null;
    this._state[0] = Number(BigInt.asUintN(32, checkSeed(seed)));
    for (let i = 1; i < WORDS; i++) {
      const before = this._state[i - 1];
      this._state[i] = Math.imul(before ^ (before >>> 30), 1812433253) + i;
    }
  }

  /**
   * So many standard normals.
   * @param {number} size
   * @returns {Float32Array}
   */
  randn(size) {
    return size >= FILL_FROM ? this._fill(size) : Float32Array.from({ length: size }, () => this._one());
  }

  /** @param {number} size */
  _fill(size) {
    const values = Float64Array.from({ length: size }, () => this._uniform24());
    for (let start = 0; start + FILL_FROM <= size; start += FILL_FROM) boxMuller(values, start);
    if (size % FILL_FROM) {
      const start = size - FILL_FROM;
      for (let i = start; i < size; i++) values[i] = this._uniform24();
      boxMuller(values, start);
    }
    return Float32Array.from(values);
  }

  /** One of a pair; the second of a pair waits for the next call. */
  _one() {
    if (this._spare !== null) {
      const spare = this._spare;
      this._spare = null;
      return spare;
    }
    const angle = 2 * Math.PI * this._uniform53();
    const radius = Math.sqrt(-2 * Math.log1p(-this._uniform53()));
    this._spare = radius * Math.sin(angle);
    return radius * Math.cos(angle);
  }

  _uniform24() {
    return (this._word() & 0xffffff) * 2 ** -24;
  }

  /** The low 53 bits of two words, the high one first. */
  _uniform53() {
    const high = this._word(), low = this._word();
    return ((high & 0x1fffff) * 2 ** 32 + low) * 2 ** -53;
  }

  /** The generator's next 32 bits. */
  _word() {
    if (this._place === WORDS) this._turn();
    let word = this._state[this._place++];
    word ^= word >>> 11;
    word ^= (word << 7) & 0x9d2c5680;
    word ^= (word << 15) & 0xefc60000;
    return (word ^ (word >>> 18)) >>> 0;
  }

  _turn() {
    const state = this._state;
    for (let i = 0; i < WORDS; i++) {
      const bits = (state[i] & 0x80000000) | (state[(i + 1) % WORDS] & 0x7fffffff);
      state[i] = state[(i + MIDDLE) % WORDS] ^ (bits >>> 1) ^ (bits & 1 ? 0x9908b0df : 0);
    }
    this._place = 0;
  }
}

/**
 * Eight radii and eight angles to sixteen normals, in place.
 * @param {Float64Array} values
 * @param {number} start
 */
function boxMuller(values, start) {
  for (let i = start; i < start + FILL_FROM / 2; i++) {
    const radius = Math.sqrt(-2 * Math.log(1 - values[i]));
    const angle = 2 * Math.PI * values[i + FILL_FROM / 2];
    values[i] = radius * Math.cos(angle);
    values[i + FILL_FROM / 2] = radius * Math.sin(angle);
  }
}
