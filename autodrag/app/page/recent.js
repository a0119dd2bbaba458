// Keys of sessions and of named copies, which only this browser knows.

import { on, state } from "./state.js";

const RECENT = "autodrag-recent"; // [{key, name, time}], newest first
const SAVED = "autodrag-saved"; // [{save, name, time}]

function read(name) {
  try {
    const list = JSON.parse(localStorage.getItem(name));
    return Array.isArray(list) ? list : [];
  } catch {
    return [];
  }
}

export const recent = () => read(RECENT);
export const latest = () => recent()[0]?.key ?? null;
export const saved = () => read(SAVED);
export const setSaved = (list) => localStorage.setItem(SAVED, JSON.stringify(list.slice(0, 100)));

/** The image and the number of its edits, in words. */
export function describe({ checkpoint, seed, edits }) {
  return `${checkpoint} ${seed ?? "latent"}, ${edits === 1 ? "1 edit" : `${edits} edits`}`;
}

let noted = 0;
on("session", () => {
  const { key, revision, saved: kept } = state.session;
  if (!kept || noted === revision) return;
  noted = revision;
  const others = recent().filter((entry) => entry.key !== key);
  localStorage.setItem(RECENT, JSON.stringify([{ key, name: describe(state.session), time: Date.now() }, ...others].slice(0, 20)));
});
