/** The page beside an exported model: its sample, its user's own input, the answer, the time. */
import { load } from "./bscompile.js";
import { parseJson, reader } from "./files.js";
import { InputField } from "./input_field.js";
import { readSafetensors } from "./tensors.js";
import { layerTable, outputView } from "./views.js";

const TIMED_MS = 1500;
const MOST_CALLS = 50;
const at = (id) => document.getElementById(id);

/** Fill the page; what happens is also told to scripts, as events of the document. */
async function main() {
  const read = reader(new URL("./", import.meta.url));
  const settings = parseJson("page.json", await read("page.json"));
  const begun = performance.now();
  const model = await load(read, { progress: say });
  const seconds = (performance.now() - begun) / 1000;
  const sample = readSafetensors("sample.safetensors", await read("sample.safetensors"));
  describe(model, seconds, parseJson("report.json", await read("report.json")));
  const fields = model.inputs.map((spec) => new InputField(spec, sample.get(`input/${spec.name}`), fail));
  at("inputs").replaceChildren(...fields.map((field) => field.element));
  document.querySelector("main").hidden = false;
  const answer = () => guard(() => run(model, fields, sample, settings));
  at("run").addEventListener("click", answer);
  at("sample").addEventListener("click", () => {
    fields.forEach((field) => field.reset());
    answer();
  });
  await run(model, fields, sample, settings);
}

/** One call for the answer, then calls for the time. */
async function run(model, fields, sample, settings) {
  at("run").disabled = true;
  try {
    say("running");
    const inputs = Object.fromEntries(fields.map((field) => [field.name, field.values()]));
    const results = await model.run(inputs);
    const ofSample = fields.every((field) => field.isSample);
    const views = Object.entries(results).map(([name, result]) => {
      const expected = ofSample ? sample.get(`expected/${name}`) : undefined;
      return outputView(name, result, expected, settings);
    });
    at("answer").replaceChildren(...views.map((view) => view.element));
    const times = await time(() => model.run(inputs));
    at("latency").textContent =
      `${milliseconds(times[times.length >> 1])} for one call, median of ${times.length}; ` +
      `least ${milliseconds(times[0])}, most ${milliseconds(times.at(-1))}`;
    say("");
    const differences = Object.fromEntries(views.map(({ name, difference }) => [name, difference]));
    const outputs = Object.fromEntries(views.map(({ name, values }) => [name, values]));
    tell("answered", { outputs, differences, median: times[times.length >> 1] });
  } finally {
    at("run").disabled = false;
  }
}

/** Sorted milliseconds of as many calls as there is patience for. */
async function time(call) {
  const times = [];
  const end = performance.now() + TIMED_MS;
  do {
    const begun = performance.now();
    await call();
    times.push(performance.now() - begun);
  } while (times.length < MOST_CALLS && performance.now() < end);
  return times.sort((a, b) => a - b);
}

function describe(model, seconds, report) {
  const { vendor, architecture, description } = model.adapter.info ?? {};
  const gpu = description || [vendor, architecture].filter(Boolean).join(" ") || "an unnamed GPU";
  const megabytes = model.manifest.members["weights.safetensors"].size / 2 ** 20;
  document.title = model.manifest.name;
  at("name").textContent = model.manifest.name;
  at("about").textContent =
    `runs on ${gpu} by WebGPU; ${megabytes.toFixed(2)} MiB of weights, ready after ${seconds.toFixed(2)} s`;
  const sparse = report.layers.filter((layer) => layer.form !== "dense").length;
  at("layers-summary").textContent = `${report.layers.length} linear layers, ${sparse} of them block-sparse or factorized`;
  layerTable(at("layers"), report.layers);
}

function milliseconds(time) {
  return `${time < 10 ? time.toFixed(2) : time.toFixed(0)} ms`;
}

function say(line) {
  at("status").textContent = line;
  at("status").className = "";
}

function fail(error) {
  at("status").textContent = error.message;
  at("status").className = "error";
  tell("failed", { message: error.message });
}

function tell(what, detail) {
  document.dispatchEvent(new CustomEvent(`bscompile:${what}`, { detail }));
}

async function guard(action) {
  try {
    await action();
  } catch (error) {
    fail(error);
  }
}

guard(main);
