// Pulls, drags, undo: what is asked of the server, and what becomes of its answers.

import { call, pixels, sentence } from "./api.js";
import { Mask } from "./mask.js";
import { changed, clampPoint, edit, emit, on, setActivity, somethingToDo, state, takeScene } from "./state.js";

let number = 0; // of the present pull; frames of others are not shown
let pulling = null; // {point, fresh, moved, waiting, undo}
let sent = null; // the points of the pull or drag that the server works on, in its order
let dragging = false; // a drag has been asked for, and its end is not known
let revision = 0;
let frames = [];
let live = null;

export const connect = (made) => {
  live?.close();
  live = made;
  revision = 0;
};

export const isPulling = () => pulling !== null;

// --- pulling ---------------------------------------------------------------------------------------------------------

/** Take hold: of a point that is there, or of a new one. What is being refined stops at once. */
export function press(place, at = null) {
  if (!state.session || pulling) return;
  const fresh = at === null;
  if (fresh && state.points.length >= state.limits.points) {
    emit("problem", `There are ${state.limits.points} points, which is the limit; remove one.`);
    return;
  }
  const undo = state.points.map((point) => ({ ...point }));
  const spot = clampPoint(place);
  const point = fresh ? { handle: spot, target: spot, seen: null, lost: false } : state.points[at];
  if (fresh) state.points.push(point);
  state.selected = { kind: "point", index: state.points.indexOf(point) };
  pulling = { point, fresh, moved: false, waiting: dragging, undo };
  number += 1;
  frames = [];
  if (dragging) live.stop();
  changed();
}

/** The pointer is here now. */
export function pullTo(place) {
  if (!pulling) return;
  const target = clampPoint(place);
  const [x, y] = pulling.point.target;
  if (target[0] === x && target[1] === y) return;
  pulling.point.target = target;
  pulling.moved = true;
  ask();
  changed();
}

/** Let go: the pull becomes an edit. */
export async function release() {
  if (!pulling) return;
  const { moved, fresh, waiting } = pulling;
  if (waiting && moved) {
    pulling.released = true; // as soon as the edit before has ended
    return;
  }
  const { point } = pulling;
  pulling = null;
  if (moved) await drag();
  else if (fresh) {
    state.points = state.points.filter((other) => other !== point);
    state.selected = null;
  }
  changed();
}

/** Let go as if it had never been. */
export function cancel() {
  if (!pulling) return;
  state.points = pulling.undo;
  pulling = null;
  number += 1;
  live.stop();
  changed();
}

function ask() {
  if (pulling.waiting || !somethingToDo()) return;
  sent = [...state.points];
  setActivity("pull", "Pulling");
  live.pull(number, edit());
}

/** Make an edit of the points as they are. */
export async function drag() {
  if (!somethingToDo()) {
    emit("problem", "Every handle already lies on its target; move one of them.");
    return;
  }
  await state.mask?.uploaded;
  sent = [...state.points];
  dragging = true;
  setActivity("refine", "Refining");
  live.drag(number, edit());
}

/** Whatever is going on, it ends. */
export function stop() {
  if (pulling) cancel();
  else live?.stop();
}

on("preview", (frame) => {
  if (!pulling || frame.pull !== number) return;
  show(frame);
  const now = performance.now();
  frames = [...frames.filter((time) => now - time < 1500), now];
  const rate = frames.length > 2 ? (frames.length - 1) / ((now - frames[0]) / 1000) : null;
  emit("rate", rate === null ? "" : `${rate.toFixed(1)} frames/s`);
});

on("step", (frame) => {
  if (pulling || frame.pull !== number) return;
  show(frame);
  setActivity("refine", `Refining, step ${frame.step}`);
});

function show(frame) {
  state.image = frame.image;
  sent?.forEach((point, index) => {
    if (index >= frame.points.length) return;
    point.seen = frame.points[index];
    point.distance = frame.distances[index];
    point.confidence = frame.confidences[index];
    point.lost = frame.lost[index];
  });
  changed();
}

on("state", async ({ state: session, image }) => {
  const before = state.session;
  const news = session.revision !== revision || before?.key !== session.key;
  revision = session.revision;
  state.session = session;
  state.image = image;
  if (!state.mask || state.mask.width !== session.width || state.mask.height !== session.height) {
    state.mask = new Mask(session.width, session.height);
  }
  if (news && dragging && sent && session.scene.points.length === sent.length) {
    // Our own edit. What was changed on the page meanwhile stays: targets, anchors, the mask.
    session.scene.points.forEach((point, index) => Object.assign(sent[index], { ...point, target: sent[index].target, seen: null }));
  } else if (news) {
    pulling = null;
    takeScene(session.scene);
    await takeMask(session);
  } else {
    for (const point of state.points) point.seen = null;
  }
  if (news) dragging = false;
  if (before?.images[0] !== session.images[0] || before?.key !== session.key) state.before = null;
  if (pulling?.waiting) resume();
  emit("session");
  changed();
});

on("idle", () => {
  dragging = false;
  if (pulling?.waiting) resume();
  if (pulling) return;
  sent = null;
  emit("rate", "");
  setActivity("idle", summary());
});

on("error", ({ pull, message }) => {
  if (pull === number) emit("problem", sentence(message));
});

on("offline", () => {
  pulling = null;
  dragging = false;
  setActivity("off", "The connection is down; trying again");
});

function resume() {
  const { released } = pulling;
  pulling.waiting = false;
  dragging = false;
  if (released) {
    pulling = null;
    drag();
  } else if (pulling.moved) ask();
}

async function takeMask(session) {
  const name = session.scene.mask;
  if (name === state.mask.name) return;
  try {
    const blob = name && (await (await call("GET", `sessions/${session.key}/masks/${name}`)).blob());
    await state.mask.load(name, blob);
  } catch (error) {
    emit("problem", error.message);
  }
}

/** How the last edit ended, in words. */
export function summary() {
  const { session } = state;
  if (!session?.outcome) return "Ready. Press on the image and pull.";
  const { reason, steps, seconds } = session.outcome;
  const lost = session.scene.points.filter((point) => point.lost).length;
  const words = { arrived: "Arrived", stopped: "Stopped", lost: "Lost the points", budget: "Out of time", stalled: "As near as it gets", steps: "Out of steps" };
  const count = steps === 1 ? "1 step" : `${steps} steps`;
  return `${words[reason] ?? reason} after ${count}, ${seconds.toFixed(1)} s${lost ? `; ${lost} lost` : ""}`;
}

// --- over HTTP -------------------------------------------------------------------------------------------------------

/** Ask for something that changes the session; the new image comes over the WebSocket. */
export async function request(method, path, body, type) {
  setActivity("work", "Working");
  try {
    return await call(method, `sessions/${state.session.key}/${path}`, body, type);
  } catch (error) {
    emit("problem", error.message);
    return null;
  } finally {
    setActivity("idle", summary());
  }
}

export async function undo(steps = 1) {
  cancel();
  if (state.session?.present >= steps) await request("POST", `undo?steps=${steps}`);
}

export async function redo(steps = 1) {
  cancel();
  const { images, present } = state.session;
  if (images.length - 1 - present >= steps) await request("POST", `redo?steps=${steps}`);
}

/** The opened image, to compare with. */
export async function loadBefore() {
  const { session } = state;
  if (state.before || !session) return;
  try {
    const response = await call("GET", `sessions/${session.key}/image?number=${session.images[0]}`);
    state.before = await pixels(await response.blob());
    changed();
  } catch (error) {
    emit("problem", error.message);
  }
}
