// The state of the page, and events between its modules. Points are [x, y] in px of the image.

export const state = {
  session: null, // as the server describes it
  image: null, // canvas with the image that is shown, in the image's own size
  before: null, // canvas with the opened image, loaded for a comparison
  points: [], // {handle, target, seen, distance, confidence, lost}; seen: the handle in the last frame of a motion
  anchors: [], // [x, y]
  mask: null, // a Mask
  selected: null, // {kind: "point" | "anchor", index}
  tool: "pull",
  settings: { method: "auto", space: "w+", preset: "default", outside: "exact", steps: null, keep: false },
  brush: 0.12, // radius as a share of the image's height
  feather: 0.3,
  activity: "down", // of the server: idle, pulling, refining, working, stopped; down without a connection
  compare: false, // divider between before and after
  held: false, // the image before, while a key is held
  split: 0.5, // position of the divider as a share of the image's width
  cross: null, // position of the keyboard on the image
  hover: null, // position of the pointer on the image
  view: { zoom: 1, x: 0, y: 0, scale: 1, left: 0, top: 0 }, // see stage.js
  limits: { points: 100, body_bytes: 8 << 20 },
};

const listeners = new Map();

export function on(name, listener) {
  listeners.set(name, [...(listeners.get(name) ?? []), listener]);
}

export function emit(name, value) {
  for (const listener of listeners.get(name) ?? []) listener(value);
}

let drawing = false;

/** Draw everything at the next animation frame. */
export function changed() {
  if (drawing) return;
  drawing = true;
  requestAnimationFrame(() => {
    drawing = false;
    emit("draw");
  });
}

/** The server's activity; nothing else sets the lamp. */
export function setActivity(activity, text) {
  state.activity = activity;
  document.body.dataset.busy = activity;
  emit("activity", text);
  changed();
}

const unanswered = new Map();

/** Count requests that the server has not answered. */
export function expect(name, by) {
  unanswered.set(name, Math.max(0, (unanswered.get(name) ?? 0) + by));
  const names = [...unanswered].filter(([, count]) => count).map(([each]) => each);
  if (names.length) document.body.dataset.unanswered = names.join(" ");
  else delete document.body.dataset.unanswered;
}

export function clampPoint([x, y]) {
  const { width, height } = state.session;
  const round = (value) => Math.round(value * 100) / 100;
  return [round(Math.min(Math.max(x, 0), width - 1)), round(Math.min(Math.max(y, 0), height - 1))];
}

const pairs = () => state.points.map(({ handle, target }) => ({ handle, target }));

/** Points, anchors and mask, as the server takes them. */
export const scene = () => ({ points: pairs(), anchors: state.anchors, mask: state.mask?.name ?? null, revision: state.session.revision });

/** The edit that the page describes, in the common schema. */
export function edit() {
  const { settings } = state;
  const parameters = { preset: settings.preset, space: settings.space };
  if (settings.preset === "draggan" && !["predict", "both"].includes(settings.method)) parameters.outside = settings.outside;
  if (settings.steps) parameters.steps = settings.steps;
  if (settings.keep && state.session.scene.points.length === state.points.length && state.session.edits > 0) parameters.keep_references = true;
  const document = {
    drags: pairs(),
    anchors: state.anchors,
    method: state.session.can_predict ? settings.method : "auto", // which is then the refiner
    parameters,
  };
  if (state.mask?.name) document.mask = state.mask.name;
  return document;
}

/** Whether a handle is away from its target. */
export function somethingToDo() {
  return state.points.some(({ handle, target }) => Math.hypot(handle[0] - target[0], handle[1] - target[1]) > 0.05);
}

/** Show points and anchors of the server's present step. */
export function takeScene({ points, anchors }) {
  state.points = points.map((point) => ({ ...point, seen: null }));
  state.anchors = [...anchors];
  const { selected } = state;
  if (selected && selected.index >= (selected.kind === "point" ? state.points : state.anchors).length) state.selected = null;
}

/** A copy of points, anchors and selection, to restore them. */
export function snapshot() {
  const { points, anchors, selected } = state;
  const copy = { points: points.map((point) => ({ ...point })), anchors: anchors.map((anchor) => [...anchor]), selected };
  return () => Object.assign(state, copy);
}
