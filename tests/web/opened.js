/** What the tests share: packages with the engine of Node, and where things are. */
import { nodeEngine } from "../../exporter/bundle/web/runtime/engines/node.js";
import { openPackage } from "../../exporter/bundle/web/runtime/index.js";
import { folder } from "../../exporter/bundle/web/runtime/node.js";

export const UNICODE = new URL("../../exporter/bundle/unicode.bin", import.meta.url);

/** @param {string} path */
export const source = (path) => folder(path, { unicode: UNICODE });

/** @param {string} path */
export const opened = (path) => openPackage(source(path));

/** @param {boolean} exact */
export const engine = (exact) => nodeEngine(() => import("onnxruntime-node"), { exact });
