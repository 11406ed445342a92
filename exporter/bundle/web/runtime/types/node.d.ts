/** @import { Source } from "./package.js" */
/**
 * A package's folder. Nothing outside of it is read, whatever links lie in it.
 * @param {string} path
 * @param {{unicode?: URL}} [options] where the Unicode tables are, beside this module unless given
 * @returns {Source}
 */
export function folder(path: string, { unicode }?: {
    unicode?: URL;
}): Source;
import type { Source } from "./package.js";
