/**
 * A picture of the size wanted. Throws InputError of the field `image`, `fit` or `background`.
 * @param {Given} given
 * @param {number} width
 * @param {number} height
 * @param {Fit} [fit] to another size: `cover` fills the frame and loses what lies outside, `contain`
 *   keeps all and fills up with the background, `stretch` keeps all and distorts it
 * @param {string} [background] a colour `#rrggbb` below what is transparent and around `contain`
 * @returns {Picture}
 */
export function startPicture(given: Given, width: number, height: number, fit?: Fit, background?: string): Picture;
/** @import { Picture } from "./pixels.js" */
/** @typedef {"cover" | "contain" | "stretch"} Fit */
/** @typedef {{width: number, height: number, data: Uint8Array | Uint8ClampedArray}} Given RGB or RGBA, in sRGB and upright: an `ImageData` is one */
/** @typedef {[number, number, number, number]} Box left, top, right, bottom */
export const FITS: string[];
export type Fit = "cover" | "contain" | "stretch";
/**
 * RGB or RGBA, in sRGB and upright: an `ImageData` is one
 */
export type Given = {
    width: number;
    height: number;
    data: Uint8Array | Uint8ClampedArray;
};
/**
 * left, top, right, bottom
 */
export type Box = [number, number, number, number];
import type { Picture } from "./pixels.js";
