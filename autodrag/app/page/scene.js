// Sends points, anchors and mask to the server after every change. Each change is a step that undo takes back, and the
// server keeps it on disk.

import { call, json } from "./api.js";
import { changed, emit, expect, on, scene, state, takeScene } from "./state.js";

let running = null; // promise of the requests that are on their way
let unsent = false;
let upload = Promise.resolve(); // of the mask
const tests = [];
const isBlocked = () => tests.some((test) => test());

/** While `test()` holds, answers do not replace the points of the page. */
export const keepWhile = (test) => tests.push(test);

/** Whether the page has changes that the server's last state does not show. */
export const pending = () => running !== null || unsent;

/** Resolves when the server has all changes. */
export const sent = () => running ?? Promise.resolve();

/** Points, anchors or mask have changed. */
export function commit() {
  if (!state.session) return;
  unsent = true;
  upload = state.mask.upload();
  upload.catch(() => {}); // the pump reports it
  running ??= pump().finally(() => {
    running = null;
  });
}

async function pump() {
  expect("scene", +1);
  try {
    while (unsent) {
      for (let last = null; last !== upload; ) await (last = upload); // a newer stroke may begin a newer upload
      await state.mask.upload(); // again after a failure
      unsent = false;
      const session = await json("PUT", address(), scene());
      if (!unsent && session.key === state.session.key) await take(session);
    }
  } catch (error) {
    unsent = error.status === 0; // sent again when the connection is back
    emit("problem", error.message);
    if (!unsent) await take(state.session);
  } finally {
    expect("scene", -1);
  }
}

const address = () => `sessions/${state.session.key}/scene`;

/** Show points, anchors and mask of a session, unless the page has newer ones. */
export async function take(session) {
  if (session.revision >= state.session.revision) state.session = session;
  if (isBlocked()) return;
  takeScene(state.session.scene);
  await takeMask(state.session);
  emit("session");
  changed();
}

async function takeMask({ key, scene: { mask: name } }) {
  const { mask } = state;
  if (name === mask.name && !mask.dirty) return;
  try {
    const blob = name && (await (await call("GET", `sessions/${key}/masks/${name}`)).blob());
    if (mask === state.mask && !unsent && !isBlocked()) await mask.load(name, blob);
  } catch (error) {
    emit("problem", error.message);
  }
}

on("state", () => {
  if (unsent) commit();
});

// The page is being left: a change that waits for the answer to the change before it is sent now.
window.addEventListener("pagehide", () => {
  if (unsent && state.session) {
    const { coming, name } = state.mask;
    const body = { ...scene(), mask: coming === undefined ? name : coming };
    const headers = { "content-type": "application/json" };
    fetch(`api/${address()}`, { method: "PUT", body: JSON.stringify(body), headers, keepalive: true });
  }
});
