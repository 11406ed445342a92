/**
 * A picture to start from, brought to a package's size as Pillow's Lanczos filter brings it there.
 * @module
 */

import { InputError } from "./errors.js";

/** @import { Picture } from "./pixels.js" */

/** @typedef {"cover" | "contain" | "stretch"} Fit */
/** @typedef {{width: number, height: number, data: Uint8Array | Uint8ClampedArray}} Given RGB or RGBA, in sRGB and upright: an `ImageData` is one */
/** @typedef {[number, number, number, number]} Box left, top, right, bottom */

export const FITS = ["cover", "contain", "stretch"];
const SUPPORT = 3; // of the filter, in samples of the coarser side
const PRECISION = 2 ** 22; // of a weight, as a whole number

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
export function startPicture(given, width, height, fit = "cover", background = "#ffffff") {
  if (!FITS.includes(fit)) throw new InputError(`'${fit}' is not one of ${FITS.join(", ")}`, "fit");
  const colour = parseColour(background);
  const flat = flattened(given, colour);
  if (flat.width === width && flat.height === height) return flat;
  const scales = [width / flat.width, height / flat.height];
  if (fit === "stretch") return resized(flat, width, height);
  if (fit === "cover") {
    const scale = Math.max(...scales);
    const left = Math.max(0, (flat.width - width / scale) / 2);
    const top = Math.max(0, (flat.height - height / scale) / 2);
    return resized(flat, width, height, [left, top, flat.width - left, flat.height - top]);
  }
  const scale = Math.min(...scales);
  const side = (/** @type {number} */ own) => Math.max(1, halfToEven(own * scale));
  return framed(resized(flat, side(flat.width), side(flat.height)), width, height, colour);
}

/**
 * @param {string} text
 * @returns {number[]}
 */
function parseColour(text) {
  const parts = /^#([0-9a-f]{2})([0-9a-f]{2})([0-9a-f]{2})$/i.exec(text);
  if (!parts) throw new InputError(`'${text}' is no colour; write #rrggbb, as #ffffff`, "background");
  return parts.slice(1).map((digits) => parseInt(digits, 16));
}

/**
 * @param {Given} given
 * @param {readonly number[]} background
 * @returns {Picture}
 */
function flattened({ width, height, data }, background) {
  const channels = data?.length / (width * height);
  if (!(width > 0 && height > 0) || (channels !== 3 && channels !== 4)) {
    throw new InputError("width, height and their RGB or RGBA values are expected", "image");
  }
  if (channels === 3) return { width, height, levels: Uint8Array.from(data) };
  const levels = new Uint8Array(3 * width * height);
  for (let from = 0, to = 0; from < data.length; from += 4, to += 3) {
    for (let i = 0; i < 3; i++) levels[to + i] = blended(data[from + i], background[i], data[from + 3]);
  }
  return { width, height, levels };
}

/**
 * @param {number} above
 * @param {number} below
 * @param {number} alpha
 */
function blended(above, below, alpha) {
  const sum = above * alpha + below * (255 - alpha) + 128;
  return (sum + (sum >> 8)) >> 8;
}

/**
 * @param {Picture} picture
 * @param {number} width
 * @param {number} height
 * @param {readonly number[]} colour
 * @returns {Picture}
 */
function framed(picture, width, height, colour) {
  const levels = Uint8Array.from({ length: 3 * width * height }, (_, i) => colour[i % 3]);
  const left = Math.floor((width - picture.width) / 2), top = Math.floor((height - picture.height) / 2);
  for (let row = 0; row < picture.height; row++) {
    const from = 3 * row * picture.width;
    levels.set(picture.levels.subarray(from, from + 3 * picture.width), 3 * ((top + row) * width + left));
  }
  return { width, height, levels };
}

/**
 * A part of a picture in another size: across, then down, each rounded to whole levels.
 * @param {Picture} picture
 * @param {number} width
 * @param {number} height
 * @param {Box} [box] the part
 * @returns {Picture}
 */
function resized(picture, width, height, box = [0, 0, picture.width, picture.height]) {
  const [left, top, right, bottom] = box;
  const isAcross = width !== picture.width || left !== 0 || right !== width;
  const isDown = height !== picture.height || top !== 0 || bottom !== height;
  const across = isAcross
    ? filtered(picture.levels, picture.height, 3 * picture.width, 3, weights(picture.width, left, right, width))
    : picture.levels;
  const down = isDown
    ? filtered(across, 1, 0, 3 * width, weights(picture.height, top, bottom, height))
    : across;
  return { width, height, levels: down };
}

/**
 * Sums of neighbours along an axis: `rows` lines of samples of `size` levels each.
 * @param {Uint8Array} levels
 * @param {number} rows
 * @param {number} stride levels from a line to the next
 * @param {number} size
 * @param {readonly {first: number, taps: number[]}[]} kernels of each sample of the result
 * @returns {Uint8Array}
 */
function filtered(levels, rows, stride, size, kernels) {
  const found = new Uint8Array(rows * kernels.length * size);
  let at = 0;
  for (let row = 0; row < rows; row++) {
    for (const { first, taps } of kernels) {
      for (let i = 0; i < size; i++) {
        let sum = PRECISION / 2;
        const from = row * stride + first * size + i;
        for (let k = 0; k < taps.length; k++) sum += levels[from + k * size] * taps[k];
        found[at++] = Math.min(Math.max(Math.floor(sum / PRECISION), 0), 255);
      }
    }
  }
  return found;
}

/**
 * What each sample of a result takes of the samples from `start` to `end`.
 * @param {number} samples
 * @param {number} start
 * @param {number} end
 * @param {number} results
 */
function weights(samples, start, end, results) {
  const scale = (Math.fround(end) - Math.fround(start)) / results;
  const reach = Math.max(scale, 1), support = SUPPORT * reach;
  return Array.from({ length: results }, (_, place) => {
    const centre = Math.fround(start) + (place + 0.5) * scale;
    const first = Math.max(Math.trunc(centre - support + 0.5), 0);
    const last = Math.min(Math.trunc(centre + support + 0.5), samples);
    const taps = Array.from({ length: last - first }, (_, i) => lanczos((i + first - centre + 0.5) / reach));
    const sum = taps.reduce((a, b) => a + b, 0);
    return { first, taps: taps.map((tap) => Math.trunc((tap / sum) * PRECISION + (tap / sum < 0 ? -0.5 : 0.5))) };
  });
}

/** @param {number} x */
function lanczos(x) {
  const sinc = (/** @type {number} */ t) => (t === 0 ? 1 : Math.sin(t * Math.PI) / (t * Math.PI));
  return x >= -SUPPORT && x < SUPPORT ? sinc(x) * sinc(x / SUPPORT) : 0;
}

/** @param {number} value */
function halfToEven(value) {
  const floor = Math.floor(value), rest = value - floor;
  return rest > 0.5 || (rest === 0.5 && floor % 2 === 1) ? floor + 1 : floor;
}
