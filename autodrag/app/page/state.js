// What the page knows, and who wants to hear of changes. Points are [x, y] in px of the image, as everywhere.

export const state = {
  session: null, // as the server describes it
  image: null, // what is shown now: a canvas of the image's own size
  before: null, // the opened image, once somebody compares
  points: [], // {handle, target, seen, distance, confidence, lost}
  anchors: [], // [x, y]
  selected: null, // {kind: "point" | "anchor", index}
  tool: "pull",
  settings: { method: "auto", space: "w+", preset: "default", steps: null, keep: false },
  brush: 0.12, // radius as a share of the image's height
  feather: 0.3,
  activity: "off", // off, idle, pull, refine, work
  compare: false, // the slider
  held: false, // before, as long as a key is held
  split: 0.5,
  cross: null, // the keyboard's place on the image
  hover: null, // the pointer's
  limits: { points: 100, body_bytes: 8 << 20 },
};

const listeners = new Map();

export function on(name, listener) {
  listeners.set(name, [...(listeners.get(name) ?? []), listener]);
}

export function emit(name, value) {
  for (const listener of listeners.get(name) ?? []) listener(value);
}

let asked = false;

/** Draw everything again at the next animation frame, once however often it is asked for. */
export function changed() {
  if (asked) return;
  asked = true;
  requestAnimationFrame(() => {
    asked = false;
    emit("draw");
  });
}

export function setActivity(activity, text) {
  state.activity = activity;
  document.body.dataset.busy = activity;
  emit("activity", text);
  changed();
}

export function clampPoint([x, y]) {
  const { width, height } = state.session;
  const round = (value) => Math.round(value * 100) / 100;
  return [round(Math.min(Math.max(x, 0), width - 1)), round(Math.min(Math.max(y, 0), height - 1))];
}

/** The edit that the page describes, in the common schema. */
export function edit() {
  const { settings } = state;
  const parameters = { preset: settings.preset, space: settings.space };
  if (settings.steps) parameters.steps = settings.steps;
  if (settings.keep && state.session.scene.points.length === state.points.length && state.session.present > 0) parameters.keep_references = true;
  const document = {
    drags: state.points.map((point) => ({ handle: point.handle, target: point.target })),
    anchors: state.anchors,
    method: state.session.can_predict ? settings.method : "auto", // which is then the refiner
    parameters,
  };
  if (state.mask?.name) document.mask = state.mask.name;
  return document;
}

/** Whether any point has somewhere to go. */
export function somethingToDo() {
  return state.points.some(({ handle, target }) => Math.hypot(handle[0] - target[0], handle[1] - target[1]) > 0.05);
}

/** Take over what lies on the server's present image. */
export function takeScene(scene) {
  state.points = scene.points.map((point) => ({ ...point, seen: null }));
  state.anchors = scene.anchors;
  const { selected } = state;
  if (selected && selected.index >= (selected.kind === "point" ? state.points : state.anchors).length) state.selected = null;
}
