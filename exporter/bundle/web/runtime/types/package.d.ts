/**
 * Open a package; throws CheckFailed when it is damaged, or of a format that is not read here.
 * @param {Source} source
 * @returns {Promise<Package>}
 */
export function openPackage(source: Source): Promise<Package>;
/** @import { FileEntry, GraphEntry, Manifest } from "./manifest.js" */
/** @import { Session } from "./loop.js" */
/** @import { Tensor } from "./tensors.js" */
/**
 * Where a package's files are. `read` gives what is in one; `entry` says what it has to be, so that a
 * source that keeps files can look for it. Digests are checked by whoever reads.
 * @typedef {object} Source
 * @property {string} name for errors
 * @property {(path: string, entry?: FileEntry) => Promise<Uint8Array>} read
 * @property {() => Promise<Uint8Array>} unicode the tables beside this module
 */
/**
 * What runs graphs: opens one from the contents of its files by path.
 * @typedef {object} Engine
 * @property {string} name
 * @property {string} backend whose packages it opens
 * @property {(graph: GraphEntry, files: ReadonlyMap<string, Uint8Array>) => Promise<Session>} open
 */
/** A package whose manifest was read and holds. */
export class Package {
    /**
     * @param {Source} source
     * @param {Manifest} manifest
     */
    constructor(source: Source, manifest: Manifest);
    source: Source;
    manifest: Manifest;
    _entries: Map<string, FileEntry>;
    /** The sizes that it draws, written as `768x512`; the first is drawn unless another is asked for. */
    get sizes(): string[];
    /**
     * The package as if it were of this size alone; throws InputError that lists its sizes.
     * @param {string} size
     * @returns {Package}
     */
    at(size: string): Package;
    /**
     * What is in a file beside the graphs, as its digest says; throws CheckFailed.
     * @param {string} path
     * @returns {Promise<Uint8Array>}
     */
    read(path: string): Promise<Uint8Array>;
    /**
     * The tensors of a safetensors file.
     * @param {string} path
     * @returns {Promise<Map<string, Tensor>>}
     */
    tensors(path: string): Promise<Map<string, Tensor>>;
    /**
     * Open a graph; its files' digests are checked before.
     * @param {string} name
     * @param {Engine} engine
     * @returns {Promise<Session>}
     */
    session(name: string, engine: Engine): Promise<Session>;
    /**
     * What the loop needs, for the first size; the player's `at` gives that of another. Files beside the
     * graphs are checked now, graphs when they are opened.
     * @param {Engine} engine
     * @param {object} [options]
     * @param {boolean} [options.keep] graphs stay open for the next call of the loop, until the player is
     *   closed: faster, in the memory of all of them
     * @param {(remark: string) => void} [options.remark] is told what of a prompt is not read
     */
    player(engine: Engine, { keep, remark }?: {
        keep?: boolean | undefined;
        remark?: ((remark: string) => void) | undefined;
    }): Promise<PackagePlayer>;
    /** @param {FileEntry} entry */
    _checked(entry: FileEntry): Promise<Uint8Array<ArrayBufferLike>>;
}
/** Opens a package's graphs for the loop; `close` it to let go of those that stayed open. */
export class PackagePlayer {
    /**
     * @param {Package} from
     * @param {Engine} engine
     * @param {ReadonlyMap<string, (prompt: string) => Int32Array>} tokenizers
     * @param {boolean} keep
     * @param {Map<string, Promise<Session>>} [kept] what stays open, by the file that was opened
     * @param {Package} [whole] of all sizes, where `from` is of one
     */
    constructor(from: Package, engine: Engine, tokenizers: ReadonlyMap<string, (prompt: string) => Int32Array>, keep: boolean, kept?: Map<string, Promise<Session>>, whole?: Package);
    manifest: Manifest;
    engine: Engine;
    tokenizers: ReadonlyMap<string, (prompt: string) => Int32Array>;
    _package: Package;
    _keep: boolean;
    _kept: Map<string, Promise<Session>>;
    _whole: Package;
    /** The sizes that `at` knows. */
    get sizes(): string[];
    /**
     * A player of another size; graphs that serve every size stay open for all of them, and `close` of
     * one closes them all. Throws InputError that lists the sizes.
     * @param {string} size
     * @returns {PackagePlayer}
     */
    at(size: string): PackagePlayer;
    /**
     * @param {string} graph
     * @returns {Promise<Session>}
     */
    open(graph: string): Promise<Session>;
    /** Let go of graphs that are open. */
    close(): Promise<void>;
}
/**
 * Where a package's files are. `read` gives what is in one; `entry` says what it has to be, so that a
 * source that keeps files can look for it. Digests are checked by whoever reads.
 */
export type Source = {
    /**
     * for errors
     */
    name: string;
    read: (path: string, entry?: FileEntry) => Promise<Uint8Array>;
    /**
     * the tables beside this module
     */
    unicode: () => Promise<Uint8Array>;
};
/**
 * What runs graphs: opens one from the contents of its files by path.
 */
export type Engine = {
    name: string;
    /**
     * whose packages it opens
     */
    backend: string;
    open: (graph: GraphEntry, files: ReadonlyMap<string, Uint8Array>) => Promise<Session>;
};
import type { Manifest } from "./manifest.js";
import type { FileEntry } from "./manifest.js";
import type { Tensor } from "./tensors.js";
import type { Session } from "./loop.js";
import type { GraphEntry } from "./manifest.js";
