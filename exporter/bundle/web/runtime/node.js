/**
 * Packages in folders, for Node.
 * @module
 */

import { readFile, realpath } from "node:fs/promises";
import { join, sep } from "node:path";

import { CheckFailed, InputError } from "./errors.js";
import { MANIFEST } from "./manifest.js";

/** @import { Source } from "./package.js" */

/**
 * A package's folder. Nothing outside of it is read, whatever links lie in it.
 * @param {string} path
 * @param {{unicode?: URL}} [options] where the Unicode tables are, beside this module unless given
 * @returns {Source}
 */
export function folder(path, { unicode = new URL("unicode.bin", import.meta.url) } = {}) {
  return {
    name: path,
    read: async (name) => {
      try {
        const [home, file] = await Promise.all([realpath(path), realpath(join(path, name))]);
        if (file.startsWith(home + sep)) return new Uint8Array(await readFile(file));
      } catch (error) {
        const { code } = /** @type {NodeJS.ErrnoException} */ (error);
        if (name === MANIFEST) throw new InputError(`${path}: not a package (no ${MANIFEST})`);
        throw new CheckFailed(`${join(path, name)}: cannot be read: ${code}; copy the package again`);
      }
      throw new CheckFailed(`${join(path, name)}: a link that leaves the package; copy the package with its files`);
    },
    unicode: async () => new Uint8Array(await readFile(unicode)),
  };
}
