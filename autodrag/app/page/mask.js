// The mask. Painted pixels are protected. Strokes have soft edges; an edit protects pixels that are painted more than half.

import { call, pixels } from "./api.js";
import { changed, state } from "./state.js";

const FINE = 512; // minimum length of the painted canvas's shorter side, px

let counter = 0;

export class Mask {
  constructor(width, height) {
    this.width = width;
    this.height = height;
    this.name = null; // its name on the server; null: everything may change
    this.coming = undefined; // its name on the server after the present upload
    this.dirty = false; // whether it differs from the mask on the server
    this.share = 0; // protected share of the image
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
    this.dirty = true;
  }

  /** Returns a function that restores the present pixels. */
  snapshot() {
    const copy = canvasOf(this.soft.width, this.soft.height);
    copy.getContext("2d").drawImage(this.soft, 0, 0);
    const { dirty } = this;
    return () => {
      const context = this.soft.getContext("2d");
      context.globalCompositeOperation = "copy";
      context.drawImage(copy, 0, 0);
      this.#harden();
      this.dirty = dirty;
    };
  }

  invert() {
    const context = this.soft.getContext("2d");
    context.globalCompositeOperation = "xor";
    context.fillStyle = "#000";
    context.fillRect(0, 0, this.soft.width, this.soft.height);
    this.#harden();
    this.dirty = true;
  }

  clear() {
    this.soft.getContext("2d").clearRect(0, 0, this.soft.width, this.soft.height);
    this.#harden();
    this.dirty = true;
  }

  /** Show a mask of the server or of a file: white may change. Without a blob, everything may change. */
  async load(name, blob) {
    const image = blob && (await pixels(blob));
    if (image && (image.width !== this.width || image.height !== this.height)) {
      throw new Error(`The mask is ${image.width}x${image.height} px, and the image is ${this.width}x${this.height}. Resize the mask.`);
    }
    if (image && name === null && !twoValued(image)) {
      throw new Error("The picture is neither an export of this editor nor a mask. A mask is black and white only.");
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
    this.dirty = name === null && Boolean(image);
  }

  /** Upload the mask if it has changed, under a new name, so that the history keeps the old one. */
  async upload() {
    if (!this.dirty) return;
    this.dirty = false;
    const name = this.empty ? null : `${Date.now().toString(36)}-${(counter += 1)}.png`;
    this.coming = name;
    try {
      if (name) await call("PUT", `sessions/${state.session.key}/masks/${name}`, this.#encode(), "image/png");
    } catch (error) {
      this.dirty = true;
      throw error;
    }
    if (this.coming !== name) return; // a newer upload is on its way
    this.name = name;
    this.coming = undefined;
  }

  /** A PNG of the mask. It is made at once, so that the upload begins before the page can be closed. */
  #encode() {
    const canvas = canvasOf(this.width, this.height);
    const context = canvas.getContext("2d");
    context.drawImage(this.hard, 0, 0);
    context.globalCompositeOperation = "source-in"; // black where protected
    context.fillStyle = "#000";
    context.fillRect(0, 0, this.width, this.height);
    context.globalCompositeOperation = "destination-over";
    context.fillStyle = "#fff";
    context.fillRect(0, 0, this.width, this.height);
    const bytes = atob(canvas.toDataURL("image/png").split(",")[1]);
    return new Blob([Uint8Array.from(bytes, (byte) => byte.charCodeAt(0))], { type: "image/png" });
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

/** Whether at least 98 % of the pixels are nearly black or nearly white. */
function twoValued(image) {
  const { data } = image.getContext("2d").getImageData(0, 0, image.width, image.height);
  let others = 0;
  for (let i = 0; i < data.length; i += 4) {
    const [least, most] = [Math.min(data[i], data[i + 1], data[i + 2]), Math.max(data[i], data[i + 1], data[i + 2])];
    others += most > 64 && least < 191;
  }
  return others * 4 <= 0.02 * data.length;
}
