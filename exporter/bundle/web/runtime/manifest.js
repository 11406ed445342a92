/**
 * What a package says of itself: `manifest.json`, whole, of a format that is known, consistent.
 * @module
 */

import { check } from "./consistent.js";
import { list, number, one, optional, orNull, record, table, text, truth, whole } from "./decode.js";
import { CheckFailed } from "./errors.js";

/**
 * @typedef {{path: string, bytes: number, sha256: string}} FileEntry
 * @typedef {{name: string, shape: readonly number[], dtype: "float32" | "int32"}} Port
 * @typedef {{graphRelative: number, imagePsnrDb: number}} Tolerance
 * @typedef {object} GraphEntry
 * @property {string} name
 * @property {string} entry the file that an engine opens
 * @property {readonly Port[]} inputs
 * @property {readonly Port[]} outputs
 * @property {readonly FileEntry[]} files
 * @property {Tolerance} tolerance
 * @property {ReadonlyMap<string, string>} session
 * @typedef {Omit<GraphEntry, "files"> & {files: readonly string[]}} SizedGraph what stands in for the graph of its name; its files by path
 * @typedef {object} SizeEntry a further size, by what differs from the first
 * @property {number} widthPx
 * @property {number} heightPx
 * @property {readonly SizedGraph[]} graphs
 * @property {readonly Golden[]} pictures
 * @property {number | null} predictedPeakBytes
 * @typedef {"tokens" | "output" | "negative output" | "latent" | "image"} SourceKind
 * @typedef {{kind: SourceKind, name: string, port: string, rowOfStep: boolean}} Source
 * @typedef {"velocity" | "start" | "image" | "preview"} Result
 * @typedef {object} Stage
 * @property {string} graph
 * @property {readonly string[]} parts
 * @property {"once per prompt" | "each step" | "twice each step" | "once" | "for previews"} runs
 * @property {ReadonlyMap<string, Source>} inputs
 * @property {ReadonlyMap<string, Result>} results
 * @property {boolean} imageToImageOnly
 * @property {ReadonlyMap<string, Source>} negativeInputs
 * @typedef {{scale: number, negativePrompt: string | null}} Guidance
 * @typedef {{mode: "euler" | "renoise", sigmas: readonly number[], guidance: Guidance | null}} Schedule
 * @typedef {object} PixelsEntry
 * @property {number} toLevelsScale
 * @property {number} toLevelsOffset
 * @property {number} levels
 * @property {number} fromLevelsScale
 * @property {number} fromLevelsOffset
 * @typedef {{factors: readonly (readonly number[])[], bias: readonly number[]}} PreviewEntry
 * @typedef {object} PictureEntry
 * @property {number} widthPx
 * @property {number} heightPx
 * @property {number} latentChannels
 * @property {number} latentScalePx
 * @property {PixelsEntry} pixels
 * @property {PreviewEntry | null} preview
 * @property {string} previewGraph
 * @typedef {object} TokenizerEntry
 * @property {string} path
 * @property {number} tokens
 * @property {number} padId
 * @property {number | null} closingId
 * @property {number} vocabularySize
 * @typedef {{prompt: string, seed: number, image: string, unquantized: string, tensors: string, like: string, same: ReadonlyMap<string, string>}} Golden
 * @typedef {object} Manifest
 * @property {string} formatVersion
 * @property {string} name
 * @property {string} backend
 * @property {string} scheme
 * @property {{licence: string}} origin
 * @property {Schedule} schedule
 * @property {PictureEntry} picture
 * @property {{t5: boolean, tokenizers: ReadonlyMap<string, TokenizerEntry>}} text
 * @property {readonly Stage[]} stages
 * @property {readonly GraphEntry[]} graphs
 * @property {{pictures: readonly Golden[], tokens: string, noise: string}} golden
 * @property {readonly FileEntry[]} files
 * @property {{predictedPeakBytes: number | null}} device
 * @property {readonly SizeEntry[]} sizes
 */

export const MANIFEST = "manifest.json", DIGEST = "manifest.sha256";
const MOST_STEPS = 1000, MOST_PX = 1 << 14, MOST_GUIDANCE = 100, MOST_ID = 2 ** 31 - 1;
const LATEST_MINOR = 2; // of format 4

const NAMES = /^(?!\.{1,2}(?:\/|$))[^/\\:\x00-\x1f\x7f]+(?:\/(?!\.{1,2}(?:\/|$))[^/\\:\x00-\x1f\x7f]+)*$/;
const path = text(NAMES, 400);
const optionalPath = text(new RegExp(`^$|${NAMES.source}`), 400);
const name = text(/^[A-Za-z0-9][A-Za-z0-9._-]*$/, 100);
const file = record({ path, bytes: whole(0), sha256: text(/^[0-9a-f]{64}$/) });
const port = record({
  name: text(),
  shape: list(whole(1, MOST_ID)),
  dtype: optional(one("float32", "int32"), "float32"),
});
const graphFields = {
  name,
  entry: path,
  inputs: list(port),
  outputs: list(port),
  tolerance: record({ graph_relative: number(0), image_psnr_db: number(0) }),
  session: optional(table(text()), {}),
};
const graph = record({ ...graphFields, files: list(file) });
const source = record({
  kind: one("tokens", "output", "negative output", "latent", "image"),
  name: optional(text(), ""),
  port: optional(text(), ""),
  row_of_step: optional(truth, false),
});
const stage = record({
  graph: name,
  parts: list(name),
  runs: one("once per prompt", "each step", "twice each step", "once", "for previews"),
  inputs: table(source),
  results: optional(table(one("velocity", "start", "image", "preview")), {}),
  image_to_image_only: optional(truth, false),
  negative_inputs: optional(table(source), {}),
});
const guidance = record({
  scale: number(1, MOST_GUIDANCE),
  negative_prompt: optional(orNull(text()), null),
});
const schedule = record({
  mode: one("euler", "renoise"),
  sigmas: list(number(), 2, MOST_STEPS + 1),
  guidance: optional(orNull(guidance), null),
});
const pixels = record({
  to_levels_scale: optional(number(), 0.5),
  to_levels_offset: optional(number(), 0.5),
  levels: optional(whole(1, 255), 255),
  rounding: optional(one("half to even"), "half to even"),
  from_levels_scale: optional(number(), 2),
  from_levels_offset: optional(number(), -1),
});
const colour = list(number(), 3, 3);
const picture = record({
  width_px: whole(1, MOST_PX),
  height_px: whole(1, MOST_PX),
  latent_channels: whole(1, 4096),
  latent_scale_px: whole(1, 256),
  pixels: optional(pixels, {}),
  preview: optional(orNull(record({ factors: list(colour), bias: colour })), null),
  preview_graph: optional(text(), ""),
});
const tokenizer = record({
  path,
  tokens: whole(2, 1 << 16),
  pad_id: whole(0, MOST_ID),
  closing_id: optional(orNull(whole(0, MOST_ID)), null),
  vocabulary_size: optional(whole(1, MOST_ID), MOST_ID),
  cut: optional(one("keep closing"), "keep closing"),
});
const golden = record({
  prompt: text(),
  seed: whole(0),
  image: path,
  unquantized: path,
  tensors: path,
  like: optional(optionalPath, ""),
  same: optional(table(text()), {}),
});
const size = record({
  width_px: whole(1, MOST_PX),
  height_px: whole(1, MOST_PX),
  graphs: list(record({ ...graphFields, files: list(path) })),
  pictures: optional(list(golden), []),
  predicted_peak_bytes: optional(orNull(whole(0)), null),
});
const manifest = record({
  format_version: text(/^4\.[0-9]{1,4}$/),
  name: text(),
  backend: name,
  scheme: name,
  origin: record({ licence: optional(optionalPath, "") }),
  schedule,
  picture,
  noise: record({
    algorithm: optional(one("torch-cpu-randn"), "torch-cpu-randn"),
    seed_bits: optional(one(32), 32),
    block: optional(one(16), 16),
  }),
  text: record({ t5: truth, tokenizers: table(tokenizer) }),
  stages: list(stage),
  graphs: list(graph),
  golden: record({
    pictures: optional(list(golden), []),
    tokens: optional(optionalPath, ""),
    noise: optional(optionalPath, ""),
  }),
  files: list(file),
  device: record({ predicted_peak_bytes: orNull(whole(0)) }),
  sizes: optional(list(size), []),
});

/**
 * The manifest of what is in `manifest.json`, checked against what is in `manifest.sha256`; throws
 * CheckFailed that names the field and what is wrong.
 * @param {Uint8Array} content
 * @param {Uint8Array} digest
 * @param {string} where the package's name, for errors
 * @returns {Promise<Manifest>}
 */
export async function parseManifest(content, digest, where) {
  const place = `${where}/${MANIFEST}`;
  if (new TextDecoder().decode(digest) !== `${await sha256(content)}  ${MANIFEST}\n`) {
    throw new CheckFailed(`${place}: damaged: it is not what ${DIGEST} says; copy the package again`);
  }
  const raw = parsed(content, place);
  const version = String(raw?.format_version);
  if (!/^4\.[0-9]{1,4}$/.test(version)) {
    throw new CheckFailed(`${place}: format version '${version.slice(0, 40)}'; 4.x is read here; build the package again`);
  }
  if (raw.filter !== undefined && raw.filter !== null) {
    throw new CheckFailed(`${place}: the package has a filter, which is not run here; fourstep run does, or build without [filter]`);
  }
  try {
    const found = manifest(raw, "");
    check(found);
    return found;
  } catch (error) {
    if (!(error instanceof RangeError)) throw error;
    const isNewer = Number(version.slice(2)) > LATEST_MINOR;
    const remedy = isNewer ? `format ${version}: update fourstep` : "build the package again";
    throw new CheckFailed(`${place}: damaged: ${error.message}; ${remedy}`);
  }
}

/**
 * @param {Uint8Array} content
 * @param {string} place
 */
function parsed(content, place) {
  try {
    return JSON.parse(new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(content));
  } catch {
    throw new CheckFailed(`${place}: cannot be read as a manifest; copy the package again`);
  }
}

/**
 * Throw CheckFailed where bytes are not those of an entry.
 * @param {Uint8Array} content
 * @param {FileEntry} entry
 * @param {string} where the package's name
 */
export async function checkFile(content, entry, where) {
  const place = `${where}/${entry.path}`;
  if (content.length !== entry.bytes) {
    throw new CheckFailed(`${place}: damaged: ${content.length} bytes where the manifest says ${entry.bytes}; copy the package again`);
  }
  if ((await sha256(content)) !== entry.sha256) {
    throw new CheckFailed(`${place}: damaged: SHA-256 differs; copy the package again`);
  }
}

/**
 * SHA-256 in hexadecimal digits.
 * @param {Uint8Array} content
 */
export async function sha256(content) {
  const subtle = globalThis.crypto?.subtle ?? (await nodes());
  if (!subtle) throw new CheckFailed("digests need a secure page: serve it over https, or from localhost");
  const digest = await subtle.digest("SHA-256", /** @type {Uint8Array<ArrayBuffer>} */ (content));
  return Array.from(new Uint8Array(digest), (b) => b.toString(16).padStart(2, "0")).join("");
}

/** The digests of a Node that does not have them globally yet, 18; undefined in browsers. */
async function nodes() {
  if (!globalThis.process?.versions?.node) return undefined;
  return /** @type {SubtleCrypto} */ ((await import("node:crypto")).webcrypto.subtle);
}

/**
 * Shape of the latent: (1, channels, height, width).
 * @param {PictureEntry} entry
 * @returns {[number, number, number, number]}
 */
export function latentShape({ latentChannels, heightPx, widthPx, latentScalePx }) {
  return [1, latentChannels, heightPx / latentScalePx, widthPx / latentScalePx];
}

/**
 * The stage that gives the loop what it needs to go on, and its port.
 * @param {readonly Stage[]} stages
 * @param {Result} result
 * @returns {{stage: Stage, port: string} | undefined}
 */
export function giving(stages, result) {
  for (const each of stages) {
    for (const [at, given] of each.results) if (given === result) return { stage: each, port: at };
  }
  return undefined;
}
