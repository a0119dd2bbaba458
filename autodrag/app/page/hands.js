// Pointer and keys on the image.

import { cancel, drag, isPulling, loadBefore, press, pullTo, redo, release, stop, undo } from "./edits.js";
import { hit, toImage } from "./stage.js";
import { changed, clampPoint, emit, state } from "./state.js";

const canvas = document.getElementById("stage");
let grip = null; // what the pointer holds: {kind, ...}

const paints = () => state.tool === "protect" || state.tool === "free";

canvas.addEventListener("pointerdown", (event) => {
  if (!state.session || event.button !== 0 || grip) return;
  event.preventDefault();
  canvas.focus({ preventScroll: true, focusVisible: false });
  canvas.setPointerCapture(event.pointerId);
  state.cross = null;
  const place = toImage(event);
  const found = hit(place, event.pointerType === "touch");
  grip = { id: event.pointerId, ...begin(place, found) };
  changed();
});

function begin(place, found) {
  if (paints()) {
    paint(place, place);
    return { kind: "paint", last: place };
  }
  if (found?.kind === "anchor") {
    state.selected = found;
    return { kind: "anchor", index: found.index };
  }
  if (state.tool === "anchor") {
    if (found) {
      state.selected = found;
      return { kind: "none" };
    }
    return { kind: "anchor", index: addAnchor(place) };
  }
  if (state.tool === "place") return beginPlacing(place, found);
  press(place, found ? found.index : null);
  return { kind: "pull" };
}

function beginPlacing(place, found) {
  if (found) {
    state.selected = { kind: "point", index: found.index };
    return { kind: "place", index: found.index, end: found.end };
  }
  const index = addPoint(place);
  return index === null ? { kind: "none" } : { kind: "place", index, end: "target" };
}

canvas.addEventListener("pointermove", (event) => {
  const place = toImage(event);
  state.hover = place;
  if (grip?.id === event.pointerId) {
    if (grip.kind === "pull") pullTo(place);
    else if (grip.kind === "paint") {
      paint(grip.last, place);
      grip.last = place;
    } else if (grip.kind === "anchor" && state.anchors[grip.index]) state.anchors[grip.index] = clampPoint(place);
    else if (grip.kind === "place" && state.points[grip.index]) moveEnd(state.points[grip.index], grip.end, place);
  }
  canvas.style.cursor = paints() ? "none" : hit(place, false) ? "grab" : "crosshair";
  changed();
});

function finish(event) {
  if (grip?.id !== event.pointerId) return;
  const { kind } = grip;
  grip = null;
  if (kind === "pull") release();
  if (kind === "paint") state.mask.commit();
  changed();
}
canvas.addEventListener("pointerup", finish);
canvas.addEventListener("pointercancel", (event) => {
  if (grip?.kind === "pull") cancel();
  finish(event);
});
canvas.addEventListener("pointerleave", () => {
  state.hover = null;
  changed();
});

function paint(from, to) {
  const radius = state.brush * state.session.height;
  state.mask.stroke(from, to, radius, state.feather, state.tool === "free");
}

/** Move one end of a point; what the tracker said about it no longer holds. */
export function moveEnd(point, end, place) {
  point[end] = clampPoint(place);
  if (end === "handle") Object.assign(point, { distance: null, confidence: null, lost: false, seen: null });
  changed();
}

export function addPoint(place) {
  if (state.points.length >= state.limits.points) {
    emit("problem", `There are ${state.limits.points} points, which is the limit; remove one.`);
    return null;
  }
  const spot = clampPoint(place);
  state.points.push({ handle: spot, target: spot, seen: null, lost: false });
  state.selected = { kind: "point", index: state.points.length - 1 };
  changed();
  return state.points.length - 1;
}

function addAnchor(place) {
  state.anchors.push(clampPoint(place));
  state.selected = { kind: "anchor", index: state.anchors.length - 1 };
  return state.anchors.length - 1;
}

export function remove(kind, index) {
  (kind === "point" ? state.points : state.anchors).splice(index, 1);
  state.selected = null;
  changed();
}

export function choose(tool) {
  cancel();
  state.tool = tool;
  emit("tool");
  changed();
}

// --- keys ------------------------------------------------------------------------------------------------------------

const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

canvas.addEventListener("keydown", (event) => {
  if (!state.session || event.ctrlKey || event.metaKey || event.altKey) return;
  const arrow = ARROWS[event.key];
  if (arrow) {
    const { width, height } = state.session;
    const from = state.cross ?? [Math.round((width - 1) / 2), Math.round((height - 1) / 2)];
    const step = (event.shiftKey ? 8 : 1) * Math.max(1, Math.round(height / 128));
    const to = state.cross ? clampPoint([from[0] + arrow[0] * step, from[1] + arrow[1] * step]) : from;
    if (paints() && event.shiftKey) {
      paint(from, to);
      state.mask.commit();
    }
    state.cross = to;
    if (isPulling()) pullTo(to);
  } else if (event.key === "Enter" || event.key === " ") useTool();
  else return;
  event.preventDefault();
  changed();
});

/** Enter: what a press of the pointer at the cross would do; a second one lets go. */
function useTool() {
  if (!state.cross) state.cross = clampPoint([(state.session.width - 1) / 2, (state.session.height - 1) / 2]);
  if (isPulling()) {
    release();
    return;
  }
  const found = hit(state.cross, false);
  if (state.tool === "pull") press(state.cross, found?.kind === "point" ? found.index : null);
  else if (state.tool === "anchor" && !found) addAnchor(state.cross);
  else if (state.tool === "place") placeByKeys(found);
  else if (paints()) {
    paint(state.cross, state.cross);
    state.mask.commit();
  }
}

function placeByKeys(found) {
  const chosen = state.selected?.kind === "point" ? state.points[state.selected.index] : null;
  const open = chosen && chosen.handle[0] === chosen.target[0] && chosen.handle[1] === chosen.target[1];
  if (open && !found) moveEnd(chosen, "target", state.cross);
  else if (!found) addPoint(state.cross);
  else state.selected = found;
}

function nextPoint() {
  const all = [...state.points.map((_, index) => ({ kind: "point", index })), ...state.anchors.map((_, index) => ({ kind: "anchor", index }))];
  if (!all.length) return;
  const { selected } = state;
  const at = all.findIndex((one) => selected && one.kind === selected.kind && one.index === selected.index);
  state.selected = all[(at + 1) % all.length];
  const { kind, index } = state.selected;
  state.cross = kind === "point" ? (state.points[index].seen ?? state.points[index].target) : state.anchors[index];
}

const KEYS = {
  v: () => choose("pull"),
  p: () => choose("place"),
  a: () => choose("anchor"),
  b: () => choose("protect"),
  e: () => choose("free"),
  i: () => state.mask?.invert(),
  r: () => drag(),
  n: nextPoint,
  c: () => document.getElementById("compare").click(),
  g: () => document.getElementById("image-button").click(),
  s: () => document.getElementById("files-button").click(),
  t: () => document.getElementById("theme").click(),
  "?": () => document.getElementById("help-button").click(),
  "[": () => emit("brush", -3),
  "]": () => emit("brush", 3),
  Delete: () => state.selected && remove(state.selected.kind, state.selected.index),
  Backspace: () => state.selected && remove(state.selected.kind, state.selected.index),
  Escape: stop,
};

document.addEventListener("keydown", (event) => {
  if (document.querySelector("dialog[open]")) return;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if ((event.ctrlKey || event.metaKey) && key === "z") {
    event.preventDefault();
    if (event.shiftKey) redo();
    else undo();
    return;
  }
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (key !== "Escape" && event.target.matches("input, select, textarea")) return;
  if (key === "x") {
    loadBefore();
    state.held = true;
  } else if (KEYS[key]) KEYS[key]();
  else return;
  changed();
});

document.addEventListener("keyup", (event) => {
  if (event.key.toLowerCase() !== "x") return;
  state.held = false;
  changed();
});
