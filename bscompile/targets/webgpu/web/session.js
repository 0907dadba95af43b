/** A program on a device: memory, weights and pipelines are made once, then every call is one pass. */
import { guarded, readbackBuffer, storageBuffer, uniformBuffer, writeArray } from "./device.js";
import { BscompileError, check } from "./errors.js";
import { foldGrid, storagesOf } from "./program.js";

const MAP_READ = 1;
const ALIGNMENT = 8; // of each output in the readback, for every dtype

export class Session {
  #device;
  #program;
  #memory; // a GPUBuffer for each storage
  #dispatches = []; // {pipeline, bindings, workgroups}, in order
  #spans = []; // {buffer, begin} of each output in the readback
  #readback;
  #failure = null;
  #calls = 0;

  /** Use Session.open(). */
  constructor(device, program) {
    this.#device = device;
    this.#program = program;
    device.addEventListener?.("uncapturederror", ({ error }) => this.#fail(error.message));
    device.lost.then(({ reason, message }) => this.#fail(reason === "destroyed" ? "the model was closed" : `the GPU was lost, ${message}`));
  }

  /**
   * Make everything that calls need.
   *
   * @param {GPUDevice} device
   * @param {object} program As readProgram gives it.
   * @param {TypedArray[]} params The weights, in the order of the program.
   */
  static async open(device, program, params) {
    const session = new Session(device, program);
    try {
      await guarded(device, "the program", () => session.#prepare(params));
    } catch (error) {
      device.destroy();
      throw error;
    }
    return session;
  }

  /**
   * One call.
   *
   * @param {TypedArray[]} inputs In the order of the program.
   * @returns {Promise<{buffer: object, bytes: ArrayBuffer}[]>} One for each output.
   */
  async run(inputs) {
    this.#check();
    // Error scopes cost a round trip: the first call shows whether the program is valid here.
    if (this.#calls++) this.#submit(inputs);
    else await guarded(this.#device, "the first call", () => this.#submit(inputs));
    await this.#readback.mapAsync(MAP_READ).catch((error) => this.#fail(error.message));
    this.#check();
    const bytes = this.#readback.getMappedRange().slice(0);
    this.#readback.unmap();
    return this.#spans.map(({ buffer, begin }) => ({ buffer, bytes: bytes.slice(begin, begin + buffer.bytes) }));
  }

  /** Free the memory on the device. */
  close() {
    this.#fail("the model was closed");
    this.#device.destroy();
  }

  /** Keep the first reason why no call can succeed any more. */
  #fail(message) {
    this.#failure ??= message.trim().split("\n")[0];
  }

  #check() {
    if (this.#failure !== null) throw new BscompileError(this.#failure);
  }

  async #prepare(params) {
    const { storages, buffers, outputs } = this.#program;
    this.#memory = storages.map(({ bytes }) => storageBuffer(this.#device, bytes));
    storagesOf(this.#program, "param").forEach((storage, index) => {
      writeArray(this.#device, this.#memory[storage], params[index]);
    });
    let end = 0;
    for (const index of outputs) {
      this.#spans.push({ buffer: buffers[index], begin: end });
      end += Math.ceil(buffers[index].bytes / ALIGNMENT) * ALIGNMENT;
    }
    this.#readback = readbackBuffer(this.#device, end);
    this.#bind(await this.#pipelines());
  }

  /** Every function that a step needs, compiled side by side. */
  async #pipelines() {
    const { steps, launches } = this.#program;
    const entries = new Set(steps.flatMap(({ kernel }) => launches.get(kernel).map(({ entry }) => entry)));
    return new Map(await Promise.all([...entries].map(async (entry) => [entry, await this.#pipeline(entry)])));
  }

  async #pipeline(entry) {
    const module = this.#device.createShaderModule({ code: this.#program.shaders.get(entry), label: entry });
    const compute = { module, entryPoint: entry };
    return this.#device.createComputePipelineAsync({ layout: "auto", compute, label: entry }).catch((error) => {
      throw new BscompileError(`the shader ${entry} cannot be compiled here: ${error.message.trim().split("\n")[0]}`);
    });
  }

  /** The arguments of every launch, and behind them the bound of its grid. */
  #bind(pipelines) {
    const bounds = new Map(); // equal ones share a buffer
    for (const { kernel, buffers: given } of this.#program.steps) {
      for (const { entry, arguments: taken, grid } of this.#program.launches.get(kernel)) {
        const { workgroups, last } = foldGrid(entry, grid);
        if (!bounds.has(last)) bounds.set(last, { buffer: uniformBuffer(this.#device, last) });
        const resources = [...taken.map((argument) => this.#window(given[argument])), bounds.get(last)];
        const pipeline = pipelines.get(entry);
        const bindings = this.#device.createBindGroup({
          layout: pipeline.getBindGroupLayout(0),
          entries: resources.map((resource, binding) => ({ binding, resource })),
        });
        this.#dispatches.push({ pipeline, bindings, workgroups });
      }
    }
  }

  #window(index) {
    const { storage, offset } = this.#program.buffers[index];
    return { buffer: this.#memory[storage], offset };
  }

  #submit(inputs) {
    storagesOf(this.#program, "input").forEach((storage, index) => {
      writeArray(this.#device, this.#memory[storage], inputs[index]);
    });
    const encoder = this.#device.createCommandEncoder();
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
    this.#device.queue.submit([encoder.finish()]);
  }
}

/** Fail early, with a name, where weights and program do not fit. */
export function checkParams(program, params, names) {
  const storages = storagesOf(program, "param");
  check(params.length === storages.length, `the program takes ${storages.length} weights, the manifest lists ${params.length}`);
  params.forEach((array, index) => {
    const wanted = program.storages[storages[index]].bytes;
    check(array.byteLength === wanted, `weight ${names[index]} has ${array.byteLength} bytes, the program wants ${wanted}`);
  });
}
