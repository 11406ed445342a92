/**
 * The page of a bundle in Chromium, headless. FOURSTEP_JOB names a JSON file: `bundles`, each a
 * folder with the raw pixels that Python drew exact (`expected`) and how near they have to be (`db`),
 * the first being the one that all else is tried with; `sized`: one of several sizes, with a file of
 * pixels for each, or null; `request`: prompt and seed; `chromium`;
 * `shots`: a folder for screenshots, or null; `isWhole`: also what takes long.
 */
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { readFileSync, readdirSync, statSync } from "node:fs";
import { createServer } from "node:http";
import { extname, join } from "node:path";
import { after, test } from "node:test";

import { chromium } from "playwright-core";

const MOST_PAGE_BYTES = 450e6;
const MOST_MS = 300_000; // a graphics processor in software, on a machine that is shared
const { bundles, sized, request, chromium: executablePath, shots, isWhole } = JSON.parse(readFileSync(process.env.FOURSTEP_JOB, "utf8"));
const TYPES = { ".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".mjs": "text/javascript", ".json": "application/json", ".svg": "image/svg+xml", ".wasm": "application/wasm" };

const browser = await launched(), servers = new Set();
after(async () => {
  for (const stop of servers) await stop();
  await browser.close();
});

function launched(...more) {
  return chromium.launch({ executablePath, args: ["--no-sandbox", ...more] });
}

/** A server of a folder; `change` may answer in its place. It sends no headers of isolation. */
async function serving(folder, change = () => false) {
  const server = createServer((asked, answer) => {
    const path = decodeURIComponent(new URL(asked.url, "http://localhost").pathname).slice(1) || "index.html";
    const file = join(folder, path);
    if (change(path, asked, answer)) return;
    if (!statSync(file, { throwIfNoEntry: false })?.isFile()) return answer.writeHead(404).end();
    const content = readFileSync(file), from = Number(/^bytes=(\d+)-$/.exec(asked.headers.range ?? "")?.[1] ?? 0);
    const range = from > 0 ? { "Content-Range": `bytes ${from}-${content.length - 1}/${content.length}` } : {};
    answer.writeHead(from > 0 ? 206 : 200, { "Content-Type": TYPES[extname(path)] ?? "application/octet-stream", ...range });
    answer.end(content.subarray(from));
  });
  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  const stop = () => new Promise((resolve) => {
    servers.delete(stop);
    server.close(resolve);
    server.closeAllConnections();
  });
  servers.add(stop);
  return { address: `http://localhost:${server.address().port}/`, stop };
}

/** A new visitor's page; fails when it reaches for another server. */
async function visiting(address, options = {}, of = browser) {
  const context = await of.newContext(options);
  const strays = [], asked = [];
  context.on("request", (each) => {
    asked.push(each.url().replace(address, ""));
    if (!each.url().startsWith(address) && !/^(data|blob):/.test(each.url())) strays.push(each.url());
  });
  const page = await context.newPage();
  await page.goto(address);
  return { page, context, asked, close: async () => {
    await context.close();
    assert.deepEqual(strays, []);
  } };
}

const state = (page, ...names) =>
  page.waitForFunction((wanted) => wanted.includes(document.documentElement.dataset.state), names, { timeout: MOST_MS });

async function draw(page, { prompt, seed } = request, count = "1") {
  await state(page, "ready", "previewed", "done", "stopped");
  await page.getByLabel("Preview while typing").uncheck();
  await page.getByLabel("Prompt").fill(prompt);
  await page.getByLabel("Seed", { exact: true }).fill(String(seed));
  await page.getByLabel("How many").selectOption(count);
  await page.getByRole("button", { name: "Draw" }).click();
}

async function drawn(page) {
  await state(page, "done");
  return page.evaluate(() => {
    const canvas = document.querySelector("#pictures canvas");
    const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
    return Array.from(data).filter((_, i) => i % 4 < 3);
  });
}

function psnrDb(found, expected) {
  assert.equal(found.length, expected.length);
  const error = found.reduce((sum, level, i) => sum + (level - expected[i]) ** 2, 0) / expected.length;
  return error ? 10 * Math.log10(255 ** 2 / error) : Infinity;
}

/** Of each element with text of its own, in the page: the contrast with what is behind it. */
function contrasts() {
  const rgba = (colour) => colour.match(/[\d.]+/g).map(Number);
  const luminance = ([red, green, blue]) => {
    const [r, g, b] = [red, green, blue].map((c) => (c / 255 <= 0.04045 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const colour = rgba(getComputedStyle(at).backgroundColor);
      if (colour[3] !== 0) return colour;
    }
    return [255, 255, 255];
  };
  const own = [...document.querySelectorAll("body *")].filter((e) =>
    e.checkVisibility() && !e.disabled && [...e.childNodes].some((node) => node.nodeType === 3 && node.data.trim()));
  return own.map((element) => {
    const lights = [rgba(getComputedStyle(element).color), behind(element)].map(luminance).sort((a, b) => b - a);
    return [element.outerHTML.slice(0, 80), (lights[0] + 0.05) / (lights[1] + 0.05)];
  });
}

/** Bytes that the processes of the page alone have: private ones. */
function rendererBytes() {
  const renderers = readdirSync("/proc").filter((id) => /^\d+$/.test(id)).filter((id) => {
    try {
      return readFileSync(`/proc/${id}/cmdline`, "utf8").includes("--type=renderer") && descends(id);
    } catch {
      return false;
    }
  });
  const sizes = renderers.map((id) => {
    const rollup = readFileSync(`/proc/${id}/smaps_rollup`, "utf8");
    return 1024 * Number(/^Pss:\s+(\d+)/m.exec(rollup)[1]);
  });
  return Math.max(...sizes);
}

function descends(id) {
  for (let at = id; Number(at) > 1; ) {
    if (Number(at) === process.pid) return true;
    at = readFileSync(`/proc/${at}/stat`, "utf8").replace(/^.*\) \S /, "").split(" ")[0];
  }
  return false;
}

for (const { folder, expected, db } of bundles) {
  test(`the picture of ${folder} is that of Python, and needs no network the second time`, async (t) => {
    const server = await serving(folder);
    const { page, context, close } = await visiting(server.address);
    await draw(page);
    const first = await drawn(page), found = psnrDb(first, readFileSync(expected));
    t.diagnostic(`${found.toFixed(1)} dB, ${await page.locator("#fact-picture").innerText()}`);
    assert.ok(found >= db, `${found} dB`);
    assert.ok(await page.evaluate(() => crossOriginIsolated), "the service worker isolates the page");
    await server.stop();
    await page.close();
    const again = await context.newPage();
    await again.goto(server.address);
    await draw(again);
    assert.deepEqual(await drawn(again), first);
    await close();
  });
}

test("every size is drawn, without a network too", { skip: !sized }, async () => {
  const server = await serving(sized.folder);
  const { page, context, close } = await visiting(server.address);
  await state(page, "previewed");
  await server.stop();
  await page.close();
  const again = await context.newPage();
  await again.goto(server.address);
  await state(again, "ready", "previewed");
  assert.deepEqual(await again.getByLabel("Size").locator("option").evaluateAll((all) => all.map((each) => each.value)), Object.keys(sized.expected));
  for (const [size, expected] of Object.entries(sized.expected)) {
    await again.getByLabel("Size").selectOption(size);
    await draw(again);
    assert.ok(psnrDb(await drawn(again), readFileSync(expected)) >= sized.db, size);
    await again.evaluate(() => { document.documentElement.dataset.state = "ready"; });
  }
  await close();
});

const main = bundles[0].folder;

test("drawing is stopped midway, and the page goes on", async () => {
  const server = await serving(main);
  const { page, close } = await visiting(server.address);
  await draw(page, request, "8");
  await page.waitForFunction(() => /step [12] of/.test(document.getElementById("status").textContent));
  await page.keyboard.press("Escape");
  assert.equal(await page.locator("#status").innerText(), "Stopped.");
  assert.ok(await page.getByRole("button", { name: "Stop" }).isDisabled());
  assert.equal(await page.locator("figure[data-state=drawn]").count(), 0);
  await draw(page, { prompt: "a green triangle", seed: 3 }, "2");
  await state(page, "done");
  assert.equal(await page.locator("figure[data-state=drawn]").count(), 2);
  assert.match(await page.getByRole("link", { name: "Save the picture of seed 4" }).getAttribute("href"), /^blob:/);
  await close();
  await server.stop();
});

test("previews while typing: the newest prompt wins, and what one costs", async (t) => {
  const server = await serving(main);
  const { page, close } = await visiting(server.address);
  await state(page, "previewed");
  const field = page.getByLabel("Prompt");
  for (const text of ["a", "a g", "a gre", "a green tri", "a green triangle"]) await field.fill(text);
  await page.waitForFunction(() => document.querySelector("#pictures canvas").getAttribute("aria-label") === "Preview of: a green triangle");
  await state(page, "previewed");
  for (const text of ["a red circle", "a blue square", "two red circles", "a yellow star"]) {
    await field.fill(text);
    await state(page, "previewed");
    await page.waitForTimeout(50);
  }
  await page.evaluate(() => {
    const { prototype } = CanvasRenderingContext2D, { putImageData } = prototype;
    globalThis.widths = [];
    prototype.putImageData = function (data, ...at) { globalThis.widths.push(data.width); putImageData.call(this, data, ...at); };
  });
  for (const text of ["a b", "a bl", "a blu", "a blue", "a blue c", "a blue circle"]) {
    await field.fill(text);
    await page.waitForTimeout(60);
  }
  await state(page, "previewed");
  const widths = await page.evaluate(() => globalThis.widths);
  assert.equal(widths.filter((width) => width === 128).length, 1, `the decoder drew while keys were typed: ${widths}`);
  const { previewsMs } = await page.evaluate(() => globalThis.fourstepTimes);
  const bytes = await page.evaluate(async () => (await performance.measureUserAgentSpecificMemory()).bytes);
  const held = rendererBytes();
  t.diagnostic(`first previews after ${previewsMs.slice(-4).map(Math.round).join(", ")} ms; the page says ${(bytes / 1e6).toFixed(0)} MB, its process has ${(held / 1e6).toFixed(0)} MB`);
  assert.ok(Math.max(bytes, held) < MOST_PAGE_BYTES);
  await close();
  await server.stop();
});

test("a damaged file, a missing one and a changed manifest are one line each, and nothing is drawn", async () => {
  const weights = "package/graphs/denoiser/denoiser.onnx.data";
  let wrong = "damaged";
  const change = (path, _, answer) => {
    if (wrong === "damaged" && path === weights) {
      const content = readFileSync(join(main, path));
      content[99] ^= 1;
      answer.end(content);
      return true;
    }
    if (wrong === "missing" && path === weights) {
      answer.writeHead(404).end();
      return true;
    }
    if (wrong === "manifest" && path === "package/manifest.json") {
      answer.end(`${readFileSync(join(main, path), "utf8")} `);
      return true;
    }
    return false;
  };
  const server = await serving(main, change);
  for (const [name, expected] of [["damaged", /denoiser\.onnx\.data: damaged: SHA-256 differs; copy the package again$/], ["missing", /denoiser\.onnx\.data: the server says 404; copy the bundle again$/], ["manifest", /manifest\.json: damaged: it is not what manifest\.sha256 says; copy the package again$/]]) {
    wrong = name;
    const { page, close } = await visiting(server.address);
    await state(page, "failed");
    const said = await page.getByRole("alert").innerText();
    assert.match(said, expected);
    assert.ok(!said.includes("\n"));
    assert.ok(await page.getByRole("button", { name: "Draw" }).isDisabled());
    wrong = "";
    await page.getByRole("button", { name: "Try again" }).click();
    await state(page, "previewed");
    await close();
  }
  await server.stop();
});

test("a connection that breaks is taken up where it broke", async () => {
  const broken = "package/graphs/denoiser/denoiser.onnx.data";
  const ranges = [];
  const server = await serving(main, (path, asked, answer) => {
    if (path !== broken) return false;
    ranges.push(asked.headers.range);
    if (ranges.length > 1) return false;
    const content = readFileSync(join(main, path));
    answer.writeHead(200, { "Content-Length": content.length });
    answer.write(content.subarray(0, content.length / 2), () => setTimeout(() => answer.destroy(), 200));
    return true;
  });
  const { page, close } = await visiting(server.address);
  await state(page, "previewed");
  assert.equal(ranges.length, 2);
  assert.match(ranges[1], /^bytes=[1-9]\d+-$/);
  await close();
  await server.stop();
});

test("a picture that is asked for before the package is there is drawn when it is, unless it is taken back", async () => {
  const late = "package/graphs/denoiser/denoiser.onnx.data";
  for (const [keys, ends] of [[["Enter"], "done"], [["Enter", "Escape"], "previewed"]]) {
    let release;
    const typed = new Promise((resolve) => { release = resolve; });
    const server = await serving(main, (path, asked, answer) => {
      if (path !== late) return false;
      typed.then(() => answer.end(readFileSync(join(main, path))));
      return true;
    });
    const { page, close } = await visiting(server.address);
    await page.waitForFunction(() => crossOriginIsolated && /^Loading the package/.test(document.getElementById("status").textContent));
    await page.getByLabel("Prompt").fill("a green triangle");
    for (const key of keys) await page.getByLabel("Prompt").press(key);
    release();
    await state(page, "done", "previewed");
    await page.waitForTimeout(500); // what comes first may not be the last
    assert.equal(await page.evaluate(() => document.documentElement.dataset.state), ends);
    assert.equal(await page.locator("figure[data-state=drawn]").count(), ends === "done" ? 1 : 0);
    await close();
    await server.stop();
  }
});

test("without WebGPU graphs run in wasm, the page says so, and nothing is loaded in vain", async () => {
  const server = await serving(main);
  const { page, close, asked } = await visiting(server.address);
  await state(page, "previewed");
  assert.match(await page.locator("#remarks").innerText(), /no WebGPU adapter: graphs run in wasm/);
  assert.match(await page.locator("#fact-engine").innerText(), /wasm/);
  assert.deepEqual(asked.filter((path) => /webgpu|asyncify|golden/.test(path)), []);
  await close();
  await server.stop();
});

test("an adapter's numbers are tried before they are used", { skip: !isWhole }, async (t) => {
  const emulated = await launched("--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader");
  const server = await serving(main);
  try {
    const { page, close } = await visiting(server.address, {}, emulated);
    await state(page, "previewed", "failed");
    t.diagnostic(`${await page.locator("#fact-engine").innerText()}; ${await page.locator("#remarks").innerText()}`);
    await draw(page);
    assert.ok(psnrDb(await drawn(page), readFileSync(bundles[0].expected)) >= bundles[0].db);
    await close();
  } finally {
    await emulated.close();
    await server.stop();
  }
});

test("keys alone, names for every control, and no motion where none is wanted", async () => {
  const server = await serving(main);
  const { page, close } = await visiting(server.address, { reducedMotion: "reduce" });
  await state(page, "previewed");
  await page.keyboard.press("Tab");
  await page.keyboard.press("Enter");
  const unnamed = await page.evaluate(() => [...document.querySelectorAll("input, select, textarea, button, progress, canvas")]
    .filter((e) => !e.closest("[hidden]") && !e.labels?.length && !e.getAttribute("aria-label") && !e.textContent.trim()).map((e) => e.outerHTML));
  assert.deepEqual(unnamed, []);
  await page.getByLabel("Prompt").focus();
  await page.keyboard.press("Enter");
  assert.deepEqual(await page.evaluate(() => document.getAnimations().length), 0);
  await state(page, "done");
  assert.equal(await page.locator("#status").getAttribute("aria-live"), "polite");
  await close();
  await server.stop();
});

test("phone and wide, light and dark", async () => {
  const server = await serving(main);
  for (const colorScheme of ["light", "dark"]) {
    for (const [name, width, height] of [["phone", 360, 740], ["wide", 1280, 860]]) {
      if (!isWhole && (name === "phone") !== (colorScheme === "dark")) continue;
      const { page, close } = await visiting(server.address, { colorScheme, viewport: { width, height } });
      await draw(page, request, name === "wide" ? "4" : "1");
      await state(page, "done");
      assert.ok(await page.evaluate(() => document.documentElement.scrollWidth <= innerWidth), `${name} is too wide`);
      const faint = (await page.evaluate(contrasts)).filter(([, ratio]) => ratio < 4.5);
      assert.deepEqual(faint, [], `${name}, ${colorScheme}`);
      if (shots) await page.screenshot({ path: join(shots, `${name}-${colorScheme}.png`), fullPage: true });
      await close();
    }
  }
  await server.stop();
});

test("the bundle's own server isolates the page, has ranges, and shows nothing else", async () => {
  const port = 20_000 + (process.pid % 20_000);
  const own = spawn("node", [join(main, "serve.mjs"), String(port)], { stdio: ["ignore", "pipe", "inherit"] });
  try {
    await new Promise((resolve) => own.stdout.once("data", resolve));
    const get = (path, headers = {}) => fetch(`http://localhost:${port}/${path}`, { headers });
    const page = await get("");
    assert.equal(page.headers.get("cross-origin-opener-policy"), "same-origin");
    assert.equal(page.headers.get("cross-origin-embedder-policy"), "require-corp");
    assert.match(await page.text(), /^<!doctype html>/);
    const part = await get("bundle.json", { Range: "bytes=5-" });
    assert.equal(part.status, 206);
    assert.equal(await part.text(), readFileSync(join(main, "bundle.json"), "utf8").slice(5));
    assert.deepEqual(await Promise.all(["none", "runtime", "..%2f..%2fetc%2fpasswd", "%2e%2e/x"].map(async (path) => (await get(path)).status)), [404, 404, 404, 404]);
  } finally {
    own.kill();
  }
});
