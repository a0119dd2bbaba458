// Pulls, drags, undo: requests to the server, and its answers.

import { call, pixels, sentence } from "./api.js";
import { Mask } from "./mask.js";
import { keepWhile, pending, sent as sceneSent, take } from "./scene.js";
import { changed, clampPoint, edit, emit, expect, on, setActivity, snapshot, somethingToDo, state } from "./state.js";

let number = Math.floor(Math.random() * 2 ** 40); // of the present pull; frames of other pulls and pages are not shown
let pulling = null; // {point, fresh, moved, waiting, released, restore}
let sent = null; // the points of the pull or drag on the server, in its order
let dragging = null; // number of a drag that the server has not answered
let starting = false; // a drag waits until the server has the scene
let reconnected = true; // the next state is news in any case
let frames = [];
let live = null;

export const connect = (made) => {
  live?.close();
  live = made;
  reconnected = true;
  answered();
};

export const isPulling = () => pulling !== null;
keepWhile(isPulling);

function answered() {
  if (dragging !== null) expect("drag", -1);
  dragging = null;
}

// --- pulling ---------------------------------------------------------------------------------------------------------

/** Take hold of point `at`, or of a new point. A refinement stops at once. */
export function press(place, at = null) {
  if (!state.session || pulling || state.activity === "down") return;
  const fresh = at === null;
  if (fresh && state.points.length >= state.limits.points) {
    emit("problem", `There are ${state.limits.points} points, which is the limit. Remove one.`);
    return;
  }
  const restore = snapshot();
  const spot = clampPoint(place);
  const point = fresh ? { handle: spot, target: spot, seen: null, lost: false } : state.points[at];
  if (fresh) state.points.push(point);
  state.selected = { kind: "point", index: state.points.indexOf(point) };
  pulling = { point, fresh, moved: false, waiting: dragging !== null, released: false, restore };
  number += 1;
  frames = [];
  if (dragging !== null) live.stop();
  changed();
}

/** The pointer has moved. */
export function pullTo(place) {
  if (!pulling || pulling.released) return;
  const target = clampPoint(place);
  const [x, y] = pulling.point.target;
  if (target[0] === x && target[1] === y) return;
  pulling.point.target = target;
  pulling.moved = true;
  preview();
  changed();
}

/** Let go: the pull becomes an edit. */
export async function release() {
  if (!pulling) return;
  const { moved, fresh, waiting, restore } = pulling;
  if (waiting && moved) {
    pulling.released = true; // the edit is sent when the one before has ended
    return;
  }
  pulling = null;
  if (moved) await drag();
  else if (fresh) restore();
  changed();
}

/** Give the pull up. */
export function cancel() {
  if (!pulling) return;
  pulling.restore();
  pulling = null;
  number += 1;
  live.stop();
  changed();
}

function preview() {
  if (pulling.waiting || !somethingToDo()) return;
  sent = [...state.points];
  live.pull(number, edit());
}

/** Drag all points to their targets. */
export async function drag() {
  if (!somethingToDo()) {
    emit("problem", "Every handle already lies on its target. Move a target.");
    return;
  }
  if (starting || dragging !== null) return;
  starting = true;
  expect("drag", +1);
  await sceneSent();
  starting = false;
  sent = [...state.points];
  number += 1;
  dragging = number;
  if (!live.drag(number, edit())) answered();
}

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
  emit("activity", `Refining, step ${frame.step}`);
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

on("state", async ({ state: session, image, activity, answers }) => {
  const before = state.session;
  const other = before?.key !== session.key;
  const news = other || reconnected || session.revision > before.revision;
  if (!news && session.revision < before.revision) return hear(activity); // a newer state is on its way
  const own = dragging !== null && answers.includes(dragging);
  reconnected = false;
  state.session = session;
  state.image = image;
  if (!state.mask || state.mask.width !== session.width || state.mask.height !== session.height) {
    state.mask = new Mask(session.width, session.height);
  }
  if (other || before.opened !== session.opened) state.before = null;
  if (own) answered();
  if (own && (pulling || pending()) && sent?.length === session.scene.points.length) {
    // Our own edit. Changes on the page since then stay: targets, anchors, mask.
    session.scene.points.forEach((point, index) => Object.assign(sent[index], { ...point, target: sent[index].target, seen: null }));
  } else if (news && !pending()) {
    if (pulling && !pulling.waiting) cancel(); // another page has changed the session
    await take(session);
  }
  if (!pulling) for (const point of state.points) point.seen = null;
  if (pulling?.waiting && dragging === null) resume();
  hear(activity);
  emit("session");
  changed();
});

on("heard", ({ activity }) => hear(activity));

function hear(activity) {
  const words = { pulling: "Pulling", refining: "Refining", working: "Working" };
  setActivity(activity, words[activity] ?? summary());
  if (activity === "idle" || activity === "stopped") emit("rate", "");
}

on("error", ({ pull, message }) => {
  if (pull === number || pull === dragging) emit("problem", sentence(message));
});

on("offline", (text) => {
  if (pulling) pulling.restore();
  pulling = null;
  reconnected = true;
  answered();
  setActivity("down", text ?? "The connection is down. Trying again.");
});

function resume() {
  const { released } = pulling;
  pulling.waiting = false;
  if (released) {
    pulling = null;
    drag();
  } else if (pulling.moved) preview();
}

/** How the last edit ended, in words. */
export function summary() {
  const { session } = state;
  if (!session?.edits || !session.outcome) return "Ready. Press on the image and drag.";
  const { outcome, reason, steps, seconds } = session.outcome;
  const lost = session.scene.points.filter((point) => point.lost).length;
  const words = {
    arrived: "Arrived",
    stopped: "Stopped",
    lost: "Points lost",
    budget: "Time limit reached",
    stalled: "No further progress",
    steps: "Step limit reached",
    rounds: "Prediction ended",
  };
  const count = steps === 1 ? "1 step" : `${steps} steps`;
  const word = outcome === "failed" ? "Failed, image unchanged" : outcome === "arrived" ? words.arrived : words[reason] ?? reason;
  return `${word} after ${count}, ${seconds.toFixed(1)} s${lost ? `; ${lost} lost` : ""}`;
}

// --- over HTTP -------------------------------------------------------------------------------------------------------

/** Send a request that changes the session; the new image arrives over the WebSocket. Returns null if refused. */
export async function request(method, path, body, type) {
  expect("request", +1);
  try {
    await sceneSent();
    return await call(method, `sessions/${state.session.key}/${path}`, body, type);
  } catch (error) {
    emit("problem", error.message);
    return null;
  } finally {
    expect("request", -1);
  }
}

export async function undo(steps = 1) {
  cancel();
  await sceneSent();
  if (state.session?.present >= steps) await request("POST", `undo?steps=${steps}`);
}

export async function redo(steps = 1) {
  cancel();
  await sceneSent();
  const { images, present } = state.session;
  if (images.length - 1 - present >= steps) await request("POST", `redo?steps=${steps}`);
}

/** Load the opened image for a comparison. */
export async function loadBefore() {
  const { session } = state;
  if (state.before || !session) return;
  try {
    const response = await call("GET", `sessions/${session.key}/image?number=${session.opened}`);
    state.before = await pixels(await response.blob());
    changed();
  } catch (error) {
    emit("problem", error.message);
  }
}
