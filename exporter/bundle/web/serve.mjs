// Serves this folder with the headers that let graphs use several threads: node serve.mjs [PORT]
import { createReadStream, statSync } from "node:fs";
import { createServer } from "node:http";
import { extname, join, normalize, sep } from "node:path";
import { fileURLToPath } from "node:url";

const home = fileURLToPath(new URL(".", import.meta.url)), port = Number(process.argv[2] ?? 8000);
const TYPES = { ".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".mjs": "text/javascript", ".json": "application/json", ".svg": "image/svg+xml", ".wasm": "application/wasm", ".webmanifest": "application/manifest+json" };
const HEADERS = { "Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Embedder-Policy": "require-corp", "Accept-Ranges": "bytes", "Cache-Control": "no-cache" };

/** @param {string} line What is wrong and what to type. */
function refuse(line) {
  console.error(`serve.mjs: ${line}`);
  process.exit(2);
}

/** The file that an address asks for, or undefined where it is none. */
function fileOf(address) {
  try {
    const path = normalize(decodeURIComponent(new URL(address, "http://localhost").pathname));
    return join(home, path.endsWith(sep) ? `${path}index.html` : path);
  } catch {
    return undefined;
  }
}

if (!Number.isInteger(port) || port < 0 || port > 65535)
  refuse(`${process.argv[2]}: is no port; give a number up to 65535`);

createServer((request, response) => {
  const file = fileOf(request.url);
  const found = file?.startsWith(home) && !file.includes("\0") ? statSync(file, { throwIfNoEntry: false }) : undefined;
  if (!found?.isFile()) return response.writeHead(404).end();
  const { size } = found;
  const start = Number(/^bytes=(\d+)-$/.exec(request.headers.range ?? "")?.[1] ?? 0);
  if (start > 0 && start >= size) return response.writeHead(416, { "Content-Range": `bytes */${size}` }).end();
  const range = start > 0 ? { "Content-Range": `bytes ${start}-${size - 1}/${size}` } : {};
  response.writeHead(start > 0 ? 206 : 200, { ...HEADERS, ...range, "Content-Type": TYPES[extname(file)] ?? "application/octet-stream", "Content-Length": size - start });
  createReadStream(file, { start }).pipe(response);
}).on("error", (error) =>
  refuse(`port ${port}: ${error.code === "EADDRINUSE" ? "is taken; give another one: node serve.mjs 8001" : error.message}`),
).listen(port, "127.0.0.1", () => console.log(`http://localhost:${port}`));
