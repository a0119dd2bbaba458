// The pointer on the image, and the keyboard's cross.

import { cancel, isPulling, press, pullTo, release } from "./edits.js";
import { commit, keepWhile, take } from "./scene.js";
import { divider, hit, toImage, toStage } from "./stage.js";
import { changed, clampPoint, emit, on, snapshot, state } from "./state.js";
import "./view.js";

const canvas = document.getElementById("stage");
let grip = null; // the present press of the pointer: {id, kind, restore, ...}

keepWhile(() => grip !== null);

const paints = () => state.tool === "protect" || state.tool === "free";

canvas.addEventListener("pointerdown", (event) => {
  if (!state.session || event.button !== 0 || grip) return;
  event.preventDefault();
  canvas.focus({ preventScroll: true, focusVisible: false });
  canvas.setPointerCapture(event.pointerId);
  state.cross = null;
  const place = toImage(event);
  if (state.compare) {
    grip = { id: event.pointerId, kind: "split" };
    moveSplit(place);
    return;
  }
  const restore = snapshot();
  const restoreMask = paints() ? state.mask.snapshot() : () => {};
  grip = { id: event.pointerId, ...begin(event, place, hit(place, event.pointerType === "touch")) };
  grip.restore = () => {
    restore();
    restoreMask();
  };
  changed();
});

function begin(event, place, found) {
  if (paints()) {
    const erase = state.tool === "free" || event.altKey;
    paint(place, place, erase);
    return { kind: "paint", last: place, erase };
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
    state.anchors.push(clampPoint(place));
    state.selected = { kind: "anchor", index: state.anchors.length - 1 };
    return { kind: "anchor", index: state.anchors.length - 1 };
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
  const index = pushPoint(place);
  return index === null ? { kind: "none" } : { kind: "place", index, end: "target" };
}

canvas.addEventListener("pointermove", (event) => {
  const place = toImage(event);
  state.hover = place;
  if (grip?.id === event.pointerId) {
    if (grip.kind === "split") moveSplit(place);
    else if (grip.kind === "pull") pullTo(place);
    else if (grip.kind === "paint") {
      paint(grip.last, place, grip.erase);
      grip.last = place;
    } else if (grip.kind === "anchor" && state.anchors[grip.index]) state.anchors[grip.index] = clampPoint(place);
    else if (grip.kind === "place" && state.points[grip.index]) setEnd(state.points[grip.index], grip.end, place);
  }
  const near = () => Math.abs(toStage(place)[0] - divider()) < 24;
  canvas.style.cursor = state.compare ? (near() ? "ew-resize" : "default") : paints() ? "none" : hit(place, false) ? "grab" : "crosshair";
  changed();
});

function moveSplit([x]) {
  state.split = Math.min(1, Math.max(0, (x + 0.5) / state.session.width));
  changed();
}

function finish(event) {
  if (grip?.id !== event.pointerId) return;
  const { kind } = grip;
  grip = null;
  if (isPulling()) release();
  else if (kind === "paint" || kind === "anchor" || kind === "place") commit();
  else take(state.session); // a state may have arrived during the press
  changed();
}
canvas.addEventListener("pointerup", finish);

/** Give up the present press: nothing of it stays. */
function abandon() {
  if (!grip) return;
  const { kind, restore } = grip;
  grip = null;
  if (kind === "pull") cancel();
  else restore?.();
  changed();
}
canvas.addEventListener("pointercancel", abandon);
on("gesture", abandon);
canvas.addEventListener("pointerleave", () => {
  state.hover = null;
  changed();
});

function paint(from, to, erase) {
  const radius = state.brush * state.session.height;
  state.mask.stroke(from, to, radius, state.feather, erase);
}

/** Move one end of a point; for a new handle, the facts of the tracker do not hold. */
function setEnd(point, end, place) {
  point[end] = clampPoint(place);
  if (end === "handle") Object.assign(point, { distance: null, confidence: null, uncertainty: null, lost: false, seen: null });
  changed();
}

function pushPoint(place) {
  if (state.points.length >= state.limits.points) {
    emit("problem", `There are ${state.limits.points} points, which is the limit. Remove one.`);
    return null;
  }
  const spot = clampPoint(place);
  state.points.push({ handle: spot, target: spot, seen: null, lost: false });
  state.selected = { kind: "point", index: state.points.length - 1 };
  return state.points.length - 1;
}

// --- steps of one action each, for keys and for the panel ------------------------------------------------------------

export function moveEnd(point, end, place) {
  setEnd(point, end, place);
  commit();
}

export function addPoint(place) {
  if (pushPoint(place) === null) return;
  commit();
  changed();
}

export function addAnchor(place) {
  state.anchors.push(clampPoint(place));
  state.selected = { kind: "anchor", index: state.anchors.length - 1 };
  commit();
  changed();
}

export function moveAnchor(index, place) {
  state.anchors[index] = clampPoint(place);
  commit();
  changed();
}

export function remove(kind, index) {
  (kind === "point" ? state.points : state.anchors).splice(index, 1);
  state.selected = null;
  commit();
  changed();
}

export function clearPoints() {
  Object.assign(state, { points: [], anchors: [], selected: null });
  commit();
  changed();
}

export function invertMask() {
  state.mask?.invert();
  commit();
}

export function clearMask() {
  state.mask?.clear();
  commit();
}

export function choose(tool) {
  cancel();
  state.tool = tool;
  emit("tool");
  changed();
}

// --- the cross of the keyboard ---------------------------------------------------------------------------------------

const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

canvas.addEventListener("keydown", (event) => {
  if (!state.session || event.ctrlKey || event.metaKey || event.altKey) return;
  const arrow = ARROWS[event.key];
  if (state.compare) {
    if (!arrow) return;
    moveSplit([(state.split + arrow[0] * 0.02) * state.session.width - 0.5]);
  } else if (arrow) moveCross(arrow, event.shiftKey);
  else if (event.key === "Enter") useTool();
  else return;
  event.preventDefault();
  changed();
});

function moveCross([x, y], shift) {
  const { width, height } = state.session;
  const from = state.cross ?? [Math.round((width - 1) / 2), Math.round((height - 1) / 2)];
  const step = (shift ? 8 : 1) * Math.max(1, Math.round(height / 128));
  const to = state.cross ? clampPoint([from[0] + x * step, from[1] + y * step]) : from;
  if (paints() && shift) {
    paint(from, to, state.tool === "free");
    commit();
  }
  state.cross = to;
  if (isPulling()) pullTo(to);
}

/** Enter does at the cross what a press of the pointer does; a second Enter lets go. */
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
    paint(state.cross, state.cross, state.tool === "free");
    commit();
  }
}

function placeByKeys(found) {
  const chosen = state.selected?.kind === "point" ? state.points[state.selected.index] : null;
  const open = chosen && chosen.handle[0] === chosen.target[0] && chosen.handle[1] === chosen.target[1];
  if (open && !found) moveEnd(chosen, "target", state.cross);
  else if (!found) addPoint(state.cross);
  else state.selected = found;
}
