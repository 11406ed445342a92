/**
 * Code points and, of each, the place in the prompt that it comes from, counted in code points.
 * @typedef {{points: number[], places: number[]}} Text
 */
/**
 * The code points of a string, each in its own place.
 * @param {string} text
 * @returns {Text}
 */
export function textOf(text: string): Text;
/**
 * The string of code points.
 * @param {readonly number[]} points
 */
export function stringOf(points: readonly number[]): string;
/** The tables of `unicode.bin`. */
export class Unicode {
    /** @param {Uint8Array} content of the file; throws CheckFailed when it is not one */
    constructor(content: Uint8Array);
    /** @type {Uint16Array} */
    _values: Uint16Array;
    /** @type {Map<number, number>} */
    _ranks: Map<number, number>;
    /** @type {Map<number, number[]>} */
    _lower: Map<number, number[]>;
    /** @type {Map<number, number[]>} */
    _parts: Map<number, number[]>;
    /** @type {Map<number, number>} by first * 2^21 + second */
    _composed: Map<number, number>;
    /** @param {number} point a letter, `\p{L}` */
    isLetter(point: number): boolean;
    /** @param {number} point a digit, `\p{N}` */
    isDigit(point: number): boolean;
    /** @param {number} point `\s` of a regular expression */
    isSpace(point: number): boolean;
    /** @param {number} point white space, where text is split or stripped */
    isWhite(point: number): boolean;
    /**
     * Lower case by code point, with the full mapping.
     * @param {Text} text
     * @returns {Text}
     */
    lower(text: Text): Text;
    /**
     * Canonical decomposition.
     * @param {Text} text
     * @returns {Text}
     */
    decompose(text: Text): Text;
    /**
     * Canonical composition.
     * @param {Text} text
     * @returns {Text}
     */
    compose(text: Text): Text;
    /**
     * Where each extended grapheme cluster begins, and the end.
     * @param {readonly number[]} points
     * @returns {number[]}
     */
    clusters(points: readonly number[]): number[];
    /** @param {number} point */
    _kind(point: number): number;
    /** @param {number} point */
    _conjunct(point: number): number;
    /**
     * @param {number} point
     * @returns {number[] | undefined}
     */
    _whole(point: number): number[] | undefined;
    /**
     * @param {number} first
     * @param {number} second
     * @returns {number | undefined}
     */
    _pair(first: number, second: number): number | undefined;
    /**
     * Whether no cluster ends before `at` of one that began at `start`.
     * @param {readonly number[]} points
     * @param {number} start
     * @param {number} at
     */
    _joins(points: readonly number[], start: number, at: number): boolean;
    /**
     * Whether a consonant, a linker and what extends them lie before `at`.
     * @param {readonly number[]} points
     * @param {number} start
     * @param {number} at
     */
    _isLinked(points: readonly number[], start: number, at: number): boolean;
}
/**
 * Code points and, of each, the place in the prompt that it comes from, counted in code points.
 */
export type Text = {
    points: number[];
    places: number[];
};
