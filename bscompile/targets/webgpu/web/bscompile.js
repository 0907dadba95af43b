/**
 * Run a model that bscompile compiled for WebGPU, in a browser or in Node.
 *
 *     import { load } from "./bscompile.js";
 *     const model = await load("./");
 *     const { logits } = await model.run({ image: new Float32Array(784) });
 *     logits.data; // Float32Array; logits.shape, logits.dtype
 */
import { openDevice } from "./device.js";
import { check } from "./errors.js";
import { readManifest, readMember, reader } from "./files.js";
import { readProgram, storagesOf } from "./program.js";
import { Session, checkParams } from "./session.js";
import { DTYPES, convert, count, halvesToFloats, readSafetensors } from "./tensors.js";

export { BscompileError } from "./errors.js";

const WEIGHTS = "weights.safetensors";

/**
 * Load an exported model: read its files, compare them with their hashes, compile its shaders and
 * put its weights on the device.
 *
 * @param {URL|string|function(string): Promise<ArrayBuffer>} source The exported folder.
 * @param {object} [options]
 * @param {GPU} [options.gpu] navigator.gpu where it is not given; Node has to give one.
 * @param {GPURequestAdapterOptions} [options.adapterOptions]
 * @param {function(string)} [options.progress] Called with one line at the start of each phase.
 * @returns {Promise<Model>}
 * @throws {BscompileError} A file is missing or changed, or this device lacks what the model needs.
 */
export async function load(source, options = {}) {
  const say = options.progress ?? (() => {});
  const read = reader(source);
  say("reading the program");
  const manifest = await readManifest(read);
  const program = await readProgram(read, manifest);
  say("reading the weights");
  const params = await readParams(read, manifest, program);
  say("compiling the shaders");
  const { adapter, device } = await openDevice(program, manifest.features, options);
  return new Model(manifest, program, adapter, await Session.open(device, program, params));
}

/** A loaded model. Calls are run one after the other, in the order in which they are made. */
export class Model {
  #program;
  #session;
  #queue = Promise.resolve();

  /** Use load(). */
  constructor(manifest, program, adapter, session) {
    this.manifest = manifest;
    this.adapter = adapter;
    this.#program = program;
    this.#session = session;
  }

  /** What run takes: [{name, shape, dtype}]. */
  get inputs() {
    return this.manifest.inputs;
  }

  /** What run gives: [{name, shape, dtype}]. */
  get outputs() {
    return this.manifest.outputs;
  }

  /**
   * Compute the outputs.
   *
   * @param {Object<string, TypedArray|number[]|{data: TypedArray}>} inputs Values of every input by
   *     name, row by row. float16 is given and returned as float32.
   * @returns {Promise<Object<string, {data: TypedArray, shape: number[], dtype: string}>>}
   * @throws {BscompileError} An input is missing, unknown or of another length, or the GPU failed.
   */
  async run(inputs) {
    const arrays = this.#check(inputs);
    const results = this.#queue.then(() => this.#session.run(arrays));
    this.#queue = results.catch(() => {}); // the next call does not fail for this one
    return this.#named(await results);
  }

  /** Free the memory on the device; the model cannot be used afterwards. */
  close() {
    this.#session.close();
  }

  /** The inputs in order, as the program holds them. */
  #check(inputs) {
    const names = this.inputs.map(({ name }) => name);
    for (const name of Object.keys(inputs)) {
      check(names.includes(name), `no input is named ${name}; known: ${names.join(", ")}`);
    }
    return storagesOf(this.#program, "input").map((storage, index) => {
      const { name, shape, dtype } = this.inputs[index];
      const given = inputs[name]?.data ?? inputs[name];
      const wanted = `${dtype}[${shape.join(", ")}]`;
      check(given !== undefined, `input ${name} is missing; the model takes ${wanted}`);
      check(given.length === count(shape), `input ${name}: ${wanted} is ${count(shape)} numbers, got ${given.length}`);
      const held = this.#program.buffers.find((buffer) => buffer.storage === storage).dtype;
      const array = convert(given, dtype === "float16" ? "float32" : dtype, held);
      const wide = dtype === "int64" ? array.findIndex((value, at) => value !== Number(given[at])) : -1;
      check(wide < 0, `input ${name}: ${given[wide]} needs more than 32 bits`);
      return array;
    });
  }

  #named(results) {
    return Object.fromEntries(
      this.outputs.map(({ name, shape, dtype }, index) => {
        const { buffer, bytes } = results[index];
        const data = convert(new DTYPES[buffer.dtype].array(bytes), buffer.dtype, dtype);
        return [name, { data: dtype === "float16" ? halvesToFloats(data) : data, shape, dtype }];
      }),
    );
  }
}

/** The weights in the order and dtype of the program. */
async function readParams(read, manifest, program) {
  const weights = readSafetensors(WEIGHTS, await readMember(read, manifest, WEIGHTS));
  const params = manifest.params.map(({ name, shape, stored, used }) => {
    const weight = weights.get(name);
    check(weight, `${WEIGHTS}: the weight ${name} is missing`);
    const agrees = weight.dtype === stored && String(weight.shape) === String(shape);
    check(agrees, `${WEIGHTS}: ${name} is ${weight.dtype}[${weight.shape}], the manifest says ${stored}[${shape}]`);
    return convert(weight.data, stored, used);
  });
  checkParams(program, params, manifest.params.map(({ name }) => name));
  return params;
}
