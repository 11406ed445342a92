/**
 * A package: opened, checked, played. Where its files come from is a source's business, and what
 * runs its graphs an engine's.
 * @module
 */

import { CheckFailed, InputError } from "./errors.js";
import { DIGEST, MANIFEST, checkFile, parseManifest } from "./manifest.js";
import { manifestAt, sizesOf } from "./sizes.js";
import { parseTensors } from "./tensors.js";
import { Tokenizer, promptEncoder } from "./tokenizer.js";
import { Unicode } from "./unicode.js";

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
  constructor(source, manifest) {
    this.source = source;
    this.manifest = manifest;
    this._entries = new Map(manifest.files.map((entry) => [entry.path, entry]));
  }

  /** The sizes that it draws, written as `768x512`; the first is drawn unless another is asked for. */
  get sizes() {
    return sizesOf(this.manifest);
  }

  /**
   * The package as if it were of this size alone; throws InputError that lists its sizes.
   * @param {string} size
   * @returns {Package}
   */
  at(size) {
    return new Package(this.source, manifestAt(this.manifest, size));
  }

  /**
   * What is in a file beside the graphs, as its digest says; throws CheckFailed.
   * @param {string} path
   * @returns {Promise<Uint8Array>}
   */
  async read(path) {
    const entry = this._entries.get(path);
    if (!entry) throw new InputError(`${this.source.name}: the package has no file '${path}'`);
    return this._checked(entry);
  }

  /**
   * The tensors of a safetensors file.
   * @param {string} path
   * @returns {Promise<Map<string, Tensor>>}
   */
  async tensors(path) {
    return parseTensors(await this.read(path), `${this.source.name}/${path}`);
  }

  /**
   * Open a graph; its files' digests are checked before.
   * @param {string} name
   * @param {Engine} engine
   * @returns {Promise<Session>}
   */
  async session(name, engine) {
    const graph = this.manifest.graphs.find((each) => each.name === name);
    if (!graph) throw new InputError(`${this.source.name}: the package has no graph '${name}'`);
    const files = new Map();
    for (const entry of graph.files) files.set(entry.path, await this._checked(entry));
    try {
      return await engine.open(graph, files);
    } catch (error) {
      const reason = String(error instanceof Error ? error.message : error).split("\n")[0];
      throw new CheckFailed(`${this.source.name}/${graph.entry}: ${engine.name} cannot open it: ${reason}`);
    }
  }

  /**
   * What the loop needs, for the first size; the player's `at` gives that of another. Files beside the
   * graphs are checked now, graphs when they are opened.
   * @param {Engine} engine
   * @param {object} [options]
   * @param {boolean} [options.keep] graphs stay open for the next call of the loop, until the player is
   *   closed: faster, in the memory of all of them
   * @param {(remark: string) => void} [options.remark] is told what of a prompt is not read
   */
  async player(engine, { keep = false, remark = () => {} } = {}) {
    const { backend, text } = this.manifest;
    if (backend !== engine.backend) {
      throw new InputError(`${this.source.name}: a package of ${backend}, and ${engine.name} opens those of ${engine.backend}`);
    }
    const unicode = new Unicode(await this.source.unicode());
    const tokenizers = new Map();
    for (const [name, entry] of text.tokenizers) {
      const where = `${this.source.name}/${entry.path}`;
      const tokenizer = new Tokenizer(new TextDecoder().decode(await this.read(entry.path)), unicode, where);
      if (tokenizer.largestId >= entry.vocabularySize) {
        throw new CheckFailed(`${where}: has ids up to ${tokenizer.largestId} and the manifest allows ${entry.vocabularySize}; build the package again`);
      }
      tokenizers.set(name, promptEncoder(tokenizer, entry, name, remark));
    }
    return new PackagePlayer(this, engine, tokenizers, keep);
  }

  /** @param {FileEntry} entry */
  async _checked(entry) {
    const content = await this.source.read(entry.path, entry);
    await checkFile(content, entry, this.source.name);
    return content;
  }
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
  constructor(from, engine, tokenizers, keep, kept = new Map(), whole = from) {
    this.manifest = from.manifest;
    this.engine = engine;
    this.tokenizers = tokenizers;
    this._package = from;
    this._keep = keep;
    this._kept = kept;
    this._whole = whole;
  }

  /** The sizes that `at` knows. */
  get sizes() {
    return this._whole.sizes;
  }

  /**
   * A player of another size; graphs that serve every size stay open for all of them, and `close` of
   * one closes them all. Throws InputError that lists the sizes.
   * @param {string} size
   * @returns {PackagePlayer}
   */
  at(size) {
    const from = this._whole.at(size);
    return new PackagePlayer(from, this.engine, this.tokenizers, this._keep, this._kept, this._whole);
  }

  /**
   * @param {string} graph
   * @returns {Promise<Session>}
   */
  async open(graph) {
    if (!this._keep) return this._package.session(graph, this.engine);
    const file = this.manifest.graphs.find(({ name }) => name === graph)?.entry ?? graph;
    const opened = this._kept.get(file) ?? this._package.session(graph, this.engine);
    this._kept.set(file, opened);
    try {
      const session = await opened;
      return { run: (inputs) => session.run(inputs), close: () => {} };
    } catch (error) {
      this._kept.delete(file);
      throw error;
    }
  }

  /** Let go of graphs that are open. */
  async close() {
    const kept = [...this._kept.values()];
    this._kept.clear();
    for (const opened of kept) await (await opened).close();
  }
}

/**
 * Open a package; throws CheckFailed when it is damaged, or of a format that is not read here.
 * @param {Source} source
 * @returns {Promise<Package>}
 */
export async function openPackage(source) {
  const [content, digest] = [await source.read(MANIFEST), await source.read(DIGEST)];
  return new Package(source, await parseManifest(content, digest, source.name));
}
