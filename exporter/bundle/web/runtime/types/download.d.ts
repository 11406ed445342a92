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
export function download(address: string | URL, options?: {
    store?: Store | null | undefined;
    progress?: ((progress: Progress) => void) | undefined;
    signal?: AbortSignal | undefined;
    fetch?: typeof fetch | undefined;
    unicode?: URL | undefined;
}): Source;
/**
 * Where this browser keeps files: its private file system, in a worker; else Cache Storage, which
 * keeps whole files alone; else null.
 * @returns {Promise<Store | null>}
 */
export function browserStore(): Promise<Store | null>;
/**
 * Where files are kept, by name. `open` gives a file to be read and written, and makes an empty one.
 */
export type Store = {
    open: (name: string) => Promise<Kept>;
};
/**
 * A kept file that is open.
 */
export type Kept = {
    size: () => number;
    read: () => Uint8Array;
    append: (chunk: Uint8Array) => void;
    empty: () => void;
    close: () => Promise<void> | void;
};
/**
 * how much of a file is there, and whether it was kept
 */
export type Progress = {
    path: string;
    bytes: number;
    of: number;
    isKept: boolean;
};
import type { Source } from "./package.js";
