/** What the page shows of outputs and layers. */
import { convert, count } from "./tensors.js";

const TOP = 5;
const MOST_CLASSES = 100000;
const SHOWN = 16;

/**
 * One output: the best classes where it looks like scores, numbers otherwise.
 *
 * @param {string} name
 * @param {{data: TypedArray, shape: number[], dtype: string}} result
 * @param {{data: TypedArray, dtype: string}|undefined} expected What a reference answered.
 * @param {{labels: string[]|null, expected_by: string|null}} settings
 * @returns {{name: string, element: Element, difference: number|null, values: number[]}}
 */
export function outputView(name, result, expected, settings) {
  const values = Array.from(result.data, Number);
  const element = document.createElement("section");
  element.append(paragraph(`${name}: ${result.dtype}[${result.shape.join(", ")}]`, "quiet"));
  element.append(isScores(result) ? best(values, settings.labels) : paragraph(numbers(values)));
  let difference = null;
  if (expected) {
    const wanted = Array.from(convert(expected.data, expected.dtype, "float32"));
    difference = values.reduce((most, value, index) => Math.max(most, Math.abs(value - wanted[index])), 0);
    const scale = wanted.reduce((most, value) => Math.max(most, Math.abs(value)), 0);
    element.append(
      paragraph(
        `largest difference to ${settings.expected_by} on this sample: ` +
          `${difference ? difference.toExponential(1) : 0}, of values up to ${scale.toPrecision(3)}`,
      ),
    );
  }
  return { name, element, difference, values };
}

/** Fill a table with what became of each layer. */
export function layerTable(table, layers) {
  const head = ["layer", "out × in", "runs as", "block", "live", "why"];
  const rows = layers.map((layer) => [
    layer.name,
    layer.shape.join(" × "),
    layer.form.replace("_", "-"),
    layer.block ? layer.block.join("×") : "",
    `${(100 * layer.density).toFixed(0)} %`,
    layer.reason,
  ]);
  table.replaceChildren(row(head, "th"), ...rows.map((cells) => row(cells, "td")));
}

function isScores({ data, shape, dtype }) {
  const classes = shape.at(-1) ?? 0;
  return dtype.startsWith("float") && count(shape) === classes && classes > 1 && data.length <= MOST_CLASSES;
}

/** The highest scores with their share by softmax; scores that are shares already stay. */
function best(scores, labels) {
  const sum = scores.reduce((total, score) => total + score, 0);
  const areShares = Math.abs(sum - 1) < 1e-3 && scores.every((score) => score >= 0);
  const shares = areShares ? scores : softmax(scores);
  const order = shares.map((_, index) => index).sort((a, b) => scores[b] - scores[a]);
  const table = document.createElement("table");
  for (const index of order.slice(0, TOP)) {
    const line = row([labels?.[index] ?? `class ${index}`, "", `${(100 * shares[index]).toFixed(1)} %`, scores[index].toPrecision(4)], "td");
    line.children[1].append(Object.assign(document.createElement("meter"), { value: shares[index] }));
    table.append(line);
  }
  return table;
}

function softmax(scores) {
  const most = scores.reduce((a, b) => Math.max(a, b), -Infinity);
  const powers = scores.map((score) => Math.exp(score - most));
  const sum = powers.reduce((a, b) => a + b, 0);
  return powers.map((power) => power / sum);
}

function numbers(values) {
  const text = (value) => (Number.isInteger(value) ? String(value) : value.toPrecision(5));
  const shown = values.slice(0, SHOWN).map(text).join(", ");
  return values.length > SHOWN ? `${shown}, … (${values.length} numbers)` : shown;
}

function paragraph(text, className = "") {
  return Object.assign(document.createElement("p"), { textContent: text, className });
}

function row(cells, tag) {
  const line = document.createElement("tr");
  line.append(...cells.map((text) => Object.assign(document.createElement(tag), { textContent: text })));
  return line;
}
