// node run_model.mjs FOLDER PACKAGES < {name: numbers} > {name: {data, shape, dtype}} or {error}
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const [folder, packages] = process.argv.slice(2);
const { create, globals } = await import(pathToFileURL(createRequire(`${packages}/`).resolve("webgpu")));
Object.assign(globalThis, globals);
const { load } = await import(pathToFileURL(`${folder}/bscompile.js`));
const chunks = [];
for await (const chunk of process.stdin) chunks.push(chunk);
const inputs = JSON.parse(Buffer.concat(chunks).toString());

async function answer() {
  const model = await load(pathToFileURL(folder), { gpu: create([]) });
  const [first, second] = await Promise.all([model.run(inputs), model.run(inputs)]);
  model.close();
  for (const [name, { data }] of Object.entries(first)) {
    if (String(data) !== String(second[name].data)) throw new Error(`${name} differs between calls`);
  }
  const plain = ({ data, shape, dtype }) => ({ data: Array.from(data, Number), shape, dtype });
  return Object.fromEntries(Object.entries(first).map(([name, result]) => [name, plain(result)]));
}

const result = await answer().catch((error) => ({ error: `${error.name}: ${error.message}` }));
// Dawn's threads live on, and crash Node now and then while it leaves: it does not leave, it stops.
process.stdout.write(JSON.stringify(result), () => process.kill(process.pid, "SIGKILL"));
