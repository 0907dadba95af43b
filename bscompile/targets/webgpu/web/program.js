/** code/program.json, code/launches.json and code/kernels.wgsl, checked before a device sees them. */
import { check } from "./errors.js";
import { parseJson, readMember } from "./files.js";
import { DTYPES, count } from "./tensors.js";

/** The members of an artifact for WebGPU, besides the weights. */
export const PROGRAM = "code/program.json";
export const LAUNCHES = "code/launches.json";
export const KERNELS = "code/kernels.wgsl";

/** dtypes that WGSL can hold in a storage buffer. */
const IN_SHADERS = new Set(["float32", "float16", "int32", "uint32"]);
const MOST_WORKGROUPS = 65535;

/**
 * @typedef {object} Program
 * @property {{bytes: number, role: string}[]} storages Inputs, then params, then scratch.
 * @property {{storage: number, offset: number, shape: number[], dtype: string, bytes: number}[]} buffers
 * @property {{kernel: string, buffers: number[]}[]} steps
 * @property {number[]} outputs Buffer of each output of the manifest.
 * @property {Map<string, Launch[]>} launches What one call of a kernel starts, by the kernel's name.
 * @property {Map<string, string>} shaders WGSL of each function.
 */

/** Read and check the whole program. @returns {Promise<Program>} */
export async function readProgram(read, manifest) {
  const [program, launches, shaders] = await Promise.all(
    [PROGRAM, LAUNCHES, KERNELS].map((name) => readMember(read, manifest, name)),
  );
  const body = parseJson(PROGRAM, program);
  const { storages, steps, outputs } = body;
  const buffers = body.buffers.map((buffer) => ({
    ...buffer,
    bytes: count(buffer.shape) * (DTYPES[buffer.dtype]?.bytes ?? NaN),
  }));
  checkMemory(storages, buffers);
  const complete = {
    storages,
    buffers,
    steps,
    outputs,
    launches: new Map(Object.entries(parseJson(LAUNCHES, launches))),
    shaders: splitShaders(new TextDecoder().decode(shaders)),
  };
  steps.forEach((step) => checkStep(complete, step));
  const known = (index) => check(buffers[index], `${PROGRAM}: the buffer ${index} is not there`);
  outputs.forEach(known);
  return complete;
}

/** The storages of one role, by index. */
export function storagesOf(program, role) {
  return program.storages.flatMap((storage, index) => (storage.role === role ? [index] : []));
}

/** WGSL by function: each is a module of its own, for their declarations share names. */
function splitShaders(text) {
  const shaders = new Map();
  for (const section of text.split(/^\/\/ Function: /m).slice(1)) {
    const name = section.slice(0, section.search(/\s/));
    shaders.set(name, section.slice(section.indexOf("\n") + 1));
  }
  return shaders;
}

function checkMemory(storages, buffers) {
  buffers.forEach((buffer, index) => {
    const storage = storages[buffer.storage];
    const inside = storage && buffer.offset >= 0 && buffer.offset + buffer.bytes <= storage.bytes;
    check(inside, `${PROGRAM}: buffer ${index} reaches beyond its storage`);
    check(
      IN_SHADERS.has(buffer.dtype),
      `${PROGRAM}: buffer ${index} holds ${buffer.dtype}, WebGPU has ${[...IN_SHADERS].join(", ")}`,
    );
  });
}

function checkStep({ buffers, launches, shaders }, step) {
  const found = launches.get(step.kernel);
  check(found, `${LAUNCHES}: the kernel ${step.kernel} is missing`);
  for (const index of step.buffers) check(buffers[index], `${PROGRAM}: the buffer ${index} is not there`);
  for (const { entry, arguments: taken } of found) {
    check(shaders.has(entry), `${KERNELS}: the function ${entry} is missing`);
    const inside = taken.every((argument) => argument in step.buffers);
    check(inside, `${LAUNCHES}: ${entry} wants more than its step has`);
  }
}

/**
 * The workgroups to dispatch for a grid, and the number that bounds them in the shader.
 *
 * A long x is folded into z, which the generated code unfolds. Its guard compares with >, so the
 * bound is the last x, not their number.
 */
export function foldGrid(entry, [x, y, z]) {
  check(z === 1, `${entry}: a grid with ${z} layers cannot be dispatched, z is used to fold x`);
  check(y <= MOST_WORKGROUPS, `${entry}: ${y} rows of workgroups, WebGPU takes ${MOST_WORKGROUPS}`);
  const layers = Math.ceil(x / MOST_WORKGROUPS);
  return { workgroups: [Math.ceil(x / layers), y, layers], last: x - 1 };
}
