// Serves this folder with the headers that let graphs use several threads: node serve.mjs [PORT]
import { createReadStream, statSync } from "node:fs";
import { createServer } from "node:http";
import { extname, join, normalize, sep } from "node:path";
import { fileURLToPath } from "node:url";

const home = fileURLToPath(new URL(".", import.meta.url)), port = Number(process.argv[2] ?? 8000);
const TYPES = { ".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".mjs": "text/javascript", ".json": "application/json", ".svg": "image/svg+xml", ".wasm": "application/wasm", ".webmanifest": "application/manifest+json" };
const HEADERS = { "Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Embedder-Policy": "require-corp", "Accept-Ranges": "bytes", "Cache-Control": "no-cache" };

createServer((request, response) => {
  const path = normalize(decodeURIComponent(new URL(request.url, "http://localhost").pathname));
  const file = join(home, path.endsWith(sep) ? `${path}index.html` : path);
  const found = file.startsWith(home) ? statSync(file, { throwIfNoEntry: false }) : undefined;
  if (!found?.isFile()) return response.writeHead(404).end();
  const { size } = found;
  const start = Number(/^bytes=(\d+)-$/.exec(request.headers.range ?? "")?.[1] ?? 0);
  if (start > 0 && start >= size) return response.writeHead(416, { "Content-Range": `bytes */${size}` }).end();
  const range = start > 0 ? { "Content-Range": `bytes ${start}-${size - 1}/${size}` } : {};
  response.writeHead(start > 0 ? 206 : 200, { ...HEADERS, ...range, "Content-Type": TYPES[extname(file)] ?? "application/octet-stream", "Content-Length": size - start });
  createReadStream(file, { start }).pipe(response);
}).listen(port, "127.0.0.1", () => console.log(`http://localhost:${port}`));
