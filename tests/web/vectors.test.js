/**
 * The conformance vectors of the packages that FOURSTEP_PACKAGES names, one in a line: ids, noise,
 * schedule, pixels and previews, every graph, and the golden pictures.
 */
import assert from "node:assert/strict";
import { test } from "node:test";

import { compare, generate, graphError, parseTensors } from "../../exporter/bundle/web/runtime/index.js";
import { engine, opened } from "./opened.js";

const packages = (process.env.FOURSTEP_PACKAGES ?? "").split("\n").filter((path) => path);

test("there are packages to compare with", () => {
  assert.notEqual(packages.length, 0, "set FOURSTEP_PACKAGES");
});

for (const path of packages) {
  test(`vectors of ${path}`, async () => {
    const found = await opened(path);
    const player = await found.player(await engine(true));
    const vectors = [];
    for await (const vector of compare(found, player)) vectors.push(vector);
    assert.deepEqual(vectors.filter(({ same }) => !same).map(({ what }) => what), []);
    assert.ok(vectors.length >= 20, `${vectors.length} vectors`);
  });

  test(`graphs of ${path}`, async () => {
    const found = await opened(path);
    for (const stage of found.manifest.stages) {
      const error = await graphError(found, await engine(true), stage);
      const last = found.manifest.graphs.find(({ name }) => name === stage.parts[stage.parts.length - 1]);
      assert.ok(error <= last.tolerance.graphRelative, `${stage.graph}: ${error}`);
    }
  });

  test(`golden pictures of ${path}`, async () => {
    const found = await opened(path);
    const player = await found.player(await engine(true), { keep: true });
    for (const { prompt, seed, tensors } of found.manifest.golden.pictures) {
      const expected = parseTensors(await found.read(tensors), tensors).get("pixels").data;
      const events = [];
      for await (const event of generate(player, [{ prompt, seed }])) events.push(event);
      const least = Math.min(...found.manifest.graphs.map(({ tolerance }) => tolerance.imagePsnrDb));
      assert.ok(psnrDb(events.at(-1).picture.levels, expected) >= least, prompt);
    }
    await player.close();
  });
}

function psnrDb(found, expected) {
  const error = found.reduce((sum, level, i) => sum + (level - expected[i]) ** 2, 0) / expected.length;
  return 10 * Math.log10(255 ** 2 / error);
}
