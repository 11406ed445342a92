/**
 * Packages at an address, for browsers: downloaded once, kept, and there without a network.
 *
 * A file is kept by its digest. One that was cut off goes on where it stopped; one that is damaged is
 * dropped, and never given out.
 * @module
 */

import { CheckFailed, InputError } from "./errors.js";
import { MANIFEST, checkFile } from "./manifest.js";

/** @import { FileEntry } from "./manifest.js" */
/** @import { Source } from "./package.js" */

/**
 * Where files are kept, by name. `open` gives a file to be read and written, and makes an empty one.
 * @typedef {object} Store
 * @property {(name: string) => Promise<Kept>} open
 */
/**
 * A kept file that is open.
 * @typedef {object} Kept
 * @property {() => number} size
 * @property {() => Uint8Array} read
 * @property {(chunk: Uint8Array) => void} append
 * @property {() => void} empty
 * @property {() => Promise<void> | void} close
 */
/** @typedef {{path: string, bytes: number, of: number, isKept: boolean}} Progress how much of a file is there, and whether it was kept */

const TRIES = 3; // for a file whose connection breaks
const FOLDER = "fourstep";

/**
 * A package at an address.
 * @param {string | URL} address of its folder
 * @param {object} [options]
 * @param {Store | null} [options.store] keeps files; null keeps none
 * @param {(progress: Progress) => void} [options.progress]
 * @param {AbortSignal} [options.signal] stops downloading; what is there stays
 * @param {typeof fetch} [options.fetch]
 * @param {URL} [options.unicode] where the Unicode tables are
 * @returns {Source}
 */
export function download(address, options = {}) {
  const { store = null, progress = () => {}, signal, unicode = new URL("unicode.bin", import.meta.url) } = options;
  const base = new URL(String(address).replace(/\/?$/, "/"), globalThis.location?.href);
  const get = options.fetch ?? ((/** @type {URL} */ url, /** @type {RequestInit} */ init) => fetch(url, init));

  /**
   * @param {URL} url
   * @param {RequestInit} [init]
   */
  const answer = async (url, init = {}) => {
    try {
      return await get(url, { ...init, signal });
    } catch (error) {
      signal?.throwIfAborted();
      throw new Unreachable(`${url}: cannot be reached: ${/** @type {Error} */ (error).message}`);
    }
  };
  /** @param {URL} url */
  const small = async (url) => {
    const response = await answer(url);
    if (!response.ok) throw new InputError(`${url}: the server says ${response.status}; name a folder that has ${MANIFEST}`);
    return new Uint8Array(await response.arrayBuffer());
  };
  return {
    name: base.pathname.replace(/\/$/, ""),
    read: async (path, entry) => {
      const url = new URL(path.split("/").map(encodeURIComponent).join("/"), base);
      if (!entry) return newest(store, `${nameOf(base)}-${path}`, () => small(url));
      const kept = store ? await opened(store, entry.sha256) : memory();
      try {
        return await whole(kept, url, entry, answer, progress, base.pathname);
      } finally {
        await kept.close();
      }
    },
    unicode: () => newest(store, "unicode.bin", () => small(unicode)),
  };
}

/** What is raised when there is no network; a kept copy will do then. */
class Unreachable extends CheckFailed {}

/**
 * What is at an address now, or what was there last when it cannot be reached. The manifest and its
 * digest are such files: what they say of all others is checked.
 * @param {Store | null} store
 * @param {string} name
 * @param {() => Promise<Uint8Array>} read
 */
async function newest(store, name, read) {
  const kept = store ? await opened(store, name) : memory();
  try {
    const content = await read();
    kept.empty();
    kept.append(content);
    return content;
  } catch (error) {
    if (error instanceof Unreachable && kept.size() > 0) return kept.read();
    throw error;
  } finally {
    await kept.close();
  }
}

/**
 * A file as its entry says: from what is kept, the rest downloaded.
 * @param {Kept} kept
 * @param {URL} url
 * @param {FileEntry} entry
 * @param {(url: URL, init?: RequestInit) => Promise<Response>} answer
 * @param {(progress: Progress) => void} progress
 * @param {string} where
 */
async function whole(kept, url, entry, answer, progress, where) {
  const { path, bytes: of } = entry;
  if (kept.size() === of && (await isWhole(kept, entry))) {
    progress({ path, bytes: of, of, isKept: true });
    return kept.read();
  }
  if (kept.size() >= of) kept.empty();
  const began = kept.size();
  for (let tries = 1; kept.size() < of || of === 0; tries++) {
    try {
      await fill(kept, url, of, answer, (bytes) => progress({ path, bytes, of, isKept: false }));
      break;
    } catch (error) {
      if (!(error instanceof Unreachable) || tries === TRIES) throw error;
    }
  }
  const content = kept.read();
  try {
    await checkFile(content, entry, where);
  } catch (error) {
    kept.empty();
    if (began > 0) return whole(kept, url, entry, answer, progress, where); // the part may be at fault
    throw error;
  }
  return content;
}

/**
 * @param {Kept} kept
 * @param {FileEntry} entry
 */
async function isWhole(kept, entry) {
  return checkFile(kept.read(), entry, "").then(() => true, () => false);
}

/**
 * Download what is missing of a file.
 * @param {Kept} kept
 * @param {URL} url
 * @param {number} of
 * @param {(url: URL, init?: RequestInit) => Promise<Response>} answer
 * @param {(bytes: number) => void} progress
 */
async function fill(kept, url, of, answer, progress) {
  const from = kept.size();
  const response = await answer(url, from > 0 ? { headers: { Range: `bytes=${from}-` } } : {});
  if (!response.ok || !response.body) throw new CheckFailed(`${url}: the server says ${response.status}; copy the bundle again`);
  const goesOn = response.status === 206 && response.headers.get("content-range")?.startsWith(`bytes ${from}-`);
  if (!goesOn) kept.empty();
  const reader = response.body.getReader();
  for (;;) {
    const { done, value } = await reader.read().catch((error) => {
      if (error?.name === "AbortError") throw error;
      throw new Unreachable(`${url}: stopped after ${kept.size()} of ${of} bytes; try again, and it goes on from there`);
    });
    if (done) break;
    if (kept.size() + value.length > of) {
      await reader.cancel();
      kept.empty();
      throw new CheckFailed(`${url}: longer than the ${of} bytes that the manifest says; copy the bundle again`);
    }
    kept.append(value);
    progress(kept.size());
  }
  if (kept.size() < of) {
    throw new Unreachable(`${url}: stopped after ${kept.size()} of ${of} bytes; try again, and it goes on from there`);
  }
}

/**
 * A kept file, or one in memory where it cannot be opened: another tab may be writing it.
 * @param {Store} store
 * @param {string} name
 * @returns {Promise<Kept>}
 */
async function opened(store, name) {
  return store.open(name).catch(() => memory());
}

/**
 * A name for what is at an address.
 * @param {URL} base
 */
function nameOf(base) {
  return encodeURIComponent(base.href).replace(/[^A-Za-z0-9]/g, "_").slice(-100);
}

/** @returns {Kept} */
function memory() {
  /** @type {Uint8Array[]} */
  let chunks = [];
  let size = 0;
  return {
    size: () => size,
    read: () => {
      const found = new Uint8Array(size);
      let at = 0;
      for (const chunk of chunks) {
        found.set(chunk, at);
        at += chunk.length;
      }
      return found;
    },
    append: (chunk) => {
      chunks.push(chunk);
      size += chunk.length;
    },
    empty: () => {
      chunks = [];
      size = 0;
    },
    close: () => {},
  };
}

/**
 * Where this browser keeps files: its private file system, in a worker; else Cache Storage, which
 * keeps whole files alone; else null.
 * @returns {Promise<Store | null>}
 */
export async function browserStore() {
  try {
    const root = await navigator.storage.getDirectory();
    if ("createSyncAccessHandle" in FileSystemFileHandle.prototype) {
      return privateFiles(await root.getDirectoryHandle(FOLDER, { create: true }));
    }
  } catch {
    // Not on a secure page, or in a window that keeps nothing.
  }
  return globalThis.caches ? cached(await caches.open(FOLDER)) : null;
}

/**
 * @param {FileSystemDirectoryHandle} directory
 * @returns {Store}
 */
function privateFiles(directory) {
  return {
    open: async (name) => {
      const file = await directory.getFileHandle(name, { create: true });
      const handle = await /** @type {any} */ (file).createSyncAccessHandle();
      return {
        size: () => handle.getSize(),
        read: () => {
          const found = new Uint8Array(handle.getSize());
          handle.read(found, { at: 0 });
          return found;
        },
        append: (chunk) => {
          const written = handle.write(chunk, { at: handle.getSize() });
          if (written < chunk.length) throw new InputError("this browser has no room left to keep the package; free some");
        },
        empty: () => handle.truncate(0),
        close: () => {
          handle.flush();
          handle.close();
        },
      };
    },
  };
}

/**
 * @param {Cache} cache
 * @returns {Store}
 */
function cached(cache) {
  const place = (/** @type {string} */ name) => new URL(`./${FOLDER}/${name}`, globalThis.location.href).href;
  return {
    open: async (name) => {
      const kept = memory(), found = await cache.match(place(name));
      if (found) kept.append(new Uint8Array(await found.arrayBuffer()));
      const before = kept.size();
      let isChanged = false;
      return {
        ...kept,
        empty: () => {
          isChanged = true;
          kept.empty();
        },
        close: async () => {
          if (!isChanged && kept.size() === before) return;
          await cache.put(place(name), new Response(/** @type {Uint8Array<ArrayBuffer>} */ (kept.read())));
        },
      };
    },
  };
}
