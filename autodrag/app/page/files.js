// Downloads, dropped files, named copies and recent sessions.

import { call } from "./api.js";
import { request } from "./edits.js";
import { describe, recent, saved, setSaved } from "./recent.js";
import { commit } from "./scene.js";
import { changed, emit, state } from "./state.js";

const $ = (id) => document.getElementById(id);

let enter = () => {};
export const whenEntering = (go) => {
  enter = go;
};

function draw() {
  const { key, edits } = state.session;
  for (const tile of document.querySelectorAll(".tile")) {
    tile.href = `api/sessions/${key}/${tile.dataset.file}`;
    const missing = edits === 0 && "needsEdit" in tile.dataset;
    tile.setAttribute("aria-disabled", missing);
    tile.tabIndex = missing ? -1 : 0;
  }
  $("save-name").placeholder = describe(state.session);
  $("saved").replaceChildren(...saved().map((entry) => line(entry, button("Open", () => open(entry)), button("Delete", () => forget(entry)))));
  const others = recent().filter((entry) => entry.key !== key);
  $("recent").replaceChildren(...others.map((entry) => line(entry, button("Continue", () => resume(entry)))));
  $("recent-title").hidden = !others.length;
}

function line(entry, ...buttons) {
  const item = document.createElement("li");
  const name = document.createElement("span");
  name.textContent = `${entry.name}, ${new Date(entry.time).toLocaleString()}`;
  item.append(name, ...buttons);
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
  await request("POST", `saves/${entry.save}/open`);
}

async function resume(entry) {
  $("files").close();
  await enter(entry.key);
}

async function forget(entry) {
  try {
    await call("DELETE", `saves/${entry.save}`);
  } catch (error) {
    return emit("problem", error.message);
  }
  setSaved(saved().filter(({ save }) => save !== entry.save));
  draw();
}

$("save-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const name = $("save-name").value.trim() || describe(state.session);
  const answer = await request("POST", "saves", { name });
  if (!answer) return;
  const { save } = await answer.json();
  setSaved([{ save, name, time: Date.now() }, ...saved()]);
  $("save-name").value = "";
  draw();
});

$("files-button").addEventListener("click", () => {
  if (!state.session) return;
  draw();
  $("files").showModal();
});

// --- files from this machine -----------------------------------------------------------------------------------------

async function take(file) {
  $("files").close();
  if (file.size > state.limits.body_bytes) {
    emit("problem", `${file.name} has ${(file.size / 2 ** 20).toFixed(1)} MiB, and the limit is ${state.limits.body_bytes / 2 ** 20}.`);
  } else if (/\.safetensors$/i.test(file.name)) {
    await request("PUT", "latent", file, "application/octet-stream");
  } else if (/\.(json|zip)$/i.test(file.name)) {
    await request("PUT", "session", file, /zip$/i.test(file.name) ? "application/zip" : "application/json");
  } else if (await isExport(file)) {
    await request("PUT", "picture", file, "image/png");
  } else if (file.type.startsWith("image/")) {
    try {
      await state.mask.load(null, file);
      commit();
    } catch (error) {
      emit("problem", error.message);
    }
    changed();
  } else emit("problem", `${file.name} is neither a session (.json, .zip), nor a latent (.safetensors), nor an exported picture or a mask (.png).`);
}

/** Whether a PNG has one of the texts that the server adds to an export. The server checks its contents. */
async function isExport(file) {
  const bytes = await file.arrayBuffer();
  const text = new TextDecoder("latin1").decode(bytes);
  return text.slice(1, 4) === "PNG" && /tEXtautodrag-(latent|session)\0/.test(text);
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
