/** Ids of a job's prompts by each of its tokenizers: `node encode.js JOB.json`, JSON on stdout. */
import { readFileSync } from "node:fs";

import { Tokenizer, Unicode } from "../../exporter/bundle/web/runtime/index.js";
import { UNICODE } from "./opened.js";

const { tokenizers, prompts } = JSON.parse(readFileSync(process.argv[2], "utf8"));
const unicode = new Unicode(readFileSync(UNICODE));
const found = Object.entries(tokenizers).map(([name, file]) => {
  const tokenizer = new Tokenizer(readFileSync(file, "utf8"), unicode, file);
  return [name, prompts.map((prompt) => tokenizer.encode(prompt).map(({ id }) => id))];
});
process.stdout.write(JSON.stringify(Object.fromEntries(found)));
