/**
 * A function from a prompt to ids (1, tokens) for the text encoder `name`.
 *
 * A longer prompt loses its tail, and the closing token stays: `remark` is told what is not read. It
 * throws InputError for a prompt that is no text.
 * @param {Tokenizer} tokenizer
 * @param {TokenizerEntry} entry
 * @param {string} name
 * @param {(remark: string) => void} [remark]
 * @returns {(prompt: string) => Int32Array}
 */
export function promptEncoder(tokenizer: Tokenizer, entry: TokenizerEntry, name: string, remark?: (remark: string) => void): (prompt: string) => Int32Array;
/**
 * Throw InputError for a prompt that is no text, or longer than any encoder could read.
 * @param {unknown} prompt
 * @param {string} [name] what it is called in the error
 */
export function checkPrompt(prompt: unknown, name?: string): void;
/** @typedef {Record<string, any>} Json an object of a JSON file, not believed yet */
/** @typedef {(text: Text) => Text} Normalize */
/** @typedef {(texts: Text[]) => Text[]} Split */
/** @typedef {{id: number, place: number}} Token an id, and the place where its text begins */
/** @typedef {(text: Text) => Token[]} Model */
/** @typedef {(points: readonly number[], at: number) => number} Match the end of a match, or -1 */
/** @typedef {{id: number, points: number[], left: boolean, right: boolean}} Added */
/**
 * What is in a `tokenizer.json`: encodes text.
 *
 * Throws CheckFailed for a file that is none, or names a part that is not known.
 */
export class Tokenizer {
    /**
     * @param {string} text of the file
     * @param {Unicode} unicode
     * @param {string} where the file's name, for errors
     */
    constructor(text: string, unicode: Unicode, where?: string);
    _unicode: Unicode;
    _normalize: Normalize;
    _split: Split;
    _model: Model;
    _raw: (Added & {
        normalized: boolean;
    })[];
    _normalized: {
        points: number[];
        id: number;
        left: boolean;
        right: boolean;
        normalized: boolean;
    }[];
    _before: number[];
    _behind: number[];
    /** The largest id that any prompt can get. */
    largestId: number;
    /**
     * A prompt's tokens, with the special ones around them.
     * @param {string} prompt
     * @returns {Token[]}
     */
    encode(prompt: string): Token[];
    /**
     * @param {Text} raw
     * @returns {Token[]}
     */
    _encodeRest(raw: Text): Token[];
}
/**
 * an object of a JSON file, not believed yet
 */
export type Json = Record<string, any>;
export type Normalize = (text: Text) => Text;
export type Split = (texts: Text[]) => Text[];
/**
 * an id, and the place where its text begins
 */
export type Token = {
    id: number;
    place: number;
};
export type Model = (text: Text) => Token[];
/**
 * the end of a match, or -1
 */
export type Match = (points: readonly number[], at: number) => number;
export type Added = {
    id: number;
    points: number[];
    left: boolean;
    right: boolean;
};
export type Merge = {
    rank: number;
    id: number;
    at: number;
    first: number;
    second: number;
};
import type { TokenizerEntry } from "./manifest.js";
import type { Unicode } from "./unicode.js";
import type { Text } from "./unicode.js";
