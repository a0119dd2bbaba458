// Draws the image and everything that lies on it, and knows where on the image a place of the page is.

import { changed, on, state } from "./state.js";

const RED = "#e5322d";
const BLUE = "#2f66f2";
const GREEN = "#1d9f58";
const AMBER = "#d98a00";

const canvas = document.getElementById("stage");
const frame = document.getElementById("frame");
const context = canvas.getContext("2d");
let scale = 1; // CSS px for one px of the image
let hatch = null;

export const radius = () => Math.max(6, Math.min(10, canvas.clientWidth / 70));

/** CSS px on the canvas of a point of the image. */
export const toStage = ([x, y]) => [(x + 0.5) * scale, (y + 0.5) * scale];

/** The point of the image under a pointer; may lie outside. */
export function toImage(event) {
  const box = canvas.getBoundingClientRect();
  return [(event.clientX - box.left) / scale - 0.5, (event.clientY - box.top) / scale - 0.5];
}

/** The point or anchor under a place of the image, as {kind, index, end}; what is drawn last is hit first. */
export function hit(place, touch) {
  const reach = radius() + (touch ? 14 : 5);
  const [x, y] = toStage(place);
  const near = (point) => {
    const [a, b] = toStage(point);
    return Math.hypot(a - x, b - y) <= reach;
  };
  for (let index = state.points.length - 1; index >= 0; index--) {
    const point = state.points[index];
    if (near(point.seen ?? point.handle)) return { kind: "point", index, end: "handle" };
    if (near(point.target)) return { kind: "point", index, end: "target" };
  }
  for (let index = state.anchors.length - 1; index >= 0; index--) {
    if (near(state.anchors[index])) return { kind: "anchor", index };
  }
  return null;
}

function fit() {
  if (!state.session) return;
  const { width, height } = state.session;
  const room = Math.min(24, frame.clientWidth * 0.03) * 2;
  scale = Math.min((frame.clientWidth - room) / width, (frame.clientHeight - room) / height);
  const ratio = window.devicePixelRatio || 1;
  const [w, h] = [Math.floor(width * scale), Math.floor(height * scale)];
  canvas.style.width = `${w}px`;
  canvas.style.height = `${h}px`;
  if (canvas.width !== Math.round(w * ratio) || canvas.height !== Math.round(h * ratio)) {
    canvas.width = Math.round(w * ratio);
    canvas.height = Math.round(h * ratio);
    hatch = null;
  }
  scale = w / width;
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
}

function draw() {
  fit();
  const { clientWidth: width, clientHeight: height } = canvas;
  context.clearRect(0, 0, width, height);
  const shown = state.held && state.before ? state.before : state.image;
  if (!shown) return;
  context.imageSmoothingEnabled = true;
  context.imageSmoothingQuality = "high";
  context.drawImage(shown, 0, 0, width, height);
  if (state.compare && state.before && !state.held) drawBefore(width, height);
  if (state.held) return;
  drawMask(width, height);
  if (state.compare) return;
  state.anchors.forEach((anchor, index) => drawAnchor(anchor, chosen("anchor", index)));
  state.points.forEach(drawArrow);
  state.points.forEach((point, index) => drawPoint(point, index));
  drawBrush();
  drawCross();
}

const chosen = (kind, index) => state.selected?.kind === kind && state.selected.index === index;

function drawBefore(width, height) {
  const x = Math.round(width * state.split);
  context.save();
  context.beginPath();
  context.rect(0, 0, x, height);
  context.clip();
  context.drawImage(state.before, 0, 0, width, height);
  context.restore();
  context.fillStyle = "#fff";
  context.shadowColor = "#0008";
  context.shadowBlur = 4;
  context.fillRect(x - 1, 0, 2, height);
  context.shadowBlur = 0;
}

function drawMask(width, height) {
  const { mask } = state;
  if (!mask || mask.empty) return;
  if (!hatch) hatch = pattern();
  const layer = new OffscreenCanvas(width, height);
  const on = layer.getContext("2d");
  on.imageSmoothingEnabled = false; // the very pixels that will not move
  on.drawImage(mask.hard, 0, 0, width, height);
  on.globalCompositeOperation = "source-in";
  on.fillStyle = hatch;
  on.fillRect(0, 0, width, height);
  context.drawImage(layer, 0, 0);
  if (state.tool === "protect" || state.tool === "free") {
    context.globalAlpha = 0.25; // and how softly they were painted
    context.drawImage(mask.soft, 0, 0, width, height);
    context.globalAlpha = 1;
  }
}

function pattern() {
  const tile = new OffscreenCanvas(10, 10);
  const on = tile.getContext("2d");
  on.fillStyle = "#15161a70";
  on.fillRect(0, 0, 10, 10);
  on.strokeStyle = "#ffffff5c";
  on.lineWidth = 1.4;
  for (const start of [-10, 0, 10]) {
    on.beginPath();
    on.moveTo(start, 10);
    on.lineTo(start + 10, 0);
    on.stroke();
  }
  return context.createPattern(tile, "repeat");
}

function disc([x, y], size, fill, rim = "#fff", width = 2) {
  context.beginPath();
  context.arc(x, y, size, 0, 7);
  context.fillStyle = fill;
  context.shadowColor = "#0007";
  context.shadowBlur = 3;
  context.fill();
  context.shadowBlur = 0;
  context.lineWidth = width;
  context.strokeStyle = rim;
  context.stroke();
}

function halo([x, y], size) {
  context.beginPath();
  context.arc(x, y, size + 5, 0, 7);
  context.lineWidth = 2;
  context.strokeStyle = "#fffd";
  context.shadowColor = "#000";
  context.shadowBlur = 4;
  context.stroke();
  context.shadowBlur = 0;
}

function drawArrow(point) {
  const from = toStage(point.seen ?? point.handle);
  const to = toStage(point.target);
  const length = Math.hypot(to[0] - from[0], to[1] - from[1]);
  const size = radius();
  if (point.seen) {
    const start = toStage(point.handle); // where it was taken hold of
    context.beginPath();
    context.arc(...start, size * 0.55, 0, 7);
    context.lineWidth = 1.6;
    context.strokeStyle = "#fffb";
    context.stroke();
  }
  if (length < size * 2.2) return;
  const way = [(to[0] - from[0]) / length, (to[1] - from[1]) / length];
  const tip = [to[0] - way[0] * (size + 4), to[1] - way[1] * (size + 4)];
  const head = Math.min(9, length / 4);
  context.lineCap = "round";
  for (const [width, colour] of [[4, "#0006"], [2, point.lost ? AMBER : "#fff"]]) {
    context.lineWidth = width;
    context.strokeStyle = colour;
    context.setLineDash(point.lost ? [2, 6] : []);
    context.beginPath();
    context.moveTo(...from);
    context.lineTo(...tip);
    context.stroke();
    context.setLineDash([]);
    context.beginPath();
    context.moveTo(tip[0] - head * (way[0] + way[1] * 0.6), tip[1] - head * (way[1] - way[0] * 0.6));
    context.lineTo(...tip);
    context.lineTo(tip[0] - head * (way[0] - way[1] * 0.6), tip[1] - head * (way[1] + way[0] * 0.6));
    context.stroke();
  }
}

function drawPoint(point, index) {
  const size = radius();
  const handle = toStage(point.seen ?? point.handle);
  const target = toStage(point.target);
  const apart = Math.hypot(handle[0] - target[0], handle[1] - target[1]);
  disc(target, size, BLUE);
  if (point.lost) {
    disc(handle, size, "#0008", AMBER, 2.4);
    context.lineWidth = 2.4;
    context.strokeStyle = AMBER;
    context.beginPath();
    for (const [a, b] of [[-1, -1], [-1, 1]]) {
      context.moveTo(handle[0] + a * size * 0.42, handle[1] + b * size * 0.42);
      context.lineTo(handle[0] - a * size * 0.42, handle[1] - b * size * 0.42);
    }
    context.stroke();
  } else {
    disc(handle, apart < size * 1.2 ? size * 0.56 : size, RED); // an arrived handle sits inside of its target
  }
  if (chosen("point", index)) halo(apart < size * 1.2 ? target : handle, size);
  if (state.points.length > 1) label(target, String(index + 1), size);
}

function label([x, y], text, size) {
  context.font = "600 11px system-ui, sans-serif";
  context.textBaseline = "middle";
  context.lineWidth = 3;
  context.strokeStyle = "#000a";
  context.strokeText(text, x + size + 4, y - size);
  context.fillStyle = "#fff";
  context.fillText(text, x + size + 4, y - size);
}

function drawAnchor(anchor, selected) {
  const size = radius() * 0.86;
  const [x, y] = toStage(anchor);
  context.beginPath();
  context.roundRect(x - size, y - size, size * 2, size * 2, 3);
  context.fillStyle = GREEN;
  context.shadowColor = "#0007";
  context.shadowBlur = 3;
  context.fill();
  context.shadowBlur = 0;
  context.lineWidth = 2;
  context.strokeStyle = "#fff";
  context.stroke();
  if (selected) halo([x, y], size);
}

function drawBrush() {
  if ((state.tool !== "protect" && state.tool !== "free") || !state.hover) return;
  const size = state.brush * state.session.height * scale;
  for (const [part, alpha] of [[1, "d"], [1 - state.feather / 2, "6"]]) {
    for (const [width, colour] of [[3, "#0006"], [1.4, `#fff${alpha}`]]) {
      context.beginPath();
      context.arc(...toStage(state.hover), size * part, 0, 7);
      context.lineWidth = width;
      context.strokeStyle = colour;
      context.stroke();
    }
  }
}

function drawCross() {
  if (!state.cross || document.activeElement !== canvas) return;
  const [x, y] = toStage(state.cross);
  for (const [width, colour] of [[4, "#000a"], [1.6, "#fff"]]) {
    context.lineWidth = width;
    context.strokeStyle = colour;
    context.beginPath();
    for (const [a, b] of [[1, 0], [-1, 0], [0, 1], [0, -1]]) {
      context.moveTo(x + a * 5, y + b * 5);
      context.lineTo(x + a * 15, y + b * 15);
    }
    context.stroke();
  }
}

on("draw", draw);
new ResizeObserver(changed).observe(frame);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", changed);
