/**
 * Draws with a package of fourstep: no dependency but an engine.
 *
 *     const opened = await openPackage(folder("onnx-int4"));
 *     const player = await opened.player(nodeEngine(ort));
 *     for await (const event of generate(player, [{ prompt: "two red circles", seed: 7 }])) {
 *       if (event.kind === "picture") event.picture.levels; // RGB, row by row
 *     }
 *
 * A package of several `sizes` draws its first one; `player.at("768x512")` draws another.
 *
 * Sources: `folder` of `node.js`, `download` of `download.js`. Engines: `nodeEngine` of
 * `engines/node.js`, `webEngine` of `engines/web.js`.
 * @module
 */

export { CheckFailed, FourstepError, InputError } from "./errors.js";
export { advance, begin, generate, guided } from "./loop.js";
export { TorchNoise, checkSeed } from "./noise.js";
export { Package, PackagePlayer, openPackage } from "./package.js";
export { fromPicture, previewOf, toPicture } from "./pixels.js";
export { startPicture } from "./start.js";
export { parseTensors, relativeError } from "./tensors.js";
export { Tokenizer, promptEncoder } from "./tokenizer.js";
export { Unicode } from "./unicode.js";
export { compare, goldenTensors, graphError } from "./vectors.js";
