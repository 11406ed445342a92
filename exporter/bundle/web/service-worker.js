/**
 * Keeps the page for visits without a network. The package's files are kept by `runtime/download.js`,
 * by their digests; the engine's, which never change under their address, when they are first asked
 * for; all others are asked for anew, and taken from what was kept where there is no network.
 *
 * Every answer carries the headers that let graphs use several threads (COOP and COEP), whatever the
 * server sends, and one that keeps this page and its workers from reaching any other server.
 */

/** @type {any} */
const scope = self;
const KEPT = "fourstep-page";
const OWN = /^(?!package\/|engine\/)/;
const HEADERS = {
  "Cross-Origin-Opener-Policy": "same-origin",
  "Cross-Origin-Embedder-Policy": "require-corp",
  "Cross-Origin-Resource-Policy": "same-origin",
  "Content-Security-Policy":
    "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; style-src 'self'; img-src 'self' blob: data:; " +
    "connect-src 'self'; worker-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'none'",
};

scope.addEventListener("install", (/** @type {any} */ event) => event.waitUntil(install()));
scope.addEventListener("activate", (/** @type {any} */ event) => event.waitUntil(scope.clients.claim()));
scope.addEventListener("fetch", (/** @type {any} */ event) => {
  const { request } = event, base = new URL(scope.registration.scope), url = new URL(request.url);
  if (request.method !== "GET" || url.origin !== base.origin || !url.pathname.startsWith(base.pathname)) return;
  const path = url.pathname.slice(base.pathname.length);
  if (path.startsWith("package/")) return;
  event.respondWith((path.startsWith("engine/") ? keptFirst(request) : newestFirst(request)).then(isolated));
});

async function install() {
  const bundle = await (await fetch("bundle.json", { cache: "no-cache" })).json();
  const own = bundle.files.map((/** @type {{path: string}} */ file) => file.path).filter((/** @type {string} */ path) => OWN.test(path));
  await (await caches.open(KEPT)).addAll(["./", ...own.map((/** @type {string} */ path) => encodeURI(path))]);
  await scope.skipWaiting();
}

/** @param {Request} request */
async function keptFirst(request) {
  const kept = await caches.open(KEPT);
  const found = await kept.match(request.url);
  if (found) return found;
  const response = await fetch(request);
  if (response.status === 200) await kept.put(request.url, response.clone());
  return response;
}

/** @param {Request} request */
async function newestFirst(request) {
  const kept = await caches.open(KEPT), place = request.url.replace(/[?#].*$/, "");
  try {
    const response = await fetch(request);
    if (response.status === 200) await kept.put(place, response.clone());
    return response;
  } catch (error) {
    const found = await kept.match(place);
    if (found) return found;
    throw error;
  }
}

/** @param {Response} response */
function isolated(response) {
  if (response.status === 0) return response;
  const headers = new Headers(response.headers);
  for (const [name, value] of Object.entries(HEADERS)) headers.set(name, value);
  const { status, statusText } = response;
  return new Response([204, 304].includes(status) ? null : response.body, { status, statusText, headers });
}
