// Zoom and pan of the image: wheel, two fingers, space and drag, keys.

import { place } from "./stage.js";
import { changed, emit, state } from "./state.js";

const canvas = document.getElementById("stage");
const MOST = 32;
const WHEEL = 0.0016; // change of log zoom per px of the wheel

/** Zoom by a factor; the place at [x, y], CSS px of the canvas, stays where it is. */
export function zoomAt([x, y], factor) {
  const { view } = state;
  const zoom = Math.min(MOST, Math.max(1, view.zoom * factor));
  const real = zoom / view.zoom;
  const { left, top } = view;
  view.zoom = zoom;
  place([x - (x - left) * real, y - (y - top) * real]);
  changed();
}

export function panBy([x, y]) {
  const { left, top } = state.view;
  place([left + x, top + y]);
  changed();
}

export const zoomCentre = (factor) => zoomAt([canvas.clientWidth / 2, canvas.clientHeight / 2], factor);

const at = ({ clientX, clientY }) => {
  const box = canvas.getBoundingClientRect();
  return [clientX - box.left, clientY - box.top];
};

canvas.addEventListener(
  "wheel",
  (event) => {
    if (!state.session) return;
    event.preventDefault();
    const unit = event.deltaMode === 1 ? 18 : 1;
    zoomAt(at(event), Math.exp(-event.deltaY * unit * WHEEL * (event.ctrlKey ? 5 : 1)));
  },
  { passive: false },
);

// --- fingers and the space key; these listeners run before those of hands.js -----------------------------------------

const fingers = new Map(); // pointerId → [x, y]
let panning = null; // pointerId
let gesture = false; // two fingers have been on the image; until all are gone nothing else happens
let space = false;

canvas.addEventListener("pointerdown", (event) => {
  if (event.pointerType === "touch") {
    fingers.set(event.pointerId, at(event));
    if (fingers.size === 2) {
      gesture = true;
      emit("gesture"); // what the first finger has begun is given up
    }
  } else if (space || event.button === 1) {
    panning = event.pointerId;
    fingers.set(event.pointerId, at(event));
    canvas.setPointerCapture(event.pointerId);
    event.preventDefault();
  }
  if (gesture || panning !== null) event.stopImmediatePropagation();
});

canvas.addEventListener("pointermove", (event) => {
  const before = fingers.get(event.pointerId);
  if (before && (gesture || panning === event.pointerId)) {
    const now = at(event);
    const other = [...fingers].find(([id]) => id !== event.pointerId)?.[1];
    fingers.set(event.pointerId, now);
    if (gesture && other) {
      const middle = [(before[0] + other[0]) / 2, (before[1] + other[1]) / 2];
      const spread = (point) => Math.max(12, Math.hypot(point[0] - other[0], point[1] - other[1]));
      zoomAt(middle, spread(now) / spread(before));
      panBy([(now[0] - before[0]) / 2, (now[1] - before[1]) / 2]);
    } else panBy([now[0] - before[0], now[1] - before[1]]);
  }
  if (gesture || panning !== null) event.stopImmediatePropagation();
});

for (const kind of ["pointerup", "pointercancel"]) {
  canvas.addEventListener(kind, (event) => {
    const busy = gesture || panning !== null;
    fingers.delete(event.pointerId);
    if (!fingers.size) {
      gesture = false;
      panning = null;
    }
    if (busy) event.stopImmediatePropagation();
    cursor();
  });
}

function cursor() {
  document.body.classList.toggle("pan", space);
}

document.addEventListener("keydown", (event) => {
  if (event.key !== " " || !state.hover || document.querySelector("dialog[open]") || event.target.matches("input, select")) return;
  event.preventDefault();
  if (document.activeElement !== canvas) canvas.focus({ preventScroll: true, focusVisible: false });
  space = true;
  cursor();
});
const leave = () => {
  space = false;
  cursor();
};
document.addEventListener("keyup", (event) => event.key === " " && leave());
window.addEventListener("blur", leave);
