/**
 * The conformance vectors of the packages that FOURSTEP_PACKAGES names, one in a line: ids, noise,
 * schedule, pixels and previews, every graph, and the golden pictures, of every size.
 */
import assert from "node:assert/strict";
import { test } from "node:test";

import { compare, generate, goldenTensors, graphError } from "../../exporter/bundle/web/runtime/index.js";
import { engine, opened } from "./opened.js";

const packages = (process.env.FOURSTEP_PACKAGES ?? "").split("\n").filter((path) => path);

test("there are packages to compare with", () => {
  assert.notEqual(packages.length, 0, "set FOURSTEP_PACKAGES");
});

for (const [path, size] of await everySize()) {
  test(`vectors of ${path} at ${size}`, async () => {
    const found = (await opened(path)).at(size);
    const player = await found.player(await engine(true));
    const vectors = [];
    for await (const vector of compare(found, player)) vectors.push(vector);
    assert.deepEqual(vectors.filter(({ same }) => !same).map(({ what }) => what), []);
    assert.ok(vectors.length >= 20, `${vectors.length} vectors`);
  });

  test(`graphs of ${path} at ${size}`, async () => {
    const found = (await opened(path)).at(size);
    for (const stage of found.manifest.stages) {
      const error = await graphError(found, await engine(true), stage);
      const last = found.manifest.graphs.find(({ name }) => name === stage.parts[stage.parts.length - 1]);
      assert.ok(error <= last.tolerance.graphRelative, `${stage.graph}: ${error}`);
    }
  });

  test(`golden pictures of ${path} at ${size}`, async () => {
    const found = (await opened(path)).at(size);
    const player = await found.player(await engine(true), { keep: true });
    for (const golden of found.manifest.golden.pictures) {
      const { prompt, seed } = golden, expected = (await goldenTensors(found, golden)).get("pixels").data;
      const events = [];
      for await (const event of generate(player, [{ prompt, seed }])) events.push(event);
      const least = Math.min(...found.manifest.graphs.map(({ tolerance }) => tolerance.imagePsnrDb));
      assert.ok(psnrDb(events.at(-1).picture.levels, expected) >= least, prompt);
    }
    await player.close();
  });
}

/** Packages and their sizes. */
async function everySize() {
  const found = [];
  for (const path of packages) for (const size of (await opened(path)).sizes) found.push([path, size]);
  return found;
}

function psnrDb(found, expected) {
  const error = found.reduce((sum, level, i) => sum + (level - expected[i]) ** 2, 0) / expected.length;
  return 10 * Math.log10(255 ** 2 / error);
}
