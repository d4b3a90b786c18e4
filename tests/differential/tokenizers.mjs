// JSON lines {"text", "special"} in, {"ids", "decoded", "skipped"} out, by @huggingface/tokenizers.
// usage: node tokenizers.mjs TOKENIZER_DIR
import { readFileSync, existsSync } from "node:fs";
import { createInterface } from "node:readline";
import { Tokenizer } from "@huggingface/tokenizers";

const dir = process.argv[2];
const config = `${dir}/tokenizer_config.json`;
const tokenizer = new Tokenizer(
  JSON.parse(readFileSync(`${dir}/tokenizer.json`, "utf8")),
  existsSync(config) ? JSON.parse(readFileSync(config, "utf8")) : {},
);
const options = { clean_up_tokenization_spaces: false };
for await (const line of createInterface({ input: process.stdin })) {
  const { text, special } = JSON.parse(line);
  const { ids } = tokenizer.encode(text, { add_special_tokens: special });
  const decode = (skip) => (ids.length ? tokenizer.decode(ids, { ...options, skip_special_tokens: skip }) : "");
  console.log(JSON.stringify({ ids: Array.from(ids), decoded: decode(false), skipped: decode(true) }));
}
