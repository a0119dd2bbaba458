// Taking away, bringing back and keeping: downloads, dropped files, saved sessions.

import { call } from "./api.js";
import { request } from "./edits.js";
import { changed, emit, state } from "./state.js";

const $ = (id) => document.getElementById(id);
const SAVED = "autodrag-saved";
const saved = () => JSON.parse(localStorage.getItem(SAVED) ?? "[]");

let enter = () => {};
export const whenEntering = (go) => {
  enter = go;
};

function draw() {
  const { key, present } = state.session;
  for (const tile of document.querySelectorAll(".tile")) {
    tile.href = `api/sessions/${key}/${tile.dataset.file}`;
    const missing = present === 0 && "needsEdit" in tile.dataset;
    tile.setAttribute("aria-disabled", missing);
    tile.tabIndex = missing ? -1 : 0;
  }
  $("saved").replaceChildren(...saved().map(line));
}

function line(entry) {
  const item = document.createElement("li");
  const name = document.createElement("span");
  name.textContent = `${entry.name}, ${new Date(entry.time).toLocaleString()}`;
  item.append(name, button("Open", () => open(entry)), button("Delete", () => forget(entry)));
  return item;
}

function button(text, action) {
  const element = document.createElement("button");
  element.className = "button small";
  element.textContent = text;
  element.addEventListener("click", action);
  return element;
}

async function open(entry) {
  $("files").close();
  if (entry.key !== state.session.key) await enter(entry.key);
}

async function forget(entry) {
  const here = entry.key === state.session.key;
  try {
    // One's own session goes on; only what was kept of it goes.
    await call("DELETE", `sessions/${entry.key}${here ? "/save" : ""}`);
  } catch (error) {
    if (error.status !== 404) return emit("problem", error.message);
  }
  localStorage.setItem(SAVED, JSON.stringify(saved().filter(({ key }) => key !== entry.key)));
  draw();
}

$("save").addEventListener("click", async () => {
  if (!(await request("POST", "save"))) return;
  const { key, checkpoint, seed, present } = state.session;
  const name = `${checkpoint} ${seed ?? "latent"}, ${present === 1 ? "1 edit" : `${present} edits`}`;
  const others = saved().filter((entry) => entry.key !== key);
  localStorage.setItem(SAVED, JSON.stringify([{ key, name, time: Date.now() }, ...others].slice(0, 50)));
  draw();
});

$("files-button").addEventListener("click", () => {
  if (!state.session) return;
  draw();
  $("files").showModal();
});

// --- files that are brought ------------------------------------------------------------------------------------------

async function take(file) {
  $("files").close();
  if (file.size > state.limits.body_bytes) {
    emit("problem", `${file.name} has ${(file.size / 2 ** 20).toFixed(1)} MiB, and the limit is ${state.limits.body_bytes / 2 ** 20}.`);
  } else if (/\.safetensors$/i.test(file.name)) {
    await request("PUT", "latent", file, "application/octet-stream");
  } else if (/\.(json|zip)$/i.test(file.name)) {
    await request("PUT", "session", file, /zip$/i.test(file.name) ? "application/zip" : "application/json");
  } else if (file.type.startsWith("image/")) {
    try {
      await state.mask.load(null, file);
      await state.mask.commit();
    } catch (error) {
      emit("problem", error.message);
    }
    changed();
  } else emit("problem", `${file.name} is neither a session (.json, .zip), nor a latent (.safetensors), nor a mask (.png).`);
}

$("file").addEventListener("change", ({ target }) => {
  if (target.files[0]) take(target.files[0]);
  target.value = "";
});

let depth = 0;
const over = (by) => (event) => {
  if (![...event.dataTransfer.types].includes("Files")) return;
  event.preventDefault();
  depth = by === 0 ? 0 : Math.max(0, depth + by);
  $("drop").hidden = depth === 0;
};
document.addEventListener("dragenter", over(1));
document.addEventListener("dragleave", over(-1));
document.addEventListener("dragover", (event) => event.preventDefault());
document.addEventListener("drop", (event) => {
  event.preventDefault();
  over(0)(event);
  const [file] = event.dataTransfer.files;
  if (file && state.session) take(file);
});
