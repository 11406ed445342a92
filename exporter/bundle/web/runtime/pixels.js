/**
 * Tensors to pictures of whole levels and back, and small pictures of a latent.
 * @module
 */

import { CheckFailed } from "./errors.js";

/** @import { PixelsEntry, PreviewEntry } from "./manifest.js" */

export const NOT_FINITE =
  "holds NaN or infinity: numbers left the range of its weights or of 16 bits; run it exact, or build it with a wider scheme";

/**
 * A picture of 8 bits: `levels` are red, green and blue of each pixel, row by row.
 * @typedef {{width: number, height: number, levels: Uint8Array}} Picture
 */

/**
 * Whether all values are numbers.
 * @param {ArrayLike<number>} values
 */
export function isFinite(values) {
  for (let i = 0; i < values.length; i++) if (!Number.isFinite(values[i])) return false;
  return true;
}

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
export function toPicture(image, width, height, pixels, what = "the picture") {
  if (!isFinite(image)) throw new CheckFailed(`${what} ${NOT_FINITE}`);
  const round = image instanceof Float32Array ? Math.fround : (/** @type {number} */ x) => x;
  const scale = round(pixels.toLevelsScale), offset = round(pixels.toLevelsOffset);
  const area = width * height;
  const levels = new Uint8Array(3 * area);
  for (let i = 0; i < 3 * area; i++) {
    const unit = round(round(image[i] * scale) + offset);
    const level = round(Math.min(Math.max(unit, 0), 1) * pixels.levels);
    levels[(i % area) * 3 + Math.floor(i / area)] = roundHalfToEven(level);
  }
  return { width, height, levels };
}

/**
 * A picture as a tensor (1, 3, height, width), in float32.
 * @param {Picture} picture
 * @param {PixelsEntry} pixels
 * @returns {Float32Array}
 */
export function fromPicture({ width, height, levels }, pixels) {
  const area = width * height;
  const scale = Math.fround(pixels.fromLevelsScale), offset = Math.fround(pixels.fromLevelsOffset);
  return Float32Array.from({ length: 3 * area }, (_, i) => {
    const unit = Math.fround(levels[(i % area) * 3 + Math.floor(i / area)] / pixels.levels);
    return Math.fround(Math.fround(scale * unit) + offset);
  });
}

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
export function previewOf(latent, width, height, entry, pixels) {
  if (!isFinite(latent)) throw new CheckFailed(`the latent of a preview ${NOT_FINITE}`);
  const area = width * height;
  const colours = Float64Array.from({ length: 3 * area }, (_, i) => {
    const colour = Math.floor(i / area), at = i % area;
    const sum = entry.factors.reduce((s, row, channel) => s + latent[channel * area + at] * row[colour], 0);
    return sum + entry.bias[colour];
  });
  return toPicture(colours, width, height, pixels, "the preview");
}

/** @param {number} value from 0 up */
function roundHalfToEven(value) {
  const floor = Math.floor(value), rest = value - floor;
  return rest > 0.5 || (rest === 0.5 && floor % 2 === 1) ? floor + 1 : floor;
}
