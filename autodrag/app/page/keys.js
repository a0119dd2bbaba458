// Keys of the whole page. Keys that edit do nothing while two images are compared.

import { drag, loadBefore, redo, stop, undo } from "./edits.js";
import { choose, invertMask, remove } from "./hands.js";
import { changed, emit, state } from "./state.js";
import { zoomCentre } from "./view.js";

function nextPoint() {
  const all = [...state.points.map((_, index) => ({ kind: "point", index })), ...state.anchors.map((_, index) => ({ kind: "anchor", index }))];
  if (!all.length) return;
  const { selected } = state;
  const at = all.findIndex((one) => selected && one.kind === selected.kind && one.index === selected.index);
  state.selected = all[(at + 1) % all.length];
  const { kind, index } = state.selected;
  state.cross = kind === "point" ? (state.points[index].seen ?? state.points[index].target) : state.anchors[index];
}

const removeSelected = () => state.selected && remove(state.selected.kind, state.selected.index);
const click = (id) => () => document.getElementById(id).click();

const EDITS = {
  v: () => choose("pull"),
  p: () => choose("place"),
  a: () => choose("anchor"),
  b: () => choose("protect"),
  e: () => choose("free"),
  i: invertMask,
  r: () => drag(),
  n: nextPoint,
  "[": () => emit("brush", -3),
  "]": () => emit("brush", 3),
  Delete: removeSelected,
  Backspace: removeSelected,
};
const OTHERS = {
  c: click("compare"),
  g: click("image-button"),
  s: click("files-button"),
  t: click("theme"),
  "?": click("help-button"),
  "+": () => zoomCentre(1.4),
  "=": () => zoomCentre(1.4),
  "-": () => zoomCentre(1 / 1.4),
  0: () => zoomCentre(0),
  Escape: () => (state.compare ? click("compare")() : stop()),
};

document.addEventListener("keydown", (event) => {
  if (document.querySelector("dialog[open]")) return;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  const control = (event.ctrlKey || event.metaKey) && !event.getModifierState("AltGraph");
  if (control && (key === "z" || key === "y") && !event.target.matches("input[type=text]")) {
    event.preventDefault();
    if (key === "y" || event.shiftKey) redo();
    else undo();
    return;
  }
  if (key === "Alt" && (state.tool === "protect" || state.tool === "free")) event.preventDefault(); // no menu of the browser
  if (control || (event.altKey && !event.getModifierState("AltGraph"))) return;
  if (key !== "Escape" && event.target.matches("input, select, textarea")) return;
  if (key === "x") {
    loadBefore();
    state.held = true;
  } else if (Object.hasOwn(OTHERS, key)) OTHERS[key]();
  else if (Object.hasOwn(EDITS, key) && state.session && !state.compare) EDITS[key]();
  else return;
  changed();
});

document.addEventListener("keyup", (event) => {
  if (event.key.toLowerCase() !== "x") return;
  state.held = false;
  changed();
});
