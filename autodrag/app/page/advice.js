// What to try after a drag that did not bring its points to their targets, as buttons on the image.

import { drag } from "./edits.js";
import { remove } from "./hands.js";
import { on, state } from "./state.js";

const $ = (id) => document.getElementById(id);
let dismissed = null; // the image whose advice was closed

/** The distance in px up to which a point counts as arrived. */
const near = ({ width }) => Math.max(1, width / 100);

/** The points that are away from their targets, farthest first, as [index, px]; lost points come first. */
function missed() {
  const { session, points } = state;
  if (!session.edits || !session.outcome) return [];
  return points
    .map((point, index) => [index, point.lost ? Infinity : (point.distance ?? 0)])
    .filter(([, distance]) => distance > near(session))
    .sort((a, b) => b[1] - a[1]);
}

function offers([[index]]) {
  const { session, settings, points } = state;
  const { method, steps, reason } = session.outcome;
  const list = [];
  if (method === "predict") list.push(["Refine", () => choose("method", "both")]);
  else if (reason !== "lost") list.push([`More steps`, () => choose("steps", Math.min(1000, Math.max(2 * steps, 100)))]);
  if (settings.space === "w") list.push(["Use W+", () => choose("space", "w+")]);
  if (points.length > 1) list.push([`Release point ${index + 1}`, () => remove("point", index)]);
  return list;
}

/** Set a control of the panel as a person does. */
function choose(name, value) {
  const input = name === "steps" ? $("steps") : document.querySelector(`[data-setting="${name}"] input[value="${value}"]`);
  if (name === "steps") input.value = value;
  else input.checked = true;
  input.dispatchEvent(new Event("change", { bubbles: true }));
}

on("draw", () => {
  if (!state.session) return;
  const { images, present } = state.session;
  const rests = state.activity === "idle" || state.activity === "stopped";
  const list = rests && !state.compare && images[present] !== dismissed ? missed() : [];
  $("advice").hidden = list.length === 0;
  if (!list.length) return;
  const lost = list.filter(([, distance]) => distance === Infinity).length;
  const farthest = list.find(([, distance]) => distance !== Infinity);
  const parts = [];
  if (lost) parts.push(lost === 1 ? "One point is lost." : `${lost} points are lost.`);
  if (farthest) parts.push(`${list.length - lost > 1 ? "Up to " : ""}${farthest[1].toFixed(1)} px are left.`);
  const made = offers(list);
  const text = `${parts.join(" ")} ${made.length ? "Try:" : "Choose a nearer target or another point."}`;
  const signature = text + made.map(([name]) => name).join();
  if ($("advice").dataset.signature === signature) return;
  $("advice").dataset.signature = signature;
  $("advice-text").textContent = text;
  $("advice-buttons").replaceChildren(
    ...made.map(([name, action]) => {
      const button = document.createElement("button");
      button.className = "button small";
      button.textContent = name;
      button.addEventListener("click", () => {
        action();
        drag();
      });
      return button;
    }),
  );
});

$("advice-close").addEventListener("click", () => {
  dismissed = state.session.images[state.session.present];
  $("advice").hidden = true;
});
