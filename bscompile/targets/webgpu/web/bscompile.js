/**
 * Run a model that bscompile compiled for WebGPU, in a browser or in Node.
 *
 *     import { load } from "./bscompile.js";
 *     const model = await load("./");
 *     const { logits } = await model.run({ image: new Float32Array(784) });
 *     logits.data; // Float32Array; logits.shape, logits.dtype
 */
import { guarded, openDevice, readbackBuffer, storageBuffer, uniformBuffer, writeArray } from "./device.js";
import { BscompileError, check } from "./errors.js";
import { readManifest, readMember, reader } from "./files.js";
import { foldGrid, readProgram, storagesOf } from "./program.js";
import { convert, count, halvesToFloats, readSafetensors } from "./tensors.js";

export { BscompileError } from "./errors.js";

const WEIGHTS = "weights.safetensors";
const MAP_READ = 1;

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
  say("opening the device");
  const { adapter, device } = await openDevice(program, manifest.features, options);
  say("reading the weights");
  const weights = readSafetensors(WEIGHTS, await readMember(read, manifest, WEIGHTS));
  say("compiling the shaders");
  const model = new Model(manifest, program, adapter, device);
  try {
    await guarded(device, manifest.name, () => model._prepare(weights));
  } catch (error) {
    model.close();
    throw error;
  }
  return model;
}

/** A loaded model. Calls are run one after the other, in the order in which they are made. */
export class Model {
  #program;
  #device;
  #memory = []; // a GPUBuffer for each storage
  #dispatches = []; // {pipeline, bindings, workgroups}, in order
  #readback;
  #spans = []; // {buffer, begin} of each output in the readback
  #queue = Promise.resolve();
  #failure = null;
  #checked = false;

  /** Use load(). */
  constructor(manifest, program, adapter, device) {
    this.manifest = manifest;
    this.adapter = adapter;
    this.#program = program;
    this.#device = device;
    device.addEventListener?.("uncapturederror", ({ error }) => {
      this.#failure ??= error.message.trim().split("\n")[0];
    });
    device.lost.then(({ message, reason }) => {
      this.#failure ??= reason === "destroyed" ? "the model was closed" : `the GPU was lost, ${message}`;
    });
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
  run(inputs) {
    const arrays = this.#check(inputs);
    const result = this.#queue.then(() => this.#run(arrays));
    this.#queue = result.catch(() => {});
    return result;
  }

  /** Free the memory on the device; the model cannot be used afterwards. */
  close() {
    this.#failure ??= "the model was closed";
    this.#device.destroy();
  }

  /** Buffers, weights, pipelines and bindings; called once, by load(). */
  async _prepare(weights) {
    const device = this.#device;
    const program = this.#program;
    this.#memory = program.storages.map(({ bytes }) => storageBuffer(device, bytes));
    this.#fillParams(weights);
    const names = new Set(program.steps.flatMap(({ kernel }) => program.launches.get(kernel).map(({ entry }) => entry)));
    const pipelines = new Map(
      await Promise.all([...names].map(async (name) => [name, await this.#pipeline(name)])),
    );
    const bounds = new Map(); // equal uniforms are one
    for (const step of program.steps) {
      for (const { entry, arguments: taken, grid } of program.launches.get(step.kernel)) {
        const { workgroups, last } = foldGrid(entry, grid);
        if (!bounds.has(last)) bounds.set(last, uniformBuffer(device, last));
        const resources = [...taken.map((argument) => this.#window(step.buffers[argument])), { buffer: bounds.get(last) }];
        const pipeline = pipelines.get(entry);
        const bindings = device.createBindGroup({
          layout: pipeline.getBindGroupLayout(0),
          entries: resources.map((resource, binding) => ({ binding, resource })),
        });
        this.#dispatches.push({ pipeline, bindings, workgroups });
      }
    }
    let end = 0;
    for (const index of program.outputs) {
      const buffer = program.buffers[index];
      this.#spans.push({ buffer, begin: end });
      end += Math.ceil(buffer.bytes / 8) * 8; // aligned for every dtype
    }
    this.#readback = readbackBuffer(device, end);
  }

  #fillParams(weights) {
    const storages = storagesOf(this.#program, "param");
    const { params } = this.manifest;
    check(params.length === storages.length, `${WEIGHTS}: ${params.length} weights, the program wants ${storages.length}`);
    params.forEach(({ name, shape, stored, used }, index) => {
      const weight = weights.get(name);
      check(weight, `${WEIGHTS}: the weight ${name} is missing`);
      const agrees = weight.dtype === stored && String(weight.shape) === String(shape);
      check(agrees, `${WEIGHTS}: ${name} is ${weight.dtype}[${weight.shape}], the manifest says ${stored}[${shape}]`);
      const data = convert(weight.data, stored, used);
      const { bytes } = this.#program.storages[storages[index]];
      check(data.byteLength === bytes, `${WEIGHTS}: ${name} has ${data.byteLength} bytes, the program wants ${bytes}`);
      writeArray(this.#device, this.#memory[storages[index]], data);
    });
  }

  async #pipeline(name) {
    const module = this.#device.createShaderModule({ code: this.#program.shaders.get(name), label: name });
    try {
      return await this.#device.createComputePipelineAsync({
        layout: "auto",
        compute: { module, entryPoint: name },
        label: name,
      });
    } catch (error) {
      throw new BscompileError(`the shader ${name} cannot be compiled here: ${error.message.trim().split("\n")[0]}`);
    }
  }

  /** A binding of a buffer of the program. */
  #window(index) {
    const { storage, offset } = this.#program.buffers[index];
    return { buffer: this.#memory[storage], offset };
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
      return convert(given, dtype === "float16" ? "float32" : dtype, this.#dtype(storage));
    });
  }

  /** dtype of the whole storage of an input. */
  #dtype(storage) {
    return this.#program.buffers.find((buffer) => buffer.storage === storage).dtype;
  }

  async #run(arrays) {
    if (this.#failure) throw new BscompileError(this.#failure);
    // Error scopes cost a round trip: the first call shows whether the program is valid here.
    if (!this.#checked) await guarded(this.#device, this.manifest.name, async () => this.#submit(arrays));
    else this.#submit(arrays);
    this.#checked = true;
    await this.#readback.mapAsync(MAP_READ).catch((error) => {
      throw new BscompileError(this.#failure ?? `the results cannot be read, ${error.message}`);
    });
    const bytes = this.#readback.getMappedRange().slice(0);
    this.#readback.unmap();
    if (this.#failure) throw new BscompileError(this.#failure);
    return this.#collect(bytes);
  }

  #submit(arrays) {
    const device = this.#device;
    const storages = storagesOf(this.#program, "input");
    arrays.forEach((array, index) => writeArray(device, this.#memory[storages[index]], array));
    const encoder = device.createCommandEncoder();
    const pass = encoder.beginComputePass();
    for (const { pipeline, bindings, workgroups } of this.#dispatches) {
      pass.setPipeline(pipeline);
      pass.setBindGroup(0, bindings);
      pass.dispatchWorkgroups(...workgroups);
    }
    pass.end();
    for (const { buffer, begin } of this.#spans) {
      const bytes = Math.ceil(buffer.bytes / 4) * 4;
      if (bytes) encoder.copyBufferToBuffer(this.#memory[buffer.storage], buffer.offset, this.#readback, begin, bytes);
    }
    device.queue.submit([encoder.finish()]);
  }

  #collect(bytes) {
    const results = this.outputs.map(({ name, shape, dtype }, index) => {
      const { buffer, begin } = this.#spans[index];
      const raw = bytes.slice(begin, begin + buffer.bytes);
      return [name, { data: decode(raw, buffer.dtype, dtype), shape, dtype }];
    });
    return Object.fromEntries(results);
  }
}

/** Bytes of the device as the numbers that the manifest promises; float16 becomes float32. */
function decode(raw, held, promised) {
  const data = convert(new ARRAYS[held](raw), held, promised);
  return promised === "float16" ? halvesToFloats(data) : data;
}

const ARRAYS = { float32: Float32Array, float16: Uint16Array, int32: Int32Array, uint32: Uint32Array };
