// What to try after a drag that did not bring its points to their targets, as buttons on the image.

import { drag } from "./edits.js";
import { remove } from "./hands.js";
import { on, state } from "./state.js";

const $ = (id) => document.getElementById(id);
let dismissed = null; // the image whose advice was closed

/** The points of a drag that did not arrive, farthest first, as [index, px]; lost points come first. */
function missed() {
  const { session, points } = state;
  if (!session.edits || !session.outcome?.advice) return [];
  return points
    .map((point, index) => [index, point.lost ? Infinity : (point.distance ?? 0)])
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
  const made = offers(list);
  const { outcome, advice } = state.session.outcome;
  const lead = outcome === "failed" ? "The image was left as it was: " : "";
  const text = `${lead}${advice}.${made.length ? " Or try:" : ""}`;
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
