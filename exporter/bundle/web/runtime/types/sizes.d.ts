/** @import { FileEntry, GraphEntry, Manifest, SizedGraph } from "./manifest.js" */
/**
 * Every size, written as `768x512`, the first one first.
 * @param {Manifest} manifest
 * @returns {string[]}
 */
export function sizesOf({ picture, sizes }: Manifest): string[];
/**
 * The manifest of one size alone, in which nothing tells that there are others; throws InputError
 * that lists the sizes.
 * @param {Manifest} manifest
 * @param {string} size such as `768x512`
 * @returns {Manifest}
 */
export function manifestAt(manifest: Manifest, size: string): Manifest;
import type { Manifest } from "./manifest.js";
