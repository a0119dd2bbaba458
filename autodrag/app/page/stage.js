// Draws the image and everything on it. Converts between places of the page and of the image.

import { changed, on, state } from "./state.js";

const RED = "#e5322d";
const BLUE = "#2f66f2";
const GREEN = "#1d9f58";
const AMBER = "#d98a00";

const canvas = document.getElementById("stage");
const context = canvas.getContext("2d");
const { view } = state; // zoom: 1 = whole image; x, y: shift of the image's centre; scale: CSS px per px of the image;
// left, top: the image's corner; in CSS px of the canvas
let hatch = null;

export const radius = () => Math.max(6, Math.min(10, canvas.clientWidth / 70));

/** CSS px on the canvas of a point of the image. */
export const toStage = ([x, y]) => [view.left + (x + 0.5) * view.scale, view.top + (y + 0.5) * view.scale];

/** The point of the image under a pointer; may lie outside. */
export function toImage(event) {
  const box = canvas.getBoundingClientRect();
  return [(event.clientX - box.left - view.left) / view.scale - 0.5, (event.clientY - box.top - view.top) / view.scale - 0.5];
}

/** The point or anchor at a place of the image, as {kind, index, end}. The one on top is found first. */
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

/** CSS px of the whole image at the present zoom. */
function measure() {
  const { width, height } = state.session;
  const [w, h] = [canvas.clientWidth, canvas.clientHeight];
  const margin = Math.min(24, w * 0.03) * 2;
  view.scale = Math.max(0.01, Math.min((w - margin) / width, (h - margin) / height)) * view.zoom;
  return [width * view.scale, height * view.scale];
}

/** Put the image's corner to a place of the canvas. A smaller image is centred; a larger one always covers the middle. */
export function place(corner) {
  const sizes = measure();
  const room = [canvas.clientWidth, canvas.clientHeight];
  [view.x, view.y] = corner.map((value, axis) => {
    const most = view.zoom === 1 ? 0 : sizes[axis] / 2;
    return Math.min(most, Math.max(-most, value - (room[axis] - sizes[axis]) / 2));
  });
  locate(sizes, room);
}

function locate(sizes, room) {
  view.left = (room[0] - sizes[0]) / 2 + view.x;
  view.top = (room[1] - sizes[1]) / 2 + view.y;
}

function fit() {
  const [w, h] = [canvas.clientWidth, canvas.clientHeight];
  const ratio = window.devicePixelRatio || 1;
  if (canvas.width !== Math.round(w * ratio) || canvas.height !== Math.round(h * ratio)) {
    canvas.width = Math.round(w * ratio);
    canvas.height = Math.round(h * ratio);
    hatch = null;
  }
  const sizes = measure();
  locate(sizes, [w, h]);
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  return sizes;
}

function draw() {
  if (!state.session || !canvas.clientWidth) return;
  const [width, height] = fit();
  context.clearRect(0, 0, canvas.clientWidth, canvas.clientHeight);
  const shown = state.held && state.before ? state.before : state.image;
  if (!shown) return;
  context.imageSmoothingEnabled = true;
  context.imageSmoothingQuality = "high";
  context.drawImage(shown, view.left, view.top, width, height);
  if (state.held) return;
  if (state.compare) {
    if (state.before) drawBefore(width, height);
    return;
  }
  drawMask(width, height);
  state.anchors.forEach((anchor, index) => drawAnchor(anchor, chosen("anchor", index)));
  state.points.forEach(drawArrow);
  state.points.forEach((point, index) => drawPoint(point, index));
  drawBrush();
  drawCross();
}

/** Place of the divider, CSS px of the canvas. It stays in view when the image is zoomed. */
export function divider() {
  const x = view.left + state.session.width * view.scale * state.split;
  return Math.min(canvas.clientWidth - 8, Math.max(8, x));
}

const chosen = (kind, index) => state.selected?.kind === kind && state.selected.index === index;

function drawBefore(width, height) {
  const x = divider();
  context.save();
  context.beginPath();
  context.rect(0, 0, x, canvas.clientHeight);
  context.clip();
  context.drawImage(state.before, view.left, view.top, width, height);
  context.restore();
  const [top, bottom] = [Math.max(0, view.top), Math.min(canvas.clientHeight, view.top + height)];
  context.fillStyle = "#fff";
  context.shadowColor = "#0008";
  context.shadowBlur = 4;
  context.fillRect(x - 1, top, 2, bottom - top);
  const middle = (top + bottom) / 2;
  disc([x, middle], 17, "#fff", "#0003", 1);
  context.strokeStyle = "#1c1c1e";
  context.lineWidth = 2;
  context.lineCap = "round";
  for (const side of [-1, 1]) {
    context.beginPath();
    context.moveTo(x + side * 5, middle - 5);
    context.lineTo(x + side * 10, middle);
    context.lineTo(x + side * 5, middle + 5);
    context.stroke();
  }
  context.shadowBlur = 0;
  chip("Before", x - 12, top + 12, "right");
  chip("After", x + 12, top + 12, "left");
}

function chip(text, x, y, align) {
  context.font = "600 12px system-ui, sans-serif";
  const width = context.measureText(text).width + 16;
  const left = align === "right" ? x - width : x;
  context.beginPath();
  context.roundRect(left, y, width, 24, 12);
  context.fillStyle = "#000a";
  context.fill();
  context.fillStyle = "#fff";
  context.textBaseline = "middle";
  context.fillText(text, left + 8, y + 12.5);
}

function drawMask(width, height) {
  const { mask } = state;
  if (!mask || mask.empty) return;
  if (!hatch) hatch = pattern();
  const layer = new OffscreenCanvas(Math.max(1, canvas.clientWidth), Math.max(1, canvas.clientHeight));
  const on = layer.getContext("2d");
  on.imageSmoothingEnabled = false; // show which pixels are protected
  on.drawImage(mask.hard, view.left, view.top, width, height);
  on.globalCompositeOperation = "source-in";
  on.fillStyle = hatch;
  on.fillRect(0, 0, layer.width, layer.height);
  context.drawImage(layer, 0, 0);
  if (state.tool === "protect" || state.tool === "free") {
    context.globalAlpha = 0.25; // and the soft edges of the strokes
    context.drawImage(mask.soft, view.left, view.top, width, height);
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

/** A dotted circle: the true position may be anywhere inside it. */
function ring([x, y], size) {
  context.setLineDash([2, 5]);
  context.lineWidth = 1.4;
  context.strokeStyle = "#fffb";
  context.beginPath();
  context.arc(x, y, size, 0, 7);
  context.stroke();
  context.setLineDash([]);
}

function drawArrow(point) {
  const from = toStage(point.seen ?? point.handle);
  const to = toStage(point.target);
  const length = Math.hypot(to[0] - from[0], to[1] - from[1]);
  const size = radius();
  if (point.seen) {
    const start = toStage(point.handle); // at the start of the motion
    context.beginPath();
    context.arc(...start, size * 0.55, 0, 7);
    context.lineWidth = 1.6;
    context.strokeStyle = "#fffb";
    context.stroke();
  }
  if (length < size * 2.2) return;
  const direction = [(to[0] - from[0]) / length, (to[1] - from[1]) / length];
  const tip = [to[0] - direction[0] * (size + 4), to[1] - direction[1] * (size + 4)];
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
    context.moveTo(tip[0] - head * (direction[0] + direction[1] * 0.6), tip[1] - head * (direction[1] - direction[0] * 0.6));
    context.lineTo(...tip);
    context.lineTo(tip[0] - head * (direction[0] - direction[1] * 0.6), tip[1] - head * (direction[1] + direction[0] * 0.6));
    context.stroke();
  }
}

function drawPoint(point, index) {
  const size = radius();
  const handle = toStage(point.seen ?? point.handle);
  const target = toStage(point.target);
  const apart = Math.hypot(handle[0] - target[0], handle[1] - target[1]);
  if (point.uncertainty && !point.seen && !point.lost) {
    const reach = point.uncertainty * Math.hypot(toStage([1, 0])[0] - toStage([0, 0])[0], 0);
    if (reach > size * 1.3) ring(handle, reach);
  }
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
    disc(handle, apart < size * 1.2 ? size * 0.56 : size, RED); // an arrived handle lies inside its target
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
  const size = state.brush * state.session.height * view.scale;
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
new ResizeObserver(changed).observe(canvas);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", changed);
