/**
 * The sizes of pictures that a package draws, and its manifest as that of one of them alone. A
 * manifest is that of its first size; what further sizes have of their own stands beside it.
 * @module
 */

import { InputError } from "./errors.js";

/** @import { FileEntry, GraphEntry, Manifest, SizedGraph } from "./manifest.js" */

/**
 * Every size, written as `768x512`, the first one first.
 * @param {Manifest} manifest
 * @returns {string[]}
 */
export function sizesOf({ picture, sizes }) {
  return [picture, ...sizes].map(({ widthPx, heightPx }) => `${widthPx}x${heightPx}`);
}

/**
 * The manifest of one size alone, in which nothing tells that there are others; throws InputError
 * that lists the sizes.
 * @param {Manifest} manifest
 * @param {string} size such as `768x512`
 * @returns {Manifest}
 */
export function manifestAt(manifest, size) {
  const sizes = sizesOf(manifest), place = sizes.indexOf(size);
  if (place < 0) {
    throw new InputError(`this package does not draw ${String(size).slice(0, 60)}; its sizes: ${sizes.join(", ")}`);
  }
  const beside = new Map(manifest.files.map((entry) => [entry.path, entry]));
  const left = new Set(manifest.sizes.flatMap(({ graphs }) => graphs.flatMap(({ files }) => files)));
  const alone = { ...manifest, sizes: [], files: manifest.files.filter(({ path }) => !left.has(path)) };
  if (place === 0) return alone;
  const { widthPx, heightPx, graphs, pictures, predictedPeakBytes } = manifest.sizes[place - 1];
  const own = new Map(graphs.map((graph) => [graph.name, graph]));
  const known = new Map([...beside, ...manifest.graphs.flatMap(({ files }) => files.map((f) => /** @type {const} */ ([f.path, f])))]);
  return {
    ...alone,
    picture: { ...manifest.picture, widthPx, heightPx },
    graphs: manifest.graphs.map((graph) => standingIn(graph, own.get(graph.name), known)),
    golden: { ...manifest.golden, pictures },
    device: { predictedPeakBytes },
  };
}

/**
 * A graph of the first size with everything that another size has of its own.
 * @param {GraphEntry} graph
 * @param {SizedGraph | undefined} own
 * @param {ReadonlyMap<string, FileEntry>} known
 * @returns {GraphEntry}
 */
function standingIn(graph, own, known) {
  if (!own) return graph;
  return { ...own, files: own.files.map((path) => /** @type {FileEntry} */ (known.get(path))) };
}
