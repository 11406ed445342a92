/**
 * All vectors but those of graphs: ids, noise, steps, pixels, previews.
 * @param {Package} from
 * @param {PackagePlayer} player
 * @returns {AsyncGenerator<Vector>}
 */
export function compare(from: Package, player: PackagePlayer): AsyncGenerator<Vector>;
/**
 * Everything that is recorded of a golden picture: what a further size leaves out is as it is in
 * another file, or as another tensor of its own.
 * @param {Package} from
 * @param {Golden} golden
 * @returns {Promise<Map<string, Tensor>>}
 */
export function goldenTensors(from: Package, { tensors, like, same }: Golden): Promise<Map<string, Tensor>>;
/**
 * The largest relative error of a graph's outputs over its recorded calls.
 * @param {Package} from
 * @param {Engine} engine
 * @param {Stage} stage
 * @param {number} [mostCalls]
 * @returns {Promise<number>}
 */
export function graphError(from: Package, engine: Engine, stage: Stage, mostCalls?: number): Promise<number>;
/**
 * a comparison, in words that fit a failure
 */
export type Vector = {
    what: string;
    same: boolean;
};
import type { Package } from "./package.js";
import type { PackagePlayer } from "./package.js";
import type { Golden } from "./manifest.js";
import type { Tensor } from "./tensors.js";
import type { Engine } from "./package.js";
import type { Stage } from "./manifest.js";
