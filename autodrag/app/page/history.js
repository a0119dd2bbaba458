// The strip of images below the image: every edit, each a click away.

import { redo, undo } from "./edits.js";
import { on, state } from "./state.js";

const strip = document.getElementById("history");

on("session", () => {
  const { key, images, present } = state.session;
  const signature = `${key} ${images.join(" ")} ${present}`;
  if (strip.dataset.signature === signature) return;
  strip.dataset.signature = signature;
  const known = new Map([...strip.children].map((item) => [item.dataset.id, item]));
  strip.replaceChildren(
    ...images.map((id, index) => {
      const item = known.get(`${key} ${id}`) ?? make(key, id);
      const button = item.firstChild;
      const name = index === 0 ? "Opened image" : `After edit ${index}`;
      button.ariaLabel = button.title = name;
      button.setAttribute("aria-current", index === present);
      item.className = index > present ? "ahead" : "";
      return item;
    }),
  );
  strip.hidden = images.length < 2;
  const here = strip.children[present];
  strip.scrollTo({ left: here.offsetLeft - strip.clientWidth / 2 });
});

function make(key, id) {
  const item = document.createElement("li");
  item.dataset.id = `${key} ${id}`;
  const button = document.createElement("button");
  const image = document.createElement("img");
  image.alt = "";
  image.src = `api/sessions/${key}/thumb?number=${id}`;
  button.append(image);
  button.addEventListener("click", () => {
    const { images, present } = state.session;
    const steps = images.indexOf(id) - present;
    if (steps < 0) undo(-steps);
    if (steps > 0) redo(steps);
  });
  item.append(button);
  return item;
}
