/**
 * Throw a RangeError that names the field which contradicts the others.
 * @param {Manifest} manifest
 */
export function check(manifest: Manifest): void;
import type { Manifest } from "./manifest.js";
