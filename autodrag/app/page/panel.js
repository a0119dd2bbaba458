// Everything around the image: tools, status, points, method, mask, dialogs.

import { drag, loadBefore, redo, stop, undo } from "./edits.js";
import { rove } from "./focus.js";
import { addPoint, choose, clearMask, clearPoints, invertMask, moveAnchor, moveEnd, remove } from "./hands.js";
import { changed, clampPoint, emit, on, somethingToDo, state } from "./state.js";

const $ = (id) => document.getElementById(id);
const icon = (name) => `<svg class="icon" aria-hidden="true"><use href="icons.svg#${name}"/></svg>`;

// --- points ----------------------------------------------------------------------------------------------------------

const list = $("points");

function field(name, axis, read, write) {
  const input = document.createElement("input");
  Object.assign(input, { type: "number", step: "0.5", ariaLabel: `${name} ${axis ? "y" : "x"}` });
  input.dataset.axis = axis;
  input.read = () => read()?.[axis];
  input.addEventListener("change", () => {
    const value = Number(input.value);
    const point = [...read()];
    if (input.value === "" || !Number.isFinite(value)) return changed();
    point[axis] = value;
    write(clampPoint(point));
    input.blur();
    changed();
  });
  return input;
}

function pair(name, dot, read, write) {
  const element = document.createElement("div");
  element.className = "pair";
  element.innerHTML = `<i class="dot ${dot}" title="${name}"></i>`;
  element.append(field(name, 0, read, write), field(name, 1, read, write));
  return element;
}

function row(kind, index) {
  const element = document.createElement("div");
  element.className = `point ${kind}`;
  const name = `${kind} ${index + 1}`;
  if (kind === "point") {
    const end = (which) => [() => state.points[index]?.[which], (value) => moveEnd(state.points[index], which, value)];
    element.append(pair(`Handle ${index + 1}`, "from", ...end("handle")), pair(`Target ${index + 1}`, "to", ...end("target")));
  } else {
    element.append(pair(`Anchor ${index + 1}`, "stay", () => state.anchors[index], (value) => moveAnchor(index, value)));
  }
  const button = document.createElement("button");
  button.className = "remove";
  button.innerHTML = icon("close");
  button.ariaLabel = `Remove ${name}`;
  button.addEventListener("click", () => remove(kind, index));
  const facts = document.createElement("div");
  facts.className = "facts";
  element.append(button, facts);
  element.addEventListener("pointerdown", () => {
    state.selected = { kind, index };
    changed();
  });
  return element;
}

function drawPoints() {
  const wanted = [...state.points.map((_, index) => ["point", index]), ...state.anchors.map((_, index) => ["anchor", index])];
  const signature = wanted.join(" ");
  if (list.dataset.signature !== signature) {
    list.dataset.signature = signature;
    list.replaceChildren(...wanted.map(([kind, index]) => row(kind, index)));
  }
  wanted.forEach(([kind, index], at) => {
    const element = list.children[at];
    const point = kind === "point" ? state.points[index] : null;
    for (const input of element.querySelectorAll("input")) {
      if (input === document.activeElement) continue;
      input.value = Math.round(input.read() * 10) / 10;
    }
    element.setAttribute("aria-current", state.selected?.kind === kind && state.selected.index === index);
    element.classList.toggle("lost", Boolean(point?.lost));
    drawFacts(element.lastChild, point);
  });
}

function drawFacts(element, point) {
  if (point?.confidence === undefined || point.confidence === null) {
    element.replaceChildren();
    return;
  }
  if (!element.firstChild) element.innerHTML = '<b class="numbers"></b><span class="meter"><i></i></span><span class="numbers"></span>';
  const [distance, meter, confidence] = element.children;
  distance.textContent = point.lost ? "lost" : `${point.distance.toFixed(1)} px left`;
  distance.title = "Distance to the target, measured by the tracker";
  meter.firstChild.style.width = `${Math.round(point.confidence * 100)}%`;
  confidence.textContent = `${Math.round(point.confidence * 100)} %`;
  confidence.title = "Confidence of the tracker: similarity to the appearance at the start of the drag";
}

$("add-point").addEventListener("click", () => {
  const { width, height } = state.session;
  const shift = state.points.length % 5;
  addPoint([Math.round(width / 2) + shift * width * 0.06, Math.round(height / 2)]);
  choose("place");
});
$("clear-points").addEventListener("click", clearPoints);
$("run").addEventListener("click", () => drag());

// --- method ----------------------------------------------------------------------------------------------------------

for (const group of document.querySelectorAll("[data-setting]")) {
  group.addEventListener("change", (event) => {
    state.settings[group.dataset.setting] = event.target.value;
    changed();
  });
}
$("steps").addEventListener("change", ({ target }) => {
  const value = Math.round(Number(target.value));
  state.settings.steps = value >= 1 ? Math.min(value, 1000) : null;
  target.value = state.settings.steps ?? "";
});
$("keep").addEventListener("change", ({ target }) => {
  state.settings.keep = target.checked;
});

/** Without a choice, the method that the server uses for "auto" is shown. */
function drawMethod() {
  const can = state.session.can_predict;
  const published = state.settings.preset === "draggan";
  const automatic = can && !published ? "both" : "refine";
  const method = can && state.settings.method !== "auto" ? state.settings.method : automatic;
  for (const input of document.querySelectorAll('[data-setting="method"] input')) {
    input.disabled = !can && input.value !== "refine";
    input.checked = input.value === method;
  }
  $("method-hint").hidden = can;
  $("outside-row").hidden = !(published && method === "refine");
}

// --- mask ------------------------------------------------------------------------------------------------------------

function drawMask() {
  const { mask } = state;
  $("brush-value").textContent = `${(state.brush * state.session.height).toFixed(1)} px`;
  $("feather-value").textContent = `${Math.round(state.feather * 100)} %`;
  $("mask-clear").disabled = !mask || mask.empty;
  const share = mask ? Math.round(mask.share * 100) : 0;
  $("mask-hint").textContent =
    !mask || mask.empty
      ? "The whole image may change. Paint over regions that must not."
      : mask.share === 1
        ? "The whole image is protected. Free a region."
        : `${share < 1 ? "Less than 1" : share} % of the image is protected.`;
}
$("brush").addEventListener("input", ({ target }) => {
  state.brush = (target.value / 100) ** 1.5 * 0.5 + 0.004;
  changed();
});
on("brush", (by) => {
  const range = $("brush");
  range.value = Number(range.value) + by;
  range.dispatchEvent(new Event("input"));
});
$("feather").addEventListener("input", ({ target }) => {
  state.feather = target.value / 100;
  changed();
});
$("mask-invert").addEventListener("click", invertMask);
$("mask-clear").addEventListener("click", clearMask);

// --- tools, status, compare, theme -----------------------------------------------------------------------------------

const tools = [...document.querySelectorAll(".tool")];
for (const tool of tools) tool.addEventListener("click", () => choose(tool.dataset.tool));
on("tool", () => {
  document.body.classList.toggle("painting", state.tool === "protect" || state.tool === "free");
  for (const tool of tools) tool.setAttribute("aria-pressed", tool.dataset.tool === state.tool);
});
rove(document.querySelector(".tools"), ".tool");

on("activity", (text) => {
  $("lamp").dataset.state = state.activity;
  if (text !== undefined) $("status").textContent = text;
  $("stop").disabled = !["pulling", "refining", "working"].includes(state.activity);
});
on("rate", (text) => {
  $("rate").textContent = text;
});
$("stop").addEventListener("click", stop);
$("undo").addEventListener("click", () => undo());
$("redo").addEventListener("click", () => redo());

$("compare").addEventListener("click", () => {
  state.compare = !state.compare;
  if (state.compare) loadBefore();
  changed();
});
$("split").addEventListener("input", ({ target }) => {
  state.split = target.value / 100;
  changed();
});

const THEMES = ["auto", "light", "dark"];
function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  localStorage.setItem("autodrag-theme", theme);
  $("theme").title = `Colours: ${theme === "auto" ? "those of the system" : theme} (T)`;
}
$("theme").addEventListener("click", () => {
  setTheme(THEMES[(THEMES.indexOf(document.documentElement.dataset.theme) + 1) % 3]);
});
setTheme(THEMES.includes(localStorage.getItem("autodrag-theme")) ? localStorage.getItem("autodrag-theme") : "auto");

for (const dialog of document.querySelectorAll("dialog")) {
  dialog.addEventListener("click", (event) => {
    if (event.target === dialog || event.target.closest("[data-close]")) dialog.close();
  });
}
$("help-button").addEventListener("click", () => $("help").showModal());

on("problem", (text) => {
  const toast = document.createElement("div");
  toast.className = "toast";
  toast.textContent = text;
  $("toasts").append(toast);
  while ($("toasts").children.length > 3) $("toasts").firstChild.remove();
  setTimeout(() => toast.remove(), 7000);
});

on("draw", () => {
  if (!state.session) return;
  drawPoints();
  drawMethod();
  drawMask();
  const { present, images, seed, edits, saved } = state.session;
  $("undo").disabled = present === 0;
  $("redo").disabled = present === images.length - 1;
  $("compare").disabled = edits === 0;
  if (edits === 0) state.compare = false;
  $("compare").setAttribute("aria-pressed", state.compare);
  $("split").hidden = !state.compare;
  if (document.activeElement !== $("split")) $("split").value = Math.round(state.split * 100);
  for (const part of [".tools", ".panel"]) document.querySelector(part).inert = state.compare;
  $("unsaved").hidden = saved || present === 0;
  $("image-name").textContent = seed === null ? "latent" : seed;
  $("run").disabled = !somethingToDo();
  $("clear-points").disabled = !state.points.length && !state.anchors.length;
});

emit("tool");
