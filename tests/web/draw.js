/**
 * Draws what a job asks for: `node draw.js JOB.json`, with a package, options and requests; of each
 * request's picture the levels are written to `out`, one after the other, size by size. Pictures to start from are
 * raw files of RGB or RGBA.
 */
import { readFileSync, writeFileSync } from "node:fs";

import { generate } from "../../exporter/bundle/web/runtime/index.js";
import { engine, opened } from "./opened.js";

const { path, exact, keep, sizes, requests, out } = JSON.parse(readFileSync(process.argv[2], "utf8"));
const player = await (await opened(path)).player(await engine(exact), { keep });
const given = requests.map(({ image, ...rest }) =>
  image ? { ...rest, image: { ...image, data: new Uint8Array(readFileSync(image.data)) } } : rest);
const levels = [];
for (const size of sizes ?? player.sizes.slice(0, 1)) {
  for await (const event of generate(player.at(size), given)) if (event.kind === "picture") levels.push(event.picture.levels);
}
await player.close();
writeFileSync(out, Buffer.concat(levels));
