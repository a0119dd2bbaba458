// The strip below the image: every image of the history. A click goes to its last step before the present one, or to its
// first step after it.

import { redo, undo } from "./edits.js";
import { rove } from "./focus.js";
import { on, state } from "./state.js";

const strip = document.getElementById("history");
const refocus = rove(strip, "button");

on("session", () => {
  const { key, images, present } = state.session;
  const signature = `${key} ${images.join(" ")} ${present}`;
  if (strip.dataset.signature === signature) return;
  strip.dataset.signature = signature;
  const known = new Map([...strip.children].map((item) => [item.dataset.id, item]));
  const ids = images.filter((id, index) => id !== images[index - 1]);
  strip.replaceChildren(
    ...ids.map((id, index) => {
      const item = known.get(`${key} ${id}`) ?? make(key, id);
      const button = item.firstChild;
      button.ariaLabel = button.title = `Image ${index + 1} of ${ids.length}`;
      button.setAttribute("aria-current", id === images[present]);
      item.className = images.indexOf(id) > present ? "ahead" : "";
      return item;
    }),
  );
  refocus();
  const here = strip.children[ids.indexOf(images[present])];
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
    const first = images.indexOf(id);
    if (first > present) redo(first - present);
    else if (images[present] !== id) undo(present - images.lastIndexOf(id));
  });
  item.append(button);
  return item;
}
