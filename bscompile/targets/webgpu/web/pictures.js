/** Pictures from and to tensors of the shapes [1, channels, height, width] and [1, pixels]. */

/** [channels, height, width], or null where a shape holds no picture. */
export function pictureSize(shape) {
  const [batch, ...rest] = shape;
  if (batch !== 1) return null;
  if (rest.length === 3) return (rest[0] === 1 || rest[0] === 3) && rest[1] * rest[2] > 1 ? rest : null;
  if (rest.length === 2 && Math.min(...rest) >= 8) return [1, ...rest];
  const side = Math.round(Math.sqrt(rest[0]));
  return rest.length === 1 && side >= 8 && side * side === rest[0] ? [1, side, side] : null;
}

/** Whether a file is a picture by its type. */
export const isPicture = (file) => file.type.startsWith("image/");

/**
 * Scale a picture to the input and give (pixel - mean) / std, pixels from 0 to 1.
 *
 * @returns {Promise<Float32Array>} Channel by channel, row by row.
 */
export async function readPicture(file, shape, mean, std) {
  const [channels, height, width] = pictureSize(shape);
  const canvas = new OffscreenCanvas(width, height);
  const context = canvas.getContext("2d");
  context.drawImage(await createImageBitmap(file), 0, 0, width, height);
  const { data } = context.getImageData(0, 0, width, height);
  return Float32Array.from({ length: channels * height * width }, (_, index) => {
    const channel = Math.floor(index / (height * width));
    const pixel = 4 * (index % (height * width));
    const [red, green, blue] = [data[pixel], data[pixel + 1], data[pixel + 2]];
    const value = channels === 3 ? data[pixel + channel] : 0.299 * red + 0.587 * green + 0.114 * blue;
    return (value / 255 - (mean[channel] ?? mean[0])) / (std[channel] ?? std[0]);
  });
}

/** Draw a tensor; its least value is black and its greatest white. */
export function showPicture(canvas, values, shape) {
  const [channels, height, width] = pictureSize(shape);
  const numbers = Array.from(values, Number);
  const low = numbers.reduce((a, b) => Math.min(a, b), Infinity);
  const high = numbers.reduce((a, b) => Math.max(a, b), -Infinity);
  Object.assign(canvas, { width, height });
  const context = canvas.getContext("2d");
  const image = context.createImageData(width, height);
  for (let pixel = 0; pixel < height * width; pixel++) {
    for (let color = 0; color < 3; color++) {
      const value = numbers[(channels === 3 ? color : 0) * height * width + pixel];
      image.data[4 * pixel + color] = (255 * (value - low)) / (high - low || 1);
    }
    image.data[4 * pixel + 3] = 255;
  }
  context.putImageData(image, 0, 0);
}
