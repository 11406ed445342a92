/**
 * The page: what to draw, what is drawn, and what it costs. The work is done in `worker.js`.
 * @module
 */

/** @import { Answer, Call, Opened } from "./worker.js" */
/** @import { Picture } from "./runtime/pixels.js" */
/** @import { Request } from "./runtime/loop.js" */
/** @import { Given } from "./runtime/start.js" */

const MOST_THREADS = 4;
const MEMORY_EVERY_MS = 5000;
const WAIT_FOR_KEEPER_MS = 4000;
const RELOADED = "fourstep-reloaded";
const IMAGE_MOST_PX = 2048; // of a picture to start from, along its longer side

/**
 * An element of the page.
 * @template {HTMLElement} [T=HTMLElement]
 * @param {string} id
 * @returns {T}
 */
const $ = (id) => /** @type {T} */ (document.getElementById(id));
const prompt = /** @type {HTMLTextAreaElement} */ ($("prompt"));
const seed = /** @type {HTMLInputElement} */ ($("seed"));
const count = /** @type {HTMLSelectElement} */ ($("count"));
const size = /** @type {HTMLSelectElement} */ ($("size"));
const live = /** @type {HTMLInputElement} */ ($("live"));
const negative = /** @type {HTMLInputElement} */ ($("negative"));
const strength = /** @type {HTMLInputElement} */ ($("strength"));
const fit = /** @type {HTMLSelectElement} */ ($("fit"));
const progress = /** @type {HTMLProgressElement} */ ($("progress"));
const drawButton = /** @type {HTMLButtonElement} */ ($("draw"));
const cancelButton = /** @type {HTMLButtonElement} */ ($("cancel"));

/** @type {Worker} */
let worker;
/** @type {Opened | null} */
let opened = null;
/** @type {Given | null} */
let image = null;
/** Whether a picture was asked for before the package was open. */
let isWaitedFor = false;
/** What was asked for last: a picture, a preview, or nothing. */
let asked = { id: 0, isPreview: false, seeds: [""], sinceMs: 0, isRunning: false, isShown: false };
/** Times that tests and whoever measures read. */
const times = { previewsMs: /** @type {number[]} */ ([]), picturesMs: /** @type {number[]} */ ([]) };
Object.assign(globalThis, { fourstepTimes: times });

/** @param {Call} call */
const tell = (call) => worker.postMessage(call);

function begin() {
  $("again").hidden = true;
  problem("");
  worker?.terminate();
  worker = new Worker("worker.js", { type: "module" });
  worker.addEventListener("message", ({ data }) => heard(data));
  worker.addEventListener("error", ({ message }) => failed(message || "the worker could not be started; reload the page"));
  const engine = new URLSearchParams(location.search).get("engine") ?? "";
  const threads = Math.min(MOST_THREADS, navigator.hardwareConcurrency || 1);
  tell({ kind: "open", engine, threads });
  status("Loading the package.");
}

/** @param {Answer} answer */
function heard(answer) {
  if (answer.kind === "opened") return ready(answer);
  if (answer.kind === "progress") return loading(answer.bytes, answer.of);
  if (answer.kind === "remark") return remark(answer.message);
  if (answer.id !== asked.id) return; // of what is no longer asked for
  if (answer.kind === "shown") return shown(answer.index, answer.step, answer.steps, answer.picture);
  if (answer.kind === "drawn") return drawn(answer.index, answer.picture);
  if (answer.kind === "failed") return failed(answer.message);
  ended(answer.kind === "stopped");
}

/** @param {Opened} found */
function ready(found) {
  opened = found;
  $("about").textContent = `${found.name}, ${found.scheme}: pictures from words, on this device.`;
  $("fact-engine").textContent = found.engine;
  $("negative-field").hidden = !found.negative;
  $("start").hidden = !found.image;
  const chosen = size.value; // stays as it is where the page opens a package again
  size.replaceChildren(...found.sizes.map((each) => new Option(each.replace("x", " x "), each, false, each === chosen)));
  $("size-field").hidden = found.sizes.length === 1;
  shape();
  progress.value = 0;
  drawButton.disabled = false;
  document.documentElement.dataset.state = "ready";
  status("Ready.");
  if (isWaitedFor) ask(false);
  else if (live.checked && prompt.value.trim()) ask(true);
}

/** Width and height of the pictures that are asked for, in pixels. */
function sides() {
  return size.value.split("x").map(Number);
}

function shape() {
  document.documentElement.style.setProperty("--shape", sides().join(" / "));
}

/**
 * @param {number} bytes
 * @param {number} of
 */
function loading(bytes, of) {
  progress.value = of ? bytes / of : 0;
  status(`Loading the package: ${megabytes(bytes)} of ${megabytes(of)}.${isWaitedFor ? " Your picture comes next." : ""}`);
}

/** @param {boolean} isPreview the first step of one picture, and no more */
function ask(isPreview) {
  if (!isPreview && !form().reportValidity()) return;
  if (isPreview && !form().checkValidity()) return;
  isWaitedFor = !opened && (isWaitedFor || !isPreview);
  if (!opened) return;
  problem("");
  for (const item of document.querySelectorAll("#remarks [data-of=prompt]")) item.remove();
  const first = BigInt(seed.value || "0");
  const seeds = Array.from({ length: isPreview ? 1 : Number(count.value) }, (_, i) => String(first + BigInt(i)));
  asked = { id: asked.id + 1, isPreview, seeds, sinceMs: performance.now(), isRunning: true, isShown: false };
  if (!isPreview) frames(seeds);
  else if ($("pictures").childElementCount !== 1) frames(seeds);
  cancelButton.disabled = isPreview;
  document.documentElement.dataset.state = isPreview ? "preview" : "drawing";
  if (!isPreview) {
    progress.value = 0;
    status("Reading the prompt.");
  }
  tell({ kind: "draw", id: asked.id, isPreview, size: size.value, requests: seeds.map(request) });
}

/**
 * @param {string} each
 * @returns {Request}
 */
function request(each) {
  return {
    prompt: prompt.value,
    seed: each,
    ...(opened?.negative && negative.value ? { negative: negative.value } : {}),
    ...(image ? { image, strength: Number(strength.value) / 100, fit: /** @type {any} */ (fit.value) } : {}),
  };
}

/**
 * A frame for each picture that is asked for.
 * @param {readonly string[]} seeds
 */
function frames(seeds) {
  $("pictures").replaceChildren(
    ...seeds.map((each) => {
      const figure = document.createElement("figure");
      figure.dataset.state = "waiting";
      const canvas = document.createElement("canvas");
      canvas.setAttribute("role", "img");
      canvas.setAttribute("aria-label", "Nothing yet");
      [canvas.width, canvas.height] = sides();
      const caption = document.createElement("figcaption");
      caption.textContent = `seed ${each}`;
      figure.append(canvas, caption);
      return figure;
    }));
}

/**
 * @param {number} index
 * @param {number} step
 * @param {number} steps
 * @param {Picture} picture
 */
function shown(index, step, steps, picture) {
  paint(index, picture, "preview", `Preview of: ${prompt.value}`);
  if (!asked.isShown) {
    asked.isShown = true;
    const tookMs = performance.now() - asked.sinceMs;
    if (asked.isPreview) times.previewsMs.push(tookMs);
    $("fact-preview").textContent = `${Math.round(tookMs)} ms`;
  }
  if (asked.isPreview) return;
  progress.value = (index + step / steps) / asked.seeds.length;
  status(`Picture ${index + 1} of ${asked.seeds.length}: step ${step} of ${steps}.`);
}

/**
 * @param {number} index
 * @param {Picture} picture
 */
function drawn(index, picture) {
  const figure = paint(index, picture, "drawn", `Drawn: ${prompt.value}`);
  const each = asked.seeds[index];
  const link = document.createElement("a");
  link.textContent = "Save";
  link.setAttribute("aria-label", `Save the picture of seed ${each}`);
  link.download = `fourstep-${each}.png`;
  figure.querySelector("canvas")?.toBlob((blob) => {
    if (blob) link.href = URL.createObjectURL(blob);
  });
  figure.querySelector("figcaption")?.append(link);
  if (index + 1 < asked.seeds.length) return;
  const tookMs = performance.now() - asked.sinceMs;
  times.picturesMs.push(tookMs);
  $("fact-picture").textContent = `${(tookMs / 1000 / asked.seeds.length).toFixed(1)} s${asked.seeds.length > 1 ? " each" : ""}`;
}

/** @param {boolean} isStopped */
function ended(isStopped) {
  const wasPreview = asked.isPreview;
  asked.isRunning = false;
  cancelButton.disabled = true;
  document.documentElement.dataset.state = isStopped ? "stopped" : wasPreview ? "previewed" : "done";
  progress.value = isStopped || wasPreview ? 0 : 1;
  if (isStopped) status("Stopped.");
  else if (!wasPreview) status(asked.seeds.length > 1 ? `Done: ${asked.seeds.length} pictures.` : "Done.");
}

/** @param {string} message */
function failed(message) {
  asked.isRunning = false;
  cancelButton.disabled = true;
  document.documentElement.dataset.state = "failed";
  status("This did not work.");
  problem(message);
  $("again").hidden = opened !== null;
}

function stop() {
  isWaitedFor = false;
  if (!asked.isRunning || asked.isPreview) return;
  tell({ kind: "stop" });
  asked = { ...asked, id: asked.id + 1, isRunning: false };
  ended(true);
}

/**
 * @param {number} index
 * @param {Picture} picture
 * @param {string} state
 * @param {string} label
 */
function paint(index, { width, height, levels }, state, label) {
  const figure = /** @type {HTMLElement} */ ($("pictures").children[index]);
  const canvas = /** @type {HTMLCanvasElement} */ (figure.querySelector("canvas"));
  const pixels = new ImageData(width, height);
  const { data } = pixels;
  for (let from = 0, to = 0; from < levels.length; from += 3, to += 4) {
    data[to] = levels[from];
    data[to + 1] = levels[from + 1];
    data[to + 2] = levels[from + 2];
    data[to + 3] = 255;
  }
  figure.dataset.state = state;
  canvas.width = width;
  canvas.height = height;
  canvas.getContext("2d")?.putImageData(pixels, 0, 0);
  canvas.setAttribute("aria-label", label);
  return figure;
}

/** @param {string} text */
function status(text) {
  $("status").textContent = text;
}

/** @param {string} text */
function problem(text) {
  $("problem").textContent = text;
  $("problem").hidden = text === "";
}

/** @param {string} text */
function remark(text) {
  const item = document.createElement("li");
  item.textContent = text;
  item.dataset.of = opened ? "prompt" : "page";
  $("remarks").append(item);
}

/** @param {number} bytes */
function megabytes(bytes) {
  return `${(bytes / 1e6).toFixed(1)} MB`;
}

function form() {
  return /** @type {HTMLFormElement} */ ($("form"));
}

/** The memory of the page and its worker, where the browser tells it. */
async function measure() {
  const all = /** @type {any} */ (performance);
  if (!globalThis.crossOriginIsolated || !all.measureUserAgentSpecificMemory) {
    $("fact-memory").textContent = "told on isolated pages alone";
    return;
  }
  const { bytes } = await all.measureUserAgentSpecificMemory();
  $("fact-memory").textContent = megabytes(bytes);
}

/** @param {File | undefined} file */
async function chosen(file) {
  image = null;
  if (file) {
    try {
      const bitmap = await createImageBitmap(file, { imageOrientation: "from-image" });
      const scale = Math.min(1, IMAGE_MOST_PX / Math.max(bitmap.width, bitmap.height));
      const width = Math.max(1, Math.round(bitmap.width * scale)), height = Math.max(1, Math.round(bitmap.height * scale));
      const canvas = new OffscreenCanvas(width, height);
      const context = /** @type {OffscreenCanvasRenderingContext2D} */ (canvas.getContext("2d", { willReadFrequently: true }));
      context.drawImage(bitmap, 0, 0, width, height);
      image = context.getImageData(0, 0, width, height);
      const shownCanvas = /** @type {HTMLCanvasElement} */ ($("image-shown"));
      shownCanvas.height = Math.round((shownCanvas.width * height) / width);
      shownCanvas.getContext("2d")?.drawImage(bitmap, 0, 0, shownCanvas.width, shownCanvas.height);
    } catch {
      problem(`${file.name}: not a picture that this browser can read; choose another`);
    }
  }
  $("image-shown").hidden = $("image-clear").hidden = image === null;
  if (live.checked && image) ask(true);
}

/**
 * Wait until the service worker answers for this page, so that what it loads is kept. Its answers let
 * graphs use several threads, which a server that sends no such headers does not: once more, then.
 */
async function kept() {
  if (!("serviceWorker" in navigator)) return;
  try {
    await navigator.serviceWorker.register("service-worker.js");
    const isThere = new Promise((resolve) => {
      if (navigator.serviceWorker.controller) resolve(undefined);
      navigator.serviceWorker.addEventListener("controllerchange", resolve, { once: true });
    });
    await Promise.race([isThere, new Promise((resolve) => setTimeout(resolve, WAIT_FOR_KEEPER_MS))]);
    if (navigator.serviceWorker.controller && !crossOriginIsolated && !sessionStorage.getItem(RELOADED)) {
      sessionStorage.setItem(RELOADED, "yes");
      location.reload();
      await new Promise(() => {});
    }
  } catch {
    remark("this browser keeps no page: there is none without a network");
  }
}

form().addEventListener("submit", (event) => {
  event.preventDefault();
  ask(false);
});
prompt.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    ask(false);
  }
});
document.addEventListener("keydown", ({ key }) => {
  if (key === "Escape") stop();
});
for (const field of [prompt, seed, negative, strength]) {
  field.addEventListener("input", () => {
    const isBusy = asked.isRunning && !asked.isPreview;
    if (live.checked && !isBusy && prompt.value.trim()) ask(true);
  });
}
size.addEventListener("change", () => {
  shape();
  if (live.checked && prompt.value.trim()) ask(true);
});
strength.addEventListener("input", () => {
  $("strength-shown").textContent = `${strength.value} %`;
});
cancelButton.addEventListener("click", stop);
$("again").addEventListener("click", begin);
$("dice").addEventListener("click", () => {
  seed.value = String(crypto.getRandomValues(new Uint32Array(1))[0]);
  seed.dispatchEvent(new Event("input"));
});
$("image").addEventListener("change", ({ target }) => chosen(/** @type {HTMLInputElement} */ (target).files?.[0]));
$("image-clear").addEventListener("click", () => {
  /** @type {HTMLInputElement} */ ($("image")).value = "";
  chosen(undefined);
});
await kept();
begin();
setInterval(() => measure().catch(() => {}), MEMORY_EVERY_MS);
