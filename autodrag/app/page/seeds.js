// The dialog that shows images of seeds, page by page.

import { request } from "./edits.js";
import { emit, on, state } from "./state.js";

const $ = (id) => document.getElementById(id);
const PAGE = 24;
let first = 0;

export function offer(checkpoints) {
  $("checkpoint").replaceChildren(...checkpoints.map(({ name }) => new Option(name, name)));
}

function draw() {
  const psi = Number($("psi").value);
  const label = $("label-field").hidden ? "" : `&label=${Number($("label").value)}`;
  const checkpoint = encodeURIComponent($("checkpoint").value);
  $("psi-value").textContent = psi.toFixed(2);
  $("seeds-range").textContent = `${first} to ${first + PAGE - 1}`;
  $("seeds-back").disabled = first === 0;
  $("seeds").replaceChildren(
    ...Array.from({ length: PAGE }, (_, offset) => {
      const seed = first + offset;
      const button = document.createElement("button");
      button.className = "seed";
      button.ariaLabel = `Seed ${seed}`;
      button.setAttribute("aria-current", seed === state.session.seed);
      const image = document.createElement("img");
      Object.assign(image, { alt: "", loading: "lazy", src: `api/thumbnail?checkpoint=${checkpoint}&seed=${seed}&psi=${psi}${label}` });
      const name = document.createElement("span");
      name.textContent = seed;
      button.append(image, name);
      button.addEventListener("click", () => openSeed(seed));
      return button;
    }),
  );
}

async function openSeed(seed) {
  $("images").close();
  const body = { checkpoint: $("checkpoint").value, seed, psi: Number($("psi").value) };
  if (!$("label-field").hidden) body.label = Number($("label").value);
  state.compare = false;
  await request("POST", "open", body);
}

$("image-button").addEventListener("click", () => {
  if (!state.session) return;
  const { checkpoint, seed, psi, label, classes } = state.session;
  $("checkpoint").value = checkpoint;
  $("seed").value = seed ?? 0;
  $("psi").value = psi;
  $("label-field").hidden = !classes;
  $("label").value = label ?? 0;
  first = Math.floor((seed ?? 0) / PAGE) * PAGE;
  draw();
  $("images").showModal();
});
const move = (by) => () => {
  first = Math.min(Math.max(0, first + by), 2 ** 32 - PAGE);
  draw();
};
$("seeds-back").addEventListener("click", move(-PAGE));
$("seeds-on").addEventListener("click", move(PAGE));
for (const id of ["checkpoint", "label"]) $(id).addEventListener("change", draw);
$("psi").addEventListener("input", () => {
  $("psi-value").textContent = Number($("psi").value).toFixed(2);
});
$("psi").addEventListener("change", draw);
$("seed").addEventListener("keydown", (event) => {
  if (event.key === "Enter") $("open-seed").click();
});
$("open-seed").addEventListener("click", () => {
  const seed = Number($("seed").value);
  if (Number.isInteger(seed) && seed >= 0 && seed < 2 ** 32) openSeed(seed);
  else emit("problem", "A seed is a whole number from 0 to 4294967295.");
});
$("random-seed").addEventListener("click", () => openSeed(Math.floor(Math.random() * 1e6)));
on("session", () => {
  if (document.getElementById("images").open) draw();
});
