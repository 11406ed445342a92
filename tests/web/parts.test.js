/** What needs no package: seeds, pixels, pictures to start from, damaged files, downloads. */
import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import { test } from "node:test";

import { download } from "../../exporter/bundle/web/runtime/download.js";
import { TorchNoise, Tokenizer, Unicode, checkSeed, parseTensors, startPicture, toPicture } from "../../exporter/bundle/web/runtime/index.js";
import { UNICODE } from "./opened.js";

const PIXELS = { toLevelsScale: 0.5, toLevelsOffset: 0.5, levels: 255, fromLevelsScale: 2, fromLevelsOffset: -1 };
const unicode = new Unicode(readFileSync(UNICODE));

test("seeds that no double holds, and seeds that are none", () => {
  const draws = [2n ** 33n + 5n, "8589934597", 5].map((seed) => Array.from(new TorchNoise(seed).randn(17)));
  assert.deepEqual(draws[0], draws[1]);
  assert.deepEqual(draws[0], draws[2]); // the low 32 bits
  assert.equal(checkSeed(-1n), -1n);
  for (const wrong of [2n ** 64n, 1.5, "x", "", null, 2 ** 60, true]) assert.throws(() => checkSeed(wrong), /^InputError: seed: /);
});

test("a half goes to the even neighbour, and what is no number is refused", () => {
  const halves = { ...PIXELS, toLevelsScale: 1, toLevelsOffset: 0, levels: 2 };
  assert.deepEqual([...toPicture(Float32Array.of(0.25, 0.75, 2), 1, 1, halves).levels], [0, 2, 2]);
  assert.throws(() => toPicture(Float32Array.of(NaN, 0, 0), 1, 1, PIXELS, "vae"), /^CheckFailed: vae holds NaN or infinity/);
});

test("pictures to start from are brought to size, and wrong ones refused", () => {
  const data = Uint8Array.of(255, 0, 0, 255, 0, 0, 255, 0);
  assert.deepEqual([...startPicture({ width: 2, height: 1, data }, 2, 1, "cover", "#00ff00").levels], [255, 0, 0, 0, 255, 0]);
  assert.equal(startPicture({ width: 2, height: 1, data }, 5, 7, "contain").levels.length, 105);
  assert.throws(() => startPicture({ width: 2, height: 2, data }, 2, 1), /^InputError: image: /);
  assert.throws(() => startPicture({ width: 2, height: 1, data }, 2, 1, "crop"), /^InputError: fit: 'crop' is not one of/);
  assert.throws(() => startPicture({ width: 2, height: 1, data }, 2, 1, "cover", "green"), /^InputError: background: /);
});

test("tokenizers with parts that are not known are refused by name", () => {
  const model = { type: "BPE", vocab: { a: 0 }, merges: [] };
  const cases = [
    [{ model, normalizer: { type: "BertNormalizer" } }, /normalizer 'BertNormalizer' is not known/],
    [{ model, pre_tokenizer: { type: "Punctuation" } }, /pre_tokenizer 'Punctuation' is not known/],
    [{ model: { ...model, byte_fallback: true } }, /BPE with 'byte_fallback' is not known/],
    [{ model: { type: "WordPiece" } }, /model 'WordPiece' is not known/],
    [{ model, normalizer: { type: "Replace", pattern: { Regex: "a*" }, content: "" } }, /pattern 'a\*' is not known/],
  ];
  for (const [file, expected] of cases) assert.throws(() => new Tokenizer(JSON.stringify(file), unicode, "t.json"), expected);
  assert.throws(() => new Tokenizer("{", unicode, "t.json"), /^CheckFailed: t.json: not a tokenizer: /);
});

test("damaged safetensors files are refused", () => {
  const file = (header, body = 0) => {
    const text = Buffer.from(header), length = Buffer.alloc(8);
    length.writeBigUInt64LE(BigInt(text.length));
    return new Uint8Array(Buffer.concat([length, text, Buffer.alloc(body)]));
  };
  const one = '{"x":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}';
  assert.deepEqual([...parseTensors(file(one, 8), "f").get("x").data], [0, 0]);
  const wrong = [new Uint8Array(3), file(one, 7), file("[", 0), file("null"), file('{"x":null}'), file('{"x":{"dtype":"F16","shape":[1],"data_offsets":[0,2]}}', 2),
    file('{"x":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}', 4), new Uint8Array([255, 255, 255, 255, 255, 255, 255, 255, 1])];
  for (const content of wrong) assert.throws(() => parseTensors(content, "f"), /^CheckFailed: f: not a safetensors file: /);
});

/** A store in memory, and a server whose answers a test decides. */
function kept() {
  const files = new Map();
  const open = async (name) => {
    if (!files.has(name)) files.set(name, Buffer.alloc(0));
    return {
      size: () => files.get(name).length,
      read: () => new Uint8Array(files.get(name)),
      append: (chunk) => files.set(name, Buffer.concat([files.get(name), chunk])),
      empty: () => files.set(name, Buffer.alloc(0)),
      close: () => {},
    };
  };
  return { files, open };
}

const CONTENT = Buffer.from("weights ".repeat(1000));
const ENTRY = { path: "graphs/a.onnx", bytes: CONTENT.length, sha256: createHash("sha256").update(CONTENT).digest("hex") };

/** Answers with the content from where it is asked for; the first `broken` answers stop halfway. */
function server({ broken = 0, ranges = true, content = CONTENT } = {}) {
  const asked = [];
  const fetch = async (url, { headers = {} } = {}) => {
    const from = ranges ? Number(/bytes=(\d+)-/.exec(headers.Range ?? "")?.[1] ?? 0) : 0;
    asked.push(headers.Range ?? "");
    const rest = content.subarray(from), isBroken = asked.length <= broken;
    const body = new ReadableStream({
      pull(controller) {
        controller.enqueue(new Uint8Array(rest.subarray(0, isBroken ? rest.length / 2 : rest.length)));
        if (isBroken) controller.error(new TypeError("network"));
        else controller.close();
      },
    }, { highWaterMark: 0 });
    const range = from > 0 ? { "content-range": `bytes ${from}-${content.length - 1}/${content.length}` } : {};
    return new Response(body, { status: from > 0 ? 206 : 200, headers: range });
  };
  return { asked, fetch };
}

const at = (options) => download("http://localhost/package", { unicode: UNICODE, ...options });

test("a download that is cut off goes on where it stopped", async () => {
  const store = kept(), { asked, fetch } = server({ broken: 2 });
  const found = await at({ store, fetch }).read(ENTRY.path, ENTRY);
  assert.deepEqual(Buffer.from(found), CONTENT);
  assert.deepEqual(asked, ["", "bytes=4000-", "bytes=6000-"]);
});

test("a server without ranges begins anew", async () => {
  const store = kept(), { fetch } = server({ broken: 1, ranges: false });
  assert.deepEqual(Buffer.from(await at({ store, fetch }).read(ENTRY.path, ENTRY)), CONTENT);
});

test("what stopped for good stays, and the next visit goes on", async () => {
  const store = kept();
  await assert.rejects(at({ store, ...server({ broken: 9 }) }).read(ENTRY.path, ENTRY), /stopped after \d+ of 8000 bytes; try again/);
  const { asked, fetch } = server();
  assert.deepEqual(Buffer.from(await at({ store, fetch }).read(ENTRY.path, ENTRY)), CONTENT);
  assert.deepEqual(asked, ["bytes=7000-"]);
});

test("what is kept needs no network, and progress says so", async () => {
  const store = kept(), said = [];
  await at({ store, ...server() }).read(ENTRY.path, ENTRY);
  const fetch = async () => assert.fail("asked for what is kept");
  await at({ store, fetch, progress: (p) => said.push(p) }).read(ENTRY.path, ENTRY);
  assert.deepEqual(said, [{ path: ENTRY.path, bytes: 8000, of: 8000, isKept: true }]);
});

test("damaged files are dropped, wherever they come from", async () => {
  const store = kept(), damaged = Buffer.from(CONTENT);
  damaged[5] ^= 1;
  await assert.rejects(at({ store, ...server({ content: damaged }) }).read(ENTRY.path, ENTRY), /^CheckFailed: .*SHA-256 differs/);
  assert.equal(store.files.get(ENTRY.sha256).length, 0);
  store.files.set(ENTRY.sha256, damaged); // whole and wrong: downloaded again
  assert.deepEqual(Buffer.from(await at({ store, ...server() }).read(ENTRY.path, ENTRY)), CONTENT);
  store.files.set(ENTRY.sha256, damaged.subarray(0, 100)); // a wrong part: found at the end, and dropped
  assert.deepEqual(Buffer.from(await at({ store, ...server() }).read(ENTRY.path, ENTRY)), CONTENT);
  const longer = server({ content: Buffer.concat([CONTENT, CONTENT]) });
  await assert.rejects(at({ store: kept(), ...longer }).read(ENTRY.path, ENTRY), /longer than the 8000 bytes/);
});

test("a missing file and a server that cannot be reached are one line each", async () => {
  const missing = async () => new Response("no", { status: 404 });
  await assert.rejects(at({ fetch: missing }).read("manifest.json"), /^InputError: http.*manifest.json: the server says 404/);
  await assert.rejects(at({ fetch: missing }).read(ENTRY.path, ENTRY), /the server says 404; copy the bundle again/);
  const off = async () => { throw new TypeError("off"); };
  await assert.rejects(at({ fetch: off }).read("manifest.json"), /cannot be reached: off/);
});

test("a download is stopped by its signal, and keeps what is there", async () => {
  const store = kept(), stopping = new AbortController();
  const fetch = async (url, { signal }) => {
    stopping.abort();
    signal.throwIfAborted();
  };
  await assert.rejects(at({ store, fetch, signal: stopping.signal }).read(ENTRY.path, ENTRY), { name: "AbortError" });
});
