/**
 * A picture of 8 bits: `levels` are red, green and blue of each pixel, row by row.
 * @typedef {{width: number, height: number, levels: Uint8Array}} Picture
 */
/**
 * Whether all values are numbers.
 * @param {ArrayLike<number>} values
 */
export function isFinite(values: ArrayLike<number>): boolean;
/**
 * A tensor (1, 3, height, width) as a picture: in float32, or in float64 if its values are; a half
 * goes to the even neighbour. Throws CheckFailed naming `what` where a value is no number.
 * @param {Float32Array | Float64Array} image
 * @param {number} width
 * @param {number} height
 * @param {PixelsEntry} pixels
 * @param {string} [what]
 * @returns {Picture}
 */
export function toPicture(image: Float32Array | Float64Array, width: number, height: number, pixels: PixelsEntry, what?: string): Picture;
/**
 * A picture as a tensor (1, 3, height, width), in float32.
 * @param {Picture} picture
 * @param {PixelsEntry} pixels
 * @returns {Float32Array}
 */
export function fromPicture({ width, height, levels }: Picture, pixels: PixelsEntry): Float32Array;
/**
 * A small picture of a latent (1, channels, height, width): one linear map from channels to colours,
 * in float64.
 * @param {Float32Array} latent
 * @param {number} width
 * @param {number} height
 * @param {PreviewEntry} entry
 * @param {PixelsEntry} pixels
 * @returns {Picture}
 */
export function previewOf(latent: Float32Array, width: number, height: number, entry: PreviewEntry, pixels: PixelsEntry): Picture;
/** @import { PixelsEntry, PreviewEntry } from "./manifest.js" */
export const NOT_FINITE: "holds NaN or infinity: numbers left the range of its weights or of 16 bits; run it exact, or build it with a wider scheme";
/**
 * A picture of 8 bits: `levels` are red, green and blue of each pixel, row by row.
 */
export type Picture = {
    width: number;
    height: number;
    levels: Uint8Array;
};
import type { PixelsEntry } from "./manifest.js";
import type { PreviewEntry } from "./manifest.js";
