// The mask: what is painted is protected. It is painted softly, and an edit takes what is painted more than half.

import { call, pixels } from "./api.js";
import { changed, emit, state } from "./state.js";

const FINE = 512; // px of the painted canvas's shorter side, at least

let counter = 0;

export class Mask {
  constructor(width, height) {
    this.width = width;
    this.height = height;
    this.name = null; // what the server knows it as; null: everything may move
    this.share = 0; // protected share of the image
    this.uploaded = Promise.resolve();
    const factor = Math.max(1, Math.ceil(FINE / Math.min(width, height)));
    this.soft = canvasOf(width * factor, height * factor);
    this.hard = canvasOf(width, height); // opaque where protected
    this.factor = factor;
  }

  get empty() {
    return this.share === 0;
  }

  /** A stroke between two places in px of the image. */
  stroke(from, to, radius, feather, erase) {
    const context = this.soft.getContext("2d");
    const size = radius * this.factor;
    const [x0, y0, x1, y1] = [...from, ...to].map((value) => (value + 0.5) * this.factor);
    const count = Math.max(1, Math.ceil(Math.hypot(x1 - x0, y1 - y0) / Math.max(1, size / 4)));
    context.globalCompositeOperation = erase ? "destination-out" : "source-over";
    for (let step = 1; step <= count; step++) {
      const x = x0 + ((x1 - x0) * step) / count;
      const y = y0 + ((y1 - y0) * step) / count;
      const colour = context.createRadialGradient(x, y, size * (1 - feather) * 0.999, x, y, size);
      colour.addColorStop(0, "#000");
      colour.addColorStop(1, feather > 0 ? "#0000" : "#000");
      context.fillStyle = colour;
      context.beginPath();
      context.arc(x, y, size, 0, 7);
      context.fill();
    }
    this.#harden();
  }

  invert() {
    const context = this.soft.getContext("2d");
    context.globalCompositeOperation = "xor";
    context.fillStyle = "#000";
    context.fillRect(0, 0, this.soft.width, this.soft.height);
    this.#harden();
    this.commit();
  }

  clear() {
    this.soft.getContext("2d").clearRect(0, 0, this.soft.width, this.soft.height);
    this.#harden();
    this.commit();
  }

  /** Take over a mask of the server, or an image: white may move. */
  async load(name, blob) {
    const image = blob && (await pixels(blob));
    if (image && (image.width !== this.width || image.height !== this.height)) {
      throw new Error(`The mask is ${image.width}x${image.height} px, and the image is ${this.width}x${this.height}.`);
    }
    const context = this.soft.getContext("2d");
    context.globalCompositeOperation = "source-over";
    context.clearRect(0, 0, this.soft.width, this.soft.height);
    if (image) {
      const data = image.getContext("2d").getImageData(0, 0, this.width, this.height);
      for (let i = 0; i < data.data.length; i += 4) {
        const bright = (data.data[i] + data.data[i + 1] + data.data[i + 2]) / 3 > 127;
        data.data.set([0, 0, 0, bright ? 0 : 255], i);
      }
      image.getContext("2d").putImageData(data, 0, 0);
      context.imageSmoothingEnabled = false;
      context.drawImage(image, 0, 0, this.soft.width, this.soft.height);
    }
    this.#harden();
    this.name = name;
  }

  /** A stroke has ended: the server gets the mask under a new name, so that the history keeps the old one. */
  commit() {
    this.uploaded = this.#upload().catch((error) => emit("problem", error.message));
    return this.uploaded;
  }

  async #upload() {
    if (this.empty) {
      this.name = null;
      return;
    }
    const canvas = canvasOf(this.width, this.height);
    const context = canvas.getContext("2d");
    context.drawImage(this.hard, 0, 0);
    context.globalCompositeOperation = "source-in"; // black where protected
    context.fillStyle = "#000";
    context.fillRect(0, 0, this.width, this.height);
    context.globalCompositeOperation = "destination-over";
    context.fillStyle = "#fff";
    context.fillRect(0, 0, this.width, this.height);
    const blob = await new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
    const name = `${Date.now().toString(36)}-${(counter += 1)}.png`;
    await call("PUT", `sessions/${state.session.key}/masks/${name}`, blob, "image/png");
    this.name = name;
  }

  #harden() {
    const { width, height } = this;
    const context = this.hard.getContext("2d", { willReadFrequently: true });
    context.clearRect(0, 0, width, height);
    context.imageSmoothingQuality = "high";
    context.drawImage(this.soft, 0, 0, width, height);
    const data = context.getImageData(0, 0, width, height);
    let count = 0;
    for (let i = 3; i < data.data.length; i += 4) {
      const inside = data.data[i] > 127;
      data.data[i] = inside ? 255 : 0;
      count += inside;
    }
    context.putImageData(data, 0, 0);
    this.share = count / (width * height);
    changed();
  }
}

function canvasOf(width, height) {
  const canvas = document.createElement("canvas");
  canvas.width = width;
  canvas.height = height;
  return canvas;
}
