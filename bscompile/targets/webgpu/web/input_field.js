/** One input of the model on the page: its sample, random numbers, a .npy file or a picture. */
import { check } from "./errors.js";
import { readNpy } from "./npy.js";
import { isPicture, pictureSize, readPicture, showPicture } from "./pictures.js";
import { convert, count } from "./tensors.js";

export class InputField {
  #spec;
  #sample;
  #values;
  #canvas;
  #scaling = {};

  /**
   * @param {{name: string, shape: number[], dtype: string}} spec
   * @param {{data: TypedArray, dtype: string}} sample
   * @param {function(Error)} fail Told what is wrong with a file.
   */
  constructor(spec, sample, fail) {
    this.#spec = spec;
    this.#sample = convert(sample.data, sample.dtype, this.#held());
    this.element = this.#build(fail);
    this.reset();
  }

  get name() {
    return this.#spec.name;
  }

  /** Whether the values are those of the sample. */
  get isSample() {
    return this.#values === this.#sample;
  }

  /** What to give to the model. */
  values() {
    return this.#values;
  }

  /** Take the sample. */
  reset() {
    this.#take(this.#sample, "the sample");
  }

  /** float16 is handed to the loader as float32. */
  #held() {
    return this.#spec.dtype === "float16" ? "float32" : this.#spec.dtype;
  }

  #build(fail) {
    const { name, shape, dtype } = this.#spec;
    const field = document.createElement("fieldset");
    const legend = Object.assign(document.createElement("legend"), { textContent: `${name}: ${dtype}[${shape.join(", ")}]` });
    this.state = Object.assign(document.createElement("span"), { className: "quiet" });
    const file = Object.assign(document.createElement("input"), { type: "file", accept: ".npy" });
    field.append(legend);
    if (pictureSize(shape)) {
      file.accept = ".npy,image/*";
      this.#canvas = document.createElement("canvas");
      field.append(this.#canvas, ...["mean", "std"].map((what) => this.#number(what)));
    }
    const random = Object.assign(document.createElement("button"), { textContent: "Random" });
    random.addEventListener("click", () => this.#take(this.#random(), "random numbers"));
    file.addEventListener("change", () => this.#open(file.files[0]).catch(fail));
    field.append(file, random, this.state);
    return field;
  }

  /** A field for what pixels of 0 to 1 are scaled with; one number, or one for each channel. */
  #number(what) {
    const input = Object.assign(document.createElement("input"), { value: what === "mean" ? "0" : "1", className: "short" });
    this.#scaling[what] = () => input.value.split(",").map(Number);
    const label = Object.assign(document.createElement("label"), { textContent: `pixel ${what} ` });
    label.append(input);
    return label;
  }

  async #open(file) {
    if (!file) return;
    const { name, shape, dtype } = this.#spec;
    if (isPicture(file)) {
      check(this.#canvas, `${file.name}: input ${name} has no shape of a picture; choose a .npy file`);
      const pixels = await readPicture(file, shape, this.#scaling.mean(), this.#scaling.std());
      this.#take(convert(pixels, "float32", this.#held()), file.name);
      return;
    }
    const array = readNpy(file.name, await file.arrayBuffer());
    const wanted = `${dtype}[${shape.join(", ")}]`;
    check(
      array.data.length === count(shape),
      `${file.name}: input ${name} takes ${wanted}, the file holds ${array.dtype}[${array.shape.join(", ")}]`,
    );
    this.#take(convert(array.data, array.dtype, this.#held()), file.name);
  }

  #random() {
    const numbers = Float32Array.from({ length: count(this.#spec.shape) }, () => {
      if (!this.#spec.dtype.startsWith("float")) return Math.random() < 0.75 ? 1 : 0;
      return Math.sqrt(-2 * Math.log(1 - Math.random())) * Math.cos(2 * Math.PI * Math.random());
    });
    return convert(numbers, "float32", this.#held());
  }

  #take(values, from) {
    this.#values = values;
    this.state.textContent = from;
    if (this.#canvas) showPicture(this.#canvas, values, this.#spec.shape);
  }
}
