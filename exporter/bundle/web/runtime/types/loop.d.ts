/** @import { Guidance, Manifest, Schedule, Source, Stage } from "./manifest.js" */
/** @import { Picture } from "./pixels.js" */
/** @import { Fit, Given } from "./start.js" */
/** @import { Tensor } from "./tensors.js" */
/** @typedef {Record<string, Tensor>} Ports named tensors that a graph takes or gives */
/** @typedef {{run: (inputs: Ports) => Promise<Ports>, close: () => Promise<void> | void}} Session an open graph */
/**
 * What the loop needs of a package. `open` opens a graph, or a part of one, by its name; a session is
 * closed when its turn is over, which a player that keeps graphs open does not heed.
 * @typedef {object} Player
 * @property {Manifest} manifest
 * @property {ReadonlyMap<string, (prompt: string) => Int32Array>} tokenizers
 * @property {(graph: string) => Promise<Session>} open
 */
/**
 * One picture to draw.
 * @typedef {object} Request
 * @property {string} prompt
 * @property {bigint | number | string} [seed] of the noise, 0 unless given; text or a BigInt where it
 *   does not fit a double
 * @property {Given} [image] to start from: RGB or RGBA, of any size
 * @property {number} [strength] how much of the schedule an `image` goes through, in (0, 1]
 * @property {Fit} [fit] of an `image` of another size
 * @property {string} [background] below an `image` and around it: a colour `#rrggbb`
 * @property {string} [negative] what not to draw, in packages whose guidance takes it of a request
 */
/** @typedef {{kind: "conditioned", prompts: number}} Conditioned all prompts are encoded */
/**
 * A step of request `index` is done. `latent` is (1, channels, h, w). `clean()` is what the latent
 * would be at the end if the velocity stayed as it is: it shows early what will be there.
 * `preview()` shows the latent, or the one that it is given; it is null where the package has none.
 * `draft()` is the picture of `clean()`, by the graph that draws the last one.
 * @typedef {object} Step
 * @property {"step"} kind
 * @property {number} index
 * @property {number} step
 * @property {number} steps
 * @property {number} sigma
 * @property {Float32Array} latent
 * @property {() => Float32Array} clean
 * @property {((latent?: Float32Array) => Promise<Picture>) | null} preview
 * @property {() => Promise<Picture>} draft
 */
/** @typedef {{kind: "picture", index: number, request: Request, picture: Picture, latent: Float32Array}} Drawn a picture is done */
/** @typedef {Conditioned | Step | Drawn} Event */
/** @typedef {Map<string, Tensor>} Values what graphs gave for a prompt, by graph and port */
/** @typedef {{values: Values, prompt: string, negative: Values, latent: Float32Array | null, image: Float32Array | null, step: number}} Feed */
/**
 * Draw pictures; every graph is opened once for all of them.
 *
 * It can be stopped at any moment: by leaving the loop over it, or by a signal, which throws what the
 * signal was aborted with as soon as the graph that runs is done. It throws InputError for a request
 * that cannot be drawn, before any graph is opened; CheckFailed for a graph that gives no numbers.
 * @param {Player} player
 * @param {readonly Request[]} requests
 * @param {{signal?: AbortSignal}} [options]
 * @returns {AsyncGenerator<Event, void>}
 */
export function generate(player: Player, requests: readonly Request[], { signal }?: {
    signal?: AbortSignal;
}): AsyncGenerator<Event, void>;
/**
 * The latent of a picture that enters the schedule at a step, in float32.
 * @param {Schedule} schedule
 * @param {number} step
 * @param {Float32Array} encoded
 * @param {Float32Array} noise
 * @returns {Float32Array}
 */
export function begin({ sigmas }: Schedule, step: number, encoded: Float32Array, noise: Float32Array): Float32Array;
/**
 * The velocity away from that of a negative prompt, in float32.
 * @param {Guidance} guidance
 * @param {Float32Array} velocity
 * @param {Float32Array} negative
 * @returns {Float32Array}
 */
export function guided(guidance: Guidance, velocity: Float32Array, negative: Float32Array): Float32Array;
/**
 * One step of the schedule, in float32, operation by operation.
 * @param {Schedule} schedule
 * @param {number} step
 * @param {Float32Array} latent
 * @param {Float32Array} velocity
 * @param {() => Float32Array} noise draws as much as the latent has, where the mode takes some
 * @returns {Float32Array}
 */
export function advance({ mode, sigmas }: Schedule, step: number, latent: Float32Array, velocity: Float32Array, noise: () => Float32Array): Float32Array;
/**
 * How many times a step draws noise.
 * @param {Schedule} schedule
 */
export function drawsPerStep({ mode }: Schedule): 0 | 1;
/**
 * What has to be encoded: all prompts, then all negative prompts.
 * @param {Schedule} schedule
 * @param {readonly Request[]} requests
 * @returns {string[]}
 */
export function textsOf(schedule: Schedule, requests: readonly Request[]): string[];
/**
 * named tensors that a graph takes or gives
 */
export type Ports = Record<string, Tensor>;
/**
 * an open graph
 */
export type Session = {
    run: (inputs: Ports) => Promise<Ports>;
    close: () => Promise<void> | void;
};
/**
 * What the loop needs of a package. `open` opens a graph, or a part of one, by its name; a session is
 * closed when its turn is over, which a player that keeps graphs open does not heed.
 */
export type Player = {
    manifest: Manifest;
    tokenizers: ReadonlyMap<string, (prompt: string) => Int32Array>;
    open: (graph: string) => Promise<Session>;
};
/**
 * One picture to draw.
 */
export type Request = {
    prompt: string;
    /**
     * of the noise, 0 unless given; text or a BigInt where it
     * does not fit a double
     */
    seed?: string | number | bigint | undefined;
    /**
     * to start from: RGB or RGBA, of any size
     */
    image?: Given | undefined;
    /**
     * how much of the schedule an `image` goes through, in (0, 1]
     */
    strength?: number | undefined;
    /**
     * of an `image` of another size
     */
    fit?: Fit | undefined;
    /**
     * below an `image` and around it: a colour `#rrggbb`
     */
    background?: string | undefined;
    /**
     * what not to draw, in packages whose guidance takes it of a request
     */
    negative?: string | undefined;
};
/**
 * all prompts are encoded
 */
export type Conditioned = {
    kind: "conditioned";
    prompts: number;
};
/**
 * A step of request `index` is done. `latent` is (1, channels, h, w). `clean()` is what the latent
 * would be at the end if the velocity stayed as it is: it shows early what will be there.
 * `preview()` shows the latent, or the one that it is given; it is null where the package has none.
 * `draft()` is the picture of `clean()`, by the graph that draws the last one.
 */
export type Step = {
    kind: "step";
    index: number;
    step: number;
    steps: number;
    sigma: number;
    latent: Float32Array;
    clean: () => Float32Array;
    preview: ((latent?: Float32Array) => Promise<Picture>) | null;
    draft: () => Promise<Picture>;
};
/**
 * a picture is done
 */
export type Drawn = {
    kind: "picture";
    index: number;
    request: Request;
    picture: Picture;
    latent: Float32Array;
};
export type Event = Conditioned | Step | Drawn;
/**
 * what graphs gave for a prompt, by graph and port
 */
export type Values = Map<string, Tensor>;
export type Feed = {
    values: Values;
    prompt: string;
    negative: Values;
    latent: Float32Array | null;
    image: Float32Array | null;
    step: number;
};
import type { Schedule } from "./manifest.js";
import type { Guidance } from "./manifest.js";
import type { Tensor } from "./tensors.js";
import type { Manifest } from "./manifest.js";
import type { Given } from "./start.js";
import type { Fit } from "./start.js";
import type { Picture } from "./pixels.js";
